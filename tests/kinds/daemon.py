"""A program for tests: a file that says which run goes on, and how often it was restarted."""

from __future__ import annotations

from pathlib import Path

from salvor import system
from salvor.change import Reachable, State
from salvor.roles import Application
from salvor.system import verb


class Settings(system.Settings):
    path: Path
    uses: tuple[str, ...] = ()


class Daemon(Application):
    """The daemon kind."""

    Settings = Settings

    @property
    def _run(self) -> int:
        return len(self.settings.path.read_text().splitlines())

    def observe(self) -> State:
        return State(Reachable.UP, "daemon", None, "runs", details={"run": str(self._run)})

    @verb(deadline=5)
    def start(self) -> None:
        """It runs always."""

    @verb(deadline=5)
    def stop(self) -> None:
        """It runs always."""

    @verb(deadline=5)
    def restart(self, run: str) -> None:
        """One more line, unless that was done."""
        if str(self._run) == run:
            with self.settings.path.open("a") as file:
                file.write("restarted\n")

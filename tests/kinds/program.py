"""A program for tests: a file that says which run of it goes on, and works on a folder. Each start is another run.

`<path>` holds the run's number, and `hung` behind it when it does not do its work; it is empty when it is stopped.
Where there is a file `<path>.needs` it names another file, without which it is never healthy; `<path>.dies` one that is
good, or else it does not stay up.
`<path>.acts` tells what was done, and what the folder held then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from salvor import system
from salvor.change import Change, Finding, Progress, Reachable, State
from salvor.errors import OutcomeUnknownError
from salvor.roles import Application
from salvor.system import verb

from tests import trouble


class Settings(system.Settings):
    path: Path
    works_on: Path
    uses: tuple[str, ...] = ()


class Program(Application):
    """The program kind."""

    Settings = Settings

    @property
    def run(self) -> str:
        return self.settings.path.read_text() if self.settings.path.exists() else ""

    def observe(self) -> State:
        if self.settings.path.is_dir():
            return State(Reachable.UNKNOWN, "program", None, "it gives no answer")
        reachable = Reachable.UP if self.run else Reachable.DOWN
        return State(reachable, "program", None, "it runs" if self.run else "it is stopped", details={"run": self.run})

    def apply(self, change: Change) -> Iterator[Progress | Finding]:
        with trouble.around(self.settings.path.parent, self.name, change.verb):
            yield from super().apply(change)

    def _did(self, what: str) -> None:
        data = self.settings.works_on / "live" / "data"
        with self.settings.path.with_suffix(".acts").open("a") as acts:
            acts.write(f"{what} {data.read_text().split()[0] if data.exists() else 'nothing'}\n")

    @verb(deadline=5)
    def start(self, await_health: bool = True) -> None:
        if not self.run:
            self._did("start")
            runs = self.settings.path.with_suffix(".acts").read_text().count("start")
            self.settings.path.write_text(f"run-{runs}")
        needs, dies = (self.settings.path.with_suffix(suffix) for suffix in (".needs", ".dies"))
        if dies.exists() and not Path(dies.read_text()).read_text().startswith("good"):
            self.settings.path.write_text("")
            raise OutcomeUnknownError("it does not stay up")
        if await_health and needs.exists() and not Path(needs.read_text()).exists():
            raise OutcomeUnknownError("it was started and is not healthy")

    @verb(deadline=5)
    def stop(self) -> None:
        if self.run:
            self._did("stop")
            self.settings.path.write_text("")

    @verb(deadline=5)
    def restart(self, run: str) -> None:
        if self.run == run:
            self.stop()
        self.start()

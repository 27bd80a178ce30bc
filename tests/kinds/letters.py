"""An outbox for tests: each message is a line in a file; the file is the receiver, so a repeat is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from salvor import system
from salvor.change import Change, Finding, Progress, Reachable, State
from salvor.errors import CannotError
from salvor.roles import Outbox
from salvor.system import verb

from tests import trouble


class Settings(system.Settings):
    path: Path


class Letters(Outbox):
    """The letters kind."""

    Settings = Settings

    def _sent(self) -> list[str]:
        return self.settings.path.read_text().splitlines() if self.settings.path.exists() else []

    def observe(self) -> State:
        return State(Reachable.UP, "letters", True, f"{len(self._sent())} sent")

    def messages(self, moment: str) -> list[Change]:
        if self._key(moment) in self._sent():
            return []
        return [self.change("send", why=f"it is {moment}", no_undo="a letter cannot be taken back", moment=moment)]

    def _key(self, moment: str) -> str:
        return f"{self.context.incident} {moment}"

    def apply(self, change: Change) -> Iterator[Progress | Finding]:
        with trouble.around(self.settings.path.parents[1], self.name, str(change.arguments["moment"])):
            yield from super().apply(change)

    @verb(deadline=5, waits=False)
    def send(self, moment: str) -> None:
        if not self.settings.path.parent.is_dir():
            raise CannotError("the post office is closed")
        if self._key(moment) not in self._sent():
            with self.settings.path.open("a") as letters:
                letters.write(f"{self._key(moment)}\n")

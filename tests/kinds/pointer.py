"""A route for tests: a file that holds the address that users are led to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from salvor import system
from salvor.change import Change, Finding, Progress, Reachable, State, Undo
from salvor.errors import CannotError
from salvor.roles import Route
from salvor.system import verb

from tests import trouble


class Settings(system.Settings):
    path: Path
    leads_to: str
    ttl: float | None = None


class Pointer(Route):
    """The pointer kind."""

    Settings = Settings

    def observe(self) -> State:
        if self.settings.path.is_dir():
            return State(Reachable.UNKNOWN, "", None, "it gives no answer")
        value = self.settings.path.read_text() if self.settings.path.exists() else ""
        return State(Reachable.UP, value, None, f"leads to {value}", address=value, details={"ttl": self.settings.ttl})

    def change_to(self, address: str, state: State) -> Change | None:
        if state.address == address:
            return None
        back = Undo("point", {"address": state.address, "expected": address})
        return self.change(
            "point", why=f"users are led to {state.address}", undo=back, address=address, expected=state.address
        )

    def forecast(self, state: State, change: Change) -> State:
        address = str(change.arguments["address"])
        return State(Reachable.UP, address, None, f"leads to {address}", address=address)

    def apply(self, change: Change) -> Iterator[Progress | Finding]:
        with trouble.around(self.settings.path.parent, self.name, change.verb):
            yield from super().apply(change)

    @verb(deadline=5)
    def point(self, address: str, expected: str) -> None:
        now = self.observe().address
        if now not in (address, expected):
            raise CannotError(f"{self.name} was changed by somebody else: it is {now}.")
        self.settings.path.write_text(address)

"""Whether the inventory describes the server that is seen: where it does not, nothing is fenced or replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from salvor.errors import CannotError
from salvor.postgres import refusal

if TYPE_CHECKING:
    from salvor.postgres.cluster import Sighting
    from salvor.postgres.facts import Facts
    from salvor.postgres.look import Look
    from salvor.postgres.server import Server


@dataclass(frozen=True)
class Mistake:
    """What is seen, and what is to be mended in the inventory."""

    what: str
    mend: str


def mistake_in(server: Server, look: Look | None, facts: Facts | str) -> Mistake | None:
    """What the inventory says otherwise than it is seen. `facts`: what the server says, or why it does not answer."""
    if not look or (isinstance(facts, str) and not look.processes):
        return None
    if f"{server.programs}/postgres" in look.lacks:
        return Mistake(f"there is no postgres in {server.programs}", "install it, or mend programs:")
    if isinstance(facts, str):
        if look.port not in (None, server.port):
            return Mistake(f"it runs and listens on port {look.port}, not on {server.port}", "mend the member's port:")
        if look.is_on_loopback_alone and "refused" in facts:
            return Mistake(
                f"it runs and listens on its own machine alone (127.0.0.1), not on {server.address}",
                f"set listen_addresses in {server.configuration_file} and restart it, or mend the member's address:",
            )
        mend = refusal.mend(facts)
        return Mistake(f"it runs and does not let the operator in: {facts}", mend) if mend else None
    if facts.data != server.data and not look.processes:
        return Mistake(
            f"who answers there works in {facts.data}, not in {server.data}", "mend the member's data: or host:"
        )
    if facts.configuration != server.configuration_file and server.configuration_file in look.lacks:
        return Mistake(
            f"its postgresql.conf is not {server.configuration_file}",
            f"write configuration: {facts.configuration} beside the member's data:",
        )
    return None


def require_described(name: str, primary: Sighting) -> None:
    """Raises CannotError where the inventory describes another server than the one that is seen."""
    if primary.mistake:
        raise CannotError(
            f"{name} is not as the inventory describes it: {primary.member.name}: {primary.mistake.what}.",
            safe="nothing was changed",
            hint=f"{primary.mistake.mend}, then run the same command again",
        )

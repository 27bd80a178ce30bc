"""What a system can be, beside observable: data that comes back, a route, a machine, an application, and so on. Each
promises verbs, which every kind of it has.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from salvor.change import (
    Argument,
    Backup,
    Change,
    Finding,
    Reachable,
    Staged,
    State,
    Unread,
    Verdict,
    WayBack,
)
from salvor.errors import SalvorError
from salvor.system import System
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.backups.audit import Audited

FORECAST = "(will be known when it is made)"
"""The identity of what does not exist yet, in a plan."""


class Restorable(System):
    """A system that holds data: it can be fenced, staged beside, verified, promoted, and put back.

    Verbs that every kind has: `fence(identity)`, `unfence(identity)`, `stage(...)`, `drop(stage)`,
    `promote(identity, stage, ...)` and its way back, `discard(kept)`.
    """

    unread: Sequence[Unread] = ()
    """The repositories that `backups` could not read when it was called last."""

    def _list(self, sources: Mapping[tuple[str, str], Callable[[], list[Backup]]]) -> list[Backup]:
        """The backups of every repository that can be read, newest first; the others are `unread` then. `sources` are
        the repositories' names and locations. Raises what the first one said when none can be read.
        """
        found: list[Backup] = []
        failed: list[tuple[Unread, SalvorError]] = []
        for (name, location), read in sources.items():
            try:
                found += read()
            except SalvorError as error:
                failed.append((Unread(name, location, error.what), error))
        self.unread = [one for one, _ in failed]
        if failed and len(failed) == len(sources):
            raise failed[0][1]
        return sorted(found, key=lambda backup: backup.taken, reverse=True)

    @abstractmethod
    def ways_back(self, wish: Wish) -> list[WayBack]:
        """Every way to bring it back, best first, the impossible ones with the reason. Reads only."""

    @abstractmethod
    def verify(self, way: WayBack, wish: Wish) -> Iterator[Finding]:
        """Prove what `way.stage` names: engine integrity, fingerprint, freshness. Reads only; the live side is not
        touched.
        """

    asked_by: ClassVar[Literal["sql", "ask"]] = "sql"
    """The word by which a check puts its question to this kind."""

    @classmethod
    def check_question(cls, question: str) -> None:
        """Raises UsageError for a question that this kind would not understand, as far as that can be told here."""

    @abstractmethod
    def ask(self, statement: str, where: str) -> Any:
        """The first value that a read-only query of a service's check returns.

        `where` is `live`, a stage's name, or `address:HOST`. Raises CannotError when there is no answer in time.
        """

    def side_servers(self) -> list[str]:
        """What runs for this incident's stages, or listens where only a stage would, in words. Reads only."""
        return []

    def audit(self, *, deep: bool) -> Iterator[Audited]:
        """What is wrong with its repositories of backups: integrity, permissions, room, WAL. `deep` reads all of them.
        Reads only. Raises CannotError when one cannot be looked at.
        """
        yield from ()

    def expiry(self, verdicts: Sequence[Verdict]) -> Iterator[Change]:
        """What removes the backups that a policy lets go: a change for each repository. Kinds whose settings can say
        `keep` have the verb `expire(repository, backups)`.
        """
        gone: dict[str, list[Argument]] = {}
        for one in verdicts:
            if not one.stays:
                gone.setdefault(one.backup.repository, []).append(one.backup.id)
        for repository, ids in gone.items():
            kept = sum(1 for one in verdicts if one.stays and one.backup.repository == repository)
            yield self.change(
                "expire",
                why=f"the policy lets go of {len(ids)} and keeps {kept}",
                no_undo="what is removed is gone for good",
                repository=repository,
                backups=ids,
            )

    def redundancy(self, tell: Callable[[str], object] = lambda said: None) -> Iterator[Change]:
        """What is to be done after the service is back so that it is protected again: standbys, a fresh backup. `tell`
        is told what a look waits for.
        """
        yield from ()

    def forecast(self, state: State, change: Change) -> State:
        """The standard verbs, as any engine's state shows them."""
        arguments = change.arguments
        if change.verb == "fence":
            return replace(state, writable=False)
        if change.verb == "unfence":
            return replace(state, writable=None)
        if change.verb == "stage":
            name = str(arguments["stage"])
            return replace(state, staged=(*state.staged, Staged(name, FORECAST, complete=True)))
        return state


class Route(System):
    """A system that leads users to another one: a DNS record, a load balancer's backend."""

    @property
    def leads_to(self) -> str:
        """The name of the system that it leads to."""
        return str(self.settings.leads_to)

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (self.leads_to,)

    @abstractmethod
    def change_to(self, address: str, state: State) -> Change | None:
        """The change that points it at `address`, with the old value as its prerequisite; None when it leads there
        already.
        """


class Outbox(System):
    """Where messages to people go out, each once."""

    @abstractmethod
    def messages(self, moment: str) -> list[Change]:
        """The messages of a moment (declared, recovered, failed, undone) that are still to be sent; each names it in
        the argument `moment`.
        """

    def unreachable(self) -> dict[str, str]:
        """The channels to which nothing could be sent, and why, as far as that can be told without sending anything."""
        return {}


class Machine(System):
    """A machine: it can be cut off from everybody but its operator, and it runs services.

    Verbs that every kind has: `fence(identity)`, `unfence(identity)`, `start(service)`, `stop(service)`,
    `restart(service, run)`.
    """

    @abstractmethod
    def is_cut_off(self) -> bool:
        """Whether it is known that nobody but its operator reaches it, also after a reboot. Reads only, never raises
        for what does not answer.
        """

    def forecast(self, state: State, change: Change) -> State:
        """Whether others may reach it is what `writable` says of a machine."""
        return replace(state, writable={"fence": False, "unfence": True}.get(change.verb, state.writable))


class Timetable(System):
    """What begins commands at their times. Verbs that every kind has: `install(name, at, run)`, `remove(name)`."""


class Cache(System):
    """What may be emptied, because it fills again. `details["now"]` of its state is the time there.

    Verb that every kind has: `clear(before)`, of what was in it at a time of its own clock.
    """


class Application(System):
    """A program that users reach and that works on the data of other systems: it is stopped before these are cut over,
    and started after. `details["run"]` of its state names the run that goes on (empty: that cannot be told), so that a
    hanging run is stopped and not the one after it.

    Verbs that every kind has: `start(await_health=True)`, `stop()`, `restart(run)`.
    """

    @property
    def uses(self) -> tuple[str, ...]:
        """The names of the systems whose data it works on."""
        return tuple(self.settings.uses)

    @property
    def depends_on(self) -> tuple[str, ...]:
        return self.uses

    def forecast(self, state: State, change: Change) -> State:
        """Whether it runs."""
        runs = {"start": Reachable.UP, "restart": Reachable.UP, "stop": Reachable.DOWN}
        return replace(state, reachable=runs.get(change.verb, state.reachable))

"""A PostgreSQL cluster as it is seen: all members side by side, who is the primary, and who follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from salvor import unmounted
from salvor.change import ABSENT, UNSEEN, Reachable
from salvor.deadline import within
from salvor.errors import SalvorError
from salvor.postgres import fence, refusal
from salvor.postgres.beside import read_marker
from salvor.postgres.described import Mistake, mistake_in
from salvor.postgres.facts import Facts, ask_facts, describe_awaited
from salvor.postgres.fence import Block
from salvor.postgres.look import Look
from salvor.postgres.server import Server
from salvor.wish import Wish

_Answer = TypeVar("_Answer")
_LOOK_SECONDS = 4.0
_ANSWERS_SECONDS = 0.5
"""How long a server is given before its machine is asked whether it is cut off."""


@dataclass(frozen=True)
class Member:
    """A place where a server of the cluster lives. Whether it is the primary is observed, never written.

    `machine` is the machine there, as the inventory names it (empty: it does not); `is_cut_off` asks it whether nobody
    but its operator reaches it.
    """

    name: str
    server: Server
    machine: str = ""
    is_cut_off: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Sighting:
    """What was seen of one member. `look` is None when its machine does not answer, `facts` when it does not itself."""

    member: Member
    look: Look | None
    facts: Facts | None
    reachable: Reachable
    detail: str
    block: Block | None
    is_cut_off: bool = False
    """Its machine is known to be cut off from everybody but its operator, also after a reboot."""
    mistake: Mistake | None = None
    """What the inventory says of it otherwise than it is seen."""

    @property
    def identity(self) -> str:
        """That of its data directory; with `/<database oid>` when an incident's restore swapped one database in it."""
        if not self.look:
            return UNSEEN
        swapped_in = self.facts.swapped_in if self.facts else None
        return self.look.identity + (f"/{swapped_in.partition(' ')[0]}" if swapped_in else "")

    @property
    def system_identifier(self) -> str:
        """What initdb gave the cluster, and copies of it keep; empty when its control file cannot be read."""
        control = self.look.control if self.look else None
        return (control or {}).get("Database system identifier", "")

    @property
    def origin(self) -> str | None:
        """The incident whose restore put the data there: the later one (their ids begin with their time) of that of the
        directory and that of the database in it, which a backup of the cluster holds too.
        """
        swapped_in = self.facts.swapped_in if self.facts else None
        of_the_database = swapped_in.partition(" ")[2] if swapped_in else ""
        of_the_directory = read_marker(self.look.marker if self.look else None).get("incident") or ""
        return max(of_the_database, of_the_directory) or None

    @property
    def timeline(self) -> int:
        return self.facts.timeline if self.facts else self.look.timeline if self.look else 0

    @property
    def is_up(self) -> bool:
        return self.reachable is Reachable.UP

    @property
    def is_frozen(self) -> bool:
        """It is stopped by a signal, and may wake up at any time."""
        return bool(not self.facts and self.look and self.look.is_frozen)

    @property
    def is_standby(self) -> bool:
        """It follows, or would follow if it were started. What cannot be seen is taken for a primary: the safe side."""
        if self.facts:
            return self.facts.in_recovery
        return bool(self.look and self.look.is_standby)

    @property
    def is_lost(self) -> bool:
        """Its data directory is gone or empty, and that is known: it is on no disk that is only not mounted."""
        return bool(self.look and self.look.identity == ABSENT and not self.look.unmounted)

    @property
    def is_fenced(self) -> bool:
        """It is known that only the operator can write to it, also after a restart: the evidence for a promotion."""
        return self.is_cut_off or self.is_shut

    @property
    def is_shut(self) -> bool:
        """Its own fence holds: that of its machine can be lifted without it."""
        if self.look is None:
            return False
        if not self.look.processes:
            return self.is_lost or self.block is not None
        # In force, it holds whether the server answers or not, for example while it is shutting down.
        return bool(self.block and self.block.in_force)

    @property
    def writable(self) -> bool | None:
        """Whether the applications can write to it; None: cannot tell (it may come back, or its commits hang)."""
        if self.is_fenced or (self.facts and self.facts.in_recovery):
            return False
        return True if self.facts and not self.facts.awaits else None

    def describe(self) -> str:
        """One line for people."""
        name = f"{self.member.name} ({self.member.server.address}:{self.member.server.port})"
        if self.is_cut_off:
            machine = self.member.machine
            before = f"stop the server there before inv hosts.unfence --limit={machine}"
            return f"{name}: its machine {machine} is cut off from everybody but its operator ({before})"
        if self.look is None:
            up = "it is up, and " if self.facts else ""
            return f"{name}: {up}its machine cannot be looked at: {self.detail}"
        if self.mistake:
            return f"{name}: {self.mistake.what}"
        if self.is_lost:
            left = f", {len(self.look.processes)} processes linger" if self.look.processes else ""
            return f"{name}: its data directory is lost{left}"
        if self.look.unmounted:
            return f"{name}: its data directory is not there: {unmounted.told(self.look.unmounted)}"
        role = "standby" if self.is_standby else "primary"
        fenced = "fenced " if self.is_fenced else ""
        if self.facts:
            hangs = f"; {describe_awaited(self.facts.awaits)}" if self.facts.awaits else ""
            return f"{name}: {fenced}{role}, up, timeline {self.timeline}{hangs}"
        word = "frozen by a signal" if self.is_frozen else self.reachable.value
        control = self.look.control or {}
        state = control.get("Database cluster state", "its control file cannot be read")
        full = "; the disk of its pg_wal is full" if self.look.is_without_room else ""
        return f"{name}: {fenced}{role}, {word} ({self.detail}); control file: {state}{full}"


def sight(member: Member, database: str) -> Sighting:
    """Look at one member, within about 4 s whatever is broken. Never raises for what is broken."""
    with ThreadPoolExecutor(3) as pool:
        hopeless, answers = threading.Event(), threading.Event()
        cut_off = pool.submit(_is_cut_off, member, answers, hopeless)
        looking = pool.submit(_or_error, lambda: within(_LOOK_SECONDS, lambda: _look(member.server, hopeless)))
        asking = pool.submit(
            _or_error, lambda: within(_LOOK_SECONDS, lambda: ask_facts(member.server, database), hopeless)
        )
        facts = asking.result()
        if not isinstance(facts, str):
            answers.set()
        looked = looking.result()
    seen = _sighting(member, looked, facts)
    mistake = mistake_in(member.server, seen.look, facts)
    return replace(seen, mistake=mistake, is_cut_off=seen.facts is None and cut_off.result())


def _sighting(member: Member, looked: Look | str, facts: Facts | str) -> Sighting:
    look = None if isinstance(looked, str) else looked
    block = fence.block_in(look.access) if look and look.identity != ABSENT else None
    if not isinstance(facts, str):
        return Sighting(member, look, facts, Reachable.UP, looked if isinstance(looked, str) else "", block)
    if look is None:
        return Sighting(member, None, None, Reachable.UNKNOWN, str(looked), None)
    if look.processes:
        return Sighting(member, look, None, Reachable.UNKNOWN, f"it runs and does not answer: {facts}", block)
    if "refused" in facts:
        return Sighting(member, look, None, Reachable.DOWN, "no process, and the port refuses", block)
    return Sighting(member, look, None, Reachable.UNKNOWN, f"no process of it, yet its port: {facts}", block)


def _is_cut_off(member: Member, answers: threading.Event, hopeless: threading.Event) -> bool:
    """Whether its machine is cut off; sets `hopeless` then. It is not asked for a server that answers."""
    if not member.machine or answers.wait(_ANSWERS_SECONDS) or not member.is_cut_off():
        return False
    hopeless.set()
    return True


def _look(server: Server, hopeless: threading.Event) -> Look:
    """What its machine shows; sets `hopeless` when that is a frozen server, so that nobody waits for its answer."""
    look = server.look_twice(deadline=_LOOK_SECONDS)
    if look.is_frozen:
        hopeless.set()
    return look


def _or_error(ask: Callable[[], _Answer]) -> _Answer | str:
    """The answer, or what went wrong, in one line."""
    import psycopg

    try:
        return ask()
    except SalvorError as error:
        return error.what
    except (psycopg.Error, TimeoutError, OSError) as error:
        return refusal.words(error)


@dataclass(frozen=True)
class View:
    """All members, seen at about the same time, on behalf of an incident (empty: none)."""

    sightings: tuple[Sighting, ...]
    incident: str = ""

    @property
    def primary(self) -> Sighting:
        """The primary, or what is left of it: an answering one first, then the newest timeline, then a lost one. Last
        come those that were put out of service before: another one took their place, also if it cannot be seen now.
        """
        primaries = [one for one in self.sightings if not one.is_standby]
        answering = [one for one in primaries if one.is_up and not one.is_fenced]
        in_service = [one for one in primaries if not self.is_out_of_service(one)]
        whole = [one for one in in_service if not one.is_lost]
        return max(
            answering or whole or in_service or primaries or list(self.sightings),
            key=lambda one: (one.timeline, not one.is_fenced),
        )

    def is_out_of_service(self, one: Sighting) -> bool:
        """Whether another incident fenced it, and it still is: its data is of before that."""
        return bool(one.is_shut and one.block and one.block.incident not in ("", self.incident))

    @property
    def live_timeline(self) -> int:
        """The primary's timeline or, where that cannot be read, the newest that a standby follows."""
        return self.primary.timeline or max((one.timeline for one in self._in_recovery), default=0)

    @property
    def standbys(self) -> list[Sighting]:
        """The members that follow, and answer."""
        return [one for one in self._in_recovery if one.timeline == self.live_timeline]

    @property
    def left_behind(self) -> list[Sighting]:
        """The members that answer and follow a history that ended: the primary was restored, or a restore of it was
        undone, and they were not rebuilt.

        They tell nothing of what is live: not what was written since, and not whether that is damaged. Their LSNs may
        be higher than the primary's.
        """
        return [one for one in self._in_recovery if one.timeline != self.live_timeline]

    @property
    def _in_recovery(self) -> list[Sighting]:
        return [one for one in self.sightings if one.facts and one.facts.in_recovery]

    @property
    def rivals(self) -> list[Sighting]:
        """Answering members beside the primary that take writes too: a split brain."""
        return [one for one in self.sightings if one.is_up and one.writable is not False and one is not self.primary]

    @property
    def unfenced(self) -> list[Sighting]:
        """What runs beside the primary, follows nobody, and is not fenced: it takes writes, or may come to."""
        return [
            one
            for one in self.sightings
            if one is not self.primary and one.look and one.look.processes and not (one.is_standby or one.is_fenced)
        ]

    def to_replace(self, wish: Wish) -> Sighting | None:
        """The member whose data directory a restore replaces: the primary's, or another one's when its machine does not
        answer or is to be cut off. None when there is none.
        """
        places = (one for one in (self.primary, *self.sightings) if not wish.gives_up(one.member.machine))
        return next((one for one in places if one.look), None)

    def of(self, name: str) -> Sighting:
        """The member of that name."""
        return next(one for one in self.sightings if one.member.name == name)

    def holder_of(self, identity: str) -> Sighting | None:
        """The member whose data directory has that identity; for `absent` the lost one. Of several (for `unknown`) one
        that is not known to be fenced.
        """
        directory = identity.partition("/")[0]
        holders = [one for one in self.sightings if one.identity.partition("/")[0] == directory]
        return min(holders, key=lambda one: one.is_fenced, default=None)


def view(members: Sequence[Member], database: str, incident: str) -> View:
    """Look at all members side by side: a dead one never holds the others."""
    with ThreadPoolExecutor(max(1, len(members))) as pool:
        return View(tuple(pool.map(lambda member: sight(member, database), members)), incident)

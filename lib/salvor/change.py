"""The data that flows between systems, steps and the runner: frozen, and building any of it touches nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

Argument = str | int | float | bool | None | list[Any] | dict[str, Any]
"""What a verb's argument may be: anything that JSON can carry."""


def canonical(value: object) -> str:
    """The one JSON text of a value (sorted keys, no spaces, UTF-8), so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Reachable(StrEnum):
    """Whether a system answers. UNKNOWN means that we cannot tell: it is not the same as DOWN."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Level(StrEnum):
    """The verdict of a Finding."""

    PASS = "pass"  # noqa: S105 - no password: the verdict
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Undo:
    """The way back of a change, as data: a verb on the same system and its arguments."""

    verb: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One verb on one system with its arguments, why, and its way back (or why it has none).

    `destructive` means that something is lost for good, or that more than what is broken is touched: it is approved by
    its identity. Made by `System.change`, which checks that the verb exists.
    """

    system: str
    verb: str
    arguments: Mapping[str, Argument]
    why: str
    undo: Undo | None = None
    no_undo: str = ""
    destructive: bool = False

    @property
    def key(self) -> str:
        """Identifies what would be done, without the reason: 16 hex digits."""
        text = canonical([self.system, self.verb, dict(self.arguments)])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]  # file names need not be UTF-8

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal; `from_json` reads it back."""
        return asdict(self) | {"key": self.key}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Change:
        """The Change that `to_json` wrote."""
        undo = data.get("undo")
        return Change(
            system=data["system"],
            verb=data["verb"],
            arguments=data["arguments"],
            why=data["why"],
            undo=Undo(undo["verb"], undo["arguments"]) if undo else None,
            no_undo=data.get("no_undo", ""),
            destructive=data.get("destructive", False),
        )


def plan_hash(changes: Iterable[Change]) -> str:
    """The hash that an operator approves: of the changes in their order, without their reasons. 12 hex digits."""
    return hashlib.sha256(canonical([change.key for change in changes]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Progress:
    """How far a verb is: `done` of `total` (None: not known) in `unit` (`bytes`, `objects`, ...); label: what it does
    now.
    """

    done: int
    total: int | None
    unit: str
    label: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw: the verdict, the figure, the limit. `evidence` names what it was seen on (an
    identity). `lacks` is how many seconds of commits a copy is known to lack (None: not known, or not asked).
    """

    subject: str
    check: str
    level: Level
    figure: str = ""
    limit: str = ""
    detail: str = ""
    evidence: str = ""
    lacks: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Finding:
        """The Finding that `to_json` wrote."""
        return Finding(**{**data, "level": Level(data["level"])})


@dataclass(frozen=True)
class Backup:
    """A restorable point that an engine lists.

    `taken` is the moment whose data it holds (UTC); `kind` is the engine's word (full, diff, incr, dump); `size` is
    bytes in the repository (0: the engine does not say); `window` is the range of times it can be recovered to (None:
    only `taken`); `fingerprint` says what the content was; `proven` when a restore of it was last verified. `content`
    is bytes that a restore of it brings back (None: as many as `size`), counted as `stage` counts them in its progress.
    `repository` names what holds it (a policy of retention counts in each by itself); `needs` are the ids of the
    backups without which it cannot be restored; `hold` is why nobody may remove it yet (an object lock); empty: nothing
    hinders.
    """

    id: str
    system: str
    way: str
    kind: str
    taken: datetime
    size: int
    location: str
    window: tuple[datetime, datetime] | None = None
    fingerprint: Mapping[str, Any] | None = None
    proven: datetime | None = None
    usable: bool = True
    detail: str = ""
    content: int | None = None
    repository: str = ""
    needs: tuple[str, ...] = ()
    hold: str = ""


@dataclass(frozen=True)
class Unread:
    """A repository of backups that could not be read, and why. What its backups call `location` begins with its own."""

    repository: str
    location: str
    why: str

    def hides(self, backup: Backup) -> bool:
        """Whether that backup, which was there before, may be there still."""
        return backup.repository == self.repository or backup.repository.startswith(f"{self.repository} ")


READ_FROM = "read from"
"""The check by which a stage says which archive it came out of: `figure` tells that from another one of its name,
`detail` is its address.
"""
ONE_ARCHIVE = "one archive"
"""The check whether all stages that came out of an archive came out of the same one."""
WRONG_ITSELF = "its sql is wrong"
"""The `figure` of a check whose own query is wrong, which says nothing of the data."""
NEWEST = "newest good"
"""The reason for which the newest usable backup stays, always."""


@dataclass(frozen=True)
class Verdict:
    """What a policy of retention says of one backup: `reasons` are why it stays; none: it goes."""

    backup: Backup
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)

    @property
    def is_of_the_day(self) -> bool:
        """Whether it is kept for its day, or as the newest one: from there on every moment should be reachable."""
        return any(reason == NEWEST or reason.startswith("daily ") for reason in self.reasons)


@dataclass(frozen=True)
class Staged:
    """A copy beside the live one: built by `stage` for an incident, or a standby that could be promoted.

    `complete` is False while it is being built; a half-built stage is never mistaken for a whole one. `of` are the
    arguments of `stage` that it was built with, as far as it tells. `backup` is the id of the one it was built from,
    where that need not be the chosen one: its copy elsewhere. `shows_all` is False for a standby that was told not to
    replay all that it has: damage may be in what it does not show yet.
    """

    name: str
    identity: str
    complete: bool
    address: str | None = None
    fresh: datetime | None = None
    detail: str = ""
    of: Mapping[str, Any] = field(default_factory=dict)
    backup: str | None = None
    shows_all: bool = True


@dataclass(frozen=True)
class Kept:
    """What was live before a cutover, kept until `discard`. `size` in bytes, None when not known."""

    name: str
    identity: str
    incident: str
    size: int | None = None


UNSEEN = "unknown"
"""The identity of what could not be looked at: its machine does not answer. It may be the broken one."""


ABSENT = "absent"
"""The identity of what is lost. One loss looks like any other."""


def is_within(identity: str, whole: str) -> bool:
    """Whether an identity is `whole`, or that of a part of it: `CLUSTER/DATABASE` of `CLUSTER`. A cluster that does not
    answer cannot say which database is live in it.
    """
    return identity == whole or identity.startswith(f"{whole}/")


@dataclass(frozen=True)
class State:
    """What `observe` saw.

    `identity` is that of what is live under the system's name (never only the name); `writable` None: cannot tell.
    `origin` is the incident whose stage is live now (None: no restore put it there). `fresh` is the newest commit, UTC.
    `address` is where the live one is reached, `machine` the machine that it is on, as the inventory names it (empty:
    it does not). `rivals` are the identities of what runs beside it and is not fenced: second primaries. `left_behind`
    tells, of each copy that should follow it, why it never will; `misdescribed`, of each part of it that is otherwise
    than the inventory says, how. `details` is for people and for the system's own kind of step.
    """

    reachable: Reachable
    identity: str
    writable: bool | None
    summary: str
    origin: str | None = None
    address: str | None = None
    fresh: datetime | None = None
    staged: tuple[Staged, ...] = ()
    kept: tuple[Kept, ...] = ()
    machine: str = ""
    rivals: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    misdescribed: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WayBack:
    """One way to bring a system back, possible or not, and why. Times in seconds; None: not known.

    `arguments` are those of `stage` (None: nothing needs to be staged, a standby is there); `stage` names what is
    verified and promoted, and `identity` is its identity where that is known before (a standby's).
    `loses` is the expected RPO: how much of the newest data this way would lose. `address` is where it will be live,
    `machine` the machine there, as the inventory names it (empty: it does not). `lacks_room`: it is not possible, and
    would be with more room on a disk.
    """

    name: str
    possible: bool
    why: str
    stage: str = ""
    identity: str = ""
    address: str | None = None
    backup: str | None = None
    arguments: Mapping[str, Argument] | None = None
    promote: Mapping[str, Argument] = field(default_factory=dict)
    promote_undo: Undo | None = None
    promote_no_undo: str = ""
    takes: float | None = None
    loses: float | None = None
    machine: str = ""
    lacks_room: bool = False

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> WayBack:
        """The WayBack that `asdict` wrote."""
        undo = data.get("promote_undo")
        return WayBack(**{**data, "promote_undo": Undo(**undo) if undo else None})

    def closed(self, why: str) -> WayBack:
        """The same way, which is not possible, however much room there is."""
        return replace(self, possible=False, why=why, lacks_room=False)


@dataclass(frozen=True)
class Decision:
    """What `assess` pins: the broken identity of a system and the way back chosen for it, with what was not chosen."""

    system: str
    identity: str
    seen: str
    way: WayBack
    others: tuple[WayBack, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Decision:
        """The Decision that `to_json` wrote."""
        return Decision(
            system=data["system"],
            identity=data["identity"],
            seen=data["seen"],
            way=WayBack.from_json(data["way"]),
            others=tuple(WayBack.from_json(other) for other in data["others"]),
        )

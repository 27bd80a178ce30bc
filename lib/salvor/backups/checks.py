"""What is wrong with backups: findings and figures, by their age, size, number and proof. It only judges."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from salvor import clock
from salvor.backups import audit
from salvor.backups.audit import Room
from salvor.backups.policy import Expect, Keep
from salvor.backups.retention import decide, is_ahead, is_good
from salvor.change import Backup, Finding, Level, Unread
from salvor.schedule.moments import Calendar
from salvor.show import write_bytes

AGE, SCHEDULE, SIZE, RETENTION, PROVEN = "age", "schedule", "size", "retention", "proven"
CHECKS = (AGE, SCHEDULE, SIZE, RETENTION, PROVEN, audit.INTEGRITY, audit.PERMISSIONS, audit.SPACE, audit.WAL)
"""Every check there is: the labels of the metric."""
ORDER = {Level.FAIL: 0, Level.UNKNOWN: 1, Level.WARN: 2, Level.PASS: 3}
SHRUNK = 0.5
"""A backup smaller than this share of the median of those before it has lost something."""
_COMPARED = 10
_WHOLE = ("full", "dump", "snapshot", "archive")
"""The kinds whose sizes can be compared: an increment is as large as what changed."""
_OVERDUE = timedelta(days=2)
DAYS_TO_FULL = (7.0, 1.0)
"""Days until a repository is full, below which it is a warning, and a failure."""
_APART = timedelta(days=1)
"""What a night takes says nothing of what a week does, nor does the day on which the first backup is made."""
_UNSAID = 0.01
"""The share of a file system that a backup is taken for whose size its engine does not say."""


@dataclass(frozen=True)
class Due:
    """When a backup is made, by a schedule: `of` names whose; `kinds` are the backups that count (none: any)."""

    of: str
    calendar: Calendar
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is known of a system beside its backups: the service's RPO (seconds), its policies (`own`: of single
    repositories), when backups are due, and the backups that the last look saw (by id: when it was seen last).
    `options` is how inv is told whose they are: `--service=shop --platform=shop`. `unread` are the repositories that
    could not be read now, `failed_drill` the newest drill that failed since a restore was proven.
    """

    rpo: float
    keep: Keep | None = None
    own: Mapping[str, Keep] = field(default_factory=dict)
    expect: Expect = field(default_factory=Expect)
    due: tuple[Due, ...] = ()
    earlier: Mapping[str, Backup] = field(default_factory=dict)
    options: str = ""
    unread: tuple[Unread, ...] = ()
    failed_drill: str = ""


def newest_point(backups: Sequence[Backup]) -> datetime | None:
    """The newest moment that can be restored, by backups that are not of a time to come."""
    furthest = reaches_furthest(backups)
    return _end(furthest) if furthest else None


def reaches_furthest(backups: Sequence[Backup]) -> Backup | None:
    """The usable backup that leads to that moment."""
    return max((one for one in backups if is_good(one)), key=_end, default=None)


def _end(backup: Backup) -> datetime:
    return backup.window[1] if backup.window else backup.taken


def judge(system: str, backups: Sequence[Backup], known: Known) -> Iterator[Finding]:
    """What is wrong with the backups of a system (newest first), and what is right."""
    for one in backups:
        if is_ahead(one):
            figure = f"{one.id} in {one.repository} is of {one.taken:%Y-%m-%d %H:%M} UTC, a time to come"
            detail = "the clock where it was made was wrong, or this one is; nothing is judged by it"
            yield Finding(system, AGE, Level.WARN, figure, detail=detail)
    good = [one for one in backups if is_good(one)]
    if not good and known.unread:
        names = ", ".join(one.repository for one in known.unread)
        yield Finding(system, AGE, Level.UNKNOWN, "no usable backup in what could be read", detail=f"without {names}")
        return
    if not good:
        yield Finding(system, AGE, Level.FAIL, "no usable backup", detail=f"inv backup {known.options}".rstrip())
        return
    yield from _age(system, good, known)
    for due in known.due:
        yield _due(system, good, due, known)
    yield from _sizes(system, good, known.expect)
    yield from _changed(system, backups, known.earlier)
    if known.keep:
        yield from _kept(system, backups, known.keep, known)
    yield _proven(system, good, known)


def _age(system: str, good: Sequence[Backup], known: Known) -> Iterator[Finding]:
    newest = newest_point(good)
    assert newest
    behind = clock.age(newest).total_seconds()
    level = Level.PASS if behind <= known.rpo else Level.FAIL
    limit = f"RPO {clock.write_duration(known.rpo)}"
    yield Finding(system, AGE, level, f"a restore would lose {clock.write_duration(max(0.0, behind))}", limit)
    oldest, latest = known.expect.oldest, max(one.taken for one in good)
    if oldest is not None:
        old = clock.age(latest).total_seconds()
        level = Level.PASS if old <= oldest else Level.FAIL
        figure = f"the newest backup is {clock.write_duration(max(0.0, old))} old"
        yield Finding(system, AGE, level, figure, clock.write_duration(oldest))


def _due(system: str, good: Sequence[Backup], due: Due, known: Known) -> Finding:
    """Whether there is a backup since the last moment at which one was due, and time enough went by."""
    now, within = clock.now(), known.expect.within
    last = due.calendar.last(now - timedelta(seconds=within))
    begun = last - clock.CLOCKS_DIFFER  # a backup bears the time of another machine
    made = [one for one in good if one.taken >= begun and (not due.kinds or one.kind in due.kinds)]
    figure = f"of {last:%Y-%m-%d %H:%M} UTC"
    limit = f"{due.calendar.text}, within {clock.write_duration(within)}"
    if made:
        return Finding(system, SCHEDULE, Level.PASS, f"the backup {figure} is there", limit, detail=due.of)
    if known.unread:
        names = ", ".join(one.repository for one in known.unread)
        figure = f"the backup {figure} is not in what could be read"
        return Finding(system, SCHEDULE, Level.UNKNOWN, figure, limit, detail=f"{due.of}; without {names}")
    return Finding(system, SCHEDULE, Level.FAIL, f"the backup {figure} is missing", limit, detail=due.of)


def series(good: Sequence[Backup]) -> dict[tuple[str, str, str], list[Backup]]:
    """The backups that can be compared with each other, newest first: by way, repository and kind."""
    found: dict[tuple[str, str, str], list[Backup]] = defaultdict(list)
    for one in sorted(good, key=lambda one: one.taken, reverse=True):
        if one.kind in _WHOLE:
            found[one.way, one.repository, one.kind].append(one)
    return found


def median_before(ordered: Sequence[Backup]) -> float | None:
    """The median size of the backups before the newest one; None when there are too few to compare with."""
    sizes = [one.size for one in ordered[1 : _COMPARED + 1] if one.size]
    return statistics.median(sizes) if len(sizes) > 1 else None


def _sizes(system: str, good: Sequence[Backup], expect: Expect) -> Iterator[Finding]:
    for (_, repository, kind), ordered in series(good).items():
        newest, median = ordered[0].size, median_before(ordered)
        figure, detail = f"{kind} of {write_bytes(newest)}", f"{ordered[0].id} in {repository}"
        if not newest:  # restic older than 0.17 does not say how large a snapshot is
            if expect.smallest:
                limit, told = (
                    f"at least {write_bytes(expect.smallest)}",
                    f"{kind}: its engine does not say how large it is",
                )
                yield Finding(system, SIZE, Level.UNKNOWN, told, limit, detail)
        elif newest < expect.smallest:
            yield Finding(system, SIZE, Level.FAIL, figure, f"at least {write_bytes(expect.smallest)}", detail)
        elif median is not None and newest < SHRUNK * median:
            limit = f"half of the median of those before it, {write_bytes(median)}"
            yield Finding(system, SIZE, Level.FAIL, figure, limit, detail)
        else:
            yield Finding(system, SIZE, Level.PASS, figure, detail=detail)


def _changed(system: str, backups: Sequence[Backup], earlier: Mapping[str, Backup]) -> Iterator[Finding]:
    """A backup never changes: one that has another size than at the last look was cut off, or written over."""
    for one in backups:
        before = earlier.get(_key(one))
        if before and before.size != one.size:
            figure = f"{one.id} has {write_bytes(one.size)}"
            detail = f"{write_bytes(before.size)} when it was looked at last, in {one.repository}"
            yield Finding(system, audit.INTEGRITY, Level.FAIL, figure, detail=detail)


def _kept(system: str, backups: Sequence[Backup], keep: Keep, known: Known) -> Iterator[Finding]:
    """Whether everything that the policy keeps is there, and nothing that it let go long ago."""
    gone = list(vanished(backups, known).values())
    if gone:
        shown = ", ".join(f"{one.id} in {one.repository}" for one in gone[:3]) + (", ..." if len(gone) > 3 else "")
        detail = f"{shown}: the last look saw it, and the policy keeps it"
        yield Finding(system, RETENTION, Level.FAIL, f"{len(gone)} vanished", detail=detail)
    verdicts = decide(backups, keep, known.own)
    left = [one.backup for one in verdicts if not one.stays and clock.age(one.backup.taken) > _OVERDUE]
    if left:
        figure = f"{len(left)} are there that the policy lets go"
        yield Finding(system, RETENTION, Level.WARN, figure, detail="inv retention removes them")
    if not gone and not left:
        yield Finding(system, RETENTION, Level.PASS, f"{sum(1 for one in verdicts if one.stays)} kept")


def vanished(backups: Sequence[Backup], known: Known) -> dict[str, Backup]:
    """What an earlier look saw, is not there any more, and would be kept by the policy."""
    there = {_key(one) for one in backups} | hidden(known).keys()
    lost = {key: one for key, one in known.earlier.items() if key not in there}
    if not known.keep:
        return {}
    stay = {_key(one.backup) for one in decide([*backups, *lost.values()], known.keep, known.own) if one.stays}
    return {key: one for key, one in lost.items() if key in stay}


def hidden(known: Known) -> dict[str, Backup]:
    """What an earlier look saw and whose repository cannot be read now: whether it is still there is not known."""
    return {key: one for key, one in known.earlier.items() if any(unread.hides(one) for unread in known.unread)}


def _key(backup: Backup) -> str:
    return f"{backup.repository} {backup.id}"


def remembered(backups: Sequence[Backup], known: Known) -> dict[str, Backup]:
    """What a later look compares with: what is there, what vanished, and what cannot be seen now. One that was larger
    at an earlier look is remembered as it was then, or what cut it off would be told only once.
    """
    there = {_key(one): one for one in backups if one.usable}
    larger = {key: one for key, one in known.earlier.items() if key in there and one.size > there[key].size}
    return {**vanished(backups, known), **hidden(known), **there, **larger}


def _proven(system: str, good: Sequence[Backup], known: Known) -> Finding:
    proofs = [one.proven for one in good if one.proven]
    if known.failed_drill:
        figure = f"the drill {known.failed_drill} failed, and no restore was proven since"
        return Finding(system, PROVEN, Level.FAIL, figure, detail=f"inv incident.show --incident={known.failed_drill}")
    limit, by_hand = clock.write_duration(known.expect.proven), f"inv restore --test {known.options}".rstrip()
    if not proofs:
        return Finding(system, PROVEN, Level.WARN, "no restore of any of these was ever proven", limit, by_hand)
    age = clock.age(max(proofs)).total_seconds()
    figure = f"a restore was proven {clock.write_duration(age)} ago"
    if age <= known.expect.proven:
        return Finding(system, PROVEN, Level.PASS, figure, limit)
    return Finding(system, PROVEN, Level.WARN, figure, limit, by_hand)


def fill(system: str, room: Room, earlier: Mapping[datetime, int], newest: int) -> Finding:
    """Whether the repository has room for what comes: `earlier` is what was free of it (bytes) at earlier looks, and
    `newest` the size of the newest backup there.
    """
    figure = f"{write_bytes(room.free)} free of {write_bytes(room.size)}"
    days = days_to_full(room.free, earlier)
    needed, what = (newest, "as the newest") if newest else (int(_UNSAID * room.size), "a hundredth of the disk")
    if room.free < needed:
        return Finding(system, audit.SPACE, Level.FAIL, figure, f"{write_bytes(needed)}, {what}", room.path)
    if days is None:
        level = Level.WARN if room.free < 3 * needed else Level.PASS
        return Finding(system, audit.SPACE, level, figure, f"three times {write_bytes(needed)}", room.path)
    warn, fail = DAYS_TO_FULL
    level = Level.FAIL if days < fail else Level.WARN if days < warn else Level.PASS
    until = f", full in {clock.write_duration(days * 86400)}" if days < 3650 else ""
    return Finding(system, audit.SPACE, level, figure + until, f"{warn:.0f} d", f"{room.path}, if it goes on so")


def days_to_full(free: int, earlier: Mapping[datetime, int]) -> float | None:
    """Days until nothing is free any more, if it goes on as since the oldest look; None when that cannot be told, or
    it does not shrink.
    """
    known = {at: then for at, then in earlier.items() if clock.age(at) >= _APART}
    if not known:
        return None
    oldest = min(known)
    lost = known[oldest] - free
    return free / (lost / (clock.age(oldest) / timedelta(days=1))) if lost > 0 else None

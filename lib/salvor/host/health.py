"""What is wrong with a machine, from what it says of itself: findings, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from salvor import clock
from salvor.change import Finding, Level
from salvor.host.facts import Disk, Facts

FULL = (0.90, 0.97)
"""The shares of a disk's room or inodes from which it is a warning, and a failure."""
DAYS_LEFT = (7.0, 1.0)
LITTLE_MEMORY = 0.05
LOAD = 4.0
"""Load for each processor."""
CLOCK = 2.0
"""Seconds."""
_APART = timedelta(minutes=10)
"""How far apart two looks must be to tell how a disk grows."""

ORDER = {Level.FAIL: 0, Level.UNKNOWN: 1, Level.WARN: 2, Level.PASS: 3}


@dataclass(frozen=True)
class Look:
    """How much of each disk was taken at a time: bytes by path."""

    at: datetime
    used: Mapping[str, int]


def look(facts: Facts) -> Look:
    """What a later look compares with."""
    return Look(clock.now(), {disk.path: disk.used for disk in facts.disks})


def days_to_full(disk: Disk, earlier: Sequence[Look]) -> float | None:
    """How many days the free room lasts if it goes on as it did since the oldest look; None when that is not known, or
    it does not grow.
    """
    known = [one for one in earlier if disk.path in one.used and clock.age(one.at) >= _APART]
    if not known:
        return None
    oldest = min(known, key=lambda one: one.at)
    grown = disk.used - oldest.used[disk.path]
    days = clock.age(oldest.at) / timedelta(days=1)
    return max(0, disk.free) / (grown / days) if grown > 0 else None


def findings(subject: str, facts: Facts, earlier: Sequence[Look] = ()) -> list[Finding]:
    """What is wrong with the machine `subject`, the worst first; none when nothing is."""
    found = [*_services(subject, facts), *_network(subject, facts), *_load(subject, facts)]
    for disk in facts.disks:
        found += _disk(subject, disk, days_to_full(disk, earlier))
    return sorted(found, key=lambda one: ORDER[one.level])


def _services(subject: str, facts: Facts) -> Iterator[Finding]:
    for service in facts.services:
        if not service.runs:
            level = Level.UNKNOWN if service.state == "unknown" else Level.FAIL
            by = f" ({service.manager})" if service.manager != "none" else ""
            yield Finding(subject, service.name, level, f"{service.state}{by}", "running")
    named = {service.name.removesuffix(".service") for service in facts.services}
    for unit in facts.failed_units:
        if unit.removesuffix(".service") not in named:
            yield Finding(subject, unit, Level.WARN, "failed (systemd)")


def _network(subject: str, facts: Facts) -> Iterator[Finding]:
    if facts.fence.stands:
        kept = "" if facts.fence.kept else ", until its next reboot only"
        yield Finding(subject, "fence", Level.WARN, f"everything is off but SSH from its operator{kept}")
    elif facts.fence.stands is None and facts.fence.written:
        yield Finding(subject, "fence", Level.UNKNOWN, "its file is there; only root sees whether the rules stand")
    elif facts.fence.written:
        yield Finding(subject, "fence", Level.FAIL, "it was fenced, and the rules are gone", detail="fence it again")


def _load(subject: str, facts: Facts) -> Iterator[Finding]:
    if abs(facts.clock_offset) - facts.clock_error > CLOCK:
        ahead = "ahead" if facts.clock_offset > 0 else "behind"
        figure = f"{clock.write_duration(abs(facts.clock_offset))} {ahead}"
        yield Finding(subject, "clock", Level.WARN, figure, clock.write_duration(CLOCK))
    if facts.memory_free < LITTLE_MEMORY * facts.memory:
        figure = f"{facts.memory_free / facts.memory:.1%} free"
        yield Finding(subject, "memory", Level.WARN, figure, f"{LITTLE_MEMORY:.0%}")
    if facts.load > LOAD * facts.processors:
        figure = f"{facts.load:.1f} on {facts.processors}"
        yield Finding(subject, "load", Level.WARN, figure, f"{LOAD * facts.processors:.0f}")


def _disk(subject: str, disk: Disk, days: float | None) -> Iterator[Finding]:
    warn, fail = FULL
    for check, share in ((disk.path, disk.full), (f"{disk.path} inodes", disk.inodes_full)):
        if share >= warn:
            level = Level.FAIL if share >= fail else Level.WARN
            yield Finding(subject, check, level, f"{share:.0%} full", f"{warn:.0%}")
    if disk.read_only:
        yield Finding(subject, disk.path, Level.FAIL, "read-only")
    if days is not None and days < DAYS_LEFT[0]:
        level = Level.FAIL if days < DAYS_LEFT[1] else Level.WARN
        figure = f"full in {clock.write_duration(days * 86400)}"
        yield Finding(subject, disk.path, level, figure, f"{DAYS_LEFT[0]:.0f} d", detail="if it grows as until now")

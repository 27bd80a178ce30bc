"""How far a standby is behind its primary, by what it has received, replayed or not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime

from salvor import clock
from salvor.errors import SalvorError
from salvor.postgres.cluster import Sighting
from salvor.postgres.wal import name_of, read_lsn, write_lsn


@dataclass(frozen=True)
class Lag:
    """How far a standby is behind: seconds of commits that it lacks (None: cannot be told), and why we think so.
    `lacks` are these seconds where every commit that it has was counted.
    """

    seconds: float | None
    why: str
    lacks: float | None = None


def lag_of(standby: Sighting, primary: Sighting) -> Lag:
    """What would be lost by promoting `standby` now: it replays first what it has received."""
    has = _what_is_received(standby)
    if primary.facts and not primary.facts.in_recovery:
        missing = primary.facts.lsn - has.end
        if missing <= 0:
            return Lag(0.0, "it has received everything", 0.0)
        newest = primary.facts.fresh or primary.facts.now
        seconds = max(0.0, (newest - has.fresh).total_seconds()) if has.fresh else None
        return Lag(seconds, f"it is {missing} bytes of WAL behind", seconds)
    commits = missing_commits(primary, has.begin)
    if commits is None:
        return Lag(None, "the WAL of the old primary cannot be read, so what it had more is not known")
    count, last = commits
    count -= has.is_commit
    if not count:
        why = f"it has every commit that is in the old primary's WAL, up to {write_lsn(has.end)}"
        return Lag(0.0, why, 0.0 if has.is_whole else None)
    seconds = max(0.0, (last - has.fresh).total_seconds()) if last and has.fresh else None
    return Lag(seconds, f"the old primary's WAL has {count} commits more", seconds if has.is_whole else None)


@dataclass(frozen=True)
class _Received:
    """What a standby has received up to `end` (bytes). `begin` is where the last record begins that it has whole, which
    `is_commit` or not; where nothing is to be replayed, the end itself. `fresh` is its newest commit. `is_whole` is
    False when its WAL could not be read: then records behind `begin` may be there.
    """

    begin: int
    end: int
    is_commit: bool
    fresh: datetime | None
    is_whole: bool


_READ_SECONDS = 20.0
"""For WAL that is read: a primary may hold very much of it for a standby that went away."""
_TAIL = 4 * 1024 * 1024
"""Bytes of WAL in which the newest record, and mostly the newest commit, are looked for."""
_RECORD = re.compile(r"lsn: ([0-9A-F]+/[0-9A-F]+)")


def _what_is_received(standby: Sighting) -> _Received:
    """What a standby has, also where it has not replayed it: that is read by pg_waldump from its own pg_wal. What was
    received last may end amid a record.
    """
    facts = standby.facts
    assert facts
    replayed = _Received(facts.received, facts.received, is_commit=False, fresh=facts.fresh, is_whole=True)
    if facts.lsn >= facts.received:
        return replayed
    unknown = replace(replayed, is_whole=False)
    try:
        lines = _read_wal(standby, max(facts.lsn, facts.received - _TAIL), _LAST_RECORDS)
    except SalvorError:  # its machine does not answer, though it does
        lines = None
    if lines is None:
        return unknown
    records = [line for line in lines if _RECORD.search(line)]
    if not records:  # but a part of one
        return replace(replayed, begin=facts.lsn) if facts.received - facts.lsn < _TAIL else unknown
    begin = _RECORD.search(records[-1])
    commits = [found for line in records if (found := _COMMIT.search(line))]
    fresh = _time_of(commits[-1]) if commits else facts.fresh
    assert begin
    return _Received(read_lsn(begin[1]), facts.received, bool(_COMMIT.search(records[-1])), fresh, is_whole=True)


_COMMIT = re.compile(r"desc: COMMIT(?:_PREPARED \d+:)? (\S+ \S+) UTC")
_COMMITS = "--rmgr=Transaction 2>/dev/null | grep -e 'desc: COMMIT' | sed -n -e '$p' -e '$='"
"""Of the records the last commit, and how many there are."""
_LAST_RECORDS = "2>/dev/null | awk '/desc: COMMIT/ { commit = $0 } { last = $0 } END { print commit; print last }'"
"""Of the records the last commit, and the last one."""


def missing_commits(primary: Sighting, lsn: int) -> tuple[int, datetime | None] | None:
    """The commits behind `lsn` in the WAL of a primary that does not answer, or is fenced: how many, and when the last
    was.

    None when its WAL cannot be read there, or begins behind `lsn`. Read by pg_waldump from pg_wal itself: no server
    has to run.
    """
    lines = _read_wal(primary, lsn, _COMMITS)
    if lines is None:
        return None
    if len(lines) < 2:
        return 0, None
    found = _COMMIT.search(lines[0])
    return int(lines[1]), _time_of(found) if found else None


def _time_of(commit: re.Match[str]) -> datetime:
    return clock.read_time(commit[1].replace(" ", "T") + "+00:00")


def _read_wal(one: Sighting, lsn: int, chosen: str) -> list[str] | None:
    """The records of a member's pg_wal from `lsn` on, of which the shell has `chosen`; None when they cannot be read
    from there. Raises OutcomeUnknownError when that takes too long.
    """
    if not one.look or one.is_lost or not one.timeline or not one.look.control:
        return None
    server = one.member.server
    size = int(one.look.control["Bytes per WAL segment"])
    first, before = (name_of(one.timeline, place, size) for place in (lsn, max(0, lsn - 1)))
    script = rf"""
        command -v -- "$1" >/dev/null && cd -- "$2/pg_wal" && {{ test -r "$5" || test -r "$6"; }} || exit 44
        "$1" --path="$2/pg_wal" --timeline="$3" --start="$4" {chosen}
    """
    argv = ["sh", "-c", script, "sh", server.program("pg_waldump"), server.data, str(one.timeline), write_lsn(lsn)]
    argv += [first, before]
    result = server.shell.run(argv, environment={"TZ": "UTC"}, deadline=_READ_SECONDS, check=False)
    return None if result.exit_code == 44 else result.stdout.splitlines()

"""Incidents in brief: what history, readiness and trends need of each, read quickly from thousands of journals.

Only the lines that tell of it are parsed, and nothing is kept from one command to the next: an index could be stale or
damaged, and what is said here is what the journals say now. `salvor.journal.story` tells one incident whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from salvor import clock, durable, journal
from salvor.errors import UsageError
from salvor.journal.line import parse, split

# How `line.encode` writes it. A quote inside of a text is escaped, so this is never found in one.
_KIND = re.compile(rb'"kind":"([a-z]+)"')
_PLATFORM = re.compile(rb'"platform":"([a-z0-9-]+)"')
OVER = ("closed", "undone", "discarded")
"""The lines after which nothing is done in an incident any more."""
FAILED = "failed"
"""The result of a drill, or of maintenance, that is closed because it failed."""
_SAYS_OVER = re.compile(rb'"kind":"(?:closed|undone|discarded)"')
_TAIL = 4096
_ID_BEGIN, _ID_END = len("20261121T003300Z-"), len("-3f2a")


class Act(NamedTuple):
    """A change that was carried out: `seconds` that it took, and how many `bytes` it moved (0: not known)."""

    system: str
    verb: str
    seconds: float
    bytes: int


class Proof(NamedTuple):
    """A copy that passed `verify`, and the backup that it was made of (None: a standby)."""

    system: str
    backup: str | None
    at: datetime


@dataclass(slots=True)
class Brief:
    """One incident, drill or piece of maintenance. Times are UTC, durations in seconds."""

    incident: str
    platform: str
    service: str
    purpose: str
    runbook: str
    detected_at: datetime
    failed_at: datetime | None
    targets: Mapping[str, float]
    measured: dict[str, Any] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    """The way back that was chosen for each broken system."""
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that came to its end, the longest where it was walked through more than once."""
    acts: list[Act] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)
    """What is still owed."""
    marks: dict[str, datetime] = field(default_factory=dict)
    """When it was recovered, undone, discarded, failed for good, closed: what happened of these, in its order."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is done in it any more."""
        return any(kind in self.marks for kind in OVER)

    @property
    def state(self) -> str:
        """`open`, or how it ended, in the order of what happened: `recovered, closed`."""
        return ", ".join(self.marks) or "open"

    @property
    def good_at(self) -> datetime | None:
        """When the first good check came through the route; None while it did not recover."""
        good_at = self.measured.get("good_at")
        return clock.read_time(good_at) if good_at else None

    def figure(self, name: str) -> float | None:
        """`rto` or `rpo` as it was measured, in seconds."""
        value = self.measured.get(name)
        return float(value) if value is not None else None

    def is_met(self, name: str) -> bool | None:
        """Whether `rto` or `rpo` was within its target of that time; None when it was not measured."""
        figure, limit = self.figure(name), self.measured.get(f"{name}_target", self.targets.get(name))
        return None if figure is None or limit is None else figure <= float(limit)


def read(folder: Path) -> Brief | None:
    """The incident in `folder` in brief; None when its journal cannot be read, or does not say what it is of."""
    try:
        content = durable.read(folder / journal.FILE)
    except OSError:
        return None
    return _tell(content)


def newest_first(folder: Path, platform: str = "") -> Iterator[Brief | None]:
    """Every journal below `folder` in brief, the newest first; only those of one platform, when it is named. None
    stands for one that cannot be read. Raises CannotError when `folder` cannot be read.
    """
    wanted = platform.encode()
    for path in journal.incidents(folder):
        try:
            content = durable.read(path / journal.FILE)
        except OSError:
            yield None
            continue
        found = _PLATFORM.search(content)
        if not (wanted and found) or found[1] == wanted:
            yield _tell(content)


def last_proof(system: str, way: str, runs: Iterable[Brief]) -> tuple[Brief | None, datetime | None, str]:
    """Of `runs`, the newest first: the run that last proved a restore of a system, when, and the newest drill that
    failed since (empty: none did). `way` is how a backup of the system comes back: a standby that was promoted proves
    no backup, nor does its drill that failed say anything of one.
    """
    failed = ""
    for run in runs:
        for proof in reversed(run.proofs):
            if proof.system == system and proof.backup:
                return run, proof.at, failed
        if run.purpose == "drill" and FAILED in run.marks and run.ways.get(system, way) == way:
            failed = failed or run.incident
    return None, None, failed


def service_of(incident: str) -> str:
    """The service that an incident's id names."""
    return incident[_ID_BEGIN:-_ID_END]


def is_over(folder: Path) -> bool:
    """Whether the last lines of the journal in `folder` say that nothing is done in it any more. False may also mean
    that they do not tell.
    """
    try:
        descriptor = os.open(folder / journal.FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            tail = os.pread(descriptor, _TAIL, max(0, os.fstat(descriptor).st_size - _TAIL))
        finally:
            os.close(descriptor)
    except OSError:
        return False
    if not _SAYS_OVER.search(tail):  # to ask of all at once is quicker
        return False
    lines = (parse(line) for line in tail.split(b"\n") if _SAYS_OVER.search(line))
    return any(line and line.get("kind") in OVER for line in lines)


def _tell(content: bytes) -> Brief | None:
    teller: _Teller | None = None
    for line in _telling(content):
        with suppress(LookupError, TypeError, ValueError, AttributeError, UsageError):  # a damaged line tells nothing
            if line["kind"] == "opened":
                teller = teller or _Teller(line)
            elif teller:
                _TAKERS[line["kind"]](teller, line)
    return teller.brief if teller else None


def _telling(content: bytes) -> list[dict[str, Any]]:
    """The lines of the kinds that tell of it. All are parsed at once, which takes a third of the time, unless one is
    damaged.
    """
    lines, rest = split(content)
    raw = [line for line in (*lines, rest) if (kind := _KIND.search(line)) and kind[1].decode() in _TAKERS]
    try:
        found: list[dict[str, Any]] = json.loads(b"[%b]" % b",".join(raw))
    except (ValueError, RecursionError):
        found = [line for each in raw if (line := parse(each))]
    return found


class _Teller:
    """Takes in the lines that tell of it."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.brief = Brief(
            incident=str(line["incident"]),
            platform=str(line["platform"]),
            service=str(line["service"]),
            purpose=str(line["purpose"]),
            runbook=str(line["runbook"]),
            detected_at=clock.read_time(line["detected_at"]),
            failed_at=clock.read_time(line["failed_at"]) if line["failed_at"] else None,
            targets={name: float(limit) for name, limit in line["targets"].items()},
        )
        self._changes: dict[str, tuple[str, str]] = {}

    def step(self, line: Mapping[str, Any]) -> None:
        if line["phase"] == "ended":
            name, steps = str(line["step"]), self.brief.steps
            steps[name] = max(steps.get(name, 0.0), float(line["seconds"]))

    def decision(self, line: Mapping[str, Any]) -> None:
        decision = line["decision"]
        self.brief.ways[str(decision["system"])] = str(decision["way"]["name"])

    def intent(self, line: Mapping[str, Any]) -> None:
        change = line["change"]
        self._changes[change["key"]] = str(change["system"]), str(change["verb"])

    def outcome(self, line: Mapping[str, Any]) -> None:
        if line["outcome"] == "done":
            self.brief.acts.append(Act(*self._changes[line["key"]], float(line["seconds"]), int(line.get("bytes", 0))))

    def proven(self, line: Mapping[str, Any]) -> None:
        self.brief.proofs.append(Proof(str(line["system"]), line["backup"], clock.read_time(line["at"])))

    def measured(self, line: Mapping[str, Any]) -> None:
        self.brief.measured |= {name: value for name, value in line.items() if name not in _FRAME}

    def owed(self, line: Mapping[str, Any]) -> None:
        self.brief.owed.append(str(line["what"]))

    def paid(self, line: Mapping[str, Any]) -> None:
        self.brief.owed = [what for what in self.brief.owed if what != line["what"]]

    def mark(self, line: Mapping[str, Any]) -> None:
        if line.get("result") == FAILED:
            self.brief.marks.setdefault(FAILED, clock.read_time(line["at"]))
        self.brief.marks.setdefault(line["kind"], clock.read_time(line["at"]))


_FRAME = ("n", "at", "by", "kind", "previous")
_TAKERS = {
    "opened": _Teller.mark,
    "step": _Teller.step,
    "decision": _Teller.decision,
    "intent": _Teller.intent,
    "outcome": _Teller.outcome,
    "proven": _Teller.proven,
    "measured": _Teller.measured,
    "owed": _Teller.owed,
    "paid": _Teller.paid,
    **dict.fromkeys(("recovered", *OVER), _Teller.mark),
}
"""The kinds of lines that are parsed; `opened` begins a teller."""

"""What each step of a recovery may take: its share of the RTO, as earlier runs of the same service shared it out.

From journals alone.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from salvor import journal
from salvor.errors import CannotError
from salvor.journal import story
from salvor.journal.happened import Story

CLEAN_UP = "clean up"
"""The step at a drill's end, which takes everything away again: the users wait for none of it."""

MOST_EARLIER = 20
"""Earlier runs that are read at most, the newest ones."""

_LEAST_SHARE = 0.01
"""Of the RTO: a step that took no time so far may take this."""


@dataclass(frozen=True)
class StepTime:
    """A step: seconds in all, what it may take (None: no limit), why that, and what it took the last time."""

    name: str
    seconds: float | None
    budget: float | None
    basis: str
    before: float | None

    @property
    def is_over(self) -> bool:
        """Whether it took longer than it may."""
        return self.seconds is not None and self.budget is not None and self.seconds > self.budget


def earlier(folder: Path, told: Story) -> Iterator[Story]:
    """Earlier incidents and drills of the same service, the newest first. What cannot be read is passed over."""
    found = 0
    for other in journal.incidents(folder.parent):
        if other.name >= folder.name or found >= MOST_EARLIER:
            continue
        with suppress(CannotError):
            opened = journal.first_line(other)
            same = (opened.get("platform"), opened.get("service")) == (told.platform, told.service)
            if same and opened.get("purpose") in ("incident", "drill"):
                found += 1
                yield story.read(other)


def seconds_of(told: Story) -> dict[str, float]:
    """Seconds in all of each step that came to its end, in the order of their beginnings."""
    seconds: dict[str, float] = defaultdict(float)
    for run in told.steps:
        if run.seconds is not None:
            seconds[run.name] += run.seconds
    return dict(seconds)


def steps(told: Story, runs: Sequence[Story]) -> list[StepTime]:
    """Each step of `told` against its budget. `runs` are the earlier ones: of these, those that came back by the same
    way tell what is usual, and those of the same scenario before others.
    """
    took, alike = seconds_of(told), [run for run in runs if is_alike(run, told)]
    runs = [run for run in runs if run in alike or _ways(run) == _ways(told)]
    usual = _usual(runs) | _usual(alike)
    before = seconds_of(alike[0]) if alike else {}
    target, total = told.target("rto"), sum(usual.values())
    names = dict.fromkeys([*(run.name for run in told.steps if run.has_end), CLEAN_UP])
    found = []
    for name in names:
        if name == CLEAN_UP or target is None:
            budget, basis = None, "" if name == CLEAN_UP else "no RTO is set"
        elif name in usual and total:
            share = max(usual[name] / total, _LEAST_SHARE)
            budget, basis = share * target, f"{100 * share:.0f} % of the RTO, as in {len(runs)} earlier"
        else:
            begun = next(run.begun for run in told.steps if run.name == name)
            gone = begun - (told.detected_at or begun)
            budget, basis = max(0.0, target - gone / timedelta(seconds=1)), "what was left of the RTO when it began"
        if name in took or name != CLEAN_UP:
            found.append(StepTime(name, took.get(name), budget, basis, before.get(name)))
    return found


def _ways(told: Story) -> set[tuple[str, str]]:
    return {(each.system, each.way.name) for each in told.decisions}


def is_alike(one: Story, other: Story) -> bool:
    """Whether both drilled the same: the same service's scenario by the same runbook."""
    return (one.purpose, one.scenario, one.runbook) == (other.purpose, other.scenario, other.runbook)


def _usual(runs: Sequence[Story]) -> dict[str, float]:
    """The median of each step's seconds, without what users do not wait for."""
    seconds = defaultdict(list)
    for run in runs:
        for name, took in seconds_of(run).items():
            if name != CLEAN_UP:
                seconds[name].append(took)
    return {name: statistics.median(took) for name, took in seconds.items()}


def recovered_in(told: Story) -> float | None:
    """Seconds from detection to service; of a rehearsal to the proven copy: nothing was cut over. None: never."""
    if told.runbook != REHEARSAL:
        return told.measured.get("rto")
    proven = [event.at for event in told.events if event.kind == "proven"]
    if not told.decisions or len(proven) < len(told.decisions) or told.detected_at is None:
        return None
    return (proven[-1] - told.detected_at).total_seconds()


def lost(told: Story) -> float | None:
    """Seconds of the newest data that were lost; of a rehearsal, that would have been. None: not measured."""
    return told.measured.get("would_lose" if told.runbook == REHEARSAL else "rpo")


REHEARSAL = "rehearsal"
"""The runbook that stops before the cutover."""

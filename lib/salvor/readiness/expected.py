"""The expected RTO of a service: what each step took in its own incidents and drills, at today's size of its data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from salvor import show
from salvor.journal.brief import Brief

MOST_RUNS = 20
"""The newest runs that are reckoned with: older ones were on other machines, with other code."""
_STEPS = ("assess", "notify", "isolate", "restore", "verify", "reroute")
_OF_THE_DATA = ("restore", "verify")
CUTOVER = "reroute"
"""The step that a rehearsal has not."""
_NEEDED = (*_OF_THE_DATA, CUTOVER)
PEOPLE = "planning and approval"
"""What of an RTO was in no step: the plan before the first one, and the people who read it."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: the median and the worst of `count` runs; `told` is how they were reckoned."""

    name: str
    median: float
    worst: float
    count: int
    told: str


@dataclass(frozen=True)
class Expected:
    """The expected RTO in seconds, by its steps. `missing` are the needed steps that no run came through."""

    steps: tuple[StepTime, ...]
    median: float
    worst: float
    missing: tuple[str, ...]


def reckon(runs: Iterable[Brief], ways: Mapping[str, str], size: int) -> Expected | None:
    """What a recovery by `ways` (each system's way back) would take, from runs of the same service, the newest first.
    None when there was no such run.

    A restore and its proof take time by the size of the data: what they took is multiplied by how much more bytes
    there are today (`size`; 0: not known), where that was noted. It is never made less: the rest of a step does not
    shrink with the data.
    """
    alike = [run for run in runs if run.purpose in ("incident", "drill") and _is_alike(run, ways)][:MOST_RUNS]
    steps = [each for name in _STEPS if (each := _step(name, alike, size))]
    needed = [name for name in _NEEDED if size or name == CUTOVER]
    if not steps:
        return None
    waits = [max(0.0, rto - sum(run.steps.get(name, 0.0) for name in _STEPS)) for run, rto in _recovered(alike)]
    if waits:
        steps.insert(0, StepTime(PEOPLE, statistics.median(waits), max(waits), len(waits), _median_of(waits)))
    return Expected(
        tuple(steps),
        sum(step.median for step in steps),
        sum(step.worst for step in steps),
        tuple(name for name in needed if name not in {step.name for step in steps}),
    )


def _is_alike(run: Brief, ways: Mapping[str, str]) -> bool:
    """Whether it brought back one of these systems at least, and each by the same way."""
    common = run.ways.keys() & ways.keys()
    return bool(common) and all(run.ways[system] == ways[system] for system in common)


def _recovered(runs: Sequence[Brief]) -> list[tuple[Brief, float]]:
    return [(run, rto) for run in runs if (rto := run.figure("rto")) is not None]


def _step(name: str, runs: Sequence[Brief], size: int) -> StepTime | None:
    took = [(run.steps[name], _moved(run)) for run in runs if name in run.steps]
    if not took:
        return None
    seconds = [each for each, _ in took]
    told = _median_of(seconds)
    if name in _OF_THE_DATA and size:
        seconds = [each * max(1.0, size / moved) if moved else each for each, moved in took]
        rates = [moved / each for each, moved in took if moved and each]
        if rates:
            told = f"{show.write_bytes(size)} at {show.write_bytes(statistics.median(rates))}/s, {_median_of(rates)}"
    return StepTime(name, statistics.median(seconds), max(seconds), len(seconds), told)


def _moved(run: Brief) -> int:
    """Bytes that its restore brought back; 0 when that was not noted."""
    return sum(act.bytes for act in run.acts if act.verb == "stage")


def _median_of(values: Sequence[float]) -> str:
    return f"median of {len(values)}" if len(values) > 1 else "measured once"

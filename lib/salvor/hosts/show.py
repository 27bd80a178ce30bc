"""How many machines are shown: a table of them, their answers in groups, and how many have answered yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from salvor import clock, show
from salvor.change import Level, Progress
from salvor.show import Json, Plain, Shown, Terminal, clean

if TYPE_CHECKING:
    from salvor.hosts.looks import Health
    from salvor.hosts.rolling import Ran

_EVERY = 5.0
_NAMES = 12
_WIDEST = 60
_HEADER = ("machine", "", "what is wrong", "load", "memory free", "fullest disk", "up for")


class Counting:
    """How many machines have answered, and how far those are that copy. Several threads may call its methods."""

    def __init__(self, total: int, tell: Callable[[int, str], None]) -> None:
        self._total = total
        self._tell = tell
        self._answered = self._failed = 0
        self._moved: dict[str, Progress] = {}
        self._begun = clock.monotonic()
        self._lock = threading.Lock()

    def answered(self, error: bool) -> None:
        """One more has, and whether it failed."""
        with self._lock:
            self._answered += 1
            self._failed += error
            self._tell(self._answered, self.text())

    def moved(self, name: str, progress: Progress) -> None:
        """How many bytes are where they belong."""
        with self._lock:
            self._moved[name] = progress
            self._tell(self._answered, self.text())

    def text(self) -> str:
        said = f"{self._answered} of {self._total} machines"
        said += f", {self._failed} of them with an error" if self._failed else ""
        if self._moved:
            done = sum(one.done for one in self._moved.values())
            whole = Progress(done, sum(one.total or 0 for one in self._moved.values()), "bytes")
            said += f"; {show.progress_text(whole, clock.monotonic() - self._begun)}"
        return said


@contextmanager
def counting(shown: Shown, total: int) -> Iterator[Counting]:
    """Shows how many of `total` machines have answered while the block says so."""
    if isinstance(shown, Terminal):
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
        with Bars(*columns, console=shown.console, transient=True) as bars:
            bar = bars.add_task("", total=total)
            count = Counting(total, lambda answered, text: bars.update(bar, completed=answered, description=text))
            bars.update(bar, description=count.text())
            yield count
        return
    told = clock.monotonic()

    def tell(answered: int, text: str) -> None:
        nonlocal told
        if isinstance(shown, Plain) and clock.monotonic() - told > _EVERY:
            told = clock.monotonic()
            shown.tell(text)

    yield Counting(total, tell)


def table(found: Sequence[Health], shown: Shown) -> None:
    """One line a machine; below, what more is wrong with it."""
    if isinstance(shown, Json):
        for one in found:
            wrong = [each.to_json() for each in one.wrong]
            facts = asdict(one.facts) if one.facts else None
            shown.write("host", name=one.name, reachable=str(one.reachable), findings=wrong, facts=facts)
        return
    shown.lines(show.table(_HEADER, [_row(one) for one in found]))
    more = [show.finding_line(each) for one in found for each in one.wrong[1:]]
    hints = [show.finding_line(one.wrong[0]) for one in found if one.wrong and one.wrong[0].detail]
    if hints or more:
        shown.lines(["", *hints, *more])
    bad = sum(any(each.level in (Level.FAIL, Level.UNKNOWN) for each in one.wrong) for one in found)
    warned = sum(bool(one.wrong) for one in found) - bad
    count = f"{len(found)} machine{'s' if len(found) > 1 else ''}"
    shown.tell(f"{count}: {bad} with something wrong, {warned} with a warning.")


def _row(one: Health) -> tuple[str, ...]:
    worst = f"{one.wrong[0].check}: {one.wrong[0].figure}" if one.wrong else ""
    worst = worst if len(worst) <= _WIDEST else f"{worst[: _WIDEST - 3]}..."
    seen = one.facts
    if seen is None:
        return (one.name, one.reachable.upper(), worst, "", "", "", "")
    fullest = max(seen.disks, key=lambda disk: disk.full, default=None)
    return (
        one.name,
        one.reachable,
        worst,
        f"{seen.load:.1f} of {seen.processors}",
        f"{show.write_bytes(seen.memory_free)}",
        f"{fullest.path} {fullest.full:.0%}" if fullest else "",
        clock.write_duration(seen.up),
    )


def groups(done: Sequence[Ran], left: Sequence[str], shown: Shown) -> None:
    """What the machines said: those that said the same together, the largest group first, and what went wrong last."""
    if isinstance(shown, Json):
        for one in done:
            shown.write("ran", host=one.host, outcome=one.outcome, said=one.said)
        for name in left:
            shown.write("ran", host=name, outcome="not begun", said="")
        return
    together: dict[tuple[str, str], list[str]] = {}
    for one in done:
        together.setdefault((one.outcome, one.said), []).append(one.host)
    ordered = sorted(together.items(), key=lambda group: (group[0][0] != "done", -len(group[1]), sorted(group[1])))
    for (outcome, said), names in ordered:
        mark = {"done": "ok", "failed": "FAIL", "unreachable": "FAIL", "unknown": "unknown"}[outcome]
        word = "outcome not known" if outcome == "unknown" else outcome
        shown.lines([f"{mark:8}{word} on {_names(names)}"])
        shown.lines([f"        {clean(line)}" for line in said.splitlines()])
    if left:
        shown.lines([f"{'warn':8}not begun on {_names(left)}"])


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return clean(f"{len(names)}: {', '.join(sorted(names)[:_NAMES])}{rest}")

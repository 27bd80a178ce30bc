"""How plans, findings and progress are shown: on a terminal, as plain lines in a pipe, as JSON lines for machines."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from salvor import aligned, clock
from salvor.change import Change, Finding, Level, Progress
from salvor.journal.line import plain
from salvor.plain import amount
from salvor.plan import Plan, describe
from salvor.secrets import mask, mask_data

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = {Level.PASS: "ok", Level.WARN: "warn", Level.FAIL: "FAIL", Level.UNKNOWN: "unknown"}
_STYLES = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.UNKNOWN: "bold yellow"}
_PLAIN_EVERY = 5.0


def clean(text: str) -> str:
    """Text from outside, without secrets and what would steer a terminal (escape sequences, direction marks)."""
    return _CONTROL.sub("?", mask(text)).replace("\n", "\n    ")


def write_bytes(count: float) -> str:
    """Bytes for people, in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def shortest(path: Path) -> str:
    """A path as it is typed: relative to the working folder where it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def finding_line(finding: Finding) -> str:
    """`ok    orders-db: answers: up (...)`."""
    figure = f": {finding.figure}" if finding.figure else ""
    limit = f" (limit {finding.limit})" if finding.limit else ""
    detail = f": {finding.detail}" if finding.detail else ""
    return clean(f"{_MARKS[finding.level]:8}{finding.subject}: {finding.check}{figure}{limit}{detail}")


def plan_lines(plan: Plan, last: Callable[[str, str], float | None] = lambda system, verb: None) -> list[str]:
    """The plan for people: every change, its reason, its way back or that it has none, and what it took last time."""
    lines = []
    number = 0
    for step in plan.steps:
        lines.append(f"{step.name}:" + ("" if step.changes or step.findings else " nothing to change"))
        lines += [f"  {finding_line(finding)}" for finding in step.findings]
        for change in step.changes:
            number += 1
            took = last(change.system, change.verb)
            lines += change_lines(number, change)
            lines.append(
                f"       took   {'never done before' if took is None else clock.write_duration(took) + ' last time'}"
            )
    count = len(plan.changes)
    lines.append("Nothing to do." if not count else f"{amount(count, 'change')}. Plan hash: {plan.hash}")
    return lines


def change_lines(number: int, change: Change) -> list[str]:
    """One change for people: what, why, and its way back."""
    return [
        f"  {number}. {clean(describe(change))}",
        f"       why    {clean(change.why)}",
        f"       undo   {clean(way_back(change))}",
    ]


def way_back(change: Change) -> str:
    """How a change is undone, or that it cannot be."""
    if change.undo:
        return describe(Change(change.system, change.undo.verb, change.undo.arguments, ""))
    return f"NONE: {change.no_undo}"


def progress_text(progress: Progress, seconds: float) -> str:
    """`1.2 GiB of 3.0 GiB, 40 %, 96.0 MiB/s, 19 s left`; `seconds` is how long it has run. Its label alone when it has
    no figures.
    """
    if not progress.unit:
        return progress.label
    written = write_bytes if progress.unit == "bytes" else lambda count: f"{count:,.0f} {progress.unit}"
    parts = [f"{written(progress.done)}" + (f" of {written(progress.total)}" if progress.total else "")]
    if progress.total:
        parts.append(f"{100 * progress.done / progress.total:.0f} %")
    if seconds > 0.5 and progress.done:
        rate = progress.done / seconds
        parts.append(f"{written(rate)}/s")
        if progress.total and progress.total > progress.done:
            parts.append(f"{clock.write_duration((progress.total - progress.done) / rate)} left")
    return ", ".join(parts) + (f"  {progress.label}" if progress.label else "")


@dataclass
class Plain:
    """Plain lines, for a pipe or a log: a progress line every few seconds."""

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    label: str = ""
    _begun: dict[str, float] = field(default_factory=dict, init=False)
    _shown: dict[str, float] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, text: str) -> None:
        self._line(clean(text))

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._line(line)

    def step(self, name: str, docstring: str) -> None:
        self._line(f"{clock.now():%H:%M:%SZ} == {name}: {docstring.splitlines()[0] if docstring else ''}")

    def finding(self, finding: Finding) -> None:
        self._line(f"  {finding_line(finding)}")

    def begun(self, change: Change) -> None:
        self._begun[change.key] = self._shown[change.key] = clock.monotonic()
        self._line(f"{clock.now():%H:%M:%SZ}  -> {clean(describe(change))}")

    def progress(self, change: Change, progress: Progress) -> None:
        now = clock.monotonic()
        if now - self._shown[change.key] >= _PLAIN_EVERY:
            self._shown[change.key] = now
            figures = clean(progress_text(progress, now - self._begun[change.key]))
            self._line(f"{clock.now():%H:%M:%SZ}     {clean(describe(change))}: {figures}")

    def looking(self, system: str, progress: Progress | None) -> None:
        now = clock.monotonic()
        if progress is None:
            self._begun.pop(system, None)
        elif progress.total is None:
            self._begun[system] = self._shown[system] = now
        elif now - self._shown[system] >= _PLAIN_EVERY:
            self._shown[system] = now
            figures = clean(progress_text(progress, now - self._begun[system]))
            self._line(f"{clock.now():%H:%M:%SZ}     {clean(system)}: {figures}")

    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None:
        self._line(
            f"{clock.now():%H:%M:%SZ}  {outcome:6} {clean(describe(change))} ({clock.write_duration(seconds)})"
            + (f": {clean(error)}" if error else "")
        )

    def _line(self, text: str) -> None:
        if text or not self.label:
            with self._lock:
                print(_labelled(text, self.label), file=self.stream, flush=True)


@dataclass
class _UnderWay:
    """The bars of a terminal; there are none while nothing is under way."""

    bars: Bars | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Terminal:
    """A terminal: colours, and a bar with rate and time left for each change under way."""

    console: Console
    label: str = ""
    _now: _UnderWay = field(default_factory=_UnderWay)
    _tasks: dict[str, TaskID] = field(default_factory=dict, init=False)
    _begun: dict[str, float] = field(default_factory=dict, init=False)

    def tell(self, text: str) -> None:
        self._print(clean(text), "bold")

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._print(line, _style_of(line))

    def step(self, name: str, docstring: str) -> None:
        self._print("")
        self._print(f"{name.upper()}  {docstring.splitlines()[0] if docstring else ''}", "bold cyan")

    def finding(self, finding: Finding) -> None:
        self._print(f"  {finding_line(finding)}", _STYLES[finding.level])

    def begun(self, change: Change) -> None:
        self._begun[change.key] = clock.monotonic()
        self._add_bar(change.key, describe(change))

    def _add_bar(self, key: str, what: str) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        now = self._now
        with now.lock:
            if now.bars is None:
                now.bars = Bars(
                    SpinnerColumn(),
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=24),
                    TextColumn("{task.fields[figures]}", markup=False),
                    console=self.console,
                    transient=True,
                )
                now.bars.start()
            self._tasks[key] = now.bars.add_task(self.label + clean(what), total=None, figures="")

    def progress(self, change: Change, progress: Progress) -> None:
        self._update_bar(change.key, progress)

    def looking(self, system: str, progress: Progress | None) -> None:
        if progress is None:
            self._remove_bar(system)
        elif progress.total is None:
            self._begun[system] = clock.monotonic()
        else:
            if system not in self._tasks:
                self._add_bar(system, system)
            self._update_bar(system, progress)

    def _update_bar(self, key: str, progress: Progress) -> None:
        with self._now.lock:  # another change may end now, and take the bars away
            if self._now.bars and key in self._tasks:
                text = clean(progress_text(progress, clock.monotonic() - self._begun[key]))
                self._now.bars.update(self._tasks[key], completed=progress.done, total=progress.total, figures=text)

    def _remove_bar(self, key: str) -> None:
        now = self._now
        with now.lock:
            task = self._tasks.pop(key, None)
            if now.bars and task is not None:
                now.bars.remove_task(task)
                if not now.bars.tasks:
                    now.bars.stop()
                    now.bars = None

    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None:
        self._remove_bar(change.key)
        style = {"done": "green", "unknown": "bold yellow"}.get(outcome, "bold red")
        self._print(
            f"  {outcome:8}{clean(describe(change))} ({clock.write_duration(seconds)})"
            + (f": {clean(error)}" if error else ""),
            style,
        )

    def _print(self, text: str, style: str = "") -> None:
        if text or not self.label:
            text = _labelled(text, self.label)
            self.console.print(text, style=style or None, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _style_of(line: str) -> str:
    word = line.strip().split(" ", 1)[0]
    return {
        "ok": "green",
        "warn": "yellow",
        "FAIL": "bold red",
        "unknown": "bold yellow",
        "undo": "dim",
        "why": "dim",
        "took": "dim",
    }.get(word, "")


@dataclass
class Json:
    """One JSON object a line, for machines."""

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    label: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, text: str) -> None:
        self.write("told", text=text)

    def lines(self, lines: Iterable[str]) -> None:
        """Nothing: what these lines say to people is written as data by who calls."""

    def step(self, name: str, docstring: str) -> None:
        self.write("step", step=name)

    def finding(self, finding: Finding) -> None:
        self.write("finding", **finding.to_json())

    def begun(self, change: Change) -> None:
        self.write("begun", **change.to_json())

    def progress(self, change: Change, progress: Progress) -> None:
        self.write("progress", key=change.key, **asdict(progress))

    def looking(self, system: str, progress: Progress | None) -> None:
        if progress and progress.total is not None:
            self.write("looking", system=system, **asdict(progress))

    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None:
        self.write("ended", key=change.key, outcome=outcome, seconds=seconds, error=error)

    def write(self, kind: str, **data: Any) -> None:
        """One line; `kind` tells what it is."""
        with self._lock:
            of = {"service": self.label.strip()} if self.label else {}
            line = {"at": clock.write_time(clock.now()), "kind": kind, **of, **data}
            print(json.dumps(mask_data(plain(line))), file=self.stream, flush=True)


Shown = Plain | Terminal | Json


def labelled(shown: Shown, label: str) -> Shown:
    """The same place, where each line begins with `label`: for what several do there at once. Without empty lines."""
    return replace(shown, label=label)


def unfailing(shown: Shown) -> Shown:
    """The same place for who must go on when its reader is gone, or its disk is full: what it does not take is lost."""
    if isinstance(shown, Terminal):
        shown.console.file = unfailing_stream(shown.console.file)
        return shown
    same = copy.copy(shown)
    same.stream = unfailing_stream(shown.stream)
    return same


def unfailing_stream(stream: Any) -> TextIO:
    """The same stream, where what it does not take is lost."""
    return cast(TextIO, stream if isinstance(stream, _Unfailing) else _Unfailing(stream))


class _Unfailing:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _labelled(text: str, label: str) -> str:
    return label + text.replace("\n", f"\n{label}")


def choose(*, as_json: bool = False) -> Shown:
    """The way to show that fits where standard output goes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter that this terminal lacks is no reason to stop
    if as_json:
        return Json()
    if not sys.stdout.isatty():
        return Plain()
    from rich.console import Console

    return Terminal(Console())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns as plain lines, and as narrow as the terminal where there is one, indented by two at most."""
    cleaned = [[" ".join(clean(cell).split()) for cell in row] for row in rows]
    room = shutil.get_terminal_size().columns - 2 if sys.stdout.isatty() else math.inf
    return aligned.lines([header, *cleaned], room)

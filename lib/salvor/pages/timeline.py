"""The picture of an incident: one lane a step, bars with their durations, and the moments that count.

Only its geometry is here; a template draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from salvor import clock
from salvor.change import Level
from salvor.journal.happened import UNFINISHED, Act, StepRun, Story
from salvor.pages.axis import LEFT, RIGHT, Axis, Span
from salvor.pages.labels import SPACE, WIDTH, Rows, Text, place_flags, width_of

MOST_BARS = 60
"""Changes that are drawn at most, the longest ones; the table beside has all."""
MOST_FLAGS = 24
"""Moments that are drawn at most."""

_ROW, _BAR, _LANE_GAP = 20.0, 12.0, 9.0
_FLAG_ROW, _AXIS_HEIGHT = 16.0, 30.0
_MOST_CHARACTERS = 44
_FLAGS = {
    "failed": "the work failed",
    "undone": "undone",
    "discarded": "discarded",
    "closed": "closed",
    "repaired": "journal repaired",
    "note": "note",
}


@dataclass(frozen=True)
class Bar:
    """A change, or a step that changed nothing. `look` is its outcome; `kind` is change, look or decision."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    look: str
    label: Text
    is_inside: bool
    """Whether its label stands in it."""
    title: str


@dataclass(frozen=True)
class Lane:
    """A step: its name, its place, the bars in it, and the stretches in which it ran."""

    name: str
    y: float
    height: float
    bars: list[Bar]
    runs: list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A moment that counts for the whole incident: a line from its label down through the lanes."""

    x: float
    kind: str
    label: Text


@dataclass(frozen=True)
class Break:
    """A stretch in which nothing happened, drawn short. `kind` is idle or interruption."""

    x: float
    width: float
    kind: str
    label: Text


@dataclass(frozen=True)
class Picture:
    """Everything to draw, in pixels of a drawing WIDTH wide and `height` high; the lanes go from `top` to `bottom`."""

    height: float
    top: float
    bottom: float
    lanes: list[Lane]
    lines: list[Line]
    breaks: list[Break]
    ticks: list[Text]
    left_out: int


def draw(story: Story) -> Picture | None:
    """The picture of this story; None while nothing has happened in it."""
    if story.detected_at is None or not story.steps:
        return None
    moments = _moments(story)
    drawn = sorted(story.acts, key=lambda act: (-(act.took or 0.0), act.number))[:MOST_BARS]
    axis = Axis([*((at, at) for at, _, _ in moments), *map(_span, story.steps), *map(_span, drawn)])
    flags = place_flags([(axis.x(at), text) for at, _, text in moments])
    lines = [
        Line(flag.x, kind, Text(flag.begin, 12 + flag.row * _FLAG_ROW, text))
        for flag, (_, kind, text) in zip(flags, moments, strict=True)
    ]
    top = (max(flag.row for flag in flags) + 1) * _FLAG_ROW + 8
    lanes = _lanes(story, {act.number for act in drawn}, axis, top)
    bottom = lanes[-1].y + lanes[-1].height
    return Picture(
        bottom + _AXIS_HEIGHT,
        top,
        bottom,
        lanes,
        lines,
        _breaks(story, axis, bottom),
        _ticks(axis, bottom),
        len(story.acts) - len(drawn),
    )


def _moments(story: Story) -> list[tuple[datetime, str, str]]:
    """The moments that count: when, which kind, and the words beside the line."""
    assert story.detected_at
    found: list[tuple[datetime | None, str, str]] = [
        (story.failed_at, "failure", "failed"),
        (story.detected_at, "detection", "detected"),
    ]
    if target := story.target("rto"):
        limit = story.detected_at + timedelta(seconds=target)
        found.append((limit, "target", f"RTO target {clock.write_duration(target)}"))
    if good := story.measured.get("good_at"):
        back = clock.write_duration(story.measured.get("rto"))
        found.append((clock.read_time(good), "recovery", f"back after {back}"))
    for each in story.interruptions:
        text = f"resumed after {clock.write_duration((each.until - each.at).total_seconds())}"
        found.append((each.until, "interruption", text))
    over = story.at("recovered") or story.at("closed")  # what is noted later is of the review
    marks = [mark for mark in story.marks if mark.kind != "note" or over is None or mark.at <= over]
    found += [(mark.at, mark.kind, _FLAGS[mark.kind]) for mark in marks if mark.kind in _FLAGS]
    return sorted((at, kind, text) for at, kind, text in found[:MOST_FLAGS] if at)


def _span(item: StepRun | Act) -> Span:
    if isinstance(item, StepRun):
        return item.begun, item.last_moment
    return item.begun, item.ended or item.begun


def _ticks(axis: Axis, bottom: float) -> list[Text]:
    """Times of day (UTC) below the lanes, a date where the day changes, none over another."""
    ticks: list[Text] = []
    day = None
    for at in axis.ticks():
        text = f"{at:%H:%M:%S}" if at.date() == day else f"{at:%d %b %H:%M:%S}".lstrip("0")
        x = min(max(axis.x(at) - width_of(text) / 2, LEFT), RIGHT - width_of(text))
        if not ticks or x > ticks[-1].end + SPACE:
            ticks.append(Text(x, bottom + 22, text))
            day = at.date()
    return ticks


def _breaks(story: Story, axis: Axis, bottom: float) -> list[Break]:
    found: list[Break] = []
    written = 0.0
    for begin, end in axis.gaps:
        stopped = any(each.at <= begin and end <= each.until for each in story.interruptions)
        x, text = axis.x(begin), _rounded((end - begin).total_seconds())
        label = Text(x + (axis.break_width - width_of(text)) / 2, bottom + 9, text)
        if label.x < written:
            label = Text(label.x, label.y, "")
        else:
            written = label.end + SPACE
        found.append(Break(x, axis.break_width, "interruption" if stopped else "idle", label))
    return found


def _rounded(seconds: float) -> str:
    """A duration in its largest unit: a break has little room."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# ------------------------------------------------------------------------------------------------ lanes


@dataclass(frozen=True)
class _Item:
    """What a lane shows, before it has a place."""

    span: Span
    kind: str
    look: str
    text: str
    name: str


def _items(run: StepRun, drawn: set[int]) -> list[_Item]:
    found = [_Item((at, at), "decision", "done", f"chosen: {each.way.name}", each.system) for at, each in run.decided]
    several = len({act.change.system for act in run.acts}) > 1
    for act in run.acts:
        if act.number in drawn:
            what = f"{act.change.system} {act.change.verb}" if several else act.change.verb
            took = clock.write_duration(act.took) if act.took is not None else ""
            said = " · ".join(filter(None, [what, took, "" if act.said == "done" else act.said]))
            look = "done" if act.is_done else act.outcome
            found.append(_Item(_span(act), "change", look, said, f"{act.change.system}: {act.change.verb}"))
    if not run.acts and run.has_end:
        failed = run.name != "assess" and any(each.level is Level.FAIL for each in run.verdicts)
        look = UNFINISHED if run.ended is None else "failed" if failed else "done"
        found.append(_Item(_span(run), "look", look, run.summary, run.name))
    return found


def _lanes(story: Story, drawn: set[int], axis: Axis, top: float) -> list[Lane]:
    lanes = []
    for name in dict.fromkeys(step.name for step in story.steps):
        runs = [step for step in story.steps if step.name == name]
        rows = Rows()
        bars = [_bar(item, axis, rows, top) for run in runs for item in _items(run, drawn)]
        height = max(1, len(rows)) * _ROW
        lanes.append(Lane(name, top, height, bars, [(axis.x(begin), axis.x(end)) for begin, end in map(_span, runs)]))
        top += height + _LANE_GAP
    return lanes


def _bar(item: _Item, axis: Axis, rows: Rows, top: float) -> Bar:
    begin, end = item.span
    x = axis.x(begin)
    width = max(axis.x(end) - x, 3.0)
    text = item.text if len(item.text) <= _MOST_CHARACTERS else f"{item.text[: _MOST_CHARACTERS - 1]}…"
    right, left = x + width + SPACE, x - SPACE - width_of(text)
    is_inside = right + width_of(text) > WIDTH and left < LEFT
    label = x + SPACE if is_inside else right if right + width_of(text) <= WIDTH else left
    y = top + rows.place(min(x, label), max(x + width, label + width_of(text))) * _ROW
    title = f"{item.name}, from {begin:%H:%M:%S} to {end:%H:%M:%S} UTC"
    baseline = Text(label, y + _ROW / 2 + 4, text)
    return Bar(x, y + (_ROW - _BAR) / 2, width, _BAR, item.kind, item.look, baseline, is_inside, title)

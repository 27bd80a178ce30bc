"""Charts of figures over periods, and of a few figures side by side. Only their geometry is here; a template draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from salvor.pages.labels import SPACE, WIDTH, Text, width_of

MOST_COLUMNS = 36
"""Periods that are drawn, the newest ones; the table beside has all."""

_LEFT, _RIGHT = 84.0, WIDTH - 16.0
_TOP, _HEIGHT, _BELOW = 26.0, 150.0, 26.0
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 43200, 86400, 172800)
_ROW, _BAR, _NAMES = 34.0, 11.0, 130.0


@dataclass(frozen=True)
class Series:
    """One figure in each period; None where it was not measured. `look` is first or second."""

    name: str
    look: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Column:
    """A column, or a bar. `look` is first, second, or beyond: over the limit. `title` tells it in words."""

    x: float
    y: float
    width: float
    height: float
    look: str
    title: str
    label: Text


@dataclass(frozen=True)
class Chart:
    """Everything to draw, in pixels of a drawing WIDTH wide and `height` high, from `left` to `right`."""

    height: float
    left: float
    right: float
    columns: list[Column]
    grid: list[tuple[float, Text]]
    names: list[Text]
    limit: tuple[float, Text] | None = None
    left_out: int = 0


def columns(
    periods: Sequence[str],
    series: Sequence[Series],
    write: Callable[[float], str],
    *,
    limit: float | None = None,
    limit_name: str = "",
    top: float | None = None,
) -> Chart | None:
    """Columns by period, the series side by side; None when nothing was measured. `limit` is drawn as a line, and what
    is over it looks so. `top` is the end of the scale (None: as high as the figures).
    """
    left_out = max(0, len(periods) - MOST_COLUMNS)
    periods = periods[left_out:]
    shown = [Series(each.name, each.look, each.values[left_out:]) for each in series]
    known = [value for each in shown for value in each.values if value is not None]
    if not known:
        return None
    step, end = (top / 4, top) if top else _scale(max(known))
    per_unit = _HEIGHT / end
    slot = (_RIGHT - _LEFT) / len(periods)
    width = min(0.76 * slot, 30.0 * len(shown)) / len(shown)
    # All or none: else the zeros alone bear their figure.
    has_room = len(shown) == 1 and max(width_of(write(value)) for value in known) + SPACE < slot
    found = []
    for number, each in enumerate(shown):
        for position, (period, value) in enumerate(zip(periods, each.values, strict=True)):
            if value is None:
                continue
            x = _LEFT + slot * (position + 0.5) + width * (number - len(shown) / 2)
            height = max(min(value, end) * per_unit, 1.0)
            look = "beyond" if limit is not None and value > limit else each.look
            text = write(value)
            label = Text(x + (width - width_of(text)) / 2, _TOP + _HEIGHT - height - 5, text)
            found.append(
                Column(
                    x,
                    _TOP + _HEIGHT - height,
                    max(width - 1.5, 1.0),
                    height,
                    look,
                    f"{period}, {each.name}: {text}",
                    label if has_room else Text(label.x, label.y, ""),
                )
            )
    marks = [step * number for number in range(round(end / step) + 1)]
    return Chart(
        _TOP + _HEIGHT + _BELOW,
        _LEFT,
        _RIGHT,
        found,
        [
            (_TOP + _HEIGHT - mark * per_unit, _before(write(mark), _TOP + _HEIGHT - mark * per_unit + 4))
            for mark in marks
        ],
        _names(periods, slot),
        _limit(limit, limit_name, end, per_unit),
        left_out,
    )


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, str, float]]]], write: Callable[[float], str]) -> Chart | None:
    """Bars from the left, a row for each name: its series, each a name, a look and a figure. None without rows."""
    if not rows:
        return None
    longest = max(value for _, each in rows for _, _, value in each) or 1.0
    most_text = max(width_of(write(value)) for _, each in rows for _, _, value in each)
    per_unit = (_RIGHT - _NAMES - most_text - 2 * SPACE) / longest
    found, names = [], []
    for number, (name, each) in enumerate(rows):
        y = 6 + number * _ROW
        names.append(Text(8, y + 4 + _BAR, name))
        for position, (what, look, value) in enumerate(each):
            width, at = max(value * per_unit, 2.0), y + position * (_BAR + 2)
            text = write(value)
            label = Text(_NAMES + width + SPACE, at + _BAR - 1.5, text)
            found.append(Column(_NAMES, at, width, _BAR, look, f"{name}, {what}: {text}", label))
    return Chart(8 + len(rows) * _ROW, _NAMES, _RIGHT, found, [], names)


def _scale(most: float) -> tuple[float, float]:
    """The distance of the marks, and the end of the scale: at most five marks above zero."""
    step = next((tick for tick in _TICKS if tick * 5 >= most), None)
    if step is None:
        step = _TICKS[-1] * -(-most // (5 * _TICKS[-1]))
    return step, step * max(1, -(-most // step))


def _before(text: str, y: float) -> Text:
    return Text(_LEFT - SPACE - width_of(text), y, text)


def _names(periods: Sequence[str], slot: float) -> list[Text]:
    """The names of the periods below their columns, none over another; the newest is always there."""
    found: list[Text] = []
    for position in range(len(periods) - 1, -1, -1):
        name = periods[position]
        text = Text(_LEFT + slot * (position + 0.5) - width_of(name) / 2, _TOP + _HEIGHT + 18, name)
        if not found or text.end + SPACE < found[-1].x:
            found.append(text)
    return found[::-1]


def _limit(limit: float | None, name: str, end: float, per_unit: float) -> tuple[float, Text] | None:
    if limit is None or limit > end:
        return None
    y = _TOP + _HEIGHT - limit * per_unit
    return y, Text(_RIGHT - width_of(name), y - 4, name)

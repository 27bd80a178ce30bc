"""From time to pixels: an axis that is linear where something happened, and broken where nothing did for long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

LEFT, RIGHT = 110.0, 984.0
"""Where the axis begins and ends, in pixels of the drawing."""

_BREAK = 46.0
_TICK = 84.0
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)

Span = tuple[datetime, datetime]


class Axis:
    """Where a moment lies. `gaps` are the stretches that are drawn short, `break_width` pixels each."""

    def __init__(self, spans: Iterable[Span]) -> None:
        """`spans` are those in which something happens; a moment is a span that ends where it begins."""
        self._busy = _merged(spans)
        idle = [(one[1], other[0]) for one, other in zip(self._busy, self._busy[1:], strict=False)]
        active = sum(map(_seconds, self._busy))
        self.gaps = [gap for gap in idle if _seconds(gap) > max(0.2 * active, 1.0)]
        linear = active + sum(_seconds(gap) for gap in idle if gap not in self.gaps)
        self.break_width = min(_BREAK, 0.5 * (RIGHT - LEFT) / max(1, len(self.gaps)))
        self._per_second = (RIGHT - LEFT - self.break_width * len(self.gaps)) / max(linear, 0.001)

    def x(self, at: datetime) -> float:
        """Pixels from the left edge of the drawing."""
        x, cursor = LEFT, self._busy[0][0]
        for begin, end in self.gaps:
            if at <= begin:
                break
            x += _seconds((cursor, begin)) * self._per_second
            if at < end:
                return x + self.break_width * ((at - begin) / (end - begin))
            x, cursor = x + self.break_width, end
        return x + _seconds((cursor, at)) * self._per_second

    def ticks(self) -> Iterator[datetime]:
        """Moments to write below the axis: round ones, and the first after each break."""
        step = next((step for step in _TICKS if step * self._per_second >= _TICK), _TICKS[-1])
        begins = [self._busy[0][0], *(end for _, end in self.gaps)]
        ends = [*(begin for begin, _ in self.gaps), self._busy[-1][1]]
        for begin, end in zip(begins, ends, strict=True):
            at = begin if _seconds((begin, end)) < step else _rounded_up(begin, step)
            while at <= end:
                yield at
                at += timedelta(seconds=step)


def _seconds(span: Span) -> float:
    return (span[1] - span[0]).total_seconds()


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _rounded_up(at: datetime, step: int) -> datetime:
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    whole = -(-(at - midnight) // timedelta(seconds=step))
    return midnight + timedelta(seconds=step * whole)

"""Texts of a drawing, placed so that none lies over another."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

WIDTH = 1000.0
"""Pixels of a drawing at its natural size; text is 11 pixels high in it."""
SPACE = 6.0
"""Pixels between two texts at least."""

_CHARACTER = 6.9  # the widest of the usual fonts, at 11 pixels


def width_of(text: str) -> float:
    """Pixels that `text` takes at most."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text) * _CHARACTER


@dataclass(frozen=True)
class Text:
    """A text: where it begins and its baseline."""

    x: float
    y: float
    text: str

    @property
    def end(self) -> float:
        """Where it ends at most."""
        return self.x + width_of(self.text)


class Rows:
    """Rows that are filled so that nothing in one row overlaps."""

    def __init__(self) -> None:
        self._taken: list[list[tuple[float, float]]] = []

    def place(self, begin: float, end: float) -> int:
        """The first row with room from `begin` to `end`; it is taken now."""
        for number, taken in enumerate(self._taken):
            if all(end + SPACE < first or begin > last + SPACE for first, last in taken):
                taken.append((begin, end))
                return number
        self._taken.append([(begin, end)])
        return len(self._taken) - 1

    def __len__(self) -> int:
        return len(self._taken)


@dataclass(frozen=True)
class Flag:
    """A vertical line with its label in a row above; the line runs from its row down, through all rows below."""

    x: float
    begin: float
    end: float
    row: int

    def is_clear_of(self, other: Flag) -> bool:
        """Whether neither label touches the other label, nor the other's line."""
        if self.row == other.row:
            return self.end + SPACE < other.begin or self.begin > other.end + SPACE
        upper, lower = sorted((self, other), key=lambda each: each.row)
        return not lower.begin - 2 <= upper.x <= lower.end + 2


def place_flags(lines: Sequence[tuple[float, str]]) -> list[Flag]:
    """A flag for each line (x, its label), from left to right or from right to left, whichever way is tidier."""
    forwards, backwards = _placed(lines), _placed(lines[::-1])[::-1]
    return min(forwards, backwards, key=lambda flags: (_touching(flags), max((each.row for each in flags), default=0)))


def _placed(lines: Iterable[tuple[float, str]]) -> list[Flag]:
    """Each in the highest row with room, its label right of the line or else left; or below all others."""
    flags: list[Flag] = []
    for x, label in lines:
        width = width_of(label)
        sides = [(x + 4, x + 4 + width), (x - 4 - width, x - 4)]
        inside = [(begin, end) for begin, end in sides if begin >= 0 and end <= WIDTH] or sides[:1]
        lowest = max((each.row for each in flags), default=-1) + 1
        tries = [Flag(x, begin, end, row) for row in range(lowest + 1) for begin, end in inside]
        flags.append(next((one for one in tries if all(map(one.is_clear_of, flags))), tries[-1]))
    return flags


def _touching(flags: Sequence[Flag]) -> int:
    return sum(not one.is_clear_of(other) for one, other in combinations(flags, 2))

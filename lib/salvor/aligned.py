"""Columns of plain text, as narrow as their terminal wants them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

_BETWEEN = 2


def lines(rows: Sequence[Sequence[str]], room: float) -> list[str]:
    """The rows with their columns aligned; the last one is not padded. Where they are wider than `room` characters, the
    widest columns go on in lines below, from word to word: no id and no path is broken.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, cells)) for cells in columns]
    narrowest = [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    while sum(widths) + _BETWEEN * (len(widths) - 1) > room:
        yielding = [at for at in range(len(widths)) if widths[at] > narrowest[at]]
        if not yielding:
            break
        widths[max(yielding, key=lambda at: widths[at])] -= 1
    return [line for row in rows for line in _row(row, widths)]


def _row(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        textwrap.wrap(cell, max(width, 1), break_long_words=False, break_on_hyphens=False)
        for cell, width in zip(row, widths, strict=True)
    ]
    return [
        (" " * _BETWEEN).join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ] or [""]

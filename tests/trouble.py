"""Trouble for the verbs of tests/kinds: ordered by a file, met once, so that any process meets it.

`order(root, "store", "promote", "unknown after")` lets the next `promote` of `store` do its work and then raise
OutcomeUnknownError. The words: `unknown before`, `unknown after`, `fail`, `hang` (until the file is removed), `slow` (a
`stage` takes two seconds, with progress).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salvor.errors import CannotError, OutcomeUnknownError


def _place(root: Path, system: str, verb: str) -> Path:
    return root / f"trouble-{system}-{verb}"


def order(root: Path, system: str, verb: str, word: str) -> Path:
    """Order trouble for one verb of one system below `root`; for messages, `verb` is the moment."""
    place = _place(root, system, verb)
    place.write_text(word)
    return place


@contextmanager
def around(root: Path, system: str, verb: str) -> Iterator[None]:
    """Meet what was ordered, and write down when the verb began and ended."""
    place = _place(root, system, verb)
    word = place.read_text() if place.exists() else ""
    if word and word not in ("hang", "slow"):
        place.unlink()
    while word == "hang" and place.exists():
        time.sleep(0.02)
    begun = time.monotonic()
    if word == "unknown before":
        raise OutcomeUnknownError("no answer in time")
    if word == "fail":
        raise CannotError("it does not want to")
    yield
    with (root / "acts").open("a") as acts:
        acts.write(f"{system} {verb} {begun} {time.monotonic()}\n")
    if word == "unknown after":
        raise OutcomeUnknownError("no answer in time")


def slowly(root: Path, system: str, verb: str) -> Iterator[None]:
    """Two seconds in small steps, when that was ordered."""
    place = _place(root, system, verb)
    if place.exists() and place.read_text() == "slow":
        for _ in range(40):
            time.sleep(0.05)
            yield
        place.unlink()


def acts(root: Path) -> dict[str, tuple[float, float]]:
    """When each act began and ended, by `system verb`; the last of each."""
    found = {}
    for line in (root / "acts").read_text().splitlines():
        system, verb, begun, ended = line.split()
        found[f"{system} {verb}"] = float(begun), float(ended)
    return found

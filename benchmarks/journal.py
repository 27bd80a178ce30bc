"""Journal appends against a bare loop of write and fsync of the same bytes: `python benchmarks/journal.py [FOLDER]`.

The two take turns, round by round, on the disk that FOLDER (default: the current folder) is on. Prints appends per
second of each, and the median ratio of the rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from salvor.change import Change, Undo
from salvor.journal import FILE, Journal

ROUNDS = 9
APPENDS = 300

CHANGE = Change(
    system="orders-db",
    verb="stage",
    arguments={"stage": "side-data", "backup": "20261120-000000F", "target": "2026-11-20T03:12:00+00:00"},
    why="the newest usable backup is 42 minutes old, within the RPO of 1 h",
    undo=Undo("drop", {"stage": "side-data"}),
).to_json()


def journal(folder: Path) -> float:
    """Seconds for one append of an intent, the mean of a round."""
    with Journal.create(folder, by="benchmark") as opened:
        begun = time.perf_counter()
        for _ in range(APPENDS):
            opened.append("intent", step="restore", change=CHANGE)
        return (time.perf_counter() - begun) / APPENDS


def bare(folder: Path, line: bytes) -> float:
    """Seconds for one write and fsync of `line`, the mean of a round."""
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        begun = time.perf_counter()
        for _ in range(APPENDS):
            os.write(descriptor, line)
            os.fsync(descriptor)
        return (time.perf_counter() - begun) / APPENDS
    finally:
        os.close(descriptor)


def reading(folder: Path) -> float:
    """Seconds to read one journal of `APPENDS` lines."""
    begun = time.perf_counter()
    Journal.read(folder)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        journal(folder / "warm-up")
        line = (folder / "warm-up" / FILE).read_bytes().splitlines(keepends=True)[-1]
        ours, theirs = [], []
        for number in range(ROUNDS):
            ours.append(journal(folder / str(number)))
            theirs.append(bare(folder / str(number), line))
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        read = statistics.median(reading(folder / str(number)) for number in range(ROUNDS))
    print(f"line             {len(line):8d} bytes")
    print(f"journal          {1 / statistics.median(ours):8.0f} appends/s")
    print(f"write and fsync  {1 / statistics.median(theirs):8.0f} appends/s")
    print(f"ratio            {ratio:8.2f} times the seconds of write and fsync")
    print(f"reading          {read * 1000:8.2f} ms for a journal of {APPENDS + 1} lines")


if __name__ == "__main__":
    main()

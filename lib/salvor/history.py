"""What earlier incidents took: expectations from our own journals, never from a guess."""

from __future__ import annotations

import statistics
from collections import defaultdict
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.errors import SalvorError
from salvor.journal import Journal, incidents

_MOST_JOURNALS = 50


class History:
    """Durations from the newest journals of a folder, read once and only when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verbs: dict[tuple[str, str], list[float]] | None = None
        self._ways: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._proven: dict[tuple[str, str], datetime] = {}

    def _read(self) -> dict[tuple[str, str], list[float]]:
        if self._verbs is None:
            self._verbs = defaultdict(list)
            for count, path in enumerate(incidents(self._folder)):
                if count >= _MOST_JOURNALS:
                    break
                with suppress(SalvorError, LookupError, TypeError, ValueError):  # a damaged one tells nothing
                    self._take_in(Journal.read(path).lines)
        return self._verbs

    def _take_in(self, lines: list[dict[str, Any]]) -> None:
        assert self._verbs is not None
        changes: dict[str, tuple[str, str]] = {}
        ways: set[tuple[str, str]] = set()
        for line in lines:
            if line["kind"] == "intent":
                changes[line["change"]["key"]] = (line["change"]["system"], line["change"]["verb"])
            elif line["kind"] == "outcome" and line["outcome"] == "done" and line["key"] in changes:
                self._verbs[changes[line["key"]]].append(line["seconds"])
            elif line["kind"] == "decision":
                ways.add((line["decision"]["system"], line["decision"]["way"]["name"]))
            elif line["kind"] == "proven":
                self._proven.setdefault((line["system"], line["backup"]), clock.read_time(line["at"]))
            elif line["kind"] == "measured" and line.get("rto") is not None:
                for way in ways:
                    self._ways[way].append(line["rto"])

    def proven(self, system: str, backup: str) -> datetime | None:
        """When a restore of this backup last passed `verify`; None when it never did."""
        self._read()
        return self._proven.get((system, backup))

    def last(self, system: str, verb: str) -> float | None:
        """Seconds that this verb took on this system the last time that it was done; None when it never was."""
        seconds = self._read().get((system, verb))
        return seconds[0] if seconds else None

    def expected(self, system: str, way: str) -> float | None:
        """Seconds from detection to service that this way back took, the median of earlier incidents; None when there
        were none.
        """
        self._read()
        seconds = self._ways.get((system, way))
        return statistics.median(seconds) if seconds else None

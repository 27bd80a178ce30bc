"""What earlier incidents took: expectations from our own journals, never from a guess."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path

from salvor.journal import brief
from salvor.journal.brief import Brief

_NEWEST = 50


class History:
    """The newest incidents, drills and maintenance of a platform, read once and only when asked for."""

    def __init__(self, folder: Path, platform: str) -> None:
        self._folder = folder
        self._platform = platform

    @cached_property
    def _briefs(self) -> list[Brief]:
        return list(islice(filter(None, brief.newest_first(self._folder, self._platform)), _NEWEST))

    @cached_property
    def _trials(self) -> list[Brief]:
        """All that proved a backup, and the drills that failed, of every journal: nightly backups write many, and these
        are rare.
        """
        every = filter(None, brief.newest_first(self._folder, self._platform))
        return [each for each in every if each.proofs or (each.purpose == "drill" and brief.FAILED in each.marks)]

    @cached_property
    def _proofs(self) -> dict[tuple[str, str | None], datetime]:
        found: dict[tuple[str, str | None], datetime] = {}
        for each in self._trials:
            for proof in reversed(each.proofs):
                found.setdefault((proof.system, proof.backup), proof.at)
        return found

    def proven(self, system: str, backup: str) -> datetime | None:
        """When a restore of this backup last passed `verify`; None when it never did."""
        return self._proofs.get((system, backup))

    def failed_drill(self, system: str, way: str, services: Collection[str]) -> str:
        """The newest drill of these services that failed since a restore of a backup of this system was last proven, or
        that there was before any was; empty: none. `way` is how its backup comes back.
        """
        return brief.last_proof(system, way, (each for each in self._trials if each.service in services))[2]

    def last(self, system: str, verb: str) -> float | None:
        """Seconds that this verb took on this system the last time that it was done; None when it never was."""
        acts = (act for each in self._briefs for act in reversed(each.acts))
        return next((act.seconds for act in acts if (act.system, act.verb) == (system, verb)), None)

    def expected(self, system: str, way: str) -> float | None:
        """Seconds from detection to service that this way back took, the median of earlier incidents; None when there
        were none.
        """
        took = list(self._took(system, way))
        return statistics.median(took) if took else None

    def _took(self, system: str, way: str) -> Iterator[float]:
        for each in self._briefs:
            rto = each.figure("rto")
            if rto is not None and each.ways.get(system) == way:
                yield rto

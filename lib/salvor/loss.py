"""What a recovery loses of the newest data: the one definition of the RPO that is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from salvor import clock

UNTOUCHED = "no data was replaced"
COMPLETE = "nothing is missing: every commit up to the failure, or to the time that was asked for, is there"
PARTLY = "from the newest commit that survived to the newest one that is known to be missing"
TO_THE_FAILURE = "from the newest commit that survived to the failure, or to the time that was asked for"


@dataclass(frozen=True)
class Survived:
    """What a proven copy holds: its newest commit, and how many seconds of commits the proof knows it to lack. None:
    that cannot be told.
    """

    newest: datetime | None
    lacks: float | None

    @staticmethod
    def read(line: Mapping[str, Any]) -> Survived:
        """What the journal's line of a proven copy says."""
        newest = line.get("newest_commit")
        return Survived(clock.read_time(newest) if newest else None, line.get("lacks"))

    def loses(self, failure: datetime) -> float | None:
        """Seconds from its newest commit to the failure, but no more than it is known to lack: on data that nobody
        writes to, the newest commit may be old and nothing missing. None: neither is known.
        """
        to_failure = max(0.0, round((failure - self.newest).total_seconds(), 3)) if self.newest else None
        known = [seconds for seconds in (to_failure, self.lacks) if seconds is not None]
        return min(known, default=None)


def rpo(copies: Iterable[Survived | None], failure: datetime) -> tuple[float | None, str]:
    """The RPO of a recovery in seconds, that of the copy that loses the most, and how it was measured. `copies` are
    those of all that is broken (None: not proven yet); `failure` is when the failure or damage began, or the earlier
    time that was asked for. None: of one it cannot be told.
    """
    found = [(each.loses(failure), each) if each else (None, None) for each in copies]
    if not found:
        return 0.0, UNTOUCHED
    losses = [(loses, each) for loses, each in found if loses is not None and each]
    if len(losses) < len(found):
        return None, TO_THE_FAILURE
    most, worst = max(losses, key=lambda one: (one[0], one[1].lacks is None))
    if worst.lacks is None or most < worst.lacks:
        return most, TO_THE_FAILURE
    return most, PARTLY if worst.lacks else COMPLETE

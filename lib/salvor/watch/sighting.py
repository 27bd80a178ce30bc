"""How long a metric has been bad, or unknown: across looks, and across watchers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from salvor import clock
from salvor.errors import UsageError

APART = 600.0
"""Seconds between two looks after which nobody knows what was in between; or the rule's own duration, if longer."""


@dataclass(frozen=True)
class Sighting:
    """`bad_since` is moved on by what could not be told meanwhile, so that only what was seen bad counts."""

    looked_at: datetime | None = None
    bad_since: datetime | None = None
    bad_at: datetime | None = None
    unknown_since: datetime | None = None

    def after(self, bad: bool | None, duration: float) -> Sighting:
        """The sighting with one more look, now. `duration`: the rule's, in seconds."""
        now = clock.now()
        known = Sighting() if self.is_old(duration) else self
        if bad is None:
            return replace(known, looked_at=now, unknown_since=known.unknown_since or now)
        if not bad:
            return Sighting(looked_at=now)
        since = known.bad_since or now
        if known.unknown_since and known.bad_since and known.bad_at:
            since += max(now - known.bad_at, timedelta())
        return Sighting(looked_at=now, bad_since=since, bad_at=now)

    def is_old(self, duration: float) -> bool:
        """Whether it proves nothing of now, as nobody has looked for too long. `duration`: the rule's, in seconds."""
        apart = timedelta(seconds=max(APART, duration))
        return self.looked_at is None or clock.age(self.looked_at) > apart or clock.is_to_come(self.looked_at)

    @property
    def bad_for(self) -> float | None:
        """Seconds; None when it is not bad now."""
        is_bad = self.bad_since and not self.unknown_since
        return (clock.now() - self.bad_since).total_seconds() if is_bad and self.bad_since else None

    @property
    def unknown_for(self) -> float | None:
        """Seconds; None when it is known."""
        return (clock.now() - self.unknown_since).total_seconds() if self.unknown_since else None

    def is_worth_keeping_after(self, kept: Sighting) -> bool:
        """Whether a new watcher would miss what is new since `kept`."""
        same = (self.bad_since, self.unknown_since) == (kept.bad_since, kept.unknown_since)
        if not same or kept.looked_at is None or self.looked_at is None:
            return True
        return bool(self.bad_since or self.unknown_since) and self.looked_at - kept.looked_at > timedelta(seconds=30)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return {name: clock.write_time(at) for name, at in vars(self).items() if at}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sighting:
        """The Sighting that `to_json` wrote; what is not one is none."""
        try:
            return Sighting(**{name: clock.read_time(str(at)) for name, at in data.items()})
        except (TypeError, UsageError):
            return Sighting()

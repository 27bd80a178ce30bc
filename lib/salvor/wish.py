"""What the operator asked to get back, and the deviations for which they gave their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from salvor import clock
from salvor.change import WayBack

PROMOTE_WITHOUT_FENCE = "promote-without-fence"
"""The override by which the operator says that what is broken cannot write, although nothing shows it."""
RESTORE_WHOLE_CLUSTER = "restore-whole-cluster"
"""The override by which the operator takes databases back that are sound, with the one that shares their cluster."""
FENCE_MACHINE = "fence-machine"
"""`fence-machine:NAME` is the override by which the operator has a whole machine cut off."""


@dataclass(frozen=True)
class Wish:
    """What the operator asked to get back: a source, a point in time, and limits that the service sets.

    `source` is `latest`, a backup id, a path or a URI (`--from`). `at` is a time (UTC), `target` a name or an LSN
    (`name:before-release`, `lsn:0/3000060`). `damaged_at` is when live data was damaged (None: it is not damaged, or
    nobody knows when). `live_is_sound` is False when a check of the data failed on what is live, so that a standby
    has the same damage. `rpo` is in seconds. `ways` are the ways that the runbook allows, in its order (empty: all).
    `overrides` are named deviations with the reason that the operator gave.
    """

    source: str = "latest"
    at: datetime | None = None
    target: str | None = None
    damaged_at: datetime | None = None
    live_is_sound: bool = True
    rpo: float = 0.0
    ways: tuple[str, ...] = ()
    overrides: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self) | {
            "at": clock.write_time(self.at) if self.at else None,
            "damaged_at": clock.write_time(self.damaged_at) if self.damaged_at else None,
            "ways": list(self.ways),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Wish:
        """The wish that `to_json` wrote."""
        times = {name: clock.read_time(data[name]) if data[name] else None for name in ("at", "damaged_at")}
        return cls(**{**data, **times, "ways": tuple(data["ways"])})

    @property
    def counts_until(self) -> datetime:
        """Until when what is not in a backup is lost by going back to it: the state asked for, else the failure, else
        now. What was written after that is kept with the damage, and is not in any backup that could be chosen.
        """
        return self.at or self.damaged_at or clock.now()

    def loses(self, taken: datetime | None) -> float | None:
        """How many seconds of what was written going back to a backup of that moment loses; None when nobody knows it,
        or it is yet to come.
        """
        if taken is None or clock.is_to_come(taken):
            return None
        return max(0.0, (self.counts_until - taken).total_seconds())

    def override(self, name: str) -> str:
        """The reason for an override; empty when it was not given."""
        return (self.overrides or {}).get(name, "")

    def gives_up(self, machine: str) -> str:
        """Why the operator has that machine cut off, so that nothing may lead back to it; empty: they do not."""
        return self.override(f"{FENCE_MACHINE}:{machine}") if machine else ""

    @property
    def given_up(self) -> list[str]:
        """The machines that the operator has cut off."""
        return [name.partition(":")[2] for name in self.overrides or {} if name.startswith(f"{FENCE_MACHINE}:")]

    def in_its_order(self, ways: Iterable[WayBack]) -> list[WayBack]:
        """These ways, as the runbook orders and allows them; what is possible comes first."""
        places = {name: place for place, name in enumerate(self.ways)}
        allowed = [
            way if not self.ways or way.name in places else way.closed("the runbook does not allow it") for way in ways
        ]
        return sorted(allowed, key=lambda way: (not way.possible, places.get(way.name, len(places))))

"""Incidents and drills that were, written by the real Journal on a clock that we set."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.change import Change, Decision, WayBack
from salvor.journal import Journal
from salvor.wish import Wish

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
STEPS = {"assess": 1.0, "restore": 10.0, "verify": 5.0, "reroute": 2.0}


def write(
    incidents: Path,
    at: datetime,
    *,
    platform: str = "world",
    service: str = "orders",
    system: str = "orders-db",
    purpose: str = "incident",
    blind: float | None = None,
    back: float | None = 18.0,
    rpo: float | None = 1.0,
    steps: Mapping[str, float] = STEPS,
    way: str = "physical",
    moved: int = 0,
    backup: str = "b1",
    owed: tuple[str, ...] = (),
    end: str = "closed",
    end_after: float = 3600.0,
    targets: Mapping[str, float] | None = None,
) -> Path:
    """One that was detected `at`. `blind`: seconds since its failure; `back`: seconds until it recovered (None: never);
    `moved`: bytes of its restore; `end`: its last line (empty: it is open), `end_after` seconds.
    """
    number = sum(1 for _ in incidents.iterdir()) if incidents.is_dir() else 0
    folder = incidents / f"{at:%Y%m%dT%H%M%SZ}-{service}-{number:04x}"
    now = at
    targets = targets or {"rto": 900.0, "rpo": 60.0}
    with clock.use(lambda: now):
        failed_at = clock.write_time(at - timedelta(seconds=blind)) if blind is not None else None
        journal = Journal.create(
            folder, by="kim@ops1", incident=folder.name, platform=platform, service=service, title=service.title(),
            purpose=purpose, runbook="restore", wish=Wish().to_json(), detected_at=clock.write_time(at),
            failed_at=failed_at, targets=targets,
        )  # fmt: skip
        chosen = WayBack(way, True, "it is there", stage="side", backup=backup, arguments={"stage": "side"})
        journal.append("decision", decision=Decision(system, "identity", "it is gone", chosen).to_json())
        for name, seconds in steps.items():
            journal.append("step", step=name, phase="begun", planned=0)
            if name == "restore":
                _act(journal, Change(system, "stage", {"stage": "side"}, "why", None, "none"), seconds, moved)
            journal.append("step", step=name, phase="ended", seconds=seconds)
            if name == "verify":
                journal.append("proven", system=system, backup=backup, identity="staged")
        if back is not None:
            now = at + timedelta(seconds=back)
            figures: dict[str, Any] = {"rto": back, "rpo": rpo, "good_at": clock.write_time(now)}
            journal.append("measured", **figures, **{f"{name}_target": limit for name, limit in targets.items()})
            journal.append("recovered")
        for what in owed:
            journal.append("owed", what=what, why="it did not answer")
        if end:
            now = at + timedelta(seconds=end_after)
            journal.append(end, result="done")
        journal.close()
    return folder


def _act(journal: Journal, change: Change, seconds: float, moved: int) -> None:
    journal.append("intent", step="restore", change=change.to_json())
    extra = {"bytes": moved} if moved else {}
    journal.append("outcome", step="restore", key=change.key, outcome="done", seconds=seconds, **extra)

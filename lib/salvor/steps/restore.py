"""Restore: stage the chosen backup beside what is live."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import cutover
from salvor.change import Change, Undo
from salvor.incident import Incident


def restore(incident: Incident) -> Iterator[Change]:
    """Stage the chosen backup beside what is live. A failover needs none: its standby is there."""
    incident.observe_all(broken.system for broken in incident.broken if broken.decision.way.arguments is not None)
    for broken in incident.broken:
        way = broken.decision.way
        if way.arguments is None or cutover.is_placed(incident, broken) or cutover.staged(incident, broken):
            continue
        yield broken.system.change(
            "stage",
            why=f"{way.name}: {way.why}",
            undo=Undo("drop", {"stage": way.stage}),
            no_undo="",
            **way.arguments,
        )

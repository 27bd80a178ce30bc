"""Verify: prove what is staged before anything is cut over."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import cutover
from salvor.change import Finding, Level
from salvor.checks import tells_of_damage
from salvor.incident import Broken, Incident


def verify(incident: Incident) -> Iterator[Finding]:
    """Prove the staged copy: integrity, content, freshness, the service's own checks. Plans no change."""
    incident.observe_all(broken.system for broken in incident.broken)
    for broken in incident.broken:
        if incident.ahead or cutover.is_placed(incident, broken):
            continue
        staged = cutover.staged(incident, broken)
        if staged is None:
            yield Finding(
                broken.system.name,
                "staged",
                Level.FAIL,
                detail=f"{broken.decision.way.stage} is not there, or not whole",
            )
        else:
            yield from _prove(incident, broken, staged.identity)


def _prove(incident: Incident, broken: Broken, identity: str) -> Iterator[Finding]:
    way = broken.decision.way
    yield from broken.system.verify(way, incident.whole_wish())
    answers = list(incident.check_all(incident.checks_of(broken.system.name), way.stage, evidence=identity))
    yield from answers
    if any(map(tells_of_damage, answers)) and (ways := incident.ways_before_damage(broken)):
        detail = f"the same command again takes it: {ways[0].why}"
        yield Finding(broken.system.name, "another way back", Level.WARN, ways[0].name, detail=detail)

"""Verify: prove what is staged before anything is cut over."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import cutover
from salvor.change import ONE_ARCHIVE, READ_FROM, Finding, Level
from salvor.checks import tells_of_damage
from salvor.incident import Broken, Incident


def verify(incident: Incident) -> Iterator[Finding]:
    """Prove the staged copy: integrity, content, freshness, the service's own checks. Plans no change."""
    incident.observe_all(broken.system for broken in incident.broken)
    if not incident.ahead:
        yield from _of_one_archive(incident)
    for broken in incident.broken:
        if cutover.is_placed(incident, broken):
            continue
        staged = cutover.staged(incident, broken)
        if staged is None:
            yield Finding(
                broken.system.name,
                "staged",
                Level.FAIL,
                detail=f"{broken.decision.way.stage} is not there, or not whole",
            )
        elif not incident.ahead:
            yield from _prove(incident, broken, staged.identity)


def _of_one_archive(incident: Incident) -> Iterator[Finding]:
    """Whether all that came out of an archive came out of one: between two tries it may be replaced under its name."""
    said = {finding.subject: finding for _, finding in incident.findings if finding.check == READ_FROM}
    archives: dict[str, dict[str, list[str]]] = {}
    for broken in incident.broken:
        found = said.get(broken.system.name)
        if found and found.detail == (broken.decision.way.arguments or {}).get("source"):
            archives.setdefault(found.detail, {}).setdefault(found.figure, []).append(found.subject)
    for address, systems in archives.items():
        if len(systems) > 1:
            each = "; ".join(f"{', '.join(names)} from that of {identity}" for identity, names in systems.items())
            detail = f"{address} was replaced between two tries: {each}"
            yield Finding(next(iter(systems.values()))[0], ONE_ARCHIVE, Level.FAIL, f"{len(systems)}", "1", detail)


def _prove(incident: Incident, broken: Broken, identity: str) -> Iterator[Finding]:
    way = broken.decision.way
    yield from broken.system.verify(way, incident.whole_wish())
    answers = list(incident.check_all(incident.checks_of(broken.system.name), way.stage, evidence=identity))
    yield from answers
    if any(map(tells_of_damage, answers)) and (ways := incident.ways_before_damage(broken)):
        detail = f"the same command again takes it: {ways[0].why}"
        yield Finding(broken.system.name, "another way back", Level.WARN, ways[0].name, detail=detail)

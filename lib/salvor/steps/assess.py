"""Assess: what is broken, since when, and which way leads back."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import clock
from salvor.change import Decision, Finding, Level, Reachable, State, WayBack
from salvor.errors import CannotError
from salvor.incident import Incident
from salvor.system import Restorable, System


def assess(incident: Incident) -> Iterator[Finding | Decision]:
    """Look at the service and what it depends on; pin what is broken, and choose its way back.

    Plans no change. What was pinned once stays pinned: after the cutover the same name is a healthy system.
    """
    needed = [(incident.system(name), service) for service in incident.needs for name in service.systems]
    incident.observe_all([*(system for system, _ in needed), *incident.systems, *incident.routes])
    answers = list(zip(incident.service.checks, incident.check_all(incident.service.checks, "live"), strict=True))
    for system, service in needed:
        because = f"{incident.service.name} depends on {service.name}"
        yield _reachable(system, incident.observe(system), because)
    for route in incident.routes:
        yield _reachable(route, incident.observe(route))
    for own in incident.systems:
        yield from _look_at(incident, own, [answer for check, answer in answers if check.system == own.name])
    yield from (answer for check, answer in answers if check.system is None)


def _look_at(incident: Incident, system: Restorable, answers: list[Finding]) -> Iterator[Finding | Decision]:
    """One system: does it answer, is its data right, and if it is broken, the way back."""
    state = incident.observe(system)
    yield _reachable(system, state)
    yield from answers
    if system.name in incident.decisions:
        return
    wrong = [finding for finding in answers if finding.level is Level.FAIL]
    asked_for = (
        incident.wish.source != "latest" or incident.wish.at or incident.wish.target or incident.purpose == "drill"
    )
    if state.reachable is not Reachable.UP:
        told = state.summary
    elif state.writable is False:
        told = f"it takes no writes: {state.summary}"
    elif wrong:
        told = "; ".join(
            f"{finding.check}: {finding.figure or finding.detail} (limit {finding.limit or 'an answer'})"
            for finding in wrong
        )
    elif asked_for:
        told = "it looks healthy; the operator asked for another state of its data"
    else:
        return
    sound = not wrong or _is_sound(incident, system, state)
    ways = system.ways_back(incident.whole_wish(live_is_sound=sound))
    possible = [way for way in ways if way.possible]
    if not possible:
        yield from (_way(system, way) for way in ways)
        why = "; ".join(f"{way.name}: {way.why}" for way in ways)
        raise CannotError(
            f"{system.name} is broken ({told}) and no way back is open: {why or 'the engine offers none'}.",
            safe="nothing was changed",
            hint=_hint(incident, sound=sound),
        )
    yield from (_way(system, way, chosen=way is possible[0]) for way in ways)
    yield Decision(system.name, state.identity, told, possible[0], tuple(way for way in ways if way is not possible[0]))


def _hint(incident: Incident, *, sound: bool) -> str:
    """The next command when no way back is open."""
    name = incident.service.name
    if not sound and not incident.failed_at:
        return f"say when the damage began: inv restore --service={name} --failed-at=TIME (or --at=TIME: to that time)"
    return f"inv backups --service={name}, then inv restore --service={name} --from=BACKUP"


def _is_sound(incident: Incident, system: Restorable, state: State) -> bool:
    """Whether the data is right, although a check of it did not pass, as far as anybody can tell.

    Damage to files stays on one server, a wrong statement reaches all: so its standbys say it. Without one, a server
    that does not answer says nothing against its data; what is staged from it is checked before it goes live.
    """
    standbys = [staged.name for staged in state.staged if staged.complete]
    if not standbys:
        return state.reachable is not Reachable.UP
    questions = incident.checks_of(system.name)
    return any(
        all(answer.level is Level.PASS for answer in incident.check_all(questions, standby)) for standby in standbys
    )


def _reachable(system: System, state: State, because: str = "") -> Finding:
    level = {Reachable.UP: Level.PASS, Reachable.DOWN: Level.FAIL, Reachable.UNKNOWN: Level.UNKNOWN}[state.reachable]
    detail = f"{state.summary} ({because})" if because else state.summary
    return Finding(system.name, "answers", level, figure=state.reachable.value, detail=detail, evidence=state.identity)


def _way(system: System, way: WayBack, *, chosen: bool = False) -> Finding:
    takes, loses = clock.write_duration(way.takes), clock.write_duration(way.loses)
    return Finding(
        system.name,
        f"way back: {way.name}",
        Level.PASS if way.possible else Level.WARN,
        figure="chosen" if chosen else "possible" if way.possible else "not possible",
        detail=f"{way.why}; takes {takes}, loses {loses}" if way.possible else way.why,
    )

"""Assess: what is broken, since when, and which way leads back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from salvor import clock, cutover
from salvor.change import Decision, Finding, Level, Reachable, Staged, State, WayBack
from salvor.checks import tells_of_damage
from salvor.errors import CannotError
from salvor.incident import RESTART, Broken, Incident
from salvor.roles import Application, Restorable
from salvor.system import System


def assess(incident: Incident) -> Iterator[Finding | Decision]:
    """Look at the service and what it depends on; pin what is broken, and choose its way back.

    Plans no change. What was pinned once stays pinned: after the cutover the same name is a healthy system. Only a copy
    in which the damage was found again is followed by another way back.
    """
    needed = [
        (incident.system(name), service)
        for service in incident.needs
        for name in (*service.systems, *service.applications)
    ]
    own = [*incident.systems, *incident.own_applications, *incident.routes]
    incident.observe_all([*(system for system, _ in needed), *own])
    answers = list(zip(incident.service.checks, incident.check_all(incident.service.checks, "live"), strict=True))
    for system, service in needed:
        because = f"{incident.service.name} depends on {service.name}"
        yield _reachable(system, incident.observe(system), because)
    for route in incident.routes:
        yield _reachable(route, incident.observe(route))
    refused: dict[str, list[WayBack]] = {}
    for one in incident.systems:
        yield from _look_at(incident, one, [answer for check, answer in answers if check.system == one.name], refused)
    outside = [answer for check, answer in answers if check.system is None]
    yield from outside
    for application in incident.own_applications:
        yield from _look_at_application(incident, application, outside)
    given_up = incident.whole_wish().given_up
    if given_up and not incident.decisions:
        on = sorted({name for one in incident.systems if (name := incident.observe(one).machine)})
        raise CannotError(
            f"Nothing of {incident.service.name} is live on {', '.join(given_up)}: it is on {', '.join(on) or 'none'}.",
            safe="nothing was changed",
            hint=f"inv hosts.fence --limit={given_up[0]} cuts off a machine on which nothing is live",
        )
    if refused and not incident.decisions:
        raise CannotError(
            f"What was asked for is of no system of {incident.service.name}: {_told(refused)}.",
            safe="nothing was changed",
            hint=f"inv backups {incident.options} lists what can be restored",
        )


def _look_at(
    incident: Incident, system: Restorable, answers: list[Finding], refused: dict[str, list[WayBack]]
) -> Iterator[Finding | Decision]:
    """One system: does it answer, is its data right, and if it is broken, the way back. A healthy one of which the
    operator asked for nothing that it has is left as it is, and noted in `refused`.
    """
    state = incident.observe(system)
    yield _reachable(system, state)
    if state.reachable is Reachable.UP and state.writable is None:
        yield Finding(system.name, "takes writes", Level.FAIL, state.summary)
    for rival in state.rivals:
        detail = f"inv isolate {incident.options} fences it"
        yield Finding(system.name, "stands alone", Level.FAIL, f"{rival} runs beside it, not fenced", detail=detail)
    for one in state.left_behind:
        detail = f"{one}; inv protect {incident.options} rebuilds it from the live primary"
        yield Finding(system.name, "is followed", Level.WARN, "left behind", detail=detail)
    for one in state.misdescribed:
        yield Finding(system.name, "is as the inventory describes it", Level.WARN, "no", detail=one)
    yield from answers
    if system.name in incident.decisions:
        if told := cutover.brought_back(incident).get(system.name):
            yield Finding(system.name, "is what was broken", Level.WARN, "no", detail=told, evidence=state.identity)
        else:
            yield from _look_further_back(incident, Broken(system, incident.decisions[system.name]))
        return
    wrong = [finding for finding in answers if finding.level is Level.FAIL]
    asked_for = (
        incident.wish.source != "latest" or incident.wish.at or incident.wish.target or incident.runbook == "rehearsal"
    )
    healthy = False
    if state.reachable is not Reachable.UP:
        told = state.summary
    elif state.writable is False:
        told = f"it takes no writes: {state.summary}"
    elif wrong:
        told = _wrong(wrong)
    elif given_up := incident.whole_wish().gives_up(state.machine):
        told = f"its machine {state.machine} is to be cut off: {given_up}"
    elif asked_for:
        told, healthy = "it looks healthy; the operator asked for another state of its data", True
    else:
        return
    sound = True
    if wrong or state.reachable is not Reachable.UP:
        said = _answers_of_copies(incident, system, state)
        sound = _is_sound(said, state)
        if not sound and state.reachable is not Reachable.UP:
            damage = [replace(answer, check=f"{answer.check} ({staged.name})") for staged, answer in _told_damage(said)]
            yield from damage
            told = f"{told}; {_wrong(damage)}"
    ways = system.ways_back(incident.whole_wish(live_is_sound=sound))
    possible = [way for way in ways if way.possible]
    yield from (_way(system, way, chosen=bool(possible) and way is possible[0]) for way in ways)
    if possible:
        others = tuple(way for way in ways if way is not possible[0])
        yield Decision(system.name, state.identity, told, possible[0], others)
    elif healthy and incident.wish.source != "latest":
        refused[system.name] = ways
    elif healthy:
        raise CannotError(
            f"{system.name} looks healthy, and no way back is open to another state of its data: {_told({'': ways})}.",
            safe="nothing was changed",
            hint=f"{_other_drills(incident, ways)}inv backups {incident.options} shows what there is; inv backup "
            f"{incident.options} makes a backup",
        )
    else:
        seen = "cannot be looked at" if state.reachable is Reachable.UNKNOWN else "is broken"
        raise CannotError(
            f"{system.name} {seen} ({told}) and no way back is open: {_told({'': ways})}.",
            safe="nothing was changed",
            hint=_hint(incident, sound=sound),
        )


def _look_further_back(incident: Incident, broken: Broken) -> Iterator[Finding | Decision]:
    """Another way back, when the copy that was staged has the damage too and nothing was cut over: nobody could ask
    what is live when the first was chosen.
    """
    system, pinned = broken.system, broken.decision
    if cutover.is_placed(incident, broken) or not cutover.is_refuted(incident, system):
        return
    ways = incident.ways_before_damage(broken)
    yield from (_way(system, way, chosen=way is ways[0]) for way in ways)
    if ways:
        told = f"the copy of {pinned.way.name} has the damage too; {pinned.seen}"
        yield Decision(system.name, pinned.identity, told, ways[0], tuple(ways[1:]))


def _wrong(findings: list[Finding]) -> str:
    return "; ".join(
        f"{finding.check}: {finding.figure or finding.detail} (limit {finding.limit or 'an answer'})"
        for finding in findings
    )


def _told(refused: Mapping[str, list[WayBack]]) -> str:
    """Why each way is not possible."""
    said = (f"{name} {way.name}: {way.why.removesuffix('.')}".strip() for name, ways in refused.items() for way in ways)
    return "; ".join(said) or "the engine offers none"


def _look_at_application(
    incident: Incident, application: Application, answers: list[Finding]
) -> Iterator[Finding | Decision]:
    """One program: does it run and, when all that it works on is sound, does it do its work."""
    state = incident.observe(application)
    yield _reachable(application, state)
    if application.name in incident.decisions:
        return
    wrong = [finding for finding in answers if finding.level is Level.FAIL]
    if state.reachable is Reachable.DOWN:
        way = WayBack("start", True, "it is started once what it works on is there")
        yield Decision(application.name, state.identity, state.summary, way)
    elif wrong and _hangs(incident, state):
        way = WayBack(RESTART, True, "it runs, and does not do its work", identity=state.details["run"])
        yield Decision(application.name, state.identity, _wrong(wrong), way)


def _hangs(incident: Incident, state: State) -> bool:
    """Whether nothing but the program itself can be why a check does not pass, and its runs can be told apart."""
    names = [name for service in incident.needs for name in (*service.systems, *service.applications)]
    runs = state.reachable is Reachable.UP and state.details.get("run")
    return (
        bool(runs)
        and not incident.broken
        and all(incident.observe(incident.system(name)).reachable is Reachable.UP for name in names)
    )


def _hint(incident: Incident, *, sound: bool) -> str:
    """The next command when no way back is open."""
    if not sound and not incident.failed_at:
        return (
            f"inv backups {incident.options} shows what there is; say when the damage began, if you know: "
            f"inv restore {incident.options} --failed-at=TIME (or --at=TIME: to that time)"
        )
    return (
        "mend what keeps each way from being open, then the same command again; or take another backup: "
        f"inv backups {incident.options}, then inv restore {incident.options} --from=BACKUP"
    )


def _other_drills(incident: Incident, ways: list[WayBack]) -> str:
    """What else can be rehearsed when one way was asked for; empty when there is nothing, and where all were tried."""
    others = ", ".join(way.name for way in ways if way.name not in incident.wish.ways)
    if incident.purpose != "drill" or len(incident.wish.ways) != 1 or not others:
        return ""
    return f"inv drill {incident.options} rehearses the best way that is open, or with --scenario= one of {others}; "


_Said = list[tuple[Staged, list[Finding]]]
"""What each copy answers to the checks of its data."""


def _answers_of_copies(incident: Incident, system: Restorable, state: State) -> _Said:
    questions = incident.checks_of(system.name)
    return [(staged, incident.check_all(questions, staged.name)) for staged in state.staged if staged.complete]


def _told_damage(said: _Said) -> list[tuple[Staged, Finding]]:
    """The wrong answers of copies that show all that they have."""
    whole = [(staged, answers) for staged, answers in said if staged.shows_all]
    return [(staged, answer) for staged, answers in whole for answer in answers if tells_of_damage(answer)]


def _is_sound(said: _Said, state: State) -> bool:
    """Whether the data is right, although a check of it did not pass or nobody could ask, as far as anybody can tell.

    Damage to files stays on one server, a wrong statement reaches all: so its standbys say it, but for one that has not
    replayed it yet. Where none of them answers, a server that does not answer either says nothing against its data;
    what is staged from it is checked before it goes live.
    """
    if any(staged.shows_all and all(answer.level is Level.PASS for answer in answers) for staged, answers in said):
        return True
    return state.reachable is not Reachable.UP and not _told_damage(said)


def _reachable(system: System, state: State, because: str = "") -> Finding:
    level = {Reachable.UP: Level.PASS, Reachable.DOWN: Level.FAIL, Reachable.UNKNOWN: Level.UNKNOWN}[state.reachable]
    detail = "; ".join((f"{state.summary} ({because})" if because else state.summary, *system.remarks))
    return Finding(system.name, "answers", level, figure=state.reachable.value, detail=detail, evidence=state.identity)


def _way(system: System, way: WayBack, *, chosen: bool = False) -> Finding:
    takes = "a time that was never measured" if way.takes is None else clock.write_duration(way.takes)
    loses = "nobody knows how much" if way.loses is None else clock.write_duration(way.loses)
    return Finding(
        system.name,
        f"way back: {way.name}",
        Level.PASS if way.possible else Level.WARN,
        figure="chosen" if chosen else "possible" if way.possible else "not possible",
        detail=f"{way.why}; takes {takes}, loses {loses}" if way.possible else way.why,
    )

"""Reroute: cut over to what was proven, then lead the users there."""

from __future__ import annotations

import time
from collections.abc import Iterator

from salvor import clock, cutover
from salvor.change import Change, Finding, Level, Reachable
from salvor.checks import Check
from salvor.errors import CannotError
from salvor.incident import Incident

_RECONNECT_SECONDS = 20.0
_BETWEEN_TRIES = 0.2


def reroute(incident: Incident) -> Iterator[Change | Finding]:
    """Promote each proven copy, start the programs that work on it, then lead the users there.

    When all is done, the service's checks through the route. What `verify` has not passed is refused: its finding
    fails, and nothing of it is cut over. Raises CannotError when somebody else brought back what is broken.
    """
    incident.observe_all(broken.system for broken in incident.broken)
    if back := cutover.brought_back(incident):
        raise CannotError(
            f"{'; '.join(back.values())}.",
            safe="it was not replaced",
            hint=f"inv undo --incident={incident.id} takes back what was done for it, such as programs that were "
            f"stopped; then inv assess {incident.options}",
        )
    waiting = [broken for broken in incident.broken if not cutover.is_in_place(incident, broken)]
    unproven = [broken for broken in waiting if not cutover.is_proven(incident, broken)]
    for broken in unproven:
        yield Finding(
            broken.system.name,
            "proven",
            Level.FAIL,
            detail=f"{broken.decision.way.stage} was not passed by verify; it is not cut over",
        )
    if unproven:
        return
    for broken in waiting:
        way = broken.decision.way
        yield broken.system.change(
            "promote",
            why=f"{way.stage} is proven; what is live now is kept" if way.arguments else f"{way.stage} is proven",
            undo=way.promote_undo,
            no_undo=way.promote_no_undo,
            **way.promote,
        )
    moved = False
    for application in cutover.due(incident):
        state = incident.observe(application)
        if state.reachable is Reachable.UNKNOWN:
            yield Finding(application.name, "runs", Level.UNKNOWN, detail=state.summary, evidence=state.identity)
        elif state.reachable is Reachable.DOWN and (wrong := cutover.held_down(incident, application)):
            is_ours = application.name in incident.decisions
            moved |= is_ours  # what it serves need not be asked for
            level = Level.FAIL if is_ours else Level.WARN
            detail = f"it was started and does not stay up; what it works on is broken: {wrong}"
            yield Finding(application.name, "runs", level, "no", detail=detail, evidence=state.identity)
        elif state.reachable is Reachable.DOWN:
            moved = True
            yield cutover.start_of(incident, application)
    for turn in cutover.turns(incident) if incident.decisions else ():
        moved = True
        yield turn
    for route in incident.routes if incident.decisions else ():
        state = incident.observe(route)
        if state.reachable is not Reachable.UP:
            why = f"nobody can tell where it leads, so it was not changed: {state.summary}"
            yield Finding(route.name, "leads to what is live", Level.UNKNOWN, detail=why)
    if incident.decisions and not (waiting or moved or incident.ahead):
        for check in incident.service.checks:
            yield _with_patience(incident, check)


def _with_patience(incident: Incident, check: Check) -> Finding:
    """A check through the route, until it passes: clients hold the old address for the TTL; applications reconnect."""
    until = clock.monotonic() + _RECONNECT_SECONDS + 2 * _believed_for(incident)
    while (finding := incident.check(check, "route")).level is not Level.PASS and clock.monotonic() < until:
        time.sleep(_BETWEEN_TRIES)
    return finding


def _believed_for(incident: Incident) -> float:
    """Seconds for which users' machines may go on believing what the routes said before."""
    return max((float(incident.observe(route).details.get("ttl") or 0.0) for route in incident.routes), default=0.0)

"""Isolate: stop writes to what is broken, and the programs that work on it, so that nothing more diverges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from salvor import cutover
from salvor.change import UNSEEN, Change, Finding, Level, Reachable, Undo, is_within
from salvor.errors import CannotError
from salvor.incident import RESTART, Broken, Incident
from salvor.roles import Application, Machine, Restorable
from salvor.wish import PROMOTE_WITHOUT_FENCE


def isolate(incident: Incident) -> Iterator[Change | Finding]:
    """Fence what is broken and still takes writes, or of which that cannot be told.

    What cannot be looked at now may be the broken one: it is fenced too, or else the step fails. Only a known other
    identity is left alone: after the cutover the same name is a healthy system. The programs that work on what is
    swapped are stopped first: they would go on with what is kept. Last, a second primary that came back beside what is
    live.
    """
    incident.observe_all(broken.system for broken in incident.broken)
    for application in _to_stop(incident):
        state = incident.observe(application)
        if state.reachable is Reachable.UNKNOWN:
            yield Finding(application.name, "stopped", Level.UNKNOWN, detail=state.summary, evidence=state.identity)
            continue
        why = "it works on what is swapped" if application.name not in incident.decisions else "it does not do its work"
        undo = Undo("start", {"await_health": False})  # going back leads to what is broken: it is not healthy there
        yield application.change("stop", why=why, undo=undo)
    for broken in incident.broken:
        state = incident.observe(broken.system)
        if UNSEEN not in (state.identity, broken.identity) and not is_within(state.identity, broken.identity):
            continue
        if cutover.is_placed(incident, broken):
            continue
        identity = state.identity if broken.identity == UNSEEN else broken.identity
        if state.writable is not False:
            yield _fence(incident, broken, identity)
        elif not incident.ahead:
            yield Finding(broken.system.name, "takes no writes", Level.PASS, detail=state.summary, evidence=identity)
    for system in incident.systems:
        state = incident.observe(system)
        for rival in state.rivals:
            why = "it runs beside what is live, and may take writes"
            yield system.change("fence", identity=rival, why=why, undo=Undo("unfence", {"identity": rival}))


def _to_stop(incident: Incident) -> list[Application]:
    """The programs that run and may not: they hang, or work on data that is still to be swapped. Those of which that
    cannot be told are among them.
    """
    swapped = {
        broken.system.name
        for broken in incident.broken
        if broken.decision.way.arguments is not None and not cutover.is_placed(incident, broken)
    } - cutover.brought_back(incident).keys()
    return [
        one
        for one in reversed(incident.applications)
        if incident.observe(one).reachable is not Reachable.DOWN and (swapped & set(one.uses) or _hangs(incident, one))
    ]


def _hangs(incident: Incident, application: Application) -> bool:
    """Whether the very run goes on that was pinned for a restart."""
    decision = incident.decisions.get(application.name)
    run = incident.observe(application).details.get("run")
    return bool(decision and decision.way.name == RESTART and run == decision.way.identity)


def _fence(incident: Incident, broken: Broken, identity: str) -> Change | Finding:
    """What fences it: its own fence, or that of its whole machine where the operator says so or its own cannot be.
    Raises CannotError when neither can, unless the operator goes on without.
    """
    system, state, wish = broken.system, incident.observe(broken.system), incident.whole_wish()
    own = system.change(
        "fence",
        identity=identity,
        why="it still takes writes" if state.writable else "whether it takes writes cannot be told",
        undo=Undo("unfence", {"identity": identity}),
    )
    goes_on = wish.override(PROMOTE_WITHOUT_FENCE)
    given_up = wish.gives_up(state.machine)
    failed = incident.outcomes.get(own.key) == "failed" and (state.reachable is not Reachable.UP or bool(goes_on))
    if not (given_up or failed or state.identity == UNSEEN):
        return own
    why = given_up or ("its own fence failed" if failed else "nobody can look at it, so it has no fence of its own")
    machine = _machine_of(incident, broken)
    seen = incident.observe(machine) if machine else None
    if machine and seen and seen.identity != UNSEEN:
        change = machine.change(
            "fence",
            identity=seen.identity,
            why=f"{system.name} is on it: {why}. Nobody but its operator reaches anything there then",
            undo=Undo("unfence", {"identity": seen.identity}),
        )
        return replace(change, destructive=True)
    if failed and not goes_on:
        return own
    told = f"{state.summary}; {machine.name}: {seen.summary}" if machine and seen else state.summary
    return _not_isolated(incident, system, told, goes_on)


def _machine_of(incident: Incident, broken: Broken) -> Machine | None:
    """The machine that a broken system is on, where its way back leads elsewhere: then the whole machine may be cut
    off. None when it stays in use, or the inventory does not describe it.
    """
    name = incident.observe(broken.system).machine
    machine = incident.system(name) if name and name != broken.decision.way.machine else None
    return machine if isinstance(machine, Machine) else None


def _not_isolated(incident: Incident, system: Restorable, told: str, goes_on: str) -> Finding:
    """That nothing keeps it from taking writes, and what keeps users from it all the same. Raises CannotError outside a
    plan, unless the operator goes on.
    """
    routes = ", ".join(route.name for route in incident.routes)
    led = f"{routes} will lead users past it; who knows its address still reaches it" if routes else "no route is known"
    back = f"when it is back: inv isolate {incident.options}"
    if not (goes_on or incident.ahead):
        raise CannotError(
            f"{system.name} is not isolated, and may take writes: {told}.",
            safe="nothing was promoted",
            hint="see to it by hand that it cannot write (power off, its port at the switch), then the same command "
            f"with --override='{PROMOTE_WITHOUT_FENCE}=REASON'",
        )
    level = Level.WARN if goes_on else Level.UNKNOWN
    detail = f"{told}. {f'{goes_on}. ' if goes_on else ''}{led}; {back}"
    return Finding(system.name, "isolated", level, figure="not", detail=detail, evidence=UNSEEN)

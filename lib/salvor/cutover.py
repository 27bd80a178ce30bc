"""How far the cutover of an incident is: what is staged, proven and in place, and what is still to be started."""

from __future__ import annotations

from collections.abc import Iterator

from salvor.change import ABSENT, UNSEEN, Change, Reachable, Staged, Undo, is_within
from salvor.checks import tells_of_damage
from salvor.incident import RESTART, Broken, Incident
from salvor.roles import Application
from salvor.system import System


def staged(incident: Incident, broken: Broken) -> Staged | None:
    """The whole copy that the chosen way would promote; None when there is none yet, or one of another way."""
    way = broken.decision.way
    for copy in incident.observe(broken.system).staged:
        if copy.name == way.stage and copy.complete and copy.of.items() <= (way.arguments or {}).items():
            return copy
    return None


def is_refuted(incident: Incident, system: System) -> bool:
    """Whether a check of the data failed on a copy that was staged the way that is pinned: the damage is older than was
    assumed when nobody could ask what is live.
    """
    questions = {check.name for check in incident.checks_of(system.name)}
    since = incident.findings[incident.decided_at.get(system.name, 0) :]
    return any(
        (step, finding.subject) == ("verify", system.name) and finding.check in questions and tells_of_damage(finding)
        for step, finding in since
    )


def is_proven(incident: Incident, broken: Broken) -> bool:
    """Whether `verify` passed this very copy, by its identity. In a plan, what it is to prove counts as proven."""
    copy = staged(incident, broken)
    if copy is None:
        live = incident.observe(broken.system).identity
        return is_placed(incident, broken) and any(is_within(live, proven) for proven in incident.proven)
    return incident.proves_ahead or copy.identity in incident.proven


def is_placed(incident: Incident, broken: Broken) -> bool:
    """Whether what this incident staged bears the system's name now, started or not."""
    state = incident.observe(broken.system)
    way = broken.decision.way
    return state.origin == incident.id or bool(way.identity and is_within(state.identity, way.identity))


def is_in_place(incident: Incident, broken: Broken) -> bool:
    """Whether the cutover of this system is done: ours is live and takes writes."""
    state = incident.observe(broken.system)
    return is_placed(incident, broken) and state.reachable is Reachable.UP and state.writable is True


def brought_back(incident: Incident) -> dict[str, str]:
    """What somebody else brought back, by its name, in a sentence: it takes writes, is not what `assess` pinned, and
    this incident did not put it there. It is not to be replaced.
    """
    found = {}
    for broken in incident.broken:
        state, pinned = incident.observe(broken.system), broken.identity
        is_another = not (is_within(state.identity, pinned) or is_within(pinned, state.identity))
        takes_writes = state.reachable is Reachable.UP and state.writable is True
        known = UNSEEN not in (state.identity, pinned)
        if known and is_another and takes_writes and not is_placed(incident, broken):
            name = broken.system.name
            found[name] = f"{name} takes writes, and is {state.identity}, not {pinned}: somebody brought it back"
    return found


def is_of_this_world(incident: Incident, broken: Broken) -> bool:
    """Whether what `assess` pinned, or what this incident made of it, is still to be seen; if not, it was replaced by
    hand.
    """
    state, way = incident.observe(broken.system), broken.decision.way
    return (
        state.identity == UNSEEN
        or (is_within(state.identity, broken.identity) and not _is_lost_again(incident, broken))
        or is_placed(incident, broken)
        or any(kept.incident == incident.id for kept in state.kept)
        or any(copy.name == way.stage and way.identity in ("", copy.identity) for copy in state.staged)
    )


def _is_lost_again(incident: Incident, broken: Broken) -> bool:
    """Whether what was lost was put in its place, and is lost once more: its backup was chosen for the first loss."""
    return broken.identity == ABSENT and broken.system.name in incident.placed


def is_done(incident: Incident) -> bool:
    """Whether every broken system is in place again, every program runs, and every route leads there."""
    led = all(incident.observe(route).reachable is Reachable.UP for route in incident.routes)
    runs = all(
        incident.observe(one).reachable is Reachable.UP
        or (one.name not in incident.decisions and bool(held_down(incident, one)))
        for one in due(incident)
    )
    placed = all(is_in_place(incident, broken) for broken in incident.broken)
    return placed and runs and led and not any(turns(incident))


def due(incident: Incident) -> list[Application]:
    """The programs that have to run once the data is back: those that did not when it was assessed, or hung, and those
    that this incident stopped. What somebody else had stopped stays so.
    """
    halted = incident.halted | incident.to_halt
    return [one for one in incident.applications if one.name in incident.decisions or one.name in halted]


def held_down(incident: Incident, application: Application) -> str:
    """What of other services' data keeps a program from staying up that this incident has started; empty when nothing
    does: then it is to be started (again).
    """
    tried = incident.outcomes.get(start_of(incident, application).key) in ("unknown", "not done")
    is_down = incident.observe(application).reachable is Reachable.DOWN
    return incident.broken_below(application) if tried and is_down and not incident.ahead else ""


def start_of(incident: Incident, application: Application) -> Change:
    """The start of a program that is due."""
    decision = incident.decisions.get(application.name)
    if decision is None:
        why = "it was stopped for the cutover"
    else:
        why = "it did not do its work" if decision.way.name == RESTART else incident.observe(application).summary
    return application.change("start", why=why, undo=Undo("stop"))


def turns(incident: Incident) -> Iterator[Change]:
    """The changes that would point the routes at what is live now; none for a route that does not answer."""
    for route in incident.routes:
        address, state = incident.observe(incident.system(route.leads_to)).address, incident.observe(route)
        change = route.change_to(address, state) if address and state.reachable is Reachable.UP else None
        if change:
            yield change

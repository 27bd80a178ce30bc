"""Isolate: stop writes to what is broken, and the programs that work on it, so that nothing more diverges."""

from __future__ import annotations

from collections.abc import Iterator

from salvor.change import UNSEEN, Change, Finding, Level, Reachable, Undo
from salvor.incident import Incident


def isolate(incident: Incident) -> Iterator[Change | Finding]:
    """Fence what is broken and still takes writes, or of which that cannot be told.

    What cannot be looked at now may be the broken one: it is fenced too, or else the step fails. Only a known other
    identity is left alone: after the cutover the same name is a healthy system. The programs that work on what is
    swapped are stopped first: they would go on with what is kept.
    """
    for application in incident.to_stop():
        state = incident.observe(application)
        if state.reachable is Reachable.UNKNOWN:
            yield Finding(application.name, "stopped", Level.UNKNOWN, detail=state.summary, evidence=state.identity)
            continue
        why = "it works on what is swapped" if application.name not in incident.decisions else "it does not do its work"
        undo = Undo("start", {"await_health": False})  # going back leads to what is broken: it is not healthy there
        yield application.change("stop", why=why, undo=undo)
    for broken in incident.broken:
        state = incident.observe(broken.system)
        if UNSEEN not in (state.identity, broken.identity) and state.identity != broken.identity:
            continue
        if incident.is_placed(broken):
            continue
        identity = state.identity if broken.identity == UNSEEN else broken.identity
        if state.writable is not False:
            yield broken.system.change(
                "fence",
                identity=identity,
                why="it still takes writes" if state.writable else "whether it takes writes cannot be told",
                undo=Undo("unfence", {"identity": identity}),
            )
        elif not incident.ahead:
            yield Finding(broken.system.name, "takes no writes", Level.PASS, detail=state.summary, evidence=identity)

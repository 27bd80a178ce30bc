"""Reroute: cut over to what was proven, then lead the users there."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import checks
from salvor.change import Change, Finding, Level
from salvor.incident import Incident


def reroute(incident: Incident) -> Iterator[Change | Finding]:
    """Promote each proven copy, then point the routes at it; when both are done, the service's checks through the
    route.

    What `verify` has not passed is refused: its finding fails, and nothing of it is cut over.
    """
    waiting = [broken for broken in incident.broken if not incident.is_in_place(broken)]
    unproven = [broken for broken in waiting if not incident.is_proven(broken)]
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
    turned = False
    for turn in incident.turns() if incident.broken else ():
        turned = True
        yield turn
    if incident.broken and not (waiting or turned or incident.ahead):
        for check in incident.service.checks:
            if checks.applies(check, "route"):
                yield incident.check(check, "route")

"""Isolate: stop writes to what is broken, so that nothing more diverges."""

from __future__ import annotations

from collections.abc import Iterator

from salvor.change import Change, Undo
from salvor.incident import Incident


def isolate(incident: Incident) -> Iterator[Change]:
    """Fence each broken identity that still takes writes, or of which we cannot tell."""
    for broken in incident.broken:
        state = incident.observe(broken.system)
        if state.identity == broken.identity and state.writable is not False:
            yield broken.system.change(
                "fence",
                identity=broken.identity,
                why="it still takes writes" if state.writable else "whether it takes writes cannot be told",
                undo=Undo("unfence", {"identity": broken.identity}),
            )

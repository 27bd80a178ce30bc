"""A drill of a whole platform on its stand-in: it is broken for real, brought back in its order, and what customers had
acknowledged is counted.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import ModuleType

from salvor import clock, inventory, show, whole_platform
from salvor.drill import end as drill_end
from salvor.drill import index as drill_index
from salvor.drill import place as drill_place
from salvor.errors import NotProvenError, UsageError
from salvor.incident import Incident
from salvor.sandbox import platforms
from salvor.sandbox.survivors import Survivors
from salvor.show import Plain, Shown
from salvor.whole_platform import Asked, Result

WORST = "everything"

_WRITES_BEFORE = 3.0
"""Seconds of customers at work before the disaster, so that there is something to lose."""


def run(platform: str, disaster: str, shown: Shown, *, keep: bool = False) -> None:
    """Start a fresh stand-in, throw `disaster` at it (empty: everything at once), bring the platform back, and take the
    stand-in down. Raises NotProvenError when a service is not back, or lost or took more than it may.
    """
    begun = clock.monotonic()
    stand_in, disasters, survivors = (platforms.package(platform, room) for room in ("", "disasters", "survivors"))
    name = disaster or WORST
    if name not in disasters.names():
        raise UsageError(f"There is no disaster {name!r}.", hint=f"the disasters are: {', '.join(disasters.names())}")
    stand_in.up(fresh=True, tell=shown.tell)
    gone = "the stand-in that it played in was removed"
    services = [service.name for service in inventory.load(platform).in_order()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # each that a killed drill left has reports to be made
        list(pool.map(lambda service: drill_end.end_interrupted(service, platform, shown, gone=gone), services))
    results: list[Result] = []
    counted: Mapping[str, Survivors] = {}
    try:
        time.sleep(_WRITES_BEFORE)
        shown.tell("")
        shown.tell(f"DISASTER: {name}: {disasters.names()[name]}")
        moment: datetime = disasters.strike(name)
        asked = Asked(failed_at=moment, purpose="drill", scenario=name)
        results = whole_platform.bring_back(inventory.load(platform), shown, asked, yes=True)
        shown.tell("")
        shown.tell("The platform after it:")
        whole_platform.assess(platform, shown)
        counted = survivors.survivors(moment)
    finally:
        _end(stand_in, results, counted, shown, keep=keep)
    whole_platform.report(results, shown)
    _report(counted, shown)
    shown.tell(f"The drill took {clock.write_duration(clock.monotonic() - begun)}.")
    _refuse_failed(results)


def _end(
    stand_in: ModuleType, results: list[Result], counted: Mapping[str, Survivors], shown: Shown, *, keep: bool
) -> None:
    """Take the stand-in down, look what is left of it, and end each service's drill with that."""
    begun = clock.monotonic()
    with drill_place.in_memory(drill_place.signing_key(stand_in.find().place)) as key:
        seen = drill_place.taken_down(stand_in, shown, keep=keep)
        seconds = clock.monotonic() - begun
        for finding in seen:
            shown.finding(finding)
        shown.tell("Making the reports.")
        played = [one.session.incident for one in results if one.session and one.session.incident.folder.exists()]

        def finish(incident: Incident) -> list[str]:
            own = [drill_place.counted(name, one) for name, one in counted.items() if name == incident.service.name]
            said = io.StringIO()
            drill_end.finish(incident.folder, seen, seconds, Plain(said), key, counted=own)
            return [line for line in said.getvalue().splitlines() if line.startswith("owed")]

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for lines in pool.map(finish, played):
                shown.lines(lines)
    if played:
        index = drill_index.make(played[0].folder.parent) or show.shortest(played[0].folder.parent / drill_index.PAGE)
        shown.tell(f"  all drills: {index}")


def _report(counted: Mapping[str, Survivors], shown: Shown) -> None:
    header = ("what customers had acknowledged", "before", "of these lost", "until the outage", "of these lost")
    rows = [
        (
            name,
            f"{one.before}",
            f"{one.before - one.before_survived}",
            f"{one.after}",
            f"{one.after - one.after_survived}",
        )
        for name, one in counted.items()
    ]
    shown.tell("")
    shown.lines(show.table(header, rows))
    if isinstance(shown, show.Json):
        for name, one in counted.items():
            shown.write("survivors", of=name, before=one.before, before_survived=one.before_survived, lost=one.lost)


def _refuse_failed(results: list[Result]) -> None:
    """Raise the worst of what services failed with, or NotProvenError when one missed its target."""
    whole_platform.refuse_failed(results)
    for each in results:
        incident = each.session.incident if each.session else None
        for name, limit in (("rto", each.service.rto), ("rpo", each.service.rpo)):
            figure = incident.measured.get(name) if incident else None
            if each.state == "back" and figure is not None and figure > limit:
                raise NotProvenError(
                    f"{each.service.name} is back, and missed its {name.upper()}: {clock.write_duration(figure)} of "
                    f"{clock.write_duration(limit)} allowed.",
                    hint=f"inv incident.show --incident={incident.id if incident else ''}",
                )

"""Drills: the very path of a recovery. In the sandbox with a real disaster and the cutover; elsewhere up to the
proof, touching nothing live.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from salvor import clock, inventory, maintenance, sandbox, show
from salvor.budgets import REHEARSAL
from salvor.drill import end as drill_end
from salvor.drill import every as drill_every
from salvor.drill import place as drill_place
from salvor.drill import platform as drill_platform
from salvor.drill import rehearsal
from salvor.drill import report as drill_report
from salvor.journal.folders import incidents_folder
from salvor.sandbox import disasters, harm, platforms, survivors
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Shown

SCENES = ("wrong-update", "kill-primary")
"""Without a wish: a wrong statement, undone from the backup; then the primary dies, and its standby takes over."""

_WRITES_BEFORE = 2.0
"""Seconds of writes before each disaster, so that there is something to lose."""


@dataclass(frozen=True)
class Scene:
    """How one disaster went. Times in seconds; None: not measured."""

    disaster: str
    incident: str
    way: str
    rto: float | None
    rpo: float | None
    survivors: survivors.Survivors


def run(service: str, platform: str, scenario: str, shown: Shown, *, keep: bool = False) -> None:
    """The sandbox: break it and bring it back, one scene or two. A platform with a stand-in, and no service named: all
    of it. With the scenario `every`, each disaster of a stand-in, one after another. Else, or with the scenario
    `rehearsal`: rehearse on a copy. Raises NotProvenError when a drill failed.
    """
    if scenario == drill_every.EVERY:
        drill_every.run(platform, lambda each: run(service, platform, each, shown, keep=keep), shown)
        return
    if platform not in inventory.names():
        inventory.load(platform)  # says so before anything is begun: a stand-in that nothing describes cannot come back
    if platform in platforms.PACKAGES and platform != inventory.SANDBOX and not service and scenario != REHEARSAL:
        drill_platform.run(platform, scenario, shown, keep=keep)
        return
    service = service or ("orders" if platform == "sandbox" else "")
    if platform != "sandbox" or scenario == REHEARSAL:
        rehearsal.run(service, platform, shown, "" if scenario == REHEARSAL else scenario)
        return
    if scenario:
        harm.refuse_unknown(scenario, disasters.names())
    begun = clock.monotonic()
    shown.tell("Starting a fresh sandbox: PostgreSQL with a standby, backups, DNS, a shop, and customers who buy.")
    sandbox.up(fresh=True, tell=shown.tell)
    drill_end.end_interrupted(service, platform, shown, gone="the sandbox that it played in was removed")
    played: list[Path] = []
    scenes: list[Scene] = []
    try:
        for number, name in enumerate((scenario,) if scenario else SCENES):
            if number:
                _clear_up(service, scenes[-1].incident, shown)
            scenes.append(_scene(number, name, service, platform, shown, played))
    finally:
        _end(played, scenes, shown, keep=keep)
    _report(scenes, shown)
    drill_end.refuse_failed(played)
    shown.tell(f"The drill took {clock.write_duration(clock.monotonic() - begun)}.")


def _end(played: list[Path], scenes: list[Scene], shown: Shown, *, keep: bool) -> None:
    """Take the sandbox down, look what is left of it, and end each scene's drill with that."""
    begun = clock.monotonic()
    with drill_place.in_memory(drill_place.signing_key(sandbox.find().place)) as key:
        seen = drill_place.taken_down(sandbox, shown, keep=keep)
        seconds = clock.monotonic() - begun
        for folder in played:
            counted = [
                drill_place.counted("the shop", scene.survivors) for scene in scenes if scene.incident == folder.name
            ]
            drill_end.finish(folder, seen, seconds, shown, key, counted=counted)


def _scene(number: int, disaster: str, service: str, platform: str, shown: Shown, played: list[Path]) -> Scene:
    """Play one disaster. The incident's folder is in `played` before anything can fail."""
    begun = clock.now()
    time.sleep(_WRITES_BEFORE)
    shown.tell("")
    shown.tell(f"DISASTER: {disaster}: {disasters.names()[disaster]}")
    moment: datetime = disasters.strike(disaster)
    sitting: Session = open_session(
        service, shown, platform=platform, failed_at=moment, purpose="drill", scenario=disaster, anew=True
    )
    incident = sitting.incident
    played.append(incident.folder)
    drill_end.recover(sitting, shown)
    counted = survivors.survivors(moment, begun if number else None)
    way = ", ".join(decision.way.name for decision in incident.decisions.values())
    return Scene(disaster, incident.id, way, incident.measured.get("rto"), incident.measured.get("rpo"), counted)


def _clear_up(service: str, incident: str, shown: Shown) -> None:
    """After a scene: what it kept goes, and the service becomes redundant again, as it would the day after."""
    shown.tell("")
    shown.tell("The day after: what was kept is discarded, the standby is rebuilt.")
    aftermath.discard(incident, shown, yes=True)
    maintenance.protect(service, "sandbox", shown, yes=True)


def _report(scenes: list[Scene], shown: Shown) -> None:
    header = ("disaster", "way back", "RTO", "RPO", "acknowledged orders before", "of these lost", "report")
    rows = [
        (
            scene.disaster,
            scene.way,
            clock.write_duration(scene.rto),
            clock.write_duration(scene.rpo),
            f"{scene.survivors.before}",
            f"{scene.survivors.before - scene.survivors.before_survived}",
            show.shortest(incidents_folder() / scene.incident / drill_report.PAGE),
        )
        for scene in scenes
    ]
    shown.tell("")
    shown.lines(show.table(header, rows))
    if isinstance(shown, show.Json):
        for scene in scenes:
            shown.write(
                "scene", disaster=scene.disaster, incident=scene.incident, way=scene.way, rto=scene.rto, rpo=scene.rpo
            )

"""Drills: the very path of a recovery. In the sandbox with a real disaster and the cutover; elsewhere up to the
proof, touching nothing live.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from salvor import aftermath, clock, console, maintenance, sandbox, session, shell, show
from salvor.sandbox import disasters, survivors
from salvor.session import Session
from salvor.show import Shown
from salvor.system import Wish

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


def run(service: str, platform: str, disaster: str, shown: Shown, *, keep: bool = False) -> None:
    """The sandbox: break it and bring it back, one scene or two. Another platform: rehearse on a copy. Raises
    NotProvenError when an allowed loss was exceeded.
    """
    if platform != "sandbox":
        rehearse(service, platform, shown)
        return
    begun = clock.monotonic()
    shown.tell("Starting a fresh sandbox: PostgreSQL with a standby, backups, DNS, a shop, and customers who buy.")
    sandbox.up(fresh=True, tell=shown.tell)
    scenes: list[Scene] = []
    try:
        for number, name in enumerate((disaster,) if disaster else SCENES):
            if number:
                _clear_up(service, scenes[-1].incident, shown)
            scenes.append(_scene(number, name, service, platform, shown))
        _report(scenes, shown)
    finally:
        if not keep:
            sandbox.down()
            shown.tell("The sandbox is down; the records stay.")
    shown.tell(f"The drill took {clock.write_duration(clock.monotonic() - begun)}.")


def _scene(number: int, disaster: str, service: str, platform: str, shown: Shown) -> Scene:
    begun = clock.now()
    time.sleep(_WRITES_BEFORE)
    shown.tell(f"\nDISASTER: {disaster}: {disasters.names()[disaster]}")
    moment: datetime = disasters.strike(disaster)
    sitting: Session = session.open_session(
        service, shown, platform=platform, failed_at=moment, purpose="drill", anew=True
    )
    console.recover(sitting, shown, yes=True)
    incident = sitting.incident
    counted = survivors.survivors(moment, begun if number else None)
    aftermath.close_incident(incident.id, str(_signing_key()), shown)
    way = ", ".join(decision.way.name for decision in incident.decisions.values())
    return Scene(disaster, incident.id, way, incident.measured.get("rto"), incident.measured.get("rpo"), counted)


def _signing_key() -> Path:
    """The sandbox's own SSH key, for the operator of a drill."""
    path = sandbox.find().place / "operator_key"
    if not path.exists():
        shell.local().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "drill", "-f", str(path)])
    return path


def _clear_up(service: str, incident: str, shown: Shown) -> None:
    """After a scene: what it kept goes, and the service becomes redundant again, as it would the day after."""
    shown.tell("\nThe day after: what was kept is discarded, the standby is rebuilt.")
    aftermath.discard(incident, shown, yes=True)
    maintenance.protect(service, "sandbox", shown, yes=True)


def _report(scenes: list[Scene], shown: Shown) -> None:
    header = ("disaster", "way back", "RTO", "RPO", "acknowledged orders before", "of these lost", "record")
    rows = [
        (
            scene.disaster,
            scene.way,
            clock.write_duration(scene.rto),
            clock.write_duration(scene.rpo),
            f"{scene.survivors.before}",
            f"{scene.survivors.before - scene.survivors.before_survived}",
            f"incidents/{scene.incident}/record.html",
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


def rehearse(service: str, platform: str, shown: Shown) -> None:
    """Stage the newest backup beside what is live, prove it, and remove it again: the recovery's path up to the
    cutover.
    """
    sitting = session.open_session(
        service, shown, platform=platform, wish=Wish(), runbook_name="rehearsal", purpose="drill"
    )
    try:
        console.recover(sitting, shown, yes=True)
    finally:
        if sitting.journal:
            aftermath.undo(sitting.incident.id, shown, yes=True)
            aftermath.close_incident(sitting.incident.id, "", shown)
    shown.tell(f"{service}: the newest backup was restored beside what is live, proven, and removed again.")

"""A rehearsal: a backup is restored beside what is live, proven, measured, and removed. Nothing live is touched."""

from __future__ import annotations

from dataclasses import replace

from salvor import drill_end, inventory, session
from salvor.budgets import REHEARSAL
from salvor.errors import NotProvenError, SalvorError, UsageError
from salvor.show import Shown
from salvor.system import Wish


def run(service: str, platform: str, shown: Shown, way: str = "", wish: Wish | None = None) -> None:
    """Rehearse a service, or with none named all of the platform that live in systems, one after the other.

    `way` is the way back to rehearse (empty: the first that is open), `wish` what to restore (None: the newest). Raises
    NotProvenError when one failed, when all are tried.
    """
    if service:
        _run(service, platform, shown, way, wish or Wish())
        return
    failed: dict[str, SalvorError] = {}
    for each in inventory.load(platform).in_order():
        if not each.systems:
            continue
        shown.tell("")
        shown.tell(f"{each.title or each.name} (tier {each.tier}):")
        try:
            _run(each.name, platform, shown, way, wish or Wish())
        except SalvorError as error:
            shown.tell("")
            shown.tell(f"{error}")
            failed[each.name] = error
    if failed:
        raise NotProvenError(
            f"The rehearsal failed for {', '.join(failed)}.", hint="the word of each is above, and in its report"
        )


def _run(service: str, platform: str, shown: Shown, way: str, wish: Wish) -> None:
    drill_end.end_interrupted(service, platform, shown)
    sitting = session.open_session(
        service,
        shown,
        platform=platform,
        wish=wish,
        runbook_name=REHEARSAL,
        purpose="drill",
        scenario=f"{REHEARSAL} {way}".strip(),
        anew=True,
    )
    if not sitting.incident.systems:
        raise UsageError(
            f"{service} lives in no system that could be restored beside.", hint="rehearse what it depends on"
        )
    sitting.incident.wish = replace(sitting.incident.wish, ways=(way,) if way else sitting.incident.wish.ways)
    try:
        drill_end.recover(sitting, shown)
    finally:
        if sitting.incident.folder.exists():
            drill_end.rehearsed(sitting, shown)
    drill_end.refuse_failed([sitting.incident.folder])
    backups = sorted({one.way.backup for one in sitting.incident.decisions.values() if one.way.backup})
    shown.tell(
        f"{service}: {', '.join(backups) or 'the newest backup'} was restored beside what is live, proven, and removed "
        "again."
    )

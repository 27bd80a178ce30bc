"""A rehearsal: a backup is restored beside what is live, proven, measured, and removed. Nothing live is touched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from salvor import inventory, show
from salvor.budgets import REHEARSAL
from salvor.drill import end as drill_end
from salvor.errors import NotProvenError, SalvorError, UsageError
from salvor.inventory import Platform, Service
from salvor.patience import patiently
from salvor.sandbox import platforms
from salvor.session.opening import open_session
from salvor.show import Shown
from salvor.wish import Wish


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
        shown.tell("")
        shown.tell(f"{each.title or each.name} (tier {each.tier}):")
        if not each.systems:
            shown.tell("  holds no data that could be restored beside: nothing to rehearse")
            continue
        try:
            patiently(partial(_run, each.name, platform, shown, way, wish or Wish()), shown.tell)
        except SalvorError as error:
            shown.tell("")
            shown.tell(f"{error}")
            failed[each.name] = error
    if failed:
        raise NotProvenError(
            f"The rehearsal failed for {', '.join(failed)}.", hint="the word of each is above, and in its report"
        )


def _run(service: str, platform: str, shown: Shown, way: str, wish: Wish) -> None:
    described = inventory.load(platform)
    if not described.service(service).systems:
        raise _without_data(described, described.service(service))
    drill_end.end_interrupted(service, platform, shown)
    sitting = open_session(
        service,
        shown,
        platform=platform,
        wish=wish,
        runbook_name=REHEARSAL,
        purpose="drill",
        scenario=f"{REHEARSAL} {way}".strip(),
        anew=True,
    )
    sitting.incident.wish = replace(sitting.incident.wish, ways=(way,) if way else sitting.incident.wish.ways)
    try:
        drill_end.recover(sitting, shown)
    finally:
        if sitting.incident.folder.exists():
            drill_end.rehearsed(sitting, show.unfailing(shown))
    drill_end.refuse_failed([sitting.incident.folder])
    decided = [decision.way for decision in sitting.incident.decisions.values()]
    if decided and not any(one.arguments for one in decided):
        shown.tell(
            f"{service}: {', '.join(one.stage for one in decided)} was proven; {decided[0].name} restores nothing."
        )
        return
    proofs = sitting.journal.of("proven") if sitting.journal else ()
    backups = sorted({str(line["backup"]) for line in proofs if line["backup"]})
    shown.tell(
        f"{service}: {', '.join(backups) or 'the newest backup'} was restored beside what is live, proven, and removed "
        "again."
    )


def _without_data(platform: Platform, service: Service) -> UsageError:
    """A service of programs alone: to rehearse it would be to stop it, which only a stand-in may be done to."""
    words = []
    if platform.name in platforms.PACKAGES:
        words.append(f"its programs, with all others of the stand-in: inv drill --platform={platform.name}")
    needed = next((name for name in service.depends_on if platform.services[name].systems), "")
    if needed:
        words.append(f"the data that it needs: inv drill --service={needed} --platform={platform.name}")
    return UsageError(
        f"{service.name} holds no data that could be restored beside; its programs are only started again.",
        safe="nothing was touched",
        hint="; ".join(words) or f"inv assess --service={service.name} --platform={platform.name}",
    )

"""Carry out the policies of retention: say which backups stay and why, then remove the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from salvor import clock, inventory, journal, show
from salvor.backups.policy import BackedUpSettings, Keep
from salvor.backups.retention import decide, together
from salvor.change import Backup, Change, Finding, Verdict, canonical
from salvor.errors import UsageError
from salvor.history import History
from salvor.incident import Incident
from salvor.inventory import Platform, Service
from salvor.journal import Journal, brief
from salvor.journal.folders import incidents_folder
from salvor.maintenance import sitting, work
from salvor.show import Shown
from salvor.system import Restorable

_ARCHIVE = "archive"
"""The kind of a backup that is a file with those of several systems."""


def carry_out(
    service: str, platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> None:
    """Plan, show, approve and do it, for the systems of a service (empty: of the platform). Raises UsageError when
    none has a policy.
    """
    described = inventory.load(platform)
    chosen = described.service(service) if service else _every(described)
    session = sitting(chosen, described, shown)
    if not any(_keep(system) for system in session.incident.systems):
        raise UsageError(
            f"No system of {service or platform} says which backups stay.",
            safe="nothing was removed",
            hint="add for example keep: {daily: 7, weekly: 4, monthly: 12} to one in the inventory",
        )

    def retention(incident: Incident) -> Iterator[Change | Finding]:
        """Remove what the policy lets go."""
        for system, verdicts in verdicts_of(incident, session.history):
            yield from system.expiry(verdicts)

    for system, verdicts in verdicts_of(session.incident, session.history):
        _show(system.name, verdicts, shown)
    work(session, retention, shown, plan_only=plan_only, approve=approve, yes=yes)


def _every(platform: Platform) -> Service:
    """A service of all systems of the platform that have a policy."""
    names = [name for name, one in platform.settings.items() if isinstance(one, BackedUpSettings) and one.keep]
    return Service(name="retention", rto=0, rpo=0, systems=tuple(names))


def verdicts_of(incident: Incident, history: History) -> list[tuple[Restorable, list[Verdict]]]:
    """What the policy of each system of the service that has one says of its backups, newest first.

    What an open incident restores from stays. An archive that holds systems of other services too stays as long as one
    of them keeps it, or has no policy.
    Raises CannotError when a repository cannot be read: then nothing is decided.
    """
    mine = [(system, _verdicts(system, history)) for system in incident.systems if _keep(system)]
    every = [one for _, verdicts in mine for one in verdicts]
    if any(one.backup.kind == _ARCHIVE and not one.stays for one in every):
        names = {system.name for system, _ in mine}
        others = [incident.system(name) for name in incident.platform.settings if name not in names]
        for other in others:
            if isinstance(other, Restorable):
                every += [one for one in _verdicts(other, history) if one.backup.kind == _ARCHIVE]
    agreed = iter(together(every))
    return [(system, [next(agreed) for _ in verdicts]) for system, verdicts in mine]


def _verdicts(system: Restorable, history: History) -> list[Verdict]:
    ways = _ways_in_use(system.name)

    def of(one: Backup) -> Backup:
        used_by = next((incident for incident, way in ways.items() if one.id in way), "")
        hold = one.hold or (f"{used_by} restores from it" if used_by else "")
        return replace(one, proven=history.proven(system.name, one.id), hold=hold)

    backups = [of(one) for one in system.backups()]
    keep = _keep(system)
    return (
        decide(backups, keep, system.settings.own_policies)
        if keep
        else [Verdict(one, ("it has no policy",)) for one in backups]
    )


def _ways_in_use(system: str) -> dict[str, str]:
    """The way back that each incident has chosen for this system which has begun and not recovered: as text."""
    found: dict[str, str] = {}
    for folder in journal.incidents(incidents_folder()):
        if brief.is_over(folder):
            continue
        lines = Journal.read(folder).lines
        chosen = [one["decision"] for one in lines if one["kind"] == "decision"]
        ways = [canonical(one["way"]) for one in chosen if one["system"] == system]
        if ways and not any(one["kind"] == "recovered" for one in lines):
            found[folder.name] = ways[-1]
    return found


def _keep(system: Restorable) -> Keep | None:
    return system.settings.keep if isinstance(system.settings, BackedUpSettings) else None


def _show(name: str, verdicts: list[Verdict], shown: Shown) -> None:
    """Every backup, and why it stays."""
    if isinstance(shown, show.Json):
        for one in verdicts:
            backup = one.backup
            taken = clock.write_time(backup.taken)
            shown.write("verdict", system=name, id=backup.id, taken=taken, stays=one.stays, reasons=list(one.reasons))
        return
    rows = [
        (
            one.backup.id,
            one.backup.kind,
            f"{one.backup.taken:%Y-%m-%d %H:%M}",
            show.write_bytes(one.backup.size) if one.backup.size else "-",
            one.backup.repository,
            ", ".join(one.reasons) or "GOES",
        )
        for one in verdicts
    ]
    header = ("id", "kind", "taken (UTC)", "size", "in", "why it stays")
    shown.lines([f"{name}:", *(f"  {line}" for line in show.table(header, rows))])

"""Carry out the policies of retention of a service: say which backups stay and why, then remove the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from salvor import clock, inventory, show
from salvor.change import Change, Finding, Verdict
from salvor.console import approval, one_of, show_plan
from salvor.errors import UsageError
from salvor.history import History
from salvor.incident import Incident
from salvor.maintenance import sitting
from salvor.policy import BackedUpSettings, Keep
from salvor.retention import decide, together
from salvor.show import Shown
from salvor.system import Restorable

_ARCHIVE = "archive"
"""The kind of a backup that is a file with those of several systems."""


def carry_out(
    service: str, platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> None:
    """Plan, show, approve and do it. Raises UsageError when no system of the service has a policy."""
    described = inventory.load(platform)
    session = sitting(described.service(one_of("service", service)), described, shown)
    if not any(_keep(system) for system in session.incident.systems):
        raise UsageError(
            f"No system of {service} says which backups stay.",
            safe="nothing was removed",
            hint="add for example keep: {daily: 7, weekly: 4, monthly: 12} to one in the inventory",
        )

    def retention(incident: Incident) -> Iterator[Change | Finding]:
        """Remove what the policy lets go."""
        for system, verdicts in verdicts_of(incident, session.history):
            yield from system.expiry(verdicts)

    for system, verdicts in verdicts_of(session.incident, session.history):
        _show(system.name, verdicts, shown)
    planned = session.runner.plan([retention])
    show_plan(session, shown, planned)
    if plan_only or not planned.changes:
        return
    how = approval(shown, planned.changes, approve=approve, yes=yes)
    with session.begin():
        session.runner.approve(planned, how)
        session.runner.run(retention)
        session.runner.note("closed", result="done")


def verdicts_of(incident: Incident, history: History) -> list[tuple[Restorable, list[Verdict]]]:
    """What the policy of each system of the service that has one says of its backups, newest first.

    An archive that holds systems of other services too stays as long as one of them keeps it, or has no policy.
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
    backups = [replace(one, proven=history.proven(system.name, one.id)) for one in system.backups()]
    keep = _keep(system)
    return (
        decide(backups, keep, system.settings.own_policies)
        if keep
        else [Verdict(one, ("it has no policy",)) for one in backups]
    )


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
            show.write_bytes(one.backup.size),
            ", ".join(one.reasons) or "GOES",
        )
        for one in verdicts
    ]
    header = ("id", "kind", "taken (UTC)", "size", "why it stays")
    shown.lines([f"{name}:", *(f"  {line}" for line in show.table(header, rows))])

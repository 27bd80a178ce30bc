"""Between incidents: back up, list what could be restored, and make a recovered service redundant again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime

from salvor import clock, cutover, inventory, journal, show
from salvor.approval.terminal import approval
from salvor.arguments import required
from salvor.backups.retention import is_ahead
from salvor.change import Backup, Change, Finding, Level
from salvor.console import show_plan
from salvor.errors import CannotError, OutcomeUnknownError, SalvorError, UsageError, WarnedError
from salvor.history import History
from salvor.incident import Incident, new_id
from salvor.inventory import Platform, Service
from salvor.journal import Journal, brief
from salvor.journal.brief import FAILED
from salvor.journal.folders import incidents_folder, operator
from salvor.plan import Plan, PlannedStep
from salvor.roles import Restorable
from salvor.run import Runner
from salvor.runbook_files import MAINTENANCE
from salvor.session import Session
from salvor.show import Shown
from salvor.steps import Step
from salvor.wish import Wish

ARCHIVE = "archive"
_KINDS = ("full", "diff", "incr", "dump", "snapshot")


def _session(service: str, platform: str, shown: Shown) -> Session:
    described = inventory.load(platform)
    return sitting(described.service(required("service", service)), described, shown)


def sitting(service: Service, platform: Platform, shown: Shown) -> Session:
    """A sitting whose journal tells of maintenance rather than of an incident."""
    new = new_id(service.name)
    incident = Incident(
        new, platform, service, Wish(), MAINTENANCE.name, operator(), incidents_folder() / new, purpose="maintenance"
    )
    return Session(incident, MAINTENANCE, Runner(incident, shown), History(incidents_folder(), platform.name))


@contextmanager
def _recorded(session: Session) -> Iterator[None]:
    """Begin the sitting, and close its record however the work ends: nobody goes on with maintenance that failed."""
    with session.begin():
        _close_what_was_killed(session)
        try:
            yield
        except BaseException as error:
            session.failed(error if isinstance(error, Exception) else InterruptedError("it was stopped"))
            session.runner.note("closed", result=FAILED)
            raise
        session.runner.note("closed", result="done")


def _close_what_was_killed(session: Session) -> None:
    """Close the records of maintenance that was killed: who holds its service knows that nobody is at it any more."""
    mine = session.incident
    for folder in journal.incidents(mine.folder.parent):
        if folder.name == mine.id or brief.service_of(folder.name) != mine.service.name:
            continue
        told = brief.read(folder)
        if told is None or (told.purpose, told.platform) != (mine.purpose, mine.platform.name):
            continue
        if told.is_over:
            return
        mirror, tell = os.environ.get("SALVOR_MIRROR"), session.runner.watcher.tell
        with suppress(SalvorError), Journal.open(folder, by=mine.operator, mirror=mirror, tell=tell) as left:
            left.append("closed", result=FAILED)


def _carry_out(session: Session, name: str, changes: tuple[Change, ...], how: str) -> list[Finding]:
    """Carry approved changes out. Returns what went amiss beside their success."""
    had_some = [
        system
        for system in session.incident.systems
        if any((one.system, one.verb) == (system.name, "backup") for one in changes)
        and session.history.last(system.name, "backup") is not None
    ]
    since = clock.now().replace(microsecond=0)
    with _recorded(session):
        session.runner.approve(Plan((PlannedStep(name, (), (), changes),)), how)
        session.runner.act(name, changes)
        for lost in (each for system in had_some for each in _lost(system, since)):
            session.runner.note("finding", step=name, finding=lost.to_json())
            with suppress(OSError, ValueError):
                session.runner.watcher.finding(lost)
    return [Finding.from_json(line["finding"]) for line in session.journal.of("finding")] if session.journal else []


def _lost(system: Restorable, since: datetime) -> Iterator[Finding]:
    """That of a system that was backed up before `since` nothing older is there: what its repositories had is gone, or
    the disk that they are on, and new ones were made in their place.
    """
    with suppress(SalvorError):
        found = system.backups()
        if found and not system.unread and all(one.taken >= since for one in found):
            figure, detail = "all earlier backups are gone", "see that the disk of each repository is mounted"
            yield Finding(system.name, "backup", Level.WARN, figure, detail=detail)


def work(
    session: Session,
    step: Step,
    shown: Shown,
    *,
    plan_only: bool,
    approve: str,
    yes: bool,
    holding: Callable[[Sequence[Change]], AbstractContextManager[object]] = nullcontext,
) -> bool:
    """Plan a step, show it, have it approved and carry it out, until it plans nothing more. Returns whether anything
    was changed. `holding` gets what was approved, and what it returns is entered while that is carried out.
    """
    planned = session.runner.plan([step])
    show_plan(session, shown, planned)
    if plan_only or not planned.changes:
        return False
    how = approval(shown, planned.changes, approve=approve, yes=yes)
    with _recorded(session), holding(planned.changes):
        session.runner.approve(planned, how)
        session.runner.run(step)
    return True


def backup(service: str, platform: str, kind: str, shown: Shown) -> None:
    """Back up every system of a service. `kind` is full, diff or incr (by pgBackRest), dump, or archive: of every
    system of the platform that is in the same archives, all in one.

    Raises WarnedError when every system has its backup, and a repository did not take it, or was made anew for it.
    """
    if kind not in (*_KINDS, ARCHIVE):
        raise UsageError(
            f"--kind: there is no backup of kind {kind!r}.",
            safe="nothing was changed",
            hint=f"it is {', '.join(_KINDS)} or {ARCHIVE}",
        )
    session = _session(service, platform, shown)
    if kind == ARCHIVE:
        changes: tuple[Change, ...] = (_archive(session),)
    else:
        changes = tuple(
            system.change("backup", kind=kind, why="asked for", no_undo="it only adds a backup; the policy removes it")
            for system in session.incident.systems
        )
    amiss = _carry_out(session, "backup", changes, "asked for by inv backup")
    backups(service, platform, shown)
    _require_all(amiss, session.incident, f"inv backup {session.incident.options} --kind={kind}")


def _require_all(amiss: Sequence[Finding], incident: Incident, again: str) -> None:
    """Raises WarnedError when a repository did not take a backup that another one took, or was made for it anew."""
    if amiss:
        raise WarnedError(
            f"Not every repository is as it should be: {'; '.join(f'{one.subject}: {one.figure}' for one in amiss)}.",
            safe="the backup was made: one of them at least has it",
            hint=f"inv backups --check {incident.options} says what is wrong with each; then: {again}",
        )


def _archive(session: Session) -> Change:
    """What writes an archive of all systems that share one with this service. Named by this machine's clock, as those
    that others write are.
    """
    settings = session.incident.platform.settings
    places = {name: place for name, one in settings.items() if (place := getattr(one, "archives", None))}
    first = next((system for system in session.incident.systems if system.name in places), None)
    if first is None:
        raise UsageError(
            f"--kind={ARCHIVE}: no system of {session.incident.service.name} is in an archive.",
            hint="add archives: {folder: ..., member: ...} to its systems",
        )
    folder, encrypted = places[first.name].folder, places[first.name].password is not None
    together = [name for name, place in places.items() if place.folder == folder]
    members = [places[name].member for name in together]
    if len(set(members)) < len(members):
        raise UsageError(
            f"Two of {', '.join(together)} are the same member of the archives in {folder}.",
            safe="no archive was written",
            hint="in the inventory, give each a member of its own: archives: {folder: ..., member: ...}",
        )
    at = clock.now().astimezone()
    return first.change(
        "write_archive",
        name=f"{session.incident.platform.name}_backup_{at:%Y%m%d_%H%M%S}.tar.gz{'.enc' if encrypted else ''}",
        systems=together,
        why=f"asked for: {', '.join(members)}",
        no_undo="it only adds a backup; the policy removes it",
    )


def backups(service: str, platform: str, shown: Shown) -> None:
    """List a service's backups, newest first, and whether the newest point that can be restored is within the RPO."""
    session = _session(service, platform, shown)
    for system in session.incident.systems:
        found = [replace(each, proven=session.history.proven(system.name, each.id)) for each in system.backups()]
        rows = [_row(each) for each in found]
        if isinstance(shown, show.Json):
            for each in found:
                shown.write("backup", **_as_json(each))
        shown.lines(
            [
                f"{system.name}:",
                *(
                    f"  {line}"
                    for line in show.table(("id", "kind", "age", "size", "can go back to (UTC)", "proven", ""), rows)
                ),
            ]
            if rows
            else [f"{system.name}: no backups"]
        )
        for unread in system.unread:
            shown.tell(f"{system.name}: {unread.repository} could not be read: {unread.why}")
        _against_policy(system, found, session.incident, shown)


def _row(backup: Backup) -> tuple[str, ...]:
    window = (
        f"{backup.window[0]:%m-%d %H:%M:%S} .. {backup.window[1]:%m-%d %H:%M:%S}"
        if backup.window
        else f"{backup.taken:%m-%d %H:%M:%S}"
    )
    proven = f"{clock.write_duration(clock.age(backup.proven).total_seconds())} ago" if backup.proven else "never"
    note = (backup.detail or f"in {backup.repository}") if backup.usable else f"NOT USABLE: {backup.detail}"
    return (
        backup.id,
        backup.kind,
        "yet to come" if is_ahead(backup) else clock.write_duration(max(0.0, clock.age(backup.taken).total_seconds())),
        show.write_bytes(backup.size) if backup.size else "-",
        window,
        proven,
        note,
    )


def _as_json(backup: Backup) -> dict[str, object]:
    window = [clock.write_time(moment) for moment in backup.window] if backup.window else None
    return {
        "id": backup.id,
        "system": backup.system,
        "way": backup.way,
        "backup_kind": backup.kind,
        "taken": clock.write_time(backup.taken),
        "size": backup.size,
        "location": backup.location,
        "window": window,
        "proven": clock.write_time(backup.proven) if backup.proven else None,
        "usable": backup.usable,
        "has_fingerprint": backup.fingerprint is not None,
    }


def _against_policy(system: Restorable, found: list[Backup], incident: Incident, shown: Shown) -> None:
    service = incident.service
    usable = [each for each in found if each.usable and not is_ahead(each)]
    if not usable and system.unread:
        names = ", ".join(one.repository for one in system.unread)
        raise CannotError(
            f"{system.name} has no usable backup in what could be read; {names} could not be.",
            hint=f"mend what is said above, then: inv backups {incident.options}",
        )
    if not usable:
        raise CannotError(f"{system.name} has no usable backup.", hint=f"inv backup {incident.options}")
    newest = max(each.window[1] if each.window else each.taken for each in usable)
    behind = max(0.0, clock.age(newest).total_seconds())
    verdict = "within" if behind <= service.rpo else "BEYOND"
    shown.tell(
        f"{system.name}: a restore would lose the last {clock.write_duration(behind)}: "
        f"{verdict} the RPO of {clock.write_duration(service.rpo)}."
    )


def protect(
    service: str, platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> None:
    """Make a recovered service redundant again: standbys that no longer follow are rebuilt, and a cluster that is new
    to the repository of backups is taken in and backed up.
    """
    session = _session(service, platform, shown)
    changes, unplanned = _redundancy(session.incident.systems, shown)
    if unplanned and not changes:
        raise unplanned[0]
    plan = Plan((PlannedStep("protect", (), (), changes),))
    show_plan(session, shown, plan)
    for error in unplanned:
        shown.tell(f"NOTE: this does not do all: {error.reason}.")
    if changes:
        shown.tell("NOTE: after this, inv undo of an earlier incident of the service is refused.")
    if plan_only or not changes:
        return
    amiss = _carry_out(session, "protect", changes, approval(shown, changes, approve=approve, yes=yes))
    session.incident.look_again()
    astray = _led_astray(session.incident)
    if not (amiss or unplanned or astray):
        shown.tell(f"{service} is protected again.")
    if session.incident.kept:
        shown.tell(f"  clear away: inv discard --incident={session.incident.id}   (removes for good what was replaced)")
    _require_all(amiss, session.incident, f"inv protect {session.incident.options}")
    if unplanned:
        raise CannotError(unplanned[0].what, safe="what was planned above is done", hint=unplanned[0].hint)
    if astray:
        raise WarnedError(
            f"Users are not led to what is live: {'; '.join(astray)}.",
            safe="the standbys and backups are as they should be",
            hint=f"inv assess {session.incident.options} says which incident was not brought to its end",
        )


def _led_astray(incident: Incident) -> list[str]:
    """The routes that lead elsewhere than to what is live, and where."""
    with suppress(SalvorError):
        return [f"{turn.system}: {turn.why.partition(';')[0]}" for turn in cutover.turns(incident)]
    return []


def _redundancy(systems: Sequence[Restorable], shown: Shown) -> tuple[tuple[Change, ...], list[SalvorError]]:
    """What makes these redundant again, and what kept the rest from being planned: a repository that is gone is no
    reason to leave a standby as it is.
    """
    changes: list[Change] = []
    unplanned: list[SalvorError] = []
    for system in systems:
        try:
            for change in system.redundancy(shown.tell):
                changes.append(change)
        except (CannotError, OutcomeUnknownError) as error:
            unplanned.append(error)
    return tuple(changes), unplanned

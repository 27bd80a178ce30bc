"""Opening a session: the open incident of a service is gone on with, or a new one is prepared."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from salvor import clock, cutover, inventory, journal, runbook_files
from salvor.change import Level, Reachable
from salvor.errors import CannotError, UsageError
from salvor.history import History
from salvor.incident import Incident, new_id
from salvor.inventory import Platform, Service
from salvor.journal import Journal, brief
from salvor.journal.folders import find, incidents_folder, is_open, lines_of, of_incident, operator
from salvor.run import Runner, Watcher
from salvor.session import Session, understood
from salvor.wish import Wish


def open_session(
    service: str,
    watcher: Watcher,
    *,
    platform: str = "sandbox",
    wish: Wish | None = None,
    failed_at: datetime | None = None,
    runbook_name: str = "",
    incident: str = "",
    purpose: str = "incident",
    scenario: str = "",
    anew: bool = False,
) -> Session:
    """The session for a service: its open incident resumed, or a new one prepared (nothing is written yet).

    `anew` resumes nothing. An incident that recovered is over for this purpose: when something is broken again, that is
    a new one; so it is when what it pinned is not there any more. Raises UsageError when the open incident wished
    something else.
    """
    described = inventory.load(platform)
    wish = wish or Wish()
    history = History(incidents_folder(), platform)
    known = list(journal.incidents(incidents_folder()))
    if incident:
        if of_incident(incident) != (platform, service):
            raise UsageError(
                f"--incident: {incident} is not of the service {service!r} of the platform {platform!r}.",
                safe="nothing was changed",
                hint="leave --service and --platform out: the incident names them",
            )
        session = _resume(find(incident), described, watcher, history, wish)
        if _asks_for_another(session.incident, wish, failed_at, runbook_name):
            raise _begun_otherwise(session.incident)
        return session
    chosen = described.service(service)
    for folder in [] if anew else known:
        if brief.service_of(folder.name) != service or brief.is_over(folder):
            continue  # there may be thousands
        lines = _lines(folder, watcher)
        if not is_open(lines, described, chosen, purpose):
            continue
        try:
            session = _resume(folder, described, watcher, history, wish)
        except CannotError as error:
            watcher.tell(f"{error.what} It is passed over.")
            continue
        if session.incident.broken and not any(
            cutover.is_of_this_world(session.incident, one) for one in session.incident.broken
        ):
            watcher.tell(f"{folder.name} is open, and what it pinned is not there any more; this is a new incident.")
            continue
        if session.incident.recovered_once and (session.overrides or _is_broken_again(session.incident)):
            break
        if failed_at and not (chosen.systems or session.incident.recovered_once):
            watcher.tell(f"{folder.name} goes on: --failed-at is about data, and {service} has none of its own.")
            failed_at = session.incident.failed_at
        if _asks_for_another(session.incident, wish, failed_at, runbook_name):
            if session.incident.recovered_once:
                break
            raise _begun_otherwise(session.incident)
        return session
    book = runbook_files.load(runbook_name or "restore")
    new = new_id(service)
    made = Incident(
        id=new,
        platform=described,
        service=chosen,
        wish=replace(wish, ways=book.ways or wish.ways),
        runbook=book.name,
        operator=operator(),
        folder=incidents_folder() / new,
        purpose=purpose,
        scenario=scenario,
        failed_at=failed_at,
    )
    return Session(made, book, Runner(made, watcher), history, others=frozenset(folder.name for folder in known))


def _asks_for_another(incident: Incident, wish: Wish, failed_at: datetime | None, runbook_name: str) -> bool:
    """Whether something was asked for that is not what the incident was begun with. What was not said asks nothing, and
    an override may come later: what it is about is often met on the way only.
    """
    asked, begun = (replace(one, ways=(), overrides=None) for one in (wish, incident.wish))
    return (
        (asked not in (Wish(), begun))
        or failed_at not in (None, incident.failed_at)
        or runbook_name not in ("", incident.runbook)
    )


def _begun_otherwise(incident: Incident) -> UsageError:
    return UsageError(
        f"The incident {incident.id} is open for {incident.service.name} and was begun with other arguments.",
        safe="nothing was changed",
        hint=f"go on with it: inv restore --incident={incident.id}; or end it: inv undo --incident={incident.id}",
    )


def _lines(folder: Path, watcher: Watcher) -> list[dict[str, Any]]:
    """The lines of an incident that may be another one: that it cannot be read holds nobody up."""
    try:
        return Journal.read(folder).lines
    except CannotError as error:
        watcher.tell(f"{error.what} It is passed over.")
        return []


def _resume(folder: Path, platform: Platform, watcher: Watcher, history: History, wish: Wish) -> Session:
    lines = lines_of(folder)
    with understood(folder.name):
        incident = _reopen(lines, platform, folder, operator())
    known = (incident.whole_wish().overrides or {}).items()
    new = dict((wish.overrides or {}).items() - known)
    if new:
        incident.learn({"kind": "overridden", "overrides": new})
    book = runbook_files.load(incident.runbook)
    return Session(incident, book, Runner(incident, watcher), history, resumed=True, overrides=new)


def _reopen(lines: list[dict[str, Any]], platform: Platform, folder: Path, operator: str) -> Incident:
    """The incident that a journal tells of."""
    opened = lines[0]
    name, of_no_service = opened["service"], opened["purpose"] == "maintenance" and opened.get("systems")
    incident = Incident(
        id=opened["incident"],
        platform=platform,
        service=Service(name=name, rto=0, rpo=0, systems=of_no_service)
        if of_no_service and name not in platform.services
        else platform.service(name),
        wish=Wish.from_json(opened["wish"]),
        runbook=opened["runbook"],
        operator=operator,
        folder=folder,
        purpose=opened["purpose"],
        scenario=opened.get("scenario", ""),
        detected_at=clock.read_time(opened["detected_at"]),
        failed_at=clock.read_time(opened["failed_at"]) if opened["failed_at"] else None,
    )
    incident.learn_anew(lines)
    return incident


def _is_broken_again(incident: Incident) -> bool:
    """Whether a service that had recovered fails now: then what is live is not what this incident pinned."""
    runs = (incident.observe(one).reachable is not Reachable.DOWN for one in incident.own_applications)
    placed = (cutover.is_in_place(incident, broken) for broken in incident.broken)
    return not (all(placed) and all(runs)) or any(
        incident.check(check, "live").level is Level.FAIL for check in incident.service.checks
    )

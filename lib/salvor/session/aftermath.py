"""What can be done with an incident that was begun: look at it, go back, discard what it kept, check it, close it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from salvor import clock, journal, show
from salvor.approval.terminal import approval
from salvor.arguments import required
from salvor.change import Change, Level, Reachable, plan_hash
from salvor.console import show_plan, telling_failure
from salvor.errors import CannotError, NotConvergedError, NotProvenError, PlanMovedError, UsageError
from salvor.incident import Incident
from salvor.journal import Journal, brief, evidence, story
from salvor.journal.folders import find, incidents_folder, of_incident, writing
from salvor.journal.ssh_signature import signing_key
from salvor.notebook import record
from salvor.plain import amount
from salvor.plan import Plan, PlannedStep
from salvor.session import Session, handover
from salvor.session.later import changed_since
from salvor.session.opening import open_session
from salvor.show import Shown, shortest
from salvor.undo import undo_plan


def of_id(incident: str, shown: Shown) -> Session:
    """The session of an incident by its id. Raises UsageError when there is none."""
    folder = find(required("incident", incident))
    platform, service = of_incident(folder.name)
    return open_session(service, shown, platform=platform, incident=incident)


def undo(incident: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False) -> None:
    """Take an incident's changes back, the newest first. Raises CannotError when one has no way back, or a later
    incident is in the way.
    """
    session = of_id(incident, shown)
    _refuse_when_over(session, "undone")
    changes, undoing = undo_plan(session.incident, Journal.read(session.incident.folder))
    if not changes or any(change.verb != "drop" for change in changes):  # a copy beside what is live bears nothing
        _refuse_when_later(session, shown)
    plan = Plan((PlannedStep("undo", (), (), tuple(changes)),))
    show_plan(session, shown, plan)
    if session.incident.recovered_once:
        shown.tell("NOTE: what users wrote since the cutover is only in what was restored, and goes with it.")
    if plan_only:
        return
    if session.incident.purpose == "watch" and not changes:
        shown.tell(f"Nothing that {incident} did has a way back, so nothing was changed, and nobody is told.")
        return
    how = approval(shown, tuple(changes), approve=approve, yes=yes)
    with session.begin(plan):
        assert session.journal
        _refuse_when_over(session, "undone")
        changes, undoing = undo_plan(session.incident, session.journal)
        _refuse_moved(plan, changes)
        session.approve(plan, how)
        with telling_failure(session):
            session.confirm("undo", changes)
            session.runner.undo(changes, undoing)
    if session.incident.purpose == "watch":
        shown.tell(f"What {incident} did and has a way back is taken back; its restarts and what it cleared stay.")
        return
    session.incident.look_again()
    except_for = ""
    unfenced = {change.system for change in changes if change.verb == "unfence"}
    for system in session.incident.systems:
        state = session.incident.observe(system)
        if state.reachable is Reachable.DOWN and system.name in unfenced:
            except_for = ", except for what is down"
            shown.tell(
                f"NOTE: {system.name} is down: {state.summary}. A fence kills a server that does not answer, and undo "
                f"starts none: start it, or inv assess {session.incident.options}"
            )
        for told in state.left_behind:
            shown.tell(f"NOTE: {told}. inv protect {session.incident.options} rebuilds it from the live primary.")
    shown.tell(f"The world is as before {incident}{except_for}. The record: inv incident.close --incident={incident}")


def discard(incident: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False) -> None:
    """Remove for good what an incident kept or left staged. Refused while the service is not back, and of maintenance
    that did not come to its end.
    """
    session = of_id(incident, shown)
    if session.incident.purpose == "maintenance":
        if not any(line.get("result") == "done" for line in _lines(session, "closed")):
            raise CannotError(
                f"{incident} did not come to its end: what it kept may still be needed.",
                safe="nothing was removed",
                hint=f"inv protect {session.incident.options}",
            )
    elif not session.incident.recovered_once and not _is(session, "undone"):
        raise CannotError(
            f"{incident} has not recovered: what it kept may be all there is.",
            safe="nothing was removed",
            hint=f"inv restore --incident={incident}, or inv undo --incident={incident}",
        )
    changes = tuple(_changes_to_discard(session.incident))
    plan = Plan((PlannedStep("discard", (), (), changes),))
    show_plan(session, shown, plan)
    if plan_only:
        return
    how = approval(shown, changes, approve=approve, yes=yes)
    with session.begin():
        _refuse_when_over(session)
        session.incident.look_again()
        _refuse_moved(plan, _changes_to_discard(session.incident))
        session.approve(plan, how)
        session.confirm("discard", changes)
        session.runner.act("discard", changes)
        session.incident.look_again()
        if left := _changes_to_discard(session.incident):
            raise NotConvergedError(
                f"{len(left)} of the kept things are still there.", hint=f"inv discard --incident={incident}"
            )
        session.runner.note("discarded", result=f"{amount(len(changes), 'kept thing')} removed")
    shown.tell(f"Nothing of {incident} is left but its record: {session.incident.folder}")


def _refuse_moved(approved: Plan, changes: Iterable[Change]) -> None:
    """Refuse what is not what was approved: somebody went on with the incident between the question and its answer."""
    now = plan_hash(changes)
    if now != approved.hash:
        raise PlanMovedError(
            f"The incident moved: its plan has the hash {now} now, not {approved.hash}.",
            safe="nothing was changed",
            hint="the same command again shows the new plan",
        )


def _lines(session: Session, kind: str) -> list[dict[str, Any]]:
    return [line for line in Journal.read(session.incident.folder).lines if line["kind"] == kind]


def _is(session: Session, kind: str) -> bool:
    return bool(_lines(session, kind))


def _refuse_when_over(session: Session, *kinds: str) -> None:
    for kind in (*kinds, "discarded"):
        if _is(session, kind):
            raise CannotError(
                f"{session.incident.id} is {kind} already.",
                safe="nothing was changed",
                hint=f"inv incident.show --incident={session.incident.id}",
            )


def _refuse_when_later(session: Session, shown: Shown) -> None:
    """A later incident of the same service built on this one's result: taking this one back would pull it from under
    it.
    """
    mine = session.incident
    later = changed_since(mine.id, mine.service.name, mine.platform.name, mine.folder.parent)
    if later is None:
        return
    hint = f"undo the later one first: inv undo --incident={later.name}"
    try:
        theirs = of_id(later.name, shown)
        _refuse_when_over(theirs)
        undo_plan(theirs.incident, Journal.read(later))
    except CannotError:
        hint = f"that one has no way back; to an earlier state of the data: inv restore {mine.options} --at=TIME"
    raise CannotError(
        f"{later.name} came after {mine.id} and changed the same service.", safe="nothing was undone", hint=hint
    )


def list_incidents(shown: Shown) -> None:
    """One line an incident, the newest first."""
    rows = []
    for folder in journal.incidents(incidents_folder()):
        told = brief.read(folder)  # there may be thousands
        if told is None:
            rows.append((folder.name, "", "", "its journal cannot be read", "", ""))
            continue
        if isinstance(shown, show.Json):
            shown.write(
                "incident",
                incident=folder.name,
                service=told.service,
                purpose=told.purpose,
                state=told.state,
                measured=told.measured,
            )
        rows.append(
            (
                folder.name,
                told.purpose,
                told.service,
                told.state,
                clock.write_duration(told.figure("rto")),
                clock.write_duration(told.figure("rpo")),
            )
        )
    shown.lines(
        show.table(("incident", "purpose", "service", "state", "RTO", "RPO"), rows)
        if rows
        else ["There are no incidents yet."]
    )


def show_incident(incident: str, shown: Shown) -> None:
    """What is done, running, owed and undoable, on one screen. Raises CannotError when the journal says of nothing."""
    folder = find(required("incident", incident))
    told = story.read(folder)
    if not told.service:
        of_incident(incident)  # which says why
    this = handover.of(told, folder.parent)
    if isinstance(shown, show.Json):
        shown.write("incident", **handover.as_json(this))
    shown.lines(map(show.clean, handover.screen(this)))


def check_incident(incident: str, signers: str, shown: Shown) -> None:
    """Check the journal's chain, its seal and its signature. Raises NotProvenError when anything is wrong."""
    folder = find(required("incident", incident))
    mirror = os.environ.get("SALVOR_MIRROR") or None
    findings = evidence.check(folder, Path(signers) if signers else None, mirror=mirror)
    for finding in findings:
        shown.finding(finding)
    bad = [finding for finding in findings if finding.level is Level.FAIL]
    if bad:
        told = ": ".join(part for part in (bad[0].figure, bad[0].detail) if part) or bad[0].check
        raise NotProvenError(
            f"The journal of {incident} is not what was written: {told}",
            hint="docs/evidence.md tells how to check it by hand",
        )


def close_incident(incident: str, key: str, shown: Shown) -> None:
    """Close an incident, seal and sign its journal, and make the final record. One whose first line is lost is closed
    alone: else it would hold up the rules of `inv watch` for good.
    """
    place = find(required("incident", incident))
    if journal.first_line(place).get("kind") != "opened":
        if not brief.is_over(place):
            with writing(place, shown.tell) as damaged:
                damaged.append("closed", result="its first line is lost")
        shown.tell(
            f"Closed, NOT signed, without a record: the journal of {place.name} has lost its first line.\n"
            f"HINT: inv incident.check --incident={place.name}"
        )
        return
    session = of_id(incident, shown)
    folder = session.incident.folder
    if not _is(session, "closed"):
        state = story.read(folder).state
        with session.begin():
            session.runner.note("closed", result=state)
    own_key = signing_key(key)
    if own_key:
        evidence.sign(folder, own_key)
        shown.tell(f"Closed, and signed with {own_key}.")
    else:
        shown.tell(
            f"Closed, NOT signed: there is no SSH key. HINT: inv incident.close --incident={incident} --key=PATH"
        )
    record_incident(incident, shown)


def record_incident(incident: str, shown: Shown) -> None:
    """Make record.ipynb and record.html again, from the journal alone."""
    folder = find(required("incident", incident))
    error = record.make(folder)
    if error:
        raise CannotError(
            f"The record could not be made: {error}",
            safe=f"the journal is whole: {folder / 'journal.jsonl'}",
            hint=f"inv incident.record --incident={incident}",
        )
    shown.tell(f"The record: {shortest(folder / record.PAGE)}")


def review_incident(incident: str, actions: str, shown: Shown) -> None:
    """Make review.ipynb, review.html and review.md, from the journal alone."""
    from salvor import review

    folder = find(required("incident", incident))
    if error := review.make(folder, actions):
        raise CannotError(
            f"The review could not be made: {error}",
            safe=f"the journal is whole: {folder / 'journal.jsonl'}",
            hint=f"inv incident.review --incident={incident}",
        )
    shown.tell(f"The review: {shortest(folder / review.PAGE)}; beside it {review.MARKDOWN} and {review.NOTEBOOK}")


def note(incident: str, text: str, shown: Shown) -> None:
    """Write a note into an incident's journal."""
    folder = find(required("incident", incident))
    if not text.strip():
        raise UsageError(
            "--text: the note is empty.", hint='--text="impact: what users saw"; docs/notebooks.md has more'
        )
    with writing(folder, shown.tell) as journal:
        journal.append("note", text=text)
    shown.tell(f"Noted in {folder.name}.")


def _changes_to_discard(incident: Incident) -> list[Change]:
    """What removes everything that this incident kept or left staged."""
    return [
        system.change(
            "discard",
            identity=kept.identity,
            kept=kept.name,
            why="the operator no longer needs what was live before",
            no_undo="it is removed for good",
        )
        for system, kept in incident.kept
    ]

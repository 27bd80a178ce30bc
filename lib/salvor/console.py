"""A recovery on the terminal: announced, planned, approved, walked to its end, and how it went."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from salvor import clock, cutover, refuse, show
from salvor.approval.terminal import approval
from salvor.change import ABSENT, Decision, Level, Reachable
from salvor.errors import STOPPED, CannotError, HeldError, SalvorError, UsageError
from salvor.incident import Incident
from salvor.journal import Journal
from salvor.plan import Plan, PlannedStep
from salvor.run import Watcher
from salvor.session import Session
from salvor.session.later import drills_left
from salvor.show import Shown
from salvor.undo import undo_plan


def recover(
    session: Session, shown: Shown, *names: str, plan_only: bool = False, approve: str = "", yes: bool = False
) -> None:
    """Plan, show, approve and carry out the named steps (none: the whole runbook). The same call again resumes."""
    announce(session, shown)
    plan = session.plan(*names)
    how = ask(session, shown, plan, plan_only=plan_only, approve=approve, yes=yes)
    if how:
        carry_out(session, shown, plan, how, *names)


def announce(session: Session, shown: Shown) -> None:
    """Say which incident it is. Raises CannotError when that is over, UsageError when it is no recovery."""
    incident = session.incident
    if not session.runbook.steps:
        raise UsageError(
            f"{incident.id} is no recovery, but of {incident.purpose}: there is nothing in it to restore.",
            safe="nothing was changed",
            hint=f"what it is: inv incident.show --incident={incident.id}; "
            f"to bring the service back: inv restore {incident.options}",
        )
    if incident.over:
        raise CannotError(
            f"{incident.id} is {incident.over}.",
            safe="nothing was changed",
            hint=f"inv restore {incident.options} looks anew",
        )
    which = f"Resuming incident {incident.id}" if session.resumed else "New incident"  # which may never be begun
    shown.tell(f"{which} of {incident.service.name}, runbook {session.runbook.name}.")
    _tell_of_drills(incident, shown)


def ask(
    session: Session,
    shown: Shown,
    plan: Plan,
    *,
    plan_only: bool = False,
    approve: str = "",
    yes: bool = False,
    one: str = "",
) -> str:
    """Show a plan and have it approved; how it was, or empty when there is nothing to carry out. Raises as `approval`
    (which says what `one` is), `refuse.early` and `refuse.needless_loss`, and CannotError when the service does not do
    its work although nothing of its own is broken.
    """
    incident = session.incident
    if not plan_only:
        refuse.early(plan, incident)
    show_plan(session, shown, plan, whole=plan_only)
    decided = [each for step in plan.steps for each in step.decisions]
    _warn_of_unseen(plan, shown)
    _warn_of_loss(session, shown, decided)
    if incident.failed_at and not (decided or incident.decisions):
        shown.tell(
            f"NOTE: --failed-at says when the damage began, and no check of {incident.service.name} finds any. "
            f"To go back to before it all the same: inv restore {incident.options} --at=TIME"
        )
    if plan_only:
        return ""
    if not plan.changes and not session.resumed and not decided:
        _refuse_what_is_not_its_own(session, plan)
        shown.tell(
            f"{_nothing_broken(plan)} in {incident.service.name}: nothing to do. "
            f"The word of assess: inv assess {incident.options}"
        )
        return ""
    if not plan.changes and incident.recovered_once and not incident.interrupted:
        shown.tell(f"Nothing left to do in {incident.id}, which brought it back; how that went:")
        show_end(session, shown)
        return ""
    if yes and not approve:
        refuse.needless_loss(plan, incident, one)
    return approval(shown, plan.changes, approve=approve, yes=yes, one=one, earlier=incident.approvals)


def carry_out(session: Session, shown: Shown, plan: Plan, how: str, *names: str) -> None:
    """Carry out the named steps of an approved plan (none: the whole runbook), and say how it went, if anybody is left
    who is told.
    """
    shown = show.unfailing(shown)
    with session.begin(plan):
        if not session.resumed:
            shown.tell(f"This is incident {session.incident.id}.")
        session.approve(plan, how)
        with telling_failure(session):
            for name in names or [step.__name__ for step in session.runbook.steps]:
                session.act(name)
        if not (session.incident.decisions or session.incident.outcomes):
            session.runner.note("closed", result=f"nothing is broken in {session.incident.service.name} any more")
            shown.tell(f"Nothing is broken in {session.incident.service.name} any more: nothing was done.")
    show_end(session, shown)


def _refuse_what_is_not_its_own(session: Session, plan: Plan) -> None:
    """Raise CannotError when the service does not do its work although nothing that it is made of is broken."""
    service = session.incident.service
    failed = {
        finding.subject: finding for step in plan.steps for finding in step.findings if finding.level is Level.FAIL
    }
    if not failed:
        return
    broken = [one for one in session.incident.needs if failed.keys() & {*one.systems, *one.applications}]
    told = "; ".join(f"{each.subject}: {each.check}: {each.figure or each.detail}" for each in failed.values())
    if unseen := sorted(_unseen(plan)):
        why = "; ".join(f"{name}: {session.incident.observe(session.incident.system(name)).summary}" for name in unseen)
        raise CannotError(
            f"{service.name} does not do its work ({told}), and what may be why gives no answer: {why}.",
            safe="nothing was changed",
            hint="mend what keeps it from answering, then the same command again",
        )
    raise CannotError(
        f"Nothing that {service.name} is made of is broken, and it does not do its work: {told}.",
        safe="nothing was changed",
        hint=f"inv restore --service={broken[0].name}"
        if broken
        else f"see to that by hand; if a program or data of {service.name} does it, describe it in the inventory",
    )


def _tell_of_drills(incident: Incident, shown: Watcher) -> None:
    """Say which drills of the service left something beside what is live: its room, its port."""
    if incident.purpose == "incident":
        for drill in drills_left(incident.service.name, incident.platform.name, incident.folder.parent):
            shown.tell(
                f"NOTE: the drill {drill} did not come to its end: what it staged may still be there, and run. "
                f"inv undo --incident={drill} removes it."
            )


def assess(session: Session, shown: Shown) -> None:
    """Look, and say what is broken and which way leads back, or that nothing is. Writes nothing."""
    plan, incident = session.plan("assess", tell=shown.finding), session.incident
    _tell_of_drills(incident, shown)
    decided = list(plan.steps[0].decisions) or list(incident.decisions.values())
    if isinstance(shown, show.Json):
        for each in decided:
            shown.write("decision", decision=each.to_json(), recovered=incident.recovered_once)
    elif incident.recovered_once:
        shown.tell(f"{_nothing_broken(plan)}: {incident.id} brought it back, and is open.")
        shown.tell(f"HINT: inv incident.show --incident={incident.id}")
    elif back := cutover.brought_back(incident):
        shown.tell(f"{'; '.join(back.values())}. {incident.id} is open, and cannot go on.")
        shown.tell(f"HINT: inv undo --incident={incident.id} takes back what was done for it; then inv assess again")
    elif decided:
        for each in decided:
            what = "is broken" if plan.steps[0].decisions else f"was broken when {incident.id} began"
            what = "gives no answer, and may be broken" if each.system in _unseen(plan) else what
            shown.lines([f"{each.system} {what}: {show.clean(each.seen)}. Way back: {each.way.name}."])
        _warn_of_loss(session, shown, decided)
        shown.tell(f"HINT: inv restore {incident.options} --plan")
    elif any(finding.level is Level.FAIL for step in plan.steps for finding in step.findings):
        shown.tell("Nothing has to be brought back; what is wrong stands above.")
    else:
        shown.tell(f"{_nothing_broken(plan)}.")


def _nothing_broken(plan: Plan) -> str:
    """That nothing is broken, as far as everything could be told."""
    unknown = any(finding.level is Level.UNKNOWN for step in plan.steps for finding in step.findings)
    return "Not everything could be told (see above); nothing is known to be broken" if unknown else "Nothing is broken"


def _unseen(plan: Plan) -> set[str]:
    """What gives no answer now: whether it is broken cannot be told."""
    seen = [finding for step in plan.steps for finding in step.findings if finding.check == "answers"]
    return {finding.subject for finding in seen if finding.level is Level.UNKNOWN}


def _warn_of_unseen(plan: Plan, shown: Watcher) -> None:
    """Say of what would be fenced that nobody knows whether it is broken: a changed password looks the same."""
    fenced = {change.system for step in plan.steps if step.name == "isolate" for change in step.changes}
    for name in sorted(fenced & _unseen(plan)):
        shown.tell(
            f"NOTE: {name} gives no answer, so whether it is broken is not known, and this cuts its users off. "
            "If they are well, mend what keeps it from answering instead."
        )


def _warn_of_loss(session: Session, shown: Watcher, decided: Sequence[Decision]) -> None:
    """Say when a chosen way back would lose more than the service allows, and what could spare it; and what does not
    come back because the operator asked for an earlier state.
    """
    incident = session.incident
    earlier = incident.wish.at or incident.failed_at
    for each in decided:
        if earlier and each.way.arguments is not None:
            shown.tell(
                f"NOTE: what was written to {each.system} since {clock.write_time(earlier)} "
                f"({clock.write_duration(clock.age(earlier).total_seconds())}) does not come back; "
                "what is live now is kept until inv discard."
            )
        if told := refuse.spared_by_room(each, incident.service.rpo):
            shown.tell(f"NOTE: {told}")
        elif each.way.loses is not None and each.way.loses > incident.service.rpo:
            known = "" if incident.failed_at else " If you know when the damage began, --failed-at=TIME may spare that."
            shown.tell(
                f"NOTE: {each.way.name} would lose {clock.write_duration(each.way.loses)} of {each.system}, more than "
                f"the {clock.write_duration(incident.service.rpo)} that are allowed.{known}"
            )


def is_record_due(session: Session) -> bool:
    """Whether this sitting wrote something, or one that brought the service back ended before it made the record."""
    from salvor.notebook import record

    incident = session.incident
    return bool(session.journal or (incident.recovered_once and not (incident.folder / record.PAGE).exists()))


def make_record(session: Session, shown: Watcher) -> None:
    """Make the incident's record. What goes wrong with it is owed, and stops nothing."""
    from salvor.notebook import record

    folder = session.incident.folder
    problem = record.make(folder)
    if problem:
        with contextlib.suppress(SalvorError), session.begin():
            session.runner.owe("the record", problem)
        shown.tell(f"  HINT: inv incident.record --incident={folder.name}")
    if (folder / record.PAGE).exists():
        shown.tell(f"  the record: {show.shortest(folder / record.PAGE)}")


def _shut(incident: Incident) -> str:
    """What users cannot use by now, as this incident shut it and nothing took its place; empty when there is none."""
    names = [each.system.name for each in incident.broken if each.system.name in incident.fenced - incident.placed]
    fenced = [name for name in names if incident.observe(incident.system(name)).writable is False]
    if not fenced:
        return ""
    down = [name for name in fenced if incident.observe(incident.system(name)).reachable is Reachable.DOWN]
    halted = [one.name for one in incident.applications if one.name in incident.halted]
    stopped = f", and {', '.join(halted)} stopped" if halted else ""
    unstarted = f", but starts no server: {', '.join(down)} is down" if down else ""
    return (
        f"{', '.join(fenced)} {'is' if len(fenced) == 1 else 'are'} fenced by now, so nobody can write there{stopped}: "
        f"inv undo --incident={incident.id} takes that back{unstarted}"
    )


def _stopped(session: Session) -> str:
    """What Ctrl-C leaves, as the journal has it: somebody waits, so nothing is looked at."""
    incident = session.incident
    try:
        back, _ = undo_plan(incident, session.journal or Journal.read(incident.folder))
    except CannotError:
        back = []
    said = [STOPPED]
    if shut := ", ".join(sorted({change.system for change in back if change.verb == "unfence"} - incident.placed)):
        said.append(f"Users may be shut out of {shut} by now: inv undo --incident={incident.id} takes that back.")
    if session.journal and session.journal.pending:  # where its lines are is said when it is closed
        said.append("HINT: what the journal lacks first, as said above; then the same command again goes on from here")
    return "\n".join(said)


@contextlib.contextmanager
def telling_failure(session: Session) -> Iterator[None]:
    """When a recovery fails, tell the people who must know; the error goes on. It has not failed when somebody else
    took it over, or when the operator stopped it, who is told what is shut by now.
    """
    try:
        yield
    except HeldError:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(session)) from None
    except Exception as error:
        if isinstance(error, SalvorError):
            error.safe = "; ".join(filter(None, [error.safe, _shut(session.incident)]))
        session.failed(error)
        session.tell("failed")
        raise


def show_plan(session: Session, shown: Shown, plan: Plan, *, whole: bool = True) -> None:
    """The plan: `whole`, or its changes and the ways back alone; and which of its steps wait for a second person."""
    waiting = session.steps_of_two(plan)
    if isinstance(shown, show.Json):
        steps = [step.to_json() for step in plan.steps]
        shown.write("plan", hash=plan.hash, incident=session.incident.id, steps=steps, second_person=waiting)
        return
    if not whole:
        shown.lines(f"  {show.clean(f'{each.system}: {each.seen}')}" for step in plan.steps for each in step.decisions)
        chosen = [finding for step in plan.steps for finding in step.findings if finding.check.startswith("way back")]
        shown.lines(f"  {show.finding_line(finding)}" for finding in chosen)
        plan = Plan(tuple(PlannedStep(step.name, (), (), step.changes) for step in plan.steps if step.changes))
    shown.lines(show.plan_lines(plan, session.history.last))
    if told := second_person(session, waiting, session.incident.id if session.resumed or not whole else "ID"):
        shown.tell(told)


def second_person(session: Session, steps: Sequence[str], incident: str) -> str:
    """That these steps of `incident` wait for a second person, and for how long; empty when none does."""
    rule = session.incident.service.second_person
    if not steps or rule is None:
        return ""
    who = f"one of {', '.join(rule.people)}" if rule.people else "somebody"
    return (
        f"NOTE: {', '.join(steps)} {'wait' if len(steps) > 1 else 'waits'} until {who} other than "
        f"{session.incident.operator} approves the plan, {clock.write_duration(rule.within)} at most: "
        f"inv incident.approve --incident={incident}"
    )


def show_end(session: Session, shown: Watcher) -> None:
    """How it went: RTO and RPO against their targets, and what can be done next."""
    incident, measured = session.incident, session.incident.measured
    if isinstance(shown, show.Json):
        shown.write("end", incident=incident.id, recovered=incident.recovered_once, measured=measured)
        return
    if incident.recovered_once:
        shown.tell("")
        shown.tell(f"{incident.service.title or incident.service.name} is back.")
        shown.tell(
            f"  RTO {target(measured.get('rto'), incident.service.rto)}: "
            "from detection to the first good check through the route"
        )
        shown.tell(f"  RPO {target(measured.get('rpo'), incident.service.rpo)}: {measured['rpo_how']}")
        shown.tell(f"  go back:    {_way_back(session)}")
        if incident.broken:  # programs that were started again leave nothing behind
            if any(one.decision.way.arguments is not None and one.identity != ABSENT for one in incident.broken):
                shown.tell("  read it:    docs/kept.md   (what was live before is kept, with what was written since)")
            shown.tell(f"  clear away: inv discard --incident={incident.id}   (removes for good what was live before)")
            shown.tell(f"  protect it: inv protect {incident.options}   (its standbys and backups)")


def _way_back(session: Session) -> str:
    """The command that takes the incident back, or why none does: a failover has no way back."""
    try:
        undo_plan(session.incident, session.journal or Journal.read(session.incident.folder))
    except CannotError as refused:
        return f"none: {refused.what}"
    return f"inv undo --incident={session.incident.id}"


def target(seconds: float | None, limit: float) -> str:
    """`4.1 s of 15 min 00 s allowed: met`."""
    if seconds is None:
        return f"not measured ({clock.write_duration(limit)} allowed)"
    verdict = "met" if seconds <= limit else "MISSED"
    return f"{clock.write_duration(seconds)} of {clock.write_duration(limit)} allowed: {verdict}"

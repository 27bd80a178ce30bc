"""What a run does not go on from: changes that nobody approved, a step that is done and still plans, a check that did
not pass, an outcome that is not known. Each says so to the operator, by raising.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from salvor import clock
from salvor.change import ONE_ARCHIVE, WRONG_ITSELF, Change, Decision, Finding, Level
from salvor.errors import CannotError, NotConvergedError, NotProvenError, OutcomeUnknownError, PlanMovedError
from salvor.incident import Incident
from salvor.plan import Plan, PlannedStep, describe
from salvor.secrets import mask

_EARLY = ("staged", "proven")
"""The checks that say that what a step works on is not there."""
_UNTOUCHED = "nothing was cut over; the data of what was live is as it was"


def unapproved(step: str, changes: Iterable[Change], approved: Collection[str]) -> None:
    """Raises PlanMovedError when one of the changes is not among the approved keys."""
    if moved := [change for change in changes if change.key not in approved]:
        raise PlanMovedError(
            f"The world moved: {step} now plans what nobody approved:\n{_listed(moved)}",
            safe="none of these was done; what was live is as it was",
            hint="look at the new plan with --plan, then run the same command again",
        )


def unconfirmed(step: str, changes: Iterable[Change], confirmed: Collection[str]) -> None:
    """Raises PlanMovedError when one of the changes is not among those that a second person approved."""
    if alone := [change for change in changes if change.key not in confirmed]:
        listed = "\n".join(f"  {describe(change)}" for change in alone)
        raise PlanMovedError(
            f"{step} now plans what no second person approved:\n{listed}",
            safe="none of these was done; what was live is as it was",
            hint="run the same command again: it asks for the approval of the new plan",
        )


def unconverged(step: str, left: Sequence[Change], incident: str) -> None:
    """Raises NotConvergedError when a step that was carried out has changes left."""
    if left:
        raise NotConvergedError(
            f"{step} was carried out, and still plans:\n{_listed(left)}",
            safe="nothing that was live has been removed",
            hint=f"inv incident.show --incident={incident}, then the same command again",
        )


def unknown(changes: Sequence[Change], outcomes: Mapping[str, str], incident: str) -> None:
    """Raises OutcomeUnknownError when the outcome of one of the changes, by its key, is not known."""
    if left := [change for change in changes if outcomes.get(change.key) == "unknown"]:
        raise OutcomeUnknownError(
            f"Whether this was done is not known: {'; '.join(map(describe, left))}.",
            safe="nothing that waits for it was begun",
            hint=f"inv incident.show --incident={incident}, then the same command again: it looks first",
        )


def early(plan: Plan, incident: Incident, hint: str = "") -> None:
    """Raises NotProvenError when `verify` or `reroute` is asked for before what leads to it, which is a mistake of who
    typed it, and no failure of the recovery; `hint` (empty: the whole chain) says what comes first.
    """
    for planned in plan.steps:
        if bad := [finding for finding in planned.findings if finding.check in _EARLY and finding.level is Level.FAIL]:
            raise NotProvenError(
                f"{planned.name} cannot be done yet:\n{_found(bad)}",
                safe="nothing was changed, and nobody was told",
                hint=hint or f"inv restore {incident.options} does first what comes before {planned.name}",
            )


def unproven(planned: PlannedStep, incident: Incident) -> None:
    """Raises NotProvenError when a check of `verify` or `reroute` failed, or got no answer."""
    if planned.name not in ("verify", "reroute"):
        return
    bad = [finding for finding in planned.findings if finding.level in (Level.FAIL, Level.UNKNOWN)]
    if bad:
        service, undo = incident.options, f"inv undo --incident={incident.id}"
        # Another backup helps where the data is bad: not where none was broken, nor where a route gives no answer.
        about_data = incident.broken and not any(finding.subject in incident.service.routes for finding in bad)
        is_gone = any(finding.check in _EARLY for finding in bad)
        if is_gone:
            hint = f"inv restore --incident={incident.id} does first what comes before {planned.name}"
        elif all(finding.figure == WRONG_ITSELF for finding in bad):
            hint = "mend these checks in the inventory, then the same command again: nothing says that the data is bad"
        elif any(finding.check == ONE_ARCHIVE for finding in bad):
            hint = f"{undo}, then the same inv restore anew: it takes all of it out of the archive that is there now"
        elif about_data:
            before = "" if incident.failed_at else "--failed-at=TIME to before a wrong statement, with "
            hint = (
                f"inv backups {service} lists others; {undo}, then inv restore {service} with {before}--from=ID, "
                "or with --at=TIME to the state at that time"
            )
        else:
            hint = f"mend what is named above, then the same command again; or {undo}"
        safe = "what was live before is kept; inv undo goes back to it"
        if planned.name == "verify" or is_gone:
            before = ", ".join(sorted(incident.placed))
            safe = f"only {before} went live before, and nothing else was cut over" if before else _UNTOUCHED
        raise NotProvenError(f"{planned.name} did not pass:\n{_found(bad)}", safe=safe, hint=hint)


def needless_loss(plan: Plan, incident: Incident, one: str = "") -> None:
    """Raises CannotError when nobody read what a plan would lose: more than the service allows, where a way that loses
    less lacks room only. What was approved before is not asked about again. `one`: as for `approval`.
    """
    approved = {key for keys in incident.approvals.values() for key in keys}
    leads_on = {one.system for one in plan.changes if one.verb in ("stage", "promote") and one.key not in approved}
    decided = [each for step in plan.steps for each in step.decisions] or list(incident.decisions.values())
    for each in decided:
        if each.system in leads_on and (told := spared_by_room(each, incident.service.rpo)):
            rest = f"inv undo --incident={incident.id}, then " if incident.decisions else ""
            raise CannotError(
                f"--yes does not stand for a loss that is not needed. {told}",
                safe="nothing was changed",
                hint=f"make room, then {rest}the same command; or, to lose that, the same command with "
                f"{f'{one} --approve={plan.hash}'.strip()} in the place of --yes",
            )


def spared_by_room(decision: Decision, rpo: float) -> str:
    """What the chosen way would lose beyond the `rpo` (seconds) that another one, which lacks room only, would not;
    empty when there is no such way.
    """
    chosen = math.inf if decision.way.loses is None else decision.way.loses
    lacking = [way for way in decision.others if way.lacks_room and way.loses is not None and way.loses < chosen]
    if chosen <= rpo or not lacking:
        return ""
    best = min(lacking, key=lambda way: way.loses or 0.0)
    loses = f"lose {clock.write_duration(chosen)}" if math.isfinite(chosen) else "lose nobody knows how much"
    return (
        f"{decision.way.name} would {loses} of {decision.system}, more than the {clock.write_duration(rpo)} that are "
        f"allowed; {best.name} would lose {clock.write_duration(best.loses)}, and lacks room: {best.why}."
    )


def _found(bad: Iterable[Finding]) -> str:
    told = (f"  {one.subject}: {one.check}: {one.figure or one.level}: {one.detail}".rstrip(": ") for one in bad)
    return mask("\n".join(told))


def _listed(changes: Iterable[Change]) -> str:
    return "\n".join(f"  {describe(change)}  ({change.why})" for change in changes)

"""The runner: the only module that acts. It plans, has the plan approved, acts, plans again, and writes all of it
down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from salvor import clock
from salvor.change import Change, Decision, Finding, Level, Progress, plan_hash
from salvor.errors import (
    CannotError,
    NotConvergedError,
    NotProvenError,
    OutcomeUnknownError,
    PlanMovedError,
    SalvorError,
)
from salvor.incident import Incident
from salvor.journal import Journal
from salvor.secrets import mask
from salvor.steps import Step

MESSAGES_DEADLINE = 60.0
"""Seconds that the end of a run waits for messages that are still going out; later they are owed."""


@dataclass(frozen=True)
class PlannedStep:
    """What one step saw, decided and would change."""

    name: str
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Plan:
    """A chain of planned steps. `hash` is what an operator approves."""

    steps: tuple[PlannedStep, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for step in self.steps for change in step.changes)

    @property
    def hash(self) -> str:
        return plan_hash(self.changes)


class Watcher(Protocol):
    """Who is shown what happens: a terminal, a pipe, a notebook."""

    def tell(self, text: str) -> None: ...
    def step(self, name: str, docstring: str) -> None: ...
    def finding(self, finding: Finding) -> None: ...
    def begun(self, change: Change) -> None: ...
    def progress(self, change: Change, progress: Progress) -> None: ...
    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None: ...


@dataclass
class Runner:
    """Runs one incident's steps. Without a journal it can only plan."""

    incident: Incident
    watcher: Watcher
    journal: Journal | None = None
    approved: set[str] = field(default_factory=set)
    _messages: dict[str, Future[str]] = field(default_factory=dict)
    _background: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="message"))

    # --- plan ----------------------------------------------------------------------------------------------------

    def plan(self, steps: Sequence[Step], tell: Callable[[Finding], None] = lambda finding: None) -> Plan:
        """Plan the whole chain as if each change were done: it looks, tells its findings, and writes nothing anywhere."""
        self.incident.look_again()
        self.incident.ahead = True
        try:
            planned = []
            taken: set[str] = set()
            for step in steps:
                one = self._plan(step, tell)
                changes = tuple(change for change in one.changes if change.key not in taken)
                taken |= {change.key for change in changes}
                planned.append(PlannedStep(one.name, one.findings, one.decisions, changes))
            return Plan(tuple(planned))
        finally:
            self.incident.ahead = False
            self.incident.look_again()

    def _plan(self, step: Step, tell: Callable[[Finding], None] = lambda finding: None) -> PlannedStep:
        """Let one step look and plan. Each change is foreseen as it comes, so that the step's next ones build on it."""
        findings: list[Finding] = []
        decisions: list[Decision] = []
        changes: list[Change] = []
        for item in step(self.incident):
            if isinstance(item, Finding):
                findings.append(item)
                tell(item)
            elif isinstance(item, Decision):
                decisions.append(item)
                self._decide(item)
            else:
                changes.append(item)
                self.incident.foresee(item)
        return PlannedStep(_name(step), tuple(findings), tuple(decisions), tuple(changes))

    def _decide(self, decision: Decision) -> None:
        if self.journal is None or self.incident.ahead:
            self.incident.decisions[decision.system] = decision
        else:
            self._write("decision", decision=decision.to_json())

    # --- act -----------------------------------------------------------------------------------------------------

    def approve(self, plan: Plan, how: str) -> None:
        """Note what the operator approved: only these changes may be made."""
        self.approved |= {change.key for change in plan.changes}
        self._write("approved", hash=plan.hash, how=how, changes=[change.to_json() for change in plan.changes])

    def run(self, step: Step) -> PlannedStep:
        """One step: plan, refuse what nobody approved, act, plan again. Returns the last look, which plans nothing.

        Raises PlanMovedError (nothing was done), NotConvergedError, NotProvenError, or what a change raised.
        """
        name = _name(step)
        begun = clock.monotonic()
        self.watcher.step(name, (step.__doc__ or "").strip())
        self.incident.look_again()
        planned = self._plan(step, self.watcher.finding)
        new = [change for change in planned.changes if change.key not in self._messages]
        self._write("step", step=name, phase="begun", planned=len(new))
        self._refuse_unapproved(name, new)
        self._note(planned)
        if new:
            self._act(name, new)
            self.incident.look_again()
            planned = self._plan(step, self.watcher.finding)
            self._note(planned)
            self._observed(new, planned)
            self._converged(name, planned)
        self.incident.look_again()
        self._write("step", step=name, phase="ended", seconds=round(clock.monotonic() - begun, 3))
        self._proven(name, planned)
        return planned

    def _note(self, planned: PlannedStep) -> None:
        for finding in planned.findings:
            self._write("finding", step=planned.name, finding=finding.to_json())

    def _refuse_unapproved(self, name: str, changes: Iterable[Change]) -> None:
        moved = [change for change in changes if change.key not in self.approved]
        if moved:
            listed = "\n".join(f"  {describe(change)}  ({change.why})" for change in moved)
            raise PlanMovedError(
                f"The world moved: {name} now plans what nobody approved:\n{listed}",
                safe="none of these was done; what was live is as it was",
                hint="look at the new plan with --plan, then run the same command again",
            )

    def _observed(self, made: Iterable[Change], after: PlannedStep) -> None:
        """Where an outcome was unknown, note what the world says of it now."""
        still = {change.key for change in after.changes}
        outcomes = {line["key"]: line["outcome"] for line in self.journal.of("outcome")} if self.journal else {}
        for change in made:
            if outcomes.get(change.key) == "unknown":
                self._write(
                    "observed",
                    key=change.key,
                    outcome="not done" if change.key in still else "done",
                    detail=describe(change),
                )

    def _converged(self, name: str, planned: PlannedStep) -> None:
        left = [change for change in planned.changes if self._waits(change)]
        if left:
            listed = "\n".join(f"  {describe(change)}  ({change.why})" for change in left)
            raise NotConvergedError(
                f"{name} was carried out, and still plans:\n{listed}",
                safe="nothing that was live has been removed",
                hint=f"inv incident.show --incident={self.incident.id}, then the same command again",
            )

    def _proven(self, name: str, planned: PlannedStep) -> None:
        if name not in ("verify", "reroute"):
            return
        bad = [finding for finding in planned.findings if finding.level in (Level.FAIL, Level.UNKNOWN)]
        if bad:
            listed = "\n".join(
                f"  {finding.subject}: {finding.check}: {finding.figure or finding.level} {finding.detail}".rstrip()
                for finding in bad
            )
            raise NotProvenError(
                f"{name} did not pass:\n{mask(listed)}",
                safe="nothing was cut over; what was live is as it was"
                if name == "verify"
                else "what was live before is kept; inv undo goes back to it",
                hint=f"choose another backup or time: inv backups --service={self.incident.service.name}; "
                f"or inv undo --incident={self.incident.id}",
            )

    def _waits(self, change: Change) -> bool:
        return self.incident.system(change.system).verbs()[change.verb].waits

    def _act(self, step: str, changes: Sequence[Change], undoing: dict[str, str] | None = None) -> None:
        """Make the changes: those on independent systems side by side, the others in order. Raises the first error at
        the end.
        """
        undoing = undoing or {}
        waiting = list(changes)
        running: dict[Future[None], Change] = {}
        done: set[str] = set()
        error: BaseException | None = None
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="change") as pool:
            while waiting or running:
                for change in [] if error else [change for change in waiting if self._is_free(change, changes, done)]:
                    waiting.remove(change)
                    back = undoing.get(change.key, "")
                    if self._waits(change):
                        running[pool.submit(self._make, step, change, back)] = change
                    else:
                        self._messages[change.key] = self._background.submit(self._send, step, change)
                        done.add(change.key)
                if not running:
                    if error or not waiting:
                        break
                    continue
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    done.add(running.pop(future).key)
                    error = error or future.exception()
        if error:
            raise error

    def _is_free(self, change: Change, changes: Sequence[Change], done: set[str]) -> bool:
        """Whether everything that `change` must wait for is done: earlier changes of its system, or of one it depends
        on.
        """
        for other in changes:
            if other is change:
                return True
            if other.key not in done and (
                other.system == change.system or self.incident.depends(change.system, other.system)
            ):
                return False
        return True

    def _make(self, step: str, change: Change, undoing: str = "") -> None:
        """One change, journalled before and after. An outcome that is unknown is looked at by the plan that follows."""
        extra = {"undoing": undoing} if undoing else {}
        self._write("intent", step=step, change=change.to_json(), **extra)
        self.watcher.begun(change)
        begun = clock.monotonic()
        outcome, text = "failed", "it was interrupted"
        try:
            for progress in self.incident.system(change.system).apply(change):
                self.watcher.progress(change, progress)
            outcome, text = "done", ""
        except OutcomeUnknownError as unknown:
            outcome, text = "unknown", mask(str(unknown))
        except BaseException as failed:
            text = mask(str(failed)) or type(failed).__name__
            raise
        finally:
            seconds = round(clock.monotonic() - begun, 3)
            error = {"error": text} if text else {}
            self._write("outcome", step=step, key=change.key, outcome=outcome, seconds=seconds, **error, **extra)
            self.watcher.ended(change, outcome, seconds, text)

    def _send(self, step: str, change: Change) -> str:
        """A message, in the background: what goes wrong is owed, and stops nothing."""
        try:
            self._make(step, change)
        except Exception as error:  # noqa: BLE001 - whatever a notifier raises: recovery never waits for paperwork
            self.owe(describe(change), mask(str(error)) or type(error).__name__)
            return "owed"
        return "sent"

    def tell(self, moment: str) -> None:
        """Send a moment's messages that follow from what happened rather than from a plan: that it failed, that it
        was undone.
        """
        outbox = self.incident.outbox
        changes = outbox.messages(moment) if outbox else []
        self.approved |= {change.key for change in changes}
        if changes:
            self._act("notify", changes)

    def owe(self, what: str, why: str) -> None:
        """Note what could not be done and is still to do; the recovery goes on."""
        self.watcher.tell(f"owed: {what}: {why}")
        self._write("owed", what=what, why=why)

    def finish(self) -> None:
        """Wait for messages that are still going out, for MESSAGES_DEADLINE seconds at most; what is left is owed."""
        _, late = wait(self._messages.values(), timeout=MESSAGES_DEADLINE)
        for key, future in self._messages.items():
            if future in late:
                self.owe(f"message {key}", f"it was not sent within {MESSAGES_DEADLINE:.0f} s")
        self._background.shutdown(wait=False, cancel_futures=True)

    # --- undo ----------------------------------------------------------------------------------------------------

    def undo_plan(self, journal: Journal) -> tuple[list[Change], dict[str, str]]:
        """The changes that take the incident back, newest first, and which change's key each one undoes.

        Raises CannotError when a change that was begun has no way back: nothing is undone past it.
        """
        undone = {
            line["undoing"] for line in journal.of("outcome") if line.get("undoing") and line["outcome"] == "done"
        }
        back: list[Change] = []
        undoing: dict[str, str] = {}
        begun: set[str] = set()
        for line in reversed(journal.of("intent")):
            change = Change.from_json(line["change"])
            if line.get("undoing") or change.key in undone or change.key in begun:
                continue
            begun.add(change.key)
            if change.undo is None:
                if not self._waits(change):
                    continue  # a message stays sent, and hinders nothing
                raise CannotError(
                    f"{describe(change)} cannot be undone: {change.no_undo}",
                    safe="nothing was undone; what is live now stays live",
                    hint=f"go forward instead: inv incident.show --incident={self.incident.id}",
                )
            way_back = self.incident.system(change.system).change(
                change.undo.verb,
                why=f"takes back: {describe(change)}",
                undo=None,
                no_undo="it is itself an undo",
                **change.undo.arguments,
            )
            back.append(way_back)
            undoing[way_back.key] = change.key
        return back, undoing

    def undo(self, changes: Sequence[Change], undoing: dict[str, str]) -> None:
        """Make the changes of `undo_plan`, one after the other, and note that the incident is undone."""
        for change in changes:
            self._act("undo", [change], undoing)
            unknown = self.journal and self.journal.of("outcome")[-1]["outcome"] == "unknown"
            if unknown:
                raise OutcomeUnknownError(
                    f"Whether {describe(change)} was done is not known.",
                    hint=f"inv undo --incident={self.incident.id} looks again",
                )
        self._write("undone", result=f"{len(changes)} changes taken back")

    def act(self, name: str, changes: Sequence[Change]) -> None:
        """Make approved changes that belong to no step of a recovery: a backup, a discard, a standby rebuilt."""
        self._refuse_unapproved(name, changes)
        self._act(name, changes)

    def note(self, kind: str, **data: object) -> None:
        """Write a line that tells of no change: a note, that the incident is closed."""
        self._write(kind, **data)

    def _write(self, kind: str, **data: object) -> None:
        if self.journal is None:
            raise SalvorError("A plan writes nothing, and this would have been written.")
        self.incident.learn(self.journal.append(kind, **data))


def describe(change: Change) -> str:
    """One line for people: `orders-db: stage side-data backup=20261121-003300F`."""
    arguments = " ".join(
        str(value) if name == "stage" else f"{name}={value}"
        for name, value in change.arguments.items()
        if value is not None
    )
    return mask(f"{change.system}: {change.verb} {arguments}".rstrip())


def _name(step: Step) -> str:
    return getattr(step, "__name__", str(step))

"""The runner: the only module that acts. It plans, has the plan approved, acts, plans again, and writes all of it
down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from salvor import clock, refuse
from salvor.change import Change, Decision, Finding, Progress
from salvor.errors import HeldError, OutcomeUnknownError, SalvorError
from salvor.incident import Incident
from salvor.journal import Journal
from salvor.outgoing import Outgoing
from salvor.plain import amount
from salvor.plan import Plan, PlannedStep, describe, refuse_masked, undoable
from salvor.secrets import mask
from salvor.steps import Step

_AT_ONCE = 8
"""Changes that are made side by side."""

A_MOMENT = 1.0
"""Seconds for which what was seen is taken for what there is, as long as nothing is changed: what the plan or the step
before has just seen is not looked at again.
"""

_showing = partial(suppress, OSError, ValueError)
"""A terminal that has gone, or cannot show a letter, stops no recovery: the journal is the record."""


class Watcher(Protocol):
    """Who is shown what happens: a terminal, a pipe, a notebook."""

    def tell(self, text: str) -> None: ...
    def step(self, name: str, docstring: str) -> None: ...
    def finding(self, finding: Finding) -> None: ...
    def begun(self, change: Change) -> None: ...
    def progress(self, change: Change, progress: Progress) -> None: ...
    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None: ...
    def looking(self, system: str, progress: Progress | None) -> None:
        """How far a look at a system is that takes long: first without a total, in the end None."""


@dataclass
class Runner:
    """Runs one incident's steps. Without a journal it can only plan."""

    incident: Incident
    watcher: Watcher
    journal: Journal | None = None
    approved: set[str] = field(default_factory=set)
    confirmed: set[str] = field(default_factory=set)
    """The keys of the changes that a second person approved."""
    still_ours: Callable[[], None] = lambda: None
    """Asked before each change. Raises HeldError when somebody on another machine took the service over."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False
    _assessed: tuple[float, object, PlannedStep] | None = None
    """When the last plan began (`clock.monotonic`), what was wished and pinned then, and what its assessment saw."""

    def __post_init__(self) -> None:
        self._outgoing = Outgoing(self.owe)
        self.incident.hears = self._hear

    # --- plan ----------------------------------------------------------------------------------------------------

    def plan(self, steps: Sequence[Step], tell: Callable[[Finding], None] = lambda finding: None) -> Plan:
        """Plan the whole chain as if each change were done: look, tell the findings, and write nothing anywhere."""
        self.incident.look_again()
        begun, known, pinned = clock.monotonic(), self._known(), dict(self.incident.decisions)
        self.incident.ahead, self.incident.proves_ahead = True, any(_name(step) == "verify" for step in steps)
        try:
            planned = []
            taken: set[str] = set()
            for step in steps:
                one = self._plan(step, tell)
                changes = tuple(change for change in one.changes if change.key not in taken)
                taken |= {change.key for change in changes}
                planned.append(PlannedStep(one.name, one.findings, one.decisions, changes))
                self.incident.rerouted_ahead |= one.name == "reroute"
            if planned and planned[0].name == "assess":  # it sees the same when it is carried out
                self._assessed = begun, known, planned[0]
            return Plan(tuple(planned))
        finally:
            self.incident.ahead = self.incident.proves_ahead = self.incident.rerouted_ahead = False
            self.incident.decisions = pinned  # what a plan decides is decided again when it is carried out
            self.incident.look_again(since=A_MOMENT)

    def _plan(self, step: Step, tell: Callable[[Finding], None] = lambda finding: None) -> PlannedStep:
        """Let one step look and plan. Each change is foreseen as it comes, so that the step's next ones build on it."""
        findings: list[Finding] = []
        decisions: list[Decision] = []
        changes: list[Change] = []
        for item in step(self.incident):
            self._refuse_stopped()
            if isinstance(item, Finding):
                findings.append(item)
                tell(item)
            elif isinstance(item, Decision):
                decisions.append(item)
                self._decide(item)
            else:
                changes.append(undoable(item))
                self.incident.foresee(item)
        return PlannedStep(_name(step), tuple(findings), tuple(decisions), tuple(changes))

    def _decide(self, decision: Decision) -> None:
        refuse_masked(decision)
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
        with _showing():
            self.watcher.step(name, (step.__doc__ or "").strip())
        self.incident.look_again(since=A_MOMENT)
        planned = (name == "assess" and self._assessed_just_now()) or self._plan(step, self._tell)
        new = list({change.key: change for change in planned.changes if change.key not in self._outgoing}.values())
        self._write("step", step=name, phase="begun", planned=len(new))
        self._look_back(name, planned.changes)
        self._refuse_unapproved(name, new)
        self._note(planned)
        tried: set[str] = set()
        while new:
            outcomes = self._act(name, new)
            tried |= outcomes.keys()
            planned = self._plan(step, self._tell)
            self._note(planned)
            left = [change for change in planned.changes if self.incident.waits(change)]
            unknown = [change for change in new if outcomes.get(change.key) == "unknown"]
            self._observed(unknown, left)
            # When the world says that the unknown was done, what it held up is still to do. Nothing is made twice.
            if not unknown or any(change.key in tried for change in left):
                refuse.unconverged(name, left, self.incident.id)
            self._refuse_unapproved(name, left)
            new = left
        self._write("step", step=name, phase="ended", seconds=round(clock.monotonic() - begun, 3))
        refuse.unproven(planned, self.incident)
        return planned

    def _known(self) -> object:
        """What an assessment goes by, beside what it sees."""
        return self.incident.whole_wish(), dict(self.incident.decisions)

    def _assessed_just_now(self) -> PlannedStep | None:
        """What the plan has just seen, when nothing was changed, wished or pinned since: told and decided anew, without
        another look.
        """
        if self._assessed is None:
            return None
        (begun, known, planned), self._assessed = self._assessed, None
        if clock.monotonic() - begun > A_MOMENT or known != self._known():
            return None
        for finding in planned.findings:
            self._tell(finding)
        for decision in planned.decisions:
            self._decide(decision)
        return planned

    def look_anew(self) -> None:
        """Take nothing that was seen for what there is now."""
        self._assessed = None
        self.incident.look_again()

    def _hear(self, system: str, progress: Progress | None) -> None:
        if progress:
            self._refuse_stopped()
        with _showing():
            self.watcher.looking(system, progress)

    def _tell(self, finding: Finding) -> None:
        with _showing():
            self.watcher.finding(finding)

    def _note(self, planned: PlannedStep) -> None:
        for finding in planned.findings:
            self._write("finding", step=planned.name, finding=finding.to_json())

    def _refuse_unapproved(self, name: str, changes: Sequence[Change]) -> None:
        refuse.unapproved(name, changes, self.approved)
        if name in self.incident.steps_of_two:
            refuse.unconfirmed(name, changes, self.confirmed)

    def _look_back(self, name: str, planned: Sequence[Change]) -> None:
        """What a step began before a crash, and nobody saw end: note what the world says of it now."""
        found = [
            change
            for key, (step, change) in list(self.incident.interrupted.items())
            if step == name and key not in self._outgoing
        ]
        moments = {str(change.arguments["moment"]) for change in found if not self.incident.waits(change)}
        unsent = [message for moment in moments for message in self.incident.messages(moment)]
        self._observed(found, [*planned, *unsent])

    def _observed(self, unknown: Iterable[Change], left: Iterable[Change]) -> None:
        """Where an outcome was unknown, note what the world says of it now."""
        still = {change.key for change in left}
        for change in unknown:
            outcome = "not done" if change.key in still or self.incident.is_down_after(change) else "done"
            self._write("observed", key=change.key, outcome=outcome, detail=describe(change))

    def _act(
        self, step: str, changes: Sequence[Change], undoing: dict[str, str] | None = None, *, goes_on: bool = False
    ) -> dict[str, str]:
        """Make the changes: those on independent systems side by side, the others in order.

        Returns the outcome (done or unknown) of each that was begun, by its key. What waits for one whose outcome is
        unknown is not begun, and after an error nothing is, unless it `goes_on`: then one keeps no other from being
        made. Raises the first error, when everything under way has ended.
        """
        undoing = undoing or {}
        waiting = list(changes)
        running: dict[Future[str], Change] = {}
        outcomes: dict[str, str] = {}
        done: set[str] = set()
        error: BaseException | None = None
        self._stopping.clear()
        self._refuse_stopped()
        with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="change") as pool:
            try:
                while True:
                    ends = error and not (goes_on and isinstance(error, Exception))
                    free = [] if ends else [change for change in waiting if self._is_free(change, changes, done)]
                    free = free[: _AT_ONCE - len(running)]  # whoever is under way has a thread: others may wait for it
                    self.incident.under_way |= {change.key: change for change in free if self.incident.waits(change)}
                    for change in free:
                        waiting.remove(change)
                        if self.incident.waits(change):
                            running[pool.submit(self._make, step, change, undoing.get(change.key, ""))] = change
                        else:
                            self._outgoing.post(change, partial(self._make, step, change))
                            done.add(change.key)
                    if not (free or running):
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future).key
                        self.incident.under_way.pop(key, None)
                        error = error or future.exception()
                        if not future.exception():
                            outcomes[key] = future.result()
                        if goes_on or outcomes.get(key) == "done":
                            done.add(key)
            except KeyboardInterrupt:
                self._stopping.set()
                with _showing():
                    self.watcher.tell("Stopping: what is under way ends first, or at its next sign of progress.")
                raise
            finally:
                self.incident.under_way.clear()
                self._assessed = None
                self.incident.look_again(since=0.0 if any(map(self.incident.waits, changes)) else A_MOMENT)
        if error:
            raise error
        return outcomes

    def stop(self) -> None:
        """Let what runs in another thread end as Ctrl-C would: what is under way, at its next sign of progress."""
        self._stopped = True  # before the event, which a step that begins now clears
        self._stopping.set()

    def go_on(self) -> None:
        """Raises HeldError when somebody on another machine took the service over, KeyboardInterrupt after `stop`."""
        self._refuse_stopped()
        self.still_ours()

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise KeyboardInterrupt

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

    def _make(self, step: str, change: Change, undoing: str = "") -> str:
        """One change, journalled before and after. Returns done or unknown: what is unknown, the next plan looks at."""
        self.go_on()
        extra: dict[str, object] = {"undoing": undoing} if undoing else {}
        self._write("intent", step=step, change=change.to_json(), **extra)
        begun = clock.monotonic()
        outcome, text = "unknown", "it was stopped"
        size = 0
        try:
            with _showing():
                self.watcher.begun(change)
            for said in self.incident.system(change.system).apply(change):
                if isinstance(said, Finding):
                    with suppress(HeldError):  # what is under way comes to its end
                        if not self._outgoing.is_late(change):
                            self._write("finding", step=step, finding=said.to_json())
                    self._tell(said)
                    continue
                if said.unit == "bytes":
                    size = max(size, said.total or 0)
                with _showing():
                    self.watcher.progress(change, said)
                if self._stopping.is_set():
                    raise KeyboardInterrupt
            outcome, text = "done", ""
        except OutcomeUnknownError as unknown:
            text = mask(str(unknown))
        except Exception as failed:
            outcome, text = "failed", mask(str(failed)) or type(failed).__name__
            raise
        finally:
            seconds = round(clock.monotonic() - begun, 3)
            if text:
                extra["error"] = text
            if size:  # how much it was, so that what the next one takes can be told
                extra["bytes"] = size
            try:
                if not self._outgoing.is_late(change):
                    self._write("outcome", step=step, key=change.key, outcome=outcome, seconds=seconds, **extra)
            finally:
                with _showing():
                    self.watcher.ended(change, outcome, seconds, text)
        return outcome

    def tell(self, moment: str) -> None:
        """Send a moment's messages that follow from what happened rather than from a plan: that it failed, that it
        was undone. What cannot be sent is owed.
        """
        try:
            self._look_back("notify", ())
            changes = self.incident.messages(moment)
        except Exception as error:  # noqa: BLE001 - as for each message
            self.owe(f"the messages that it is {moment}", mask(str(error)) or type(error).__name__)
            return
        self.approved |= {change.key for change in changes}
        self._act("notify", changes)

    def owe(self, what: str, why: str) -> None:
        """Note what could not be done and is still to do; the recovery goes on. It is not ours to do when somebody
        else took it over.
        """
        with _showing():
            self.watcher.tell(f"owed: {what}: {why}")
        with suppress(HeldError):
            self._write("owed", what=what, why=why)

    def finish(self) -> None:
        """Wait a little for messages that are still going out; what is left is owed."""
        self._outgoing.finish()

    # --- undo ----------------------------------------------------------------------------------------------------

    def undo(self, changes: Sequence[Change], undoing: dict[str, str]) -> None:
        """Make the changes of `undo_plan`, one after the other, tell who heard of it, and note that it is undone."""
        self._refuse_unapproved("undo", changes)
        for change in changes:
            self._make_surely("undo", [change], undoing)
        begun = [change for _, change in self.incident.interrupted.values() if self.incident.waits(change)]
        self._observed([change for change in begun if change.undo], begun)  # nobody saw these end: they are undone now
        if self.incident.purpose == "watch":
            self.tell("taken-back")
        elif self.incident.may_have_told:  # who heard of nothing is not told that it is undone
            self.tell("undone")
        self.finish()  # before the note: after it, nothing of this incident is done again
        self._write("undone", result=f"{amount(len(changes), 'change')} taken back")

    def act(self, name: str, changes: Sequence[Change]) -> None:
        """Make approved changes that belong to no step of a recovery: a backup, a discard, a standby rebuilt. That one
        fails keeps none of the others from being made.
        """
        self._refuse_unapproved(name, changes)
        self._make_surely(name, changes)

    def _make_surely(self, name: str, changes: Sequence[Change], undoing: dict[str, str] | None = None) -> None:
        """Make changes that no plan looks at again. Raises OutcomeUnknownError when the outcome of one is not known."""
        refuse.unknown(changes, self._act(name, changes, undoing, goes_on=True), self.incident.id)

    def note(self, kind: str, **data: object) -> None:
        """Write a line that tells of no change: a note, that the incident is closed."""
        self._write(kind, **data)

    def _write(self, kind: str, **data: object) -> None:
        if self.journal is None:
            raise SalvorError("A plan writes nothing, and this would have been written.")
        self.incident.learn(self.journal.append(kind, **data))


def _name(step: Step) -> str:
    return getattr(step, "__name__", str(step))

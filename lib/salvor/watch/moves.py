"""The moves of a rule, made: each in a sitting of its own with the episode, whose journal says what was done."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from salvor import clock, console
from salvor.change import Change, Finding, Level
from salvor.errors import CannotError, HeldError
from salvor.inventory import Platform
from salvor.plain import in_words
from salvor.plan import Plan, PlannedStep, describe
from salvor.secrets import mask, mask_data
from salvor.session import Session
from salvor.session.opening import open_session
from salvor.show import Shown
from salvor.watch import actions
from salvor.watch.episode import ESCALATE, LOOK, Cause, Episode, Stage, Told, sitting, tell
from salvor.watch.rules import Call

if TYPE_CHECKING:
    from salvor.watch.watcher import Seen

_CALLED = "People are called: "


def make(platform: Platform, seen: Seen, shown: Shown, stopping: threading.Event, *, holding: bool = True) -> None:
    """Make the move that follows from a look. Raises HeldError while somebody works on the service, unless it is one
    that needs no `holding` of it.
    """
    if seen.move.kind != "wait":
        _Maker(platform, seen, shown, stopping).make(holding=holding)


class _Maker:
    def __init__(self, platform: Platform, seen: Seen, shown: Shown, stopping: threading.Event) -> None:
        self.platform, self.seen, self.shown, self.stopping = platform, seen, shown, stopping
        self.rule = platform.watch[seen.rule]
        since = seen.sighting.bad_since or seen.sighting.unknown_since or clock.now()
        cause: Cause = "bad" if seen.reading.bad else "unknown"
        self.open = seen.open if seen.open and not seen.open.is_damaged else None
        self.session: Session = sitting(platform, seen.rule, self.open, cause, since, shown)
        self.episode = self.session.incident
        assert isinstance(self.episode, Episode)
        self._words(since_at=clock.write_time(self.episode.failed_at or since))

    def make(self, *, holding: bool) -> None:
        if self.seen.move.kind == "act" and self._is_a_runbook(self.seen.move.stage):
            self._run_a_runbook(self.seen.move.stage)
            return
        with self.session.begin(systems=self._systems_left(), holding=holding):
            told = self._told()
            if self._is_of_no_more_use(told):
                return
            match self.seen.move.kind:
                case "act":
                    stage = told.stages.get(self.seen.move.stage) or self._begin(self.seen.move.stage)
                    self._act(self.seen.move.stage, stage)
                case "escalate":
                    self._note(self.seen.finding())
                    self.session.runner.note("note", text=f"{_CALLED}{self.seen.move.why}.")
                    begun = clock.now()
                    first = [call.channel for call in self._calls() if not call.after]
                    self.session.runner.note("step", step=ESCALATE, phase="begun", planned=len(first))
                    self._call(first, told)
                    self._end(ESCALATE, begun)
                case "call":
                    self._call(self.seen.move.channels, told)
                case "note":
                    self._note(self.seen.finding())
                case "close":
                    self._close(told)

    def _begun(self, name: str) -> Stage | None:
        return self.open.stages.get(name) if self.open else None

    def _is_a_runbook(self, name: str) -> bool:
        """What was begun tells, and not what the inventory says by now."""
        if begun := self._begun(name):
            return any(change.verb == actions.RECOVER for change in begun.changes)
        return any(one.runbook for one in self.rule.actions(name))

    def _systems_left(self) -> list[str]:
        """The systems of a stage that goes on. They are held before a line is written: a look may come every second."""
        begun = self._begun(self.seen.move.stage) if self.seen.move.kind == "act" else None
        return [change.system for change in begun.left()] if begun else []

    def _told(self) -> Told:
        assert self.session.journal
        told = tell(self.session.journal.lines)
        if told is None:
            raise CannotError(
                f"The journal of {self.episode.id} cannot be read whole.",
                safe="nothing was done",
                hint=f"inv incident.check --incident={self.episode.id}",
            )
        return told

    def _is_of_no_more_use(self, told: Told) -> bool:
        """Whether a person acknowledged it between the look and the move."""
        return bool(told.acknowledged and self.seen.move.kind not in ("note", "close"))

    def _words(self, **words: str) -> None:
        assert isinstance(self.episode, Episode)
        reading = self.seen.reading
        self.episode.words |= {"figure": reading.figure, "limit": reading.limit or "good", **words}

    def _note(self, finding: Finding) -> None:
        self.shown.finding(finding)
        self.session.runner.note("finding", step=LOOK, finding=finding.to_json())

    # --- act -----------------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> Stage:
        """Plan a stage and write the plan down: these very changes are made, by whoever reads on."""
        self._note(self.seen.finding())
        changes = []
        for number, action in enumerate(self.rule.actions(name)):
            occasion = f"{self.episode.id}-{name}-{number}"
            why = f"{self.seen.rule}: {self.seen.reading.figure} ({self.seen.move.stage})"
            try:
                changes.append(_legible(actions.change(action, self.episode, why, occasion)))
            except Exception as error:  # noqa: BLE001  whatever hinders one action, the others are done
                self._note(Finding(action.system or "", action.kind, Level.UNKNOWN, "not done", detail=_reason(error)))
        self._approve(name, changes)
        self.session.runner.note("step", step=name, phase="begun", planned=len(changes))
        return Stage(tuple(changes), clock.now())

    def _after(self, name: str) -> str:
        """What comes after a stage, in words."""
        then = "; ".join(f"{action.kind} {action.system or ''}".strip() for action in self.rule.then)
        return (name == "immediately" and then) or (
            f"people are called ({self.rule.escalate})" if self.rule.escalate else "-"
        )

    def _approve(self, name: str, changes: Sequence[Change]) -> None:
        plan = Plan((PlannedStep(name, (), (), tuple(changes)),))
        self.session.runner.approve(plan, f"by the inventory: rule {self.seen.rule}, {name}")

    def _act(self, name: str, stage: Stage) -> None:
        """Make what is left of a stage, one after the other; what fails hinders nothing that comes after it."""
        runner = self.session.runner
        self.session.holding.systems(change.system for change in stage.left())
        self._words(next=self._after(name))
        runner.tell("acting")  # once: what was sent is not sent again
        runner.approved |= {change.key for change in stage.changes}
        for change in stage.left():
            if self.stopping.is_set():
                return
            try:
                runner.act(name, [change])
            except HeldError:  # another machine took the service over: it was not begun
                raise
            except Exception as error:  # noqa: BLE001  its outcome is in the journal
                self.shown.tell(f"{describe(change)} failed: {_reason(error)}")
        self._end(name, stage.begun)

    def _end(self, name: str, begun: datetime) -> None:
        seconds = round(clock.age(begun).total_seconds(), 3)
        self.session.runner.note("step", step=name, phase="ended", seconds=seconds)

    def _run_a_runbook(self, name: str) -> None:
        """A recovery holds the service itself, so the episode lets go of it meanwhile."""
        with self.session.begin():
            told = self._told()
            if self._is_of_no_more_use(told):
                return
            stage = told.stages.get(name) or self._begin(name)
            left = stage.left()
            self._words(next=self._after(name))
            self.session.runner.tell("acting")
            for change in left:
                self.session.runner.note("intent", step=name, change=change.to_json())
        outcomes = [(change, *self._recover(str(change.arguments["runbook"]))) for change in left]
        with self.session.begin():
            for change, error, seconds in outcomes:
                said = {"outcome": "failed", "error": error} if error else {"outcome": "done"}
                self.session.runner.note("outcome", step=name, key=change.key, seconds=seconds, **said)
            self._end(name, stage.begun)

    def _recover(self, runbook: str) -> tuple[str, float]:
        """Bring the service back, as `inv restore` does. Why it failed, and how many seconds it took."""
        begun = clock.monotonic()
        error = ""
        try:
            session = open_session(self.rule.service, self.shown, platform=self.platform.name, runbook_name=runbook)
            console.recover(session, self.shown, yes=True)
        except HeldError:  # somebody works on it: it was not begun, or is theirs now
            raise
        except Exception as failed:  # noqa: BLE001  what was begun is never left without an outcome: it would be repeated
            error = _reason(failed)
        return error, round(clock.monotonic() - begun, 3)

    # --- people --------------------------------------------------------------------------------------------------

    def _call(self, channels: Sequence[str], told: Told) -> None:
        self._words(because=self._because(), done=told.done)
        for channel in channels:
            later = [call.channel for call in self._calls() if call.channel not in (*told.calls, *channels)]
            self._words(next=", ".join(later) or "-")
            self._send("called", channel, "critical", f"it is {channel}'s turn")

    def _because(self) -> str:
        assert self.session.journal
        notes = [str(line.get("text", "")) for line in self.session.journal.of("note")]
        called = [text.removeprefix(_CALLED) for text in notes if text.startswith(_CALLED)]
        return called[-1] if called else "-"

    def _calls(self) -> Sequence[Call]:
        return self.platform.escalation[self.rule.escalate].calls if self.rule.escalate else ()

    def _send(self, moment: str, channel: str, severity: str, why: str) -> None:
        outbox = self.episode.outbox
        assert outbox
        no_undo = "a message cannot be taken back"
        change = outbox.change("send", why=why, no_undo=no_undo, moment=moment, channel=channel, severity=severity)
        self._approve(ESCALATE, [change])
        self.session.runner.act(ESCALATE, [change])
        self.session.runner.finish()

    def _close(self, told: Told) -> None:
        """The episode is over: whoever was called is told that it is better, or can be told again and is bad."""
        runner = self.session.runner
        moment, severity = ("told-again", "warning") if self.seen.reading.bad else ("better", "info")
        self._note(self.seen.finding())
        for name, stage in told.stages.items():
            if stage.ended is None:
                self._unfinished(name, stage, told)
        self._words(done=told.done)
        for channel, (_, outcome) in told.calls.items():
            if outcome == "done" and self.episode.outbox:
                self._send(moment, channel, severity, "it was called")
            elif outcome == "done":
                runner.owe(f"{channel} was called, and does not hear that it is over", "no messages in the inventory")
        runner.tell(moment)
        runner.finish()
        runner.note("closed", result=self.seen.move.why)

    def _unfinished(self, name: str, stage: Stage, told: Told) -> None:
        """A stage that was cut off: what of it was begun, and nobody saw end."""
        for key, (step, change) in list(self.episode.interrupted.items()):
            if step == name:
                detail = f"{describe(change)}: the watcher ended while it was made, and it is better now"
                self.session.runner.note("observed", key=key, outcome="unknown", detail=detail)
        self._end(name, stage.begun)


def _legible(change: Change) -> Change:
    """`change`, unless the journal would mask some of it: it is read back from there."""
    if mask_data(change.to_json()) != change.to_json():
        raise CannotError(f"what looks like a secret is in {describe(change)}, and could not be read back")
    return change


def _reason(error: Exception) -> str:
    return mask(in_words(error))

"""What happened in an incident, as data: steps, changes, decisions, approvals, people, interruptions, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from salvor.change import Change, Decision, Finding, Level
from salvor.journal import events
from salvor.journal.brief import FAILED

WORDS = {Level.PASS: "passed", Level.WARN: "warning", Level.FAIL: "failed", Level.UNKNOWN: "cannot tell"}
"""What a verdict is called."""
_COUNTED = WORDS | {Level.WARN: "warnings"}

UNFINISHED = "unfinished"
"""The outcome of a change that was begun and of which no end is written: it is running, or it was interrupted."""


@dataclass
class Act:
    """One try of one change, which `key` identifies. `seconds` is None while it is unfinished.

    `observed` is what a look at the world said of an outcome that was unknown.
    """

    number: int
    step: str
    key: str
    change: Change
    by: str
    begun: datetime
    undoing: str = ""
    outcome: str = UNFINISHED
    ended: datetime | None = None
    seconds: float | None = None
    error: str = ""
    observed: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it is known to have happened."""
        return "done" in (self.outcome, self.observed)

    @property
    def is_message(self) -> bool:
        """Whether it told somebody something."""
        return self.change.verb == "send"

    @property
    def said(self) -> str:
        """The outcome in words: `done`, `failed`, `unknown`, `unfinished`, or by a look at the world: `seen done`."""
        return f"seen {self.observed}" if self.observed else self.outcome

    @property
    def took(self) -> float | None:
        """Seconds from intent to outcome; None when no outcome is written."""
        return (
            self.seconds
            if self.seconds is not None or self.ended is None
            else (self.ended - self.begun).total_seconds()
        )


@dataclass
class StepRun:
    """One walk through one step. `time` is 1 for the first time that a sitting has this step, 2 for the second."""

    name: str
    time: int
    by: str
    begun: datetime
    ended: datetime | None = None
    seconds: float | None = None
    findings: list[Finding] = field(default_factory=list)
    decided: list[tuple[datetime, Decision]] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    has_end: bool = True
    """False for what has no lines of its own in the journal: undo, discard, a message outside of its step."""

    @property
    def decisions(self) -> list[Decision]:
        """What was decided in it."""
        return [decision for _, decision in self.decided]

    @property
    def verdicts(self) -> list[Finding]:
        """The findings, each as it was seen last: a step looks before it acts, and again after."""
        return list({(each.subject, each.check, each.evidence): each for each in self.findings}.values())

    @property
    def seen(self) -> list[Finding]:
        """The verdicts without the ways back, which the decision tells better."""
        return [each for each in self.verdicts if not (self.decided and each.check.startswith("way back"))]

    @property
    def summary(self) -> str:
        """What came out of it, in words: `3 changes, 12 passed, 1 warning`."""
        counts = [(len(self.acts), "changes")]
        counts += [(sum(each.level is level for each in self.seen), _COUNTED[level]) for level in Level]
        words = [f"{count} {word if count > 1 else word.removesuffix('s')}" for count, word in counts if count]
        return ", ".join(words) or "nothing to do"

    @property
    def last_moment(self) -> datetime:
        """The latest moment that is known of it."""
        return max(filter(None, [self.begun, self.ended, *(act.ended or act.begun for act in self.acts)]))


@dataclass
class Sitting:
    """One command's work on the incident, from one machine, after so many `steps` and `marks`: the clocks of two
    machines do not tell what came first.
    """

    by: str
    begun: datetime
    where: str = ""
    steps: int = 0
    marks: int = 0


@dataclass(frozen=True)
class Interruption:
    """Work that stopped at `at`, while `what` was under way, and went on at `until`."""

    at: datetime
    until: datetime
    what: str


@dataclass(frozen=True)
class Approval:
    """What an operator approved, and how."""

    at: datetime
    by: str
    hash: str
    how: str
    changes: tuple[Change, ...]


@dataclass
class Owed:
    """What could not be done and is still to do; `paid` is when it was."""

    at: datetime
    what: str
    why: str
    paid: datetime | None = None


@dataclass(frozen=True)
class Mark:
    """A line that tells of the incident as a whole: recovered, failed, undone, discarded, closed, note, repaired."""

    kind: str
    at: datetime
    by: str
    text: str


@dataclass
class Story:
    """One incident, as its journal tells it. Times are UTC; `targets` and `measured` are in seconds."""

    incident: str
    platform: str = ""
    service: str = ""
    title: str = ""
    purpose: str = ""
    scenario: str = ""
    runbook: str = ""
    wish: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)
    detected_at: datetime | None = None
    failed_at: datetime | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    sittings: list[Sitting] = field(default_factory=list)
    steps: list[StepRun] = field(default_factory=list)
    approvals: list[Approval] = field(default_factory=list)
    asked: str = ""
    """The steps and the plan that a second person is still to approve."""
    interruptions: list[Interruption] = field(default_factory=list)
    owed: list[Owed] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    events: list[events.Event] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    """Numbers of lines that say nothing that can be told; `inv incident.check` says why."""
    lines: int = 0
    last_moment: datetime | None = None

    @property
    def acts(self) -> list[Act]:
        """Every try of every change, in the order of their beginnings."""
        return sorted((act for step in self.steps for act in step.acts), key=lambda act: act.number)

    @property
    def made(self) -> list[Act]:
        """The changes that were carried out, each once, without messages and without what took them back."""
        done = [act for act in self.acts if act.is_done and not act.undoing and not act.is_message]
        return list({act.key: act for act in done}.values())

    @property
    def decisions(self) -> list[Decision]:
        """The decision that stands for each system."""
        return list({each.system: each for step in self.steps for each in step.decisions}.values())

    @property
    def messages(self) -> list[Act]:
        """The messages to people."""
        return [act for act in self.acts if act.is_message]

    @property
    def state(self) -> str:
        """`open`, or how it ended: `recovered`, `undone`, `discarded`, `closed`, in the order of what happened;
        maintenance that failed is `failed, closed`.
        """
        ends = [mark for mark in self.marks if mark.kind in ("recovered", "undone", "discarded", "closed")]
        seen = [word for mark in ends for word in (*([mark.text] if mark.text == FAILED else []), mark.kind)]
        return ", ".join(dict.fromkeys(seen)) or "open"

    @property
    def taken_back(self) -> list[Act]:
        """What was made and then undone."""
        undone = {act.undoing for act in self.acts if act.undoing and act.is_done}
        # The key in the line is of the arguments as they were; those in the journal may be masked.
        return [act for act in self.acts if not act.undoing and not undone.isdisjoint((act.key, act.change.key))]

    @property
    def in_doubt(self) -> list[Act]:
        """What was begun and of which nobody knows whether it happened, without messages."""
        return [act for act in self.acts if act.said in (UNFINISHED, "unknown") and not act.is_message]

    @property
    def unfinished(self) -> list[str]:
        """What was begun in the last sitting and has no end: changes, or else a step, in words."""
        if not self.sittings or self.at("undone") or self.at("closed"):
            return []
        steps = self.steps[self.sittings[-1].steps :]
        changes = [events.describe(act.change) for step in steps for act in step.acts if act.outcome == UNFINISHED]
        return changes or [step.name for step in steps[-1:] if step.has_end and step.ended is None]

    def at(self, kind: str) -> datetime | None:
        """When a mark of this kind was first set; None when it never was."""
        return next((mark.at for mark in self.marks if mark.kind == kind), None)

    @property
    def failure(self) -> Mark | None:
        """What the last sitting failed on; None when it did not, or when the work went on after it."""
        before = self.sittings[-1].marks if self.sittings else 0
        failed = [mark for mark in self.marks[before:] if mark.kind == "failed"]
        return failed[-1] if failed else None

    def runs(self, name: str, time: int = 1) -> list[StepRun]:
        """Every walk through a step of that name that was the first (or second) of its sitting."""
        return [step for step in self.steps if step.name == name and step.time == time]

    def target(self, name: str) -> float | None:
        """The target of `rto` or `rpo`, in seconds."""
        limit = self.measured.get(f"{name}_target", self.targets.get(name))
        return float(limit) if limit is not None else None

    def is_met(self, name: str) -> bool | None:
        """Whether `rto` or `rpo` was within its target; None when it was not measured."""
        figure, limit = self.measured.get(name), self.target(name)
        return None if figure is None or limit is None else bool(figure <= limit)

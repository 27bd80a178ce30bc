"""The story of an incident, told from its journal's lines alone: for a screen, a notebook, a page.

It contacts no system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.change import Change, Decision, Finding
from salvor.errors import UsageError
from salvor.journal import Journal, events
from salvor.journal.happened import Act, Approval, Interruption, Mark, Owed, Sitting, StepRun, Story


def read(folder: Path) -> Story:
    """The story of the incident in `folder`. Raises CannotError when its journal cannot be read."""
    journal = Journal.read(folder)
    told = tell(journal.lines, incident=folder.name)
    told.unreadable = sorted({*told.unreadable, *journal.damaged})
    return told


def tell(lines: Sequence[Mapping[str, Any]], incident: str = "") -> Story:
    """The story that these lines of a journal tell. A line that cannot be told is counted, and stops nothing."""
    teller = _Teller(Story(incident))
    for position, line in enumerate(lines, 1):
        try:
            teller.take(line)
        except (KeyError, TypeError, ValueError, AttributeError, UsageError):
            number = line.get("n")
            teller.story.unreadable.append(number if isinstance(number, int) else position)
    teller.story.lines = len(lines)
    return teller.story


class _Teller:
    """Takes in the lines one by one."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self._acts: dict[tuple[str, str], Act] = {}
        self._times: dict[str, int] = {}

    def take(self, line: Mapping[str, Any]) -> None:
        at, by, kind = clock.read_time(line["at"]), str(line["by"]), str(line["kind"])
        take = getattr(self, f"_{kind}", None)
        if take:
            take(line, at, by)
        self.story.events.append(events.of(line, at, by, self._change_of(line)))
        self.story.last_moment = at

    def _change_of(self, line: Mapping[str, Any]) -> Change | None:
        act = self._acts.get((str(line.get("key")), str(line.get("undoing", ""))))
        return act.change if act else None

    def _opened(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        story = self.story
        story.sittings.append(Sitting(by, at))
        story.incident = story.incident or str(line["incident"])
        for name in ("platform", "service", "title", "purpose", "runbook"):
            setattr(story, name, str(line[name]))
        story.scenario = str(line.get("scenario", ""))
        story.wish, story.targets = dict(line["wish"]), dict(line["targets"])
        story.detected_at = clock.read_time(line["detected_at"])
        story.failed_at = clock.read_time(line["failed_at"]) if line["failed_at"] else None

    def _resumed(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self._times.clear()
        story = self.story
        if (left := story.unfinished) and not story.failure:  # one that failed said so, and was not interrupted
            story.interruptions.append(Interruption(story.last_moment or at, at, ", ".join(left)))
        where, marks = str(line.get("where", "")), len(story.marks)
        story.sittings.append(Sitting(by, at, where, steps=len(story.steps), marks=marks))

    def _step(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        """A step plans before its first line, and its seconds count that; only what it decided is written before."""
        name = str(line["step"])
        if line["phase"] == "begun":
            last = self.story.steps[-1:]
            is_there = last and last[0].name == name and last[0].decided and not (last[0].has_end or last[0].acts)
            run = last[0] if is_there else self._begin(name, at, by)
            run.has_end = True
        else:
            run = self._run(name, at, by)
            run.ended, run.seconds = at, float(line["seconds"])
            run.begun = min(run.begun, at - timedelta(seconds=run.seconds))

    def _begin(self, name: str, at: datetime, by: str) -> StepRun:
        self._times[name] = self._times.get(name, 0) + 1
        run = StepRun(name, self._times[name], by, at, has_end=False)
        self.story.steps.append(run)
        return run

    def _run(self, name: str, at: datetime, by: str) -> StepRun:
        """The step that a line belongs to: the last of that name in this sitting, made where it has no own lines."""
        runs = [step for step in self.story.steps if step.name == name]
        return runs[-1] if runs and name in self._times else self._begin(name, at, by)

    def _finding(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self._run(str(line["step"]), at, by).findings.append(Finding.from_json(line["finding"]))

    def _decision(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        last = self.story.steps[-1:]
        run = last[0] if last and last[0].has_end and last[0].ended is None else self._begin("assess", at, by)
        run.decided.append((at, Decision.from_json(line["decision"])))

    def _approved(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        changes = tuple(map(Change.from_json, line["changes"]))
        self.story.approvals.append(Approval(at, by, str(line["hash"]), str(line["how"]), changes))

    def _asked(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self.story.asked = f"{', '.join(line['steps'])} of plan {line['hash']}"

    def _confirmed(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self.story.asked = ""
        known = [each for each in self.story.approvals if each.hash == str(line["hash"])]
        how = f"second person, {line['where']}, " + (f"signed with {line['key']}" if line["key"] else "not signed")
        changes = known[-1].changes if known else ()
        self.story.approvals.append(Approval(at, str(line["who"]), str(line["hash"]), how, changes))

    def _intent(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        key, undoing = str(line["change"]["key"]), str(line.get("undoing", ""))
        act = Act(int(line["n"]), str(line["step"]), key, Change.from_json(line["change"]), by, at, undoing)
        self._acts[key, undoing] = act
        self._run(act.step, at, by).acts.append(act)

    def _outcome(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        act = self._acts[str(line["key"]), str(line.get("undoing", ""))]
        act.outcome, act.ended = str(line["outcome"]), at
        act.seconds, act.error = float(line["seconds"]), str(line.get("error", ""))

    def _observed(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        for (key, _), act in self._acts.items():
            if key == line["key"]:
                act.observed = str(line["outcome"])

    def _owed(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self.story.owed.append(Owed(at, str(line["what"]), str(line["why"])))

    def _paid(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        for owed in self.story.owed:
            if owed.what == line["what"] and owed.paid is None:
                owed.paid = at

    def _measured(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        self.story.measured |= {name: value for name, value in line.items() if name not in events.FRAME}

    def _mark(self, line: Mapping[str, Any], at: datetime, by: str) -> None:
        text = line.get("text") or line.get("result") or ""
        self.story.marks.append(Mark(str(line["kind"]), at, by, str(text)))

    _recovered = _failed = _undone = _discarded = _closed = _note = _repaired = _acknowledged = _mark

"""An episode: a metric that went bad (or could not be told), and what was done until it was better. One journal each.

What was done is read from the journal alone, so that it does not matter who reads on: the watcher, or the one after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from salvor import clock, durable
from salvor.change import Change, Level
from salvor.errors import CannotError
from salvor.history import History
from salvor.incident import Incident, new_id
from salvor.inventory import Platform
from salvor.journal import FILE, Journal, brief
from salvor.journal.folders import incidents_folder, operator
from salvor.journal.on_disk import held_back
from salvor.plan import describe
from salvor.roles import Outbox
from salvor.run import Runner, Watcher
from salvor.runbook_files import MAINTENANCE
from salvor.session import Session
from salvor.wish import Wish

PURPOSE = "watch"
ACTING = ("immediately", "then")
ESCALATE = "escalate"
LOOK = "look"
"""The step of what was found of the metric."""
Cause = Literal["bad", "unknown"]


@dataclass(frozen=True)
class Stage:
    """A stage that was begun: the changes that it was to make, in their order, and what became of each, by its key."""

    changes: tuple[Change, ...]
    begun: datetime
    ended: datetime | None = None
    outcomes: Mapping[str, str] = field(default_factory=dict)

    def left(self) -> list[Change]:
        """The changes of which nobody wrote how they ended, in their order."""
        return [change for change in self.changes if change.key not in self.outcomes]


@dataclass(frozen=True)
class Told:
    """What the journal of an episode says. `calls` are the channels that were called: when last, and the outcome
    (empty: nobody wrote it).
    """

    id: str
    cause: Cause
    since: datetime
    stages: Mapping[str, Stage] = field(default_factory=dict)
    calls: Mapping[str, tuple[datetime, str]] = field(default_factory=dict)
    acts: tuple[datetime, ...] = ()
    acknowledged: str = ""
    is_taken: bool = False
    """Whether it was begun on another machine."""
    is_over: bool = False
    is_damaged: bool = False
    """Whether some of it cannot be read: what was done is then not known."""
    last_at: datetime | None = None
    good_since: datetime | None = None
    """Since when it is good, of one that is kept open all the same."""

    @property
    def done(self) -> str:
        """What was done so far, in words."""
        found = [
            f"{describe(change)} ({stage.outcomes.get(change.key, 'begun')})"
            for stage in self.stages.values()
            for change in stage.changes
        ]
        return "; ".join(found) or "nothing"


def tell(lines: list[dict[str, Any]]) -> Told | None:
    """The episode that these lines tell of; None when they are of something else, or too damaged to tell."""
    try:
        return _tell(lines)
    except (LookupError, TypeError, ValueError):
        return None


def _tell(lines: list[dict[str, Any]]) -> Told | None:
    first = lines[0]
    if first["kind"] != "opened" or first["purpose"] != PURPOSE:
        return None
    told = Told(first["incident"], first["cause"], clock.read_time(first["failed_at"] or first["detected_at"]))
    stages: dict[str, Stage] = {}
    calls: dict[str, tuple[datetime, str]] = {}
    acts: dict[str, datetime] = {}
    approved: tuple[Change, ...] = ()
    sent: dict[str, str] = {}
    for line in lines:
        at, step = clock.read_time(line["at"]), str(line.get("step", ""))
        match line["kind"]:
            case "approved":
                approved = tuple(_change(each) for each in line["changes"])
            case "step" if line["phase"] == "begun":
                stages[step] = Stage(approved if step in ACTING else (), at)
            case "step":
                stages[step] = replace(stages[step], ended=at)
            case "intent" if step in ACTING and not line.get("undoing"):
                acts.setdefault(line["change"]["key"], at)  # one that was cut off is written down twice
            case "intent" if step == ESCALATE and line["change"]["arguments"].get("moment") == "called":
                channel = str(line["change"]["arguments"].get("channel", ""))
                sent[line["change"]["key"]] = channel
                calls[channel] = at, ""
            case "outcome" if step in ACTING and not line.get("undoing"):
                stage = stages[step]
                stages[step] = replace(stage, outcomes={**stage.outcomes, line["key"]: line["outcome"]})
            case "outcome" if line["key"] in sent:
                calls[sent[line["key"]]] = calls[sent[line["key"]]][0], line["outcome"]
            case "finding" if step == LOOK:
                is_good = line["finding"]["level"] == Level.PASS
                told = replace(told, good_since=at if is_good else None)
            case "acknowledged":
                day = "" if at.date() == clock.now().date() else f"{at:%Y-%m-%d} "
                told = replace(told, acknowledged=told.acknowledged or f"{line['by']} at {day}{at:%H:%M:%S} UTC")
            case "taken":
                told = replace(told, is_taken=True)
            case kind if kind in brief.OVER:
                told = replace(told, is_over=True)
    return replace(
        told, stages=stages, calls=calls, acts=tuple(acts.values()), last_at=clock.read_time(lines[-1]["at"])
    )


def _change(data: Mapping[str, Any]) -> Change:
    change = Change.from_json(data)
    if change.key != data["key"]:
        raise ValueError("what was approved holds what was masked, and cannot be read back")
    return change


def reopened(folder: Path, by: str, tell: Callable[[str], None]) -> Journal:
    """The journal of an episode, with the lines that this process holds of it: it may hold all of them."""
    way = Journal.open if (folder / FILE).exists() else Journal.create
    return way(folder, by=by, mirror=os.environ.get("SALVOR_MIRROR"), tell=tell)


def write_held(rule: str, tell: Callable[[str], None]) -> None:
    """Write what this process holds of a rule's episodes, once their disk takes it."""
    for folder in held_back():
        is_ours = folder.parent == incidents_folder() and brief.service_of(folder.name) == rule
        if is_ours and not durable.refusal(folder if folder.exists() else folder.parent):
            reopened(folder, operator(), tell).close()


class Episodes:
    """The episodes of a platform's rules, from their journals. One that is over is read once."""

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._over: dict[str, Told] = {}

    def of(self, rule: str, back: float) -> list[Told]:
        """Those of a rule, back to the first that was over more than `back` seconds ago: an open one first (by its name
        it is older than those of before the clock was set back), then the newest.
        """
        found = []
        folder = incidents_folder().absolute()
        names = {one.name for one in held_back() if one.parent == folder}  # on a disk that takes nothing
        with suppress(FileNotFoundError), os.scandir(folder) as entries:  # there may be thousands
            names.update(entry.name for entry in entries)
        for name in sorted((each for each in names if brief.service_of(each) == rule), reverse=True):
            told = self._read(folder / name)
            if told is None:
                continue
            found.append(told)
            if told.is_over and told.last_at and clock.age(told.last_at) > timedelta(seconds=back):
                break
        return sorted(found, key=lambda told: told.is_over or told.is_damaged)

    def _read(self, folder: Path) -> Told | None:
        if folder.name in self._over:
            return self._over[folder.name]
        damaged = Told(folder.name, "bad", clock.now(), is_over=brief.is_over(folder), is_damaged=True)
        try:
            if not (folder / FILE).exists() and folder not in held_back():
                return None
            journal = Journal.read(folder)
        except (OSError, CannotError):
            return damaged
        if not (journal.lines or journal.damaged):
            return None  # it was cut off in its first line, and nothing is done before that
        if journal.lines and journal.lines[0].get("platform", self._platform) != self._platform:
            return None
        told = None if journal.damaged else tell(journal.lines)
        if told and told.is_over:
            self._over[folder.name] = told
        return told or damaged


@dataclass
class Episode(Incident):
    """The incident of an episode. `words` are what its messages tell, as it is now."""

    rule: str = ""
    cause: Cause = "bad"
    words: dict[str, str] = field(default_factory=dict)

    def opening(self) -> dict[str, Any]:
        """The data of the journal's first line."""
        return {**super().opening(), "rule": self.rule, "cause": self.cause}

    def facts(self) -> Mapping[str, Any]:
        """Figures for the texts of messages."""
        return {**super().facts(), "rule": self.platform.watch[self.rule].title or self.rule, **self.words}

    @cached_property
    def outbox(self) -> Outbox | None:
        """Where its messages go out: where its escalation says, else where those of the service go."""
        rule = self.platform.watch[self.rule]
        name = self.platform.escalation[rule.escalate].messages if rule.escalate else self.service.messages
        outbox = self.system(name) if name else None
        return outbox if isinstance(outbox, Outbox) else None


def sitting(platform: Platform, rule: str, told: Told | None, cause: Cause, since: datetime, shown: Watcher) -> Session:
    """A sitting with an open episode (None: a new one, which is written when it is begun)."""
    id_ = told.id if told else new_id(rule)
    episode = Episode(
        id=id_,
        platform=platform,
        service=platform.service(platform.watch[rule].service),
        wish=Wish(),
        runbook=MAINTENANCE.name,
        operator=operator(),
        folder=incidents_folder() / id_,
        purpose=PURPOSE,
        failed_at=told.since if told else since,
        rule=rule,
        cause=told.cause if told else cause,
    )
    return Session(episode, MAINTENANCE, Runner(episode, shown), History(incidents_folder(), platform.name))


def open_one(episodes: Sequence[Told]) -> Told | None:
    """The episode that is open, of those that `Episodes.of` found; None when none is."""
    return episodes[0] if episodes and not episodes[0].is_over else None


def is_under_way(episodes: Sequence[Told], stage: str, verb: str) -> bool:
    """Whether the open episode has begun that stage, with a change of that verb."""
    told = open_one(episodes)
    begun = told.stages.get(stage) if told else None
    return begun is not None and any(change.verb == verb for change in begun.changes)


def acts_within(episodes: Iterable[Told], seconds: float) -> int:
    """How many actions were begun within the last `seconds`."""
    return sum(clock.age(at) <= timedelta(seconds=seconds) for told in episodes for at in told.acts)

"""An incident on one screen, for whoever goes on with it: what is done, running, owed, undoable, and the next command.

From its journal, and from the lock and the mirror that say whether somebody works on it now; no system is contacted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from salvor import clock, runbook_files
from salvor.change import Level
from salvor.journal import events, lock
from salvor.journal.folders import lease_of
from salvor.journal.happened import Act, Mark, Story
from salvor.plain import amount
from salvor.session.later import changed_since

_MOST_EACH = 3
"""Lines of one kind at most: the record has all."""
_LONGEST = 130
"""Characters of a line; the record has all."""
_RECOVERIES = ("incident", "drill")
"""The purposes of which an RTO and an RPO are measured."""


@dataclass(frozen=True)
class Handover:
    """One incident as its next operator needs it. `holder` is who works on it now, if anybody: on this machine (see
    `lock.holder`), or `elsewhere` (see `Lease.holder`); `silent` is why the mirror does not say that.
    """

    story: Story
    holder: dict[str, Any] | None = None
    elsewhere: bool = False
    silent: str = ""
    later: str = ""
    """The incident that changed the same service after this one, which therefore is not taken back."""

    @property
    def is_held(self) -> bool:
        """Whether somebody works on this very incident now."""
        return self.holder is not None and self.holder.get("incident") in (None, self.story.incident)

    @property
    def is_back(self) -> bool:
        """Whether users are served again by it, and it was not taken back."""
        return self.story.at("recovered") is not None and self.story.at("undone") is None

    @property
    def is_going_back(self) -> bool:
        """Whether an undo of it was begun, and neither brought to its end nor gone forward from again."""
        told = self.story
        last = next((act for act in reversed(told.acts) if not act.is_message), None)
        is_over = self.is_episode or told.at("undone") or told.at("closed")
        return bool(last and last.undoing and not is_over)

    @property
    def standing(self) -> list[Act]:
        """What was begun and not taken back, each change once: what `inv undo` would take back, however it ended."""
        begun: dict[str, Act] = {}
        for act in self.story.acts:
            if act.undoing and act.is_done:
                back = [one.change for one in begun.values() if act.undoing in (one.key, one.change.key)]
                ways = [(one.system, one.undo) for one in back]
                begun = {key: one for key, one in begun.items() if (one.change.system, one.change.undo) not in ways}
            elif not act.undoing and not act.is_message:
                begun.pop(act.key, None)
                begun[act.key] = act
        return list(begun.values())

    @property
    def undoable(self) -> list[Act]:
        """What of it has a way back; empty when one change has none, or a later incident is in the way: only the acts
        of a watch do not build on each other.
        """
        found = [act for act in self.standing if act.change.undo]
        return found if self.is_episode or (len(found) == len(self.standing) and not self.later) else []

    @property
    def is_episode(self) -> bool:
        """Whether it is an episode of `inv watch`, which has no recovery to go on with."""
        return self.story.purpose == "watch"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The exact commands that fit now, the one to type first at first: command, and what it does."""
        told, this = self.story, f"--incident={self.story.incident}"
        back = (f"inv undo {this}", f"takes {amount(len(self.undoable), 'change')} back")
        if self.is_episode and told.state in ("open", "closed"):
            yours = (
                f"inv watch.ack --episode={told.incident}",
                "nothing more is done by itself, nobody else is called",
            )
            is_free = told.state == "open" and not told.at("acknowledged")
            return [*([yours] if is_free else []), *([back] if self.undoable else [])]
        discard = (f"inv discard {this}", "removes for good what was live before")
        replaced = told.purpose == "maintenance" and any(
            act.change.verb == "rebuild_standby" and act.is_done for act in self.standing
        )
        if replaced and told.state == "closed":
            return [(discard[0], "removes for good what was replaced")]
        is_kept = any(one.change.verb == "promote" and one.change.undo for one in self.standing)
        kept = [discard] if is_kept and self.is_back and not told.at("discarded") else []
        if told.at("closed"):
            again = [(f"inv incident.record {this}", "makes the record that is owed")]
            return [*(again if any(owed.paid is None for owed in told.owed) else []), *kept]
        if told.purpose == "checklist":
            return [(f"inv checklist {told.service} --platform={told.platform}", "goes on with it")]
        if told.purpose == "maintenance":
            return [(f"inv incident.close {this}", "the same command again does what is left; this ends its record")]
        if told.purpose == "drill" and told.at("recovered") is None:
            where = f"--service={told.service} --platform={told.platform}"
            return [(f"inv drill {where}", "takes away what this drill left, then drills anew")]
        close = (f"inv incident.close {this}", "seals and signs the record")
        if told.at("undone"):
            return [(f"inv restore --service={told.service} --platform={told.platform}", "begins anew"), close]
        if self.is_going_back:
            return [(f"inv undo {this}", "goes on where it stopped"), (f"inv restore {this}", "goes forward again")]
        if not self.is_back:
            return [(f"inv restore {this}", "goes on where it stopped"), *([back] if self.undoable else [])]
        protect = f"inv protect --service={told.service} --platform={told.platform}"
        return [(protect, "standbys and backups again"), *([back] if self.undoable else []), *kept, close]


def of(story: Story, folder: Path) -> Handover:
    """The handover of a story; `folder` is the one that holds all incidents."""
    here = lock.holder(story.service, folder)
    later = changed_since(story.incident, story.service, story.platform, folder)
    this = Handover(story, here, later=later.name if later else "")
    lease = lease_of(story.service, story.platform, story.incident, lambda _: None)
    if here or not lease or story.state != "open":
        return this
    try:
        return replace(this, holder=lease.holder(), elsewhere=True)
    except OSError as error:
        return replace(this, silent=str(error))


def screen(this: Handover) -> Iterator[str]:
    """One screen of lines. They are not cleaned for a terminal yet."""
    for name, text in _lines(this):
        line = f"{name:12}{' '.join(text.split())}" if name else text
        yield line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _lines(this: Handover) -> Iterator[tuple[str, str]]:
    told = this.story
    scenario = f", {told.scenario}" if told.scenario else ""
    title = f"{told.purpose}{scenario} of {told.title or told.service} on {told.platform}, runbook {told.runbook}"
    yield "", f"{told.incident}  {title}"
    yield "state", _state(this)
    if told.failure and told.state == "open" and not this.is_held and (hint := _failed_on(told.failure)[1]):
        yield "hint", hint
    yield from _now(this)
    if told.asked and told.state == "open":
        yield "waits", f"{told.asked} for a second person: inv incident.approve --incident={told.incident}"
    yield from _clock(told)
    for each in told.decisions[:_MOST_EACH]:
        others = ", ".join(way.name for way in each.others if way.possible)
        way = f"{each.way.name} {each.way.backup or ''}".rstrip()
        yield "broken", f"{each.system}: {each.seen}"
        yield "way back", f"{way}{f' (also possible: {others})' if others else ''}"
    for figure in ("rto", "rpo") if told.purpose in _RECOVERIES else ():
        yield figure.upper(), _against_target(told, figure)
    yield "steps", _steps(told)
    yield "done", _done(told)
    if told.messages:
        yield "told", _told(told)
    wrong = [
        act for act in told.acts if act.outcome in ("failed", "unknown") and not act.is_done and not _again(told, act)
    ]
    for act in wrong[-_MOST_EACH:]:
        yield act.outcome, f"{events.describe(act.change)}: {act.error}"
    yield from (("unfinished", what) for what in told.unfinished[:_MOST_EACH])
    owed = [each for each in told.owed if each.paid is None]
    yield from (("owed", f"{each.what}: {each.why}") for each in owed[:_MOST_EACH])
    if len(owed) > _MOST_EACH:
        yield "owed", f"and {len(owed) - _MOST_EACH} more: the record has all"
    yield from _undoable(this)
    taken = [mark for mark in told.marks if mark.kind == "acknowledged"]
    yield from (("taken by", f"{mark.by} {mark.at:%H:%M} UTC: {mark.text or 'no word'}") for mark in taken[:1])
    notes = [mark for mark in told.marks if mark.kind == "note"]
    yield from (("note", f"{mark.at:%H:%M} UTC {mark.by}: {mark.text}") for mark in notes[-_MOST_EACH:])
    people = [f"{sitting.by} {sitting.begun:%m-%d %H:%M} UTC" for sitting in told.sittings]
    yield "operators", ", ".join(people[:1] + ["..."] * (len(people) > 4) + people[1:][-3:])
    for number, (command, why) in enumerate(this.commands):
        yield "next" if number == 0 else "or", f"{command}: {why}"


def _state(this: Handover) -> str:
    told = this.story
    if this.is_going_back:
        return f"{told.state}, and its undo {'is under way' if this.is_held else 'was begun, and STOPPED'}"
    if told.state != "open":
        return told.state
    if this.is_held:
        return "open, under way"
    if this.is_episode:
        return "open, acknowledged" if told.at("acknowledged") else "open: inv watch goes on with it"
    if told.failure:
        why = _failed_on(told.failure)[0] or "why is not written"
        return f"open, FAILED at {told.failure.at:%H:%M:%S} UTC: {why}"
    stopped = f"open, STOPPED{f' at {told.last_moment:%H:%M:%S} UTC' if told.last_moment else ''}"
    return f"{stopped} while {', '.join(told.unfinished)}" if told.unfinished else stopped


def _failed_on(failure: Mark) -> tuple[str, str]:
    """What it failed on, and the hint that came with it."""
    lines = failure.text.splitlines()
    what = takewhile(lambda line: not line.startswith(("Safe now:", "HINT:")), lines)
    hint = next((line for line in lines if line.startswith("HINT:")), "")
    return " ".join(what), hint.removeprefix("HINT:").strip()


def _now(this: Handover) -> Iterator[tuple[str, str]]:
    """Who works on the service now."""
    if this.holder is None:
        if this.story.state == "open":
            unknown = f" on this machine; the mirror does not say who does elsewhere: {this.silent}"
            yield "now", f"nobody works on it{unknown if this.silent else ''}"
        return
    by, host, pid, since = (this.holder.get(name, "?") for name in ("by", "host", "pid", "since"))
    what = "it" if this.is_held else f"{this.holder.get('incident')}, another incident of this service"
    over = f"inv incident.take --incident={this.holder.get('incident')}" if this.elsewhere else f"kill {pid} on {host}"
    yield "now", f"{by} works on {what} since {str(since)[11:19]} UTC"
    yield "take over", over


def _clock(told: Story) -> Iterator[tuple[str, str]]:
    if not told.detected_at:
        return
    failed = f", failed {told.failed_at:%Y-%m-%d %H:%M:%S} UTC" if told.failed_at else ""
    gone = ""
    target = told.target("rto")
    if target is not None and told.state == "open" and told.purpose in _RECOVERIES:
        left = target - (clock.now() - told.detected_at).total_seconds()
        gone = f"; {clock.write_duration(left)} of the RTO are left" if left > 0 else "; the RTO is over"
    yield "detected", f"{told.detected_at:%Y-%m-%d %H:%M:%S} UTC{failed}{gone}"


def _against_target(told: Story, figure: str) -> str:
    limit = clock.write_duration(told.target(figure))
    seconds = told.measured.get(figure)
    if seconds is None:
        return f"not measured ({limit} allowed)"
    return f"{clock.write_duration(seconds)} of {limit} allowed: {'met' if told.is_met(figure) else 'MISSED'}"


def _steps(told: Story) -> str:
    """Each step of the runbook: what it took, that it stopped, or that it was not begun."""
    runs = {run.name: run for run in told.steps if run.has_end}
    try:
        names = [step.__name__ for step in runbook_files.load(told.runbook).steps]
    except Exception:  # noqa: BLE001  whatever an edited runbook raises, the journal still tells of its steps
        names = []
    words = []
    for name in dict.fromkeys([*names, *runs]):
        run = runs.get(name)
        bad = any(each.level in (Level.FAIL, Level.UNKNOWN) for each in run.seen) if run else False
        if run is None:
            words.append(f"{name} -")
        elif run.ended is None:
            words.append(f"{name} STOPPED")
        else:
            not_passed = " NOT PASSED" if bad and name in ("verify", "reroute") else ""
            words.append(f"{name} {clock.write_duration(run.seconds)}{not_passed}")
    return ", ".join(words) or "none was begun"


def _done(told: Story) -> str:
    made = ", ".join(events.describe(act.change) for act in told.made)
    back = {act.key for act in told.taken_back} & {act.key for act in told.made}
    taken = f", {len(back)} of them taken back" if back else ""
    return f"{amount(len(told.made), 'change')}{taken}{f': {made}' if made else ''}"


def _told(told: Story) -> str:
    """The messages that went out, in their order."""
    sent = [act.change.arguments for act in told.messages if act.is_done]
    words = (" ".join(str(one[name]) for name in ("moment", "channel") if name in one) for one in sent)
    return ", ".join(dict.fromkeys(words)) or "nobody yet"


def _again(told: Story, act: Act) -> bool:
    """Whether a later try did it."""
    return any(other.key == act.key and other.is_done for other in told.acts)


def _undoable(this: Handover) -> Iterator[tuple[str, str]]:
    without = [act for act in this.standing if act.change.undo is None]
    if this.later and this.standing and not this.is_episode:
        yield "undo", f"not past {this.later}, which changed the same service after it"
    elif without and not this.is_episode:
        yield "undo", f"not past {events.describe(without[-1].change)}: {without[-1].change.no_undo}"
    elif this.undoable and (this.is_episode or not this.story.at("closed")):
        yield "undoable", ", ".join(events.describe(act.change) for act in reversed(this.undoable))


def as_json(this: Handover) -> dict[str, Any]:
    """The same for machines."""
    told = this.story
    return {
        "incident": told.incident,
        "platform": told.platform,
        "service": told.service,
        "purpose": told.purpose,
        "state": told.state,
        "measured": told.measured,
        "held_by": this.holder if this.is_held else None,
        "done": [events.describe(act.change) for act in told.made],
        "unfinished": told.unfinished,
        "failed": told.failure.text if told.failure else None,
        "owed": [owed.what for owed in told.owed if owed.paid is None],
        "undoable": [events.describe(act.change) for act in this.undoable],
        "next": [command for command, _ in this.commands],
    }

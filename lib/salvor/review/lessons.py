"""What went well and what did not, from an incident's own figures, and what mends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from salvor import budgets, clock
from salvor.budgets import CLEAN_UP, REHEARSAL, StepTime
from salvor.change import Finding, Level
from salvor.journal import events
from salvor.journal.happened import WORDS, Story
from salvor.plain import amount

_DRILL_AGAIN = "mend what it says, and drill again"
_PROOFS = ("verify", "reroute", CLEAN_UP)


@dataclass(frozen=True)
class Lesson:
    """One thing that went well (`level` pass) or badly, its figure, and what to do about it."""

    level: Level
    what: str
    figure: str = ""
    mend: str = ""


def learn(told: Story, steps: Sequence[StepTime]) -> list[Lesson]:
    """All lessons of a story, the worst first. `steps` are its steps against their budgets."""
    found = [*_end(told), *_figures(told), *_steps(told, steps), *_proofs(told), *_acts(told), *_sittings(told)]
    worst = [Level.FAIL, Level.UNKNOWN, Level.WARN, Level.PASS]
    return sorted(found, key=lambda each: worst.index(each.level))


def _end(told: Story) -> Iterator[Lesson]:
    again = f"inv incident.show --incident={told.incident}"
    failed = [mark for mark in told.marks if mark.kind == "failed"]
    errors = {act.error for act in told.acts}
    back = told.at("recovered")
    for mark in failed:
        if mark.text not in errors:
            level = Level.WARN if back and back > mark.at else Level.FAIL
            yield Lesson(level, "It failed", mark.text, again)
    if told.unfinished and not failed:
        yield Lesson(Level.FAIL, "It did not come to its end", ", ".join(told.unfinished), again)


def undone_at(told: Story) -> datetime | None:
    """When a recovery was taken back; None when it was not. That a drill clears up after itself is none."""
    return told.at("undone") if told.purpose == "incident" else None


def _figures(told: Story) -> Iterator[Lesson]:
    undone = undone_at(told)
    if undone:
        text = f"at {clock.write_time(undone)}: what was live before it is live again"
        look = f"inv assess --service={told.service} --platform={told.platform}"
        yield Lesson(Level.WARN, "It was undone", text, look)
    for name, seconds, mend in (
        ("rto", budgets.recovered_in(told), "shorten the longest step below, or agree on another RTO"),
        ("rpo", budgets.lost(told), "back up or archive more often, or agree on another RPO"),
    ):
        limit = told.target(name)
        if seconds is None or limit is None or (undone and seconds <= limit):
            continue
        figure = f"{clock.write_duration(seconds)} of {clock.write_duration(limit)} allowed"
        if seconds <= limit:
            yield Lesson(Level.PASS, f"The {name.upper()} was met", figure)
        else:
            yield Lesson(Level.FAIL, f"The {name.upper()} was missed", figure, mend)
    if told.failed_at and told.detected_at and told.purpose == "incident":
        blind = (told.detected_at - told.failed_at).total_seconds()
        if blind > (told.target("rto") or 0.0):
            text = "Nobody noticed for longer than the RTO"
            yield Lesson(Level.WARN, text, clock.write_duration(blind), "an alert on the check that failed")


def _steps(told: Story, steps: Sequence[StepTime]) -> Iterator[Lesson]:
    for step in steps:
        took = clock.write_duration(step.seconds)
        if step.is_over:
            figure = f"{took} of {clock.write_duration(step.budget)}: {step.basis}"
            mend = "see in the timeline which change took it"
            yield Lesson(Level.WARN, f"The step {step.name} was beyond its budget", figure, mend)
    limited = [step for step in steps if step.budget is not None and step.seconds is not None]
    if limited and not any(step.is_over for step in limited):
        yield Lesson(Level.PASS, "Every step was within its budget", amount(len(limited), "step"))


def _proofs(told: Story) -> Iterator[Lesson]:
    for run in told.steps:
        for finding in run.seen if run.name in _PROOFS else ():
            if finding.level is not Level.PASS:
                text = f"{finding.subject}: {finding.check}: {WORDS[finding.level]}"
                figure = "; ".join(
                    filter(None, [finding.figure, finding.limit and f"limit {finding.limit}", finding.detail])
                )
                yield Lesson(finding.level, text, figure, _mend_of(run.name, told))
    good = [each for run in told.steps if run.name == "verify" for each in run.seen if each.level is Level.PASS]
    if good:
        text = "The copy was proven before anybody depended on it"
        yield Lesson(Level.PASS, text, f"{amount(len(good), 'check')} passed, {_longest(good)}")


def _mend_of(step: str, told: Story) -> str:
    if told.purpose == "drill" and told.runbook != REHEARSAL:  # on a stand-in, which may be gone
        return f"inv sandbox.down --platform={told.platform}" if step == CLEAN_UP else _DRILL_AGAIN
    if step == CLEAN_UP:
        return f"remove it by hand, then: inv assess --service={told.service} --platform={told.platform}"
    if step == "verify":
        return f"inv backups --service={told.service} --platform={told.platform}, then a fresh backup: inv backup"
    return f"inv assess --service={told.service} --platform={told.platform}"


def _longest(found: Sequence[Finding]) -> str:
    return f"among them {', '.join(dict.fromkeys(each.check for each in found[:3]))}"


def _acts(told: Story) -> Iterator[Lesson]:
    mend = _DRILL_AGAIN if told.purpose == "drill" else "mend what it says"
    for act in told.acts:
        if act.outcome in ("failed", "unknown"):
            text = f"{events.describe(act.change)}: {act.said}"
            level = Level.WARN if act.is_done else Level.UNKNOWN if act.outcome == "unknown" else Level.FAIL
            again = any(other.key == act.key and other.number > act.number and other.is_done for other in told.acts)
            yield Lesson(Level.WARN if again else level, text, act.error, mend)
    tries = Counter((act.key, act.undoing) for act in told.acts)
    for (key, _), count in tries.items():
        if count > 1:
            (*_, last) = [act for act in told.acts if act.key == key]
            yield Lesson(Level.WARN, f"{events.describe(last.change)} took {count} tries", last.said)
    made = told.made
    if made and all(act.change.undo for act in made):
        yield Lesson(Level.PASS, "Every change had a way back", amount(len(made), "change"))


def _sittings(told: Story) -> Iterator[Lesson]:
    for stop in told.interruptions:
        figure = f"{clock.write_duration((stop.until - stop.at).total_seconds())}, while {stop.what}"
        yield Lesson(Level.WARN, "Work stopped", figure, "see what ended it: the machine, the session, the operator")
    for event in told.events:
        if event.kind == "taken":
            yield Lesson(Level.WARN, "It was taken over", f"{event.by}: {event.text}")
        elif event.kind == "repaired":
            yield Lesson(Level.WARN, "A crash tore the journal", event.text)
    for owed in told.owed:
        if owed.paid is None:
            yield Lesson(
                Level.WARN, f"Still owed: {owed.what}", owed.why, f"inv incident.show --incident={told.incident}"
            )
        else:
            late = clock.write_duration((owed.paid - owed.at).total_seconds())
            yield Lesson(Level.WARN, f"Late: {owed.what}", f"by {late}: {owed.why}")
    if told.unreadable:
        figure = amount(len(told.unreadable), "line")
        yield Lesson(
            Level.FAIL, "Lines of the journal cannot be read", figure, f"inv incident.check --incident={told.incident}"
        )
    sent = [act for act in told.messages if act.is_done]
    if sent and len(sent) == len(told.messages):
        yield Lesson(Level.PASS, "Every message went out at the first try", amount(len(sent), "message"))
    if not told.interruptions and told.acts:
        operators = {sitting.by for sitting in told.sittings}
        yield Lesson(Level.PASS, "Nothing interrupted the work", amount(len(operators), "operator"))

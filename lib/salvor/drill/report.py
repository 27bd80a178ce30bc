"""What a drill showed, as `drill.ipynb` and `drill.html` in its folder: from journals alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from salvor import budgets, clock, journal, pages
from salvor.budgets import CLEAN_UP, REHEARSAL, StepTime
from salvor.change import Finding, Level
from salvor.errors import UsageError
from salvor.journal import story
from salvor.journal.folders import find, incidents_folder
from salvor.journal.happened import WORDS, Story
from salvor.notebook.cells import Opened, display, display_style, for_people, read_parameters
from salvor.notebook.paper import Paper
from salvor.plain import amount
from salvor.review import lessons
from salvor.review.lessons import Lesson

NOTEBOOK = "drill.ipynb"
PAGE = "drill.html"

_SLOWER = 1.5
"""How many times as long as before is worth a word; and by how many seconds at least."""
_SLOWER_BY = 2.0
_PROVEN_IN = ("assess", "verify", "reroute", CLEAN_UP)


@dataclass(frozen=True)
class Difference:
    """What differs from the drill before; `look` is the colour of it, empty where nothing is better or worse."""

    what: str
    before: str
    now: str
    look: str = ""


@dataclass(frozen=True)
class Report:
    """One drill, and the earlier runs of the same service, the newest first. Times in seconds; None: not measured."""

    story: Story
    runs: tuple[Story, ...]

    @property
    def scenario(self) -> str:
        """What was drilled."""
        return self.story.scenario or self.story.runbook

    @property
    def is_rehearsal(self) -> bool:
        """Whether it stopped before the cutover."""
        return self.story.runbook == REHEARSAL

    @property
    def rto(self) -> float | None:
        return budgets.recovered_in(self.story)

    @property
    def rpo(self) -> float | None:
        return budgets.lost(self.story)

    @cached_property
    def steps(self) -> list[StepTime]:
        """Each step against its budget."""
        return budgets.steps(self.story, self.runs)

    @cached_property
    def lessons(self) -> list[Lesson]:
        """What went well and what did not, the worst first."""
        return lessons.learn(self.story, self.steps)

    @property
    def mends(self) -> list[Lesson]:
        """What is to be mended, the worst first."""
        return [each for each in self.lessons if each.level is not Level.PASS]

    @property
    def cleaning(self) -> list[Finding]:
        """What the closing look saw."""
        return [each for run in self.story.runs(CLEAN_UP) for each in run.verdicts]

    def proofs(self, step: str) -> list[Finding]:
        """What `verify` saw on the copy, or `reroute` through the route."""
        return [each for run in self.story.steps if run.name == step for each in run.verdicts]

    @property
    def last(self) -> Story | None:
        """The drill of the same scenario before this one."""
        return next((run for run in self.runs if budgets.is_alike(run, self.story)), None)

    @cached_property
    def verdict(self) -> Level:
        """`fail` when users would not have been back in time with their data, or something was left behind;
        `unknown` while it is not over; `warn` when something is to be mended.
        """
        if not (self.cleaning or self.story.failure or self.story.at("closed")):
            return Level.UNKNOWN
        if self.rto is None or any(each.level is Level.FAIL for each in self.mends):
            return Level.FAIL
        return Level.WARN if self.mends or not self.cleaning else Level.PASS

    @property
    def word(self) -> str:
        """The verdict in words."""
        return {
            Level.PASS: "passed",
            Level.WARN: "passed, with something to mend",
            Level.FAIL: "failed",
            Level.UNKNOWN: "not finished",
        }[self.verdict]

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        name = f"{self.story.title or self.story.service}, {self.scenario}"
        back = f": {'a proven copy' if self.is_rehearsal else 'back'} after {clock.write_duration(self.rto)}"
        return f"{name}: {self.word}{back if self.rto is not None else ''}"

    @cached_property
    def differences(self) -> list[Difference]:
        """What differs from the drill before; empty when there was none."""
        return list(_differences(self.last, self)) if self.last else []


def read(folder: Path) -> Report:
    """The report of the drill in `folder`. Raises CannotError when its journal cannot be read."""
    told = story.read(folder)
    return Report(told, tuple(budgets.earlier(folder, told)))


def _differences(last: Story, now: Report) -> Iterator[Difference]:
    before = Report(last, ())
    if before.word != now.word:
        yield Difference("Verdict", before.word, now.word, now.verdict)
    yield from _slower("RTO" if not now.is_rehearsal else "Time to a proven copy", before.rto, now.rto)
    yield from _slower("RPO", before.rpo, now.rpo)
    for step in now.steps:  # those that took as long as before, the table of steps has
        yield from (each for each in _slower(f"Step {step.name}", step.before, step.seconds) if each.look)
    for what, one, other in (
        ("Way back", _ways(last), _ways(now.story)),
        ("Changes", _changes(last), _changes(now.story)),
        ("RTO allowed", *(clock.write_duration(each.target("rto")) for each in (last, now.story))),
        ("RPO allowed", *(clock.write_duration(each.target("rpo")) for each in (last, now.story))),
    ):
        if one != other:
            yield Difference(what, one or "none", other or "none")
    then, here = _verdicts(last), _verdicts(now.story)
    for name, level in here.items():
        if name not in then:
            yield Difference(name, "not checked", WORDS[level], level)
        elif then[name] is not level:
            yield Difference(name, WORDS[then[name]], WORDS[level], level)
    reached = {name.split(":")[0] for name in here}
    gone = [name for name in then if name not in here]
    for part in dict.fromkeys(name.split(":")[0] for name in gone):
        names = [name for name in gone if name.startswith(f"{part}:")]
        if part not in reached:
            yield Difference(f"{part}: {amount(len(names), 'check')}", "made", "not reached", Level.FAIL)
        else:
            yield from (Difference(name, WORDS[then[name]], "not checked any more", Level.WARN) for name in names)


def _slower(what: str, before: float | None, now: float | None) -> Iterator[Difference]:
    """A figure beside the one before: worth a colour when it took much longer."""
    if before is None and now is None:
        return
    worse = before is not None and now is not None and now > before * _SLOWER and now > before + _SLOWER_BY
    lost = before is not None and now is None
    look = Level.WARN if worse else Level.FAIL if lost else ""
    yield Difference(what, _figure(before), _figure(now), look)


def _figure(seconds: float | None) -> str:
    return "not reached" if seconds is None else clock.write_duration(seconds)


def _ways(told: Story) -> str:
    return ", ".join(f"{each.system}: {each.way.name}" for each in told.decisions)


def _changes(told: Story) -> str:
    return ", ".join(dict.fromkeys(f"{act.change.system}: {act.change.verb}" for act in told.made))


def _verdicts(told: Story) -> dict[str, Level]:
    """The verdict of each check by its words, without the ways back and what never can be the same."""
    return {
        f"{run.name}: {each.subject}: {each.check}": each.level
        for run in told.steps
        if run.name in _PROVEN_IN
        for each in run.seen
        if not each.check.startswith("way back")
    }


# ------------------------------------------------------------------------------------------------ the paper


def _heads(folder: Path) -> tuple[str, str]:
    report = read(folder)
    return f"Drill: {report.story.title or folder.name}", report.headline


def _body(folder: Path) -> str:
    report = read(folder)
    return "\n".join(
        f"{f'<h2>{heading}</h2>' if heading else ''}{pages.section(section, template=TEMPLATE, report=report)}"
        for heading, section in _SECTIONS
    )


def _parameters(folder: Path) -> Mapping[str, Any]:
    return {"incident": folder.name}


TEMPLATE = "drill.html"
_SECTIONS = (
    ("", "summary"),
    ("What to mend", "mends"),
    ("Each step against its budget", "steps"),
    ("Against the drill before", "differences"),
    ("What was proven", "proofs"),
    ("Timeline", "picture"),
    ("What was taken away again", "cleaning"),
    ("Who did what when", "people"),
)
PAPER = Paper("drill", NOTEBOOK, PAGE, _heads, _body, _parameters)


# ------------------------------------------------------------------------------------------------ the notebook


def open(namespace: Mapping[str, Any]) -> Told:
    """What the cells of `notebooks/drill.ipynb` call; call it with `globals()`. Raises UsageError."""
    display_style()
    return _open(namespace)


@for_people
def _open(namespace: Mapping[str, Any]) -> Told:
    incident = read_parameters(namespace, {"incident": str})["incident"] or newest()
    folder = find(incident)
    if journal.first_line(folder).get("purpose") != "drill":
        hint = f"papermill notebooks/review.ipynb OUT.ipynb -r incident {incident}"
        raise UsageError(f"incident: {incident} is no drill.", safe="nothing was changed", hint=hint)
    return Told(read(folder))


def newest() -> str:
    """The id of the newest drill. Raises UsageError when there is none."""
    for folder in journal.incidents(incidents_folder()):
        if journal.first_line(folder).get("purpose") == "drill":
            return folder.name
    raise UsageError("incident: there is no drill yet.", safe="nothing was changed", hint="inv drill --service=NAME")


class Told(Opened):
    """A drill that was. Each method shows one section; nothing is changed or contacted."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def show(self, section: str) -> None:
        """Show one of the sections: summary, mends, steps, differences, proofs, picture, cleaning, people."""
        display(section, template=TEMPLATE, report=self._report)

"""The review after an incident, filled from its journal: `review.ipynb`, `review.html` and `review.md` in its folder.

What people noted counts by how it begins: `impact:`, `cause:`, `good:`, `bad:`, `decision:`, `action: WHAT @OWNER`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from salvor import budgets, clock, durable, pages
from salvor.budgets import StepTime
from salvor.change import Level
from salvor.errors import UsageError
from salvor.journal import story
from salvor.journal.folders import find
from salvor.journal.happened import Mark, Story
from salvor.notebook.cells import Opened, display, display_style, for_people, read_parameters
from salvor.notebook.paper import Paper, words
from salvor.plain import amount
from salvor.review import text as review_text
from salvor.review.lessons import Lesson, learn, undone_at
from salvor.secrets import mask

NOTEBOOK = "review.ipynb"
PAGE = "review.html"
MARKDOWN = "review.md"
TEMPLATE = "review.html"

_OWNER = re.compile(r"(?:^|\s)@([\w.-]*\w)")


@dataclass(frozen=True)
class Action:
    """What is to be done, by whom (empty: nobody yet), and who said so."""

    text: str
    owner: str
    by: str = ""


@dataclass(frozen=True)
class Decided:
    """What was decided when, by whom and why."""

    at: datetime
    by: str
    what: str
    why: str


@dataclass(frozen=True)
class Review:
    """One incident, the earlier runs of the same service (the newest first), and actions beside those of its notes."""

    story: Story
    runs: tuple[Story, ...] = ()
    more_actions: tuple[Action, ...] = ()

    @property
    def headline(self) -> str:
        return pages.headline(self.story)

    def noted(self, *kinds: str) -> list[Mark]:
        """The notes that begin with one of these words and a colon, without it; with "", those that begin with none."""
        found = []
        for mark in (mark for mark in self.story.marks if mark.kind == "note"):
            kind, text = _kind_of(mark.text)
            if kind in kinds:
                found.append(replace(mark, text=text))
        return found

    @property
    def from_(self) -> datetime | None:
        """When the users lost the service, as far as that is known."""
        return self.story.failed_at or self.story.detected_at

    @property
    def until(self) -> datetime | None:
        """When they had it again; None when they have not."""
        good = self.story.measured.get("good_at")
        return clock.read_time(good) if good else None

    @property
    def outage(self) -> float | None:
        """Seconds without the service; None when it is not known to be back."""
        return (self.until - self.from_).total_seconds() if self.until and self.from_ else None

    @property
    def impact(self) -> list[tuple[str, str]]:
        """What it meant for the users, as names and values."""
        told, unknown = self.story, "" if self.story.failed_at else ", as far as is known"
        undone = undone_at(told)
        since = f"; what was live before is live again since {clock.write_time(undone)}" if undone else ""
        while_live = ", until it was undone" if undone else ""
        facts = [
            (
                "Without the service",
                f"{clock.write_duration(self.outage)}{unknown}{since}"
                if self.outage is not None
                else "it is not known to be back",
            ),
            ("Noticed after", clock.write_duration(_between(told.failed_at, told.detected_at))),
            ("Brought back after", f"{clock.write_duration(told.measured.get('rto'))}{while_live}"),
            ("Data lost", f"{clock.write_duration(told.measured.get('rpo'))}{while_live}"),
            ("Broken", "; ".join(f"{each.system}: {each.seen}" for each in told.decisions) or "nothing was pinned"),
            ("People told", ", ".join(_messages(told)) or "nobody"),
        ]
        return [*facts, *(("Noted", f"{mark.text} ({mark.by})") for mark in self.noted("impact"))]

    @property
    def causes(self) -> list[Mark]:
        return self.noted("cause")

    @cached_property
    def decided(self) -> list[Decided]:
        """Every decision in its order: ways back, overrides, approvals, and what people noted."""
        return sorted(_decided(self), key=lambda each: each.at)

    @cached_property
    def steps(self) -> list[StepTime]:
        """Each step against its budget."""
        return budgets.steps(self.story, self.runs)

    @cached_property
    def lessons(self) -> list[Lesson]:
        return learn(self.story, self.steps)

    @property
    def good(self) -> list[Lesson]:
        """What went well, by its figures and by what people noted."""
        noted = [Lesson(Level.PASS, mark.text, mark.by) for mark in self.noted("good")]
        return [*(each for each in self.lessons if each.level is Level.PASS), *noted]

    @property
    def bad(self) -> list[Lesson]:
        """What went badly, the worst first, by its figures and by what people noted."""
        noted = [Lesson(Level.WARN, mark.text, mark.by) for mark in self.noted("bad")]
        return [*(each for each in self.lessons if each.level is not Level.PASS), *noted]

    @property
    def actions(self) -> list[Action]:
        """What is to be done, from the notes and as they were given."""
        noted = [replace(read_action(mark.text), by=mark.by) for mark in self.noted("action")]
        return [*noted, *self.more_actions]

    @property
    def before(self) -> list[Story]:
        """Earlier incidents of the same service, without drills."""
        return [run for run in self.runs if run.purpose == "incident"]


def _kind_of(note: str) -> tuple[str, str]:
    kind, colon, text = note.partition(":")
    known = kind.strip().lower()
    return (known, text.strip()) if colon and known in _KINDS else ("", note.strip())


_KINDS = ("impact", "cause", "good", "bad", "decision", "action")


def _between(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _messages(told: Story) -> Iterator[str]:
    """Each message, and what became of one that is not known to have gone out."""
    said: dict[str, str] = {}
    for act in told.messages:
        name = " ".join(
            str(act.change.arguments[each]) for each in ("moment", "channel") if each in act.change.arguments
        )
        if said.get(name) != "":
            said[name] = "" if act.is_done else f" ({act.said})"
    yield from (f"{name}{outcome}" for name, outcome in said.items())


def _decided(review: Review) -> Iterator[Decided]:
    told = review.story
    for run in told.steps:
        for at, each in run.decided:
            others = "; ".join(f"not {way.name}: {way.why}" for way in each.others)
            yield Decided(
                at, run.by, f"{each.system}: back by {each.way.name}", "; ".join(filter(None, [each.way.why, others]))
            )
    begun = told.sittings[0].begun if told.sittings else told.detected_at
    by = told.sittings[0].by if told.sittings else ""
    if begun:
        for name, reason in (told.wish.get("overrides") or {}).items():
            yield Decided(begun, by, f"the override {name}", str(reason))
    for approval in told.approvals:
        yield Decided(
            approval.at,
            approval.by,
            f"the plan {approval.hash}: {amount(len(approval.changes), 'change')}",
            approval.how,
        )
    for mark in review.noted("decision", ""):
        yield Decided(mark.at, mark.by, mark.text, "noted")


def read_action(text: str) -> Action:
    """`mend the archive @kim` as an action and its owner."""
    owners = _OWNER.findall(text)
    return Action(" ".join(_OWNER.sub(" ", text).split()), ", ".join(owners))


def read_actions(text: str) -> tuple[Action, ...]:
    """Actions, one a line or separated by semicolons. Masked before they are taken apart: a part is hard to know."""
    return tuple(read_action(part) for part in re.split(r"[;\n]", mask(text)) if part.strip())


def read(folder: Path, actions: str = "") -> Review:
    """The review of the incident in `folder`. Raises CannotError when its journal cannot be read."""
    told = story.read(folder)
    return Review(told, tuple(budgets.earlier(folder, told)), read_actions(actions))


# ------------------------------------------------------------------------------------------------ the paper

_SECTIONS = (
    ("", "summary"),
    ("Impact", "impact"),
    ("What was decided", "decided"),
    ("What went badly", "bad"),
    ("What went well", "good"),
    ("Actions", "actions"),
    ("Timeline", "picture"),
    ("Has it happened before?", "before"),
    ("Who did what when", "people"),
)


def _paper(actions: str) -> Paper:
    def heads(folder: Path) -> tuple[str, str]:
        this = read(folder)
        return f"Review: {this.story.title or folder.name}", this.headline

    def body(folder: Path) -> str:
        this = read(folder, actions)
        parts = (
            f"{f'<h2>{heading}</h2>' if heading else ''}{pages.section(name, template=TEMPLATE, review=this)}"
            for heading, name in _SECTIONS
        )
        return "\n".join(parts)

    def parameters(folder: Path) -> Mapping[str, Any]:
        return {"incident": folder.name, "actions": actions}

    return Paper("review", NOTEBOOK, PAGE, heads, body, parameters)


def make(folder: Path, actions: str = "") -> str:
    """Write the review's notebook, page and Markdown into an incident's folder, each whole or not at all.

    Returns "" or what could not be made and why; never raises.
    """
    problem = _paper(actions).make(folder)
    try:
        durable.replace(folder / MARKDOWN, review_text.markdown(read(folder, actions)).encode())
    except Exception as error:  # noqa: BLE001  as for any paper
        problem = "; ".join(filter(None, [problem, f"{MARKDOWN}: {words(error)}"]))
    return problem


# ------------------------------------------------------------------------------------------------ the notebook


def open(namespace: Mapping[str, Any]) -> Told:
    """What the cells of `notebooks/review.ipynb` call; call it with `globals()`. Raises UsageError."""
    display_style()
    return _open(namespace)


@for_people
def _open(namespace: Mapping[str, Any]) -> Told:
    given = read_parameters(namespace, {"incident": str, "actions": str})
    if not given["incident"]:
        hint = "papermill ... -r incident ID; inv incidents lists them"
        raise UsageError("incident: which one?", safe="nothing was changed", hint=hint)
    return Told(read(find(given["incident"]), given["actions"]))


class Told(Opened):
    """A review. Each method shows a part; nothing is changed or contacted."""

    def __init__(self, review: Review) -> None:
        self._review = review

    def show(self, section: str) -> None:
        """Show a section: summary, impact, decided, bad, good, actions, picture, before, people, markdown."""
        more: dict[str, Any] = {"text": review_text.markdown(self._review)} if section == "markdown" else {}
        display(section, template=TEMPLATE, review=self._review, **more)

"""A review as Markdown, to be pasted where a team keeps its reviews."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from salvor import clock, pages
from salvor.journal.happened import WORDS

if TYPE_CHECKING:
    from salvor.review import Review

_MARKS = re.compile(r"([\\`*\[\]<>|&])")


def markdown(review: Review) -> str:
    """The whole review. What comes from outside is cleaned, masked, and stays text."""
    return "\n".join(_lines(review)) + "\n"


def _text(value: object) -> str:
    """`value` on one line, as Markdown that shows it and does nothing else."""
    return _MARKS.sub(r"\\\1", " ".join(pages.shown(value).split()))


def _lines(review: Review) -> Iterator[str]:
    told = review.story
    note = f"inv incident.note --incident={told.incident}"
    yield f"# Review: {_text(review.headline)}"
    yield ""
    yield f"Incident `{told.incident}` of {_text(told.title)} on {_text(told.platform)}. Times are UTC."
    yield from _section("Impact", _table(("", ""), review.impact))
    causes = [f"- {_text(mark.text)} ({_text(mark.by)})" for mark in review.causes]
    yield from _section("Cause", causes or [f'- Not noted yet: `{note} --text="cause: ..."`'])
    events = [event for event in told.events if not event.is_detail][: pages.MOST_ROWS]
    rows = [(f"{each.at:%Y-%m-%d %H:%M:%S}", each.by, each.text) for each in events]
    yield from _section("Timeline", _table(("When", "Who", "What"), rows))
    decided = [(f"{each.at:%H:%M:%S}", each.by, each.what, each.why) for each in review.decided]
    yield from _section("What was decided", _table(("When", "Who", "What", "Why"), decided))
    steps = [
        (
            each.name,
            clock.write_duration(each.seconds),
            clock.write_duration(each.budget),
            "beyond" if each.is_over else "",
        )
        for each in review.steps
    ]
    yield from _section("Steps and their budgets", _table(("Step", "Took", "Budget", ""), steps))
    bad = [(WORDS[each.level], each.what, each.figure, each.mend) for each in review.bad]
    yield from _section("What went badly", _table(("", "What", "Figure", "What mends it"), bad))
    yield from _section(
        "What went well", _table(("What", "Figure"), [(each.what, each.figure) for each in review.good])
    )
    actions = [f"- [ ] {_text(each.text)} (**{_text(each.owner) or 'nobody yet'}**)" for each in review.actions]
    yield from _section("Actions", actions or [f'- None yet: `{note} --text="action: WHAT @OWNER"`'])
    before = [
        (f"{each.detected_at:%Y-%m-%d}" if each.detected_at else "", each.incident, pages.broken(each))
        for each in review.before
    ]
    yield from _section("Has it happened before?", _table(("When", "Incident", "What"), before))


def _section(heading: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield f"## {heading}"
    yield ""
    yield from lines


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    if not rows:
        yield "Nothing."
        return
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(map(_text, row))} |"

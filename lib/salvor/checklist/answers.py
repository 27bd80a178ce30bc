"""One walk through a checklist, as its journal tells it: what each item came to, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from salvor import clock, journal
from salvor.checklist.form import Checklist, Item
from salvor.errors import CannotError
from salvor.journal import Journal, brief
from salvor.journal.folders import incidents_folder

PURPOSE = "checklist"
GOOD = ("passed", "warned", "yes", "not applicable")
"""What an item may come to, and be done; the others: by command failed or unknown, by a person no."""


@dataclass(frozen=True)
class Answer:
    """What an item came to, who said so when (UTC), and their note or what the command said last."""

    item: str
    text: str
    outcome: str
    by: str
    at: datetime
    note: str

    @property
    def is_good(self) -> bool:
        """Whether nothing is to mend."""
        return self.outcome in GOOD


@dataclass(frozen=True)
class Answers:
    """The walk of the journal in `folder`; `closed` is when it was ended."""

    folder: Path
    platform: str
    title: str
    begun: datetime
    closed: datetime | None
    by_item: Mapping[str, Answer]

    def left(self, form: Checklist) -> list[Item]:
        """The items that nobody looked at yet, and the automatic ones that were not good."""
        return [
            item
            for item in form.items
            if item.name not in self.by_item or (item.run and not self.by_item[item.name].is_good)
        ]

    @property
    def bad(self) -> list[Answer]:
        """What is to mend."""
        return [answer for answer in self.by_item.values() if not answer.is_good]

    @property
    def summary(self) -> str:
        """`4 items: 3 good, 1 to mend`."""
        count, bad = len(self.by_item), len(self.bad)
        return f"{count} item{'s' if count != 1 else ''}: {count - bad} good, {bad} to mend"


def read(folder: Path) -> Answers:
    """The walk of the journal in `folder`. Raises CannotError when it cannot be read, or is of no checklist."""
    return tell(folder, Journal.read(folder).lines)


def tell(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Answers:
    """The walk that these lines tell of."""
    if not lines or lines[0].get("purpose") != PURPOSE:
        raise CannotError(f"{folder.name} is no checklist.", hint="inv checklists")
    answers: dict[str, Answer] = {}
    closed = None
    for line in lines:
        at = clock.read_time(str(line["at"]))
        if line["kind"] == "item":
            item, text, outcome, by = (str(line[name]) for name in ("item", "text", "outcome", "by"))
            answers[item] = Answer(item, text, outcome, by, at, str(line["note"]))
        elif line["kind"] == "closed":
            closed = at
    opened = lines[0]
    began = clock.read_time(str(opened["detected_at"]))
    return Answers(folder, str(opened["platform"]), str(opened["title"]), began, closed, answers)


def newest_first(platform: str, name: str) -> Iterator[Answers]:
    """The walks through the checklist of that name, the newest first; what cannot be read is passed over."""
    for folder in journal.incidents(incidents_folder()):
        if brief.service_of(folder.name) != name:
            continue
        try:
            first = journal.first_line(folder)
            if (first.get("purpose"), first.get("platform")) == (PURPOSE, platform):
                yield read(folder)
        except (CannotError, LookupError):
            continue

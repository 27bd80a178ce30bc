"""All drills on one page, `drills.html` beside the incidents: the newest first, and how each scenario fares."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from salvor import budgets, clock, durable, journal, pages
from salvor.change import Level
from salvor.drill import report as drill_report
from salvor.drill.report import Report
from salvor.errors import CannotError
from salvor.journal import story
from salvor.journal.happened import Story
from salvor.notebook.paper import words

PAGE = "drills.html"

MOST = 200
"""Drills that the page shows at most, the newest ones."""
_DRAWN = 20


@dataclass(frozen=True)
class Scenario:
    """The drills of one scenario of one service, the newest first; at least one."""

    drills: tuple[Report, ...]

    @property
    def newest(self) -> Report:
        return self.drills[0]

    @property
    def passed(self) -> int:
        """How many passed."""
        return sum(each.verdict in (Level.PASS, Level.WARN) for each in self.drills)

    @property
    def times(self) -> list[float]:
        """Seconds of each drill that came to its end, the oldest first."""
        return [each.rto for each in reversed(self.drills) if each.rto is not None]

    @property
    def median(self) -> float | None:
        return statistics.median(self.times) if self.times else None

    @property
    def worst(self) -> float | None:
        return max(self.times, default=None)

    @property
    def trend(self) -> str:
        """The newest against the median of those before it, in words."""
        *before, now = self.times or [0.0]
        if not before:
            return "first one"
        usual = statistics.median(before)
        if abs(now - usual) <= max(0.15 * usual, 0.5):
            return "as before"
        return f"{'slower' if now > usual else 'quicker'} by {clock.write_duration(abs(now - usual))}"

    @property
    def line(self) -> list[tuple[float, float]]:
        """The newest times as points of a drawing 120 wide and 24 high, the oldest left."""
        drawn = self.times[-_DRAWN:]
        top = max([*drawn, 0.001])
        apart = 112.0 / max(1, len(drawn) - 1)
        return [(4 + number * apart, 21 - 18 * seconds / top) for number, seconds in enumerate(drawn)]


def read(folder: Path) -> list[Report]:
    """The newest drills below `folder`, the newest first, each with the earlier runs of its service; what cannot be
    read is passed over.
    """
    found: list[Story] = []
    for one in journal.incidents(folder):
        if sum(each.purpose == "drill" for each in found) >= MOST:
            break
        with suppress(CannotError):
            if journal.first_line(one).get("purpose") in ("incident", "drill"):
                found.append(story.read(one))
    return [
        Report(told, _earlier(told, found[number + 1 :]))
        for number, told in enumerate(found)
        if told.purpose == "drill"
    ]


def _earlier(told: Story, older: Iterable[Story]) -> tuple[Story, ...]:
    mine = (each for each in older if (each.platform, each.service) == (told.platform, told.service))
    return tuple(islice(mine, budgets.MOST_EARLIER))


def scenarios(drills: Sequence[Report]) -> list[Scenario]:
    """The drills by platform, service and scenario."""
    groups: dict[tuple[str, str, str], list[Report]] = defaultdict(list)
    for each in drills:
        groups[each.story.platform, each.story.service, each.scenario].append(each)
    return [Scenario(tuple(group)) for _, group in sorted(groups.items())]


def headline(every: Sequence[Scenario]) -> str:
    """How the newest drill of each scenario went, in one sentence."""
    for verdict, told in ((Level.FAIL, "failed"), (Level.UNKNOWN, "is not finished")):
        found = [each.newest for each in every if each.newest.verdict is verdict]
        if len(found) > 1:
            return f"{len(found)} scenarios: the newest drill {told}"
        if found:
            return f"{found[0].story.title}, {found[0].scenario}: the newest drill {told}"
    return "Every scenario passed its newest drill" if every else "No drill yet"


def html(folder: Path) -> str:
    """The page of all drills below `folder`."""
    drills = read(folder)
    data = {"drills": drills, "scenarios": scenarios(drills)}
    data["with_page"] = [one for one in drills if (folder / one.story.incident / drill_report.PAGE).exists()]
    body = pages.section("index", template=drill_report.TEMPLATE, **data)
    heads = "Drills", headline(scenarios(drills))
    return pages.page(*heads, f"<h2>Scenarios</h2>{body}", source="the journals of all drills")


def make(folder: Path) -> str:
    """Write the page, whole or not at all. Returns "" or what is owed and why; never raises."""
    try:
        durable.replace(folder / PAGE, html(folder).encode())
    except Exception as error:  # noqa: BLE001  a page of drills stops no drill
        return f"{PAGE}: {words(error)}"
    return ""

"""The trends of a platform: as tables on a terminal, as JSON, and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from salvor import clock, durable, pages, show, trends
from salvor.errors import CannotError
from salvor.readiness.report import folder as report_folder
from salvor.show import Shown
from salvor.trends import Figures, StepTrend, Trends
from salvor.trends.charts import Charts

TEMPLATE = "readiness.html"
PAGE = "trends.html"
MOST_PERIODS = 12
"""Periods that a terminal shows, the newest ones."""
_SECTIONS = (
    ("Targets met", "attainment"),
    ("Detection and recovery", "recovery"),
    ("Availability", "availability"),
    ("How long the steps take", "steps"),
)


def run(platform: str, service: str, by: str, shown: Shown, *, report: bool = False) -> None:
    """Tell the trends; `report`: write them as a page too, among the incidents. Raises CannotError for that page."""
    found = trends.of(platform, service, by)
    if isinstance(shown, show.Json):
        shown.write("trends", **to_json(found))
    shown.lines(lines(found))
    if report:
        folder = report_folder(platform, service)
        try:
            durable.make_folder(folder)
            durable.replace(folder / PAGE, page(found).encode())
        except OSError as error:
            raise CannotError(f"The page cannot be written to {folder}: {error.strerror}.") from error
        shown.tell(f"The page: {show.shortest(folder / PAGE)}")


def to_json(found: Trends) -> dict[str, Any]:
    """Plain data: times in ISO 8601, durations in seconds."""

    def of(each: Figures) -> dict[str, Any]:
        attained = {"rto_attained": each.rto_met.percent, "rpo_attained": each.rpo_met.percent}  # in percent
        return asdict(each) | {"period": each.period.name, "promise_kept": each.is_promise_kept, **attained}

    data = asdict(found)
    return data | {"all": [of(each) for each in found.all], "services": [of(each) for each in found.services]}


def lines(found: Trends) -> Iterator[str]:
    """The trends for a screen: the newest periods, each service now, the steps."""
    if not found.all:
        yield f"No incident and no drill of {found.platform} is written down yet."
        yield f"HINT: inv drill --platform={found.platform}"
    else:
        header = (found.by, "incidents", "drills", "RTO met", "RPO met", "to detect", "to recover", "down", "available")
        yield from show.table(header, [_cells(each) for each in found.all[-MOST_PERIODS:]])
        yield ""
        now = found.all[-1].period.name
        yield from show.table((now, "down", "allowed", "available"), [_promise(each) for each in found.now])
        yield ""
        heads = ("step", "runs", "median", "longest", f"median of its newest {found.by}")
        yield from show.table(heads, [_step(each) for each in found.steps])
    if found.unreadable:
        yield f"Journals that cannot be read, and are not counted: {found.unreadable}. HINT: inv incidents"


def _cells(each: Figures) -> tuple[str, ...]:
    duration = clock.write_duration
    return (
        each.period.name,
        f"{each.incidents}",
        f"{each.drills}",
        each.rto_met.said,
        each.rpo_met.said,
        duration(each.detect),
        duration(each.recover),
        duration(each.downtime),
        each.available,
    )


def _promise(each: Figures) -> tuple[str, ...]:
    down, allowed = clock.write_duration(each.downtime), clock.write_duration(each.allowed)
    return each.service, down, allowed, each.available


def _step(each: StepTrend) -> tuple[str, ...]:
    return each.name, f"{each.count}", *map(clock.write_duration, (each.median, each.worst, each.latest))


def page(found: Trends) -> str:
    """The trends as a whole page."""
    data = {"report": None, "trends": found, "charts": Charts(found)}
    body = "\n".join(
        f"<h2>{heading}</h2>{pages.section(section, template=TEMPLATE, **data)}" for heading, section in _SECTIONS
    )
    return pages.page(
        f"Trends of {found.platform}", headline(found), body, source="the journals of all incidents and drills"
    )


def headline(found: Trends) -> str:
    """The whole time in one sentence."""
    incidents, drills = (sum(getattr(each, name) for each in found.all) for name in ("incidents", "drills"))
    return (
        f"{found.platform}: {incidents} incident{'s' * (incidents != 1)} and {drills} drill{'s' * (drills != 1)}"
        if found.all
        else f"{found.platform}: nothing yet"
    )

"""The page of a platform's readiness and trends, and the notebook that makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from salvor import durable, pages, trends
from salvor.console import shortest
from salvor.errors import CannotError, UsageError
from salvor.incidents import incidents_folder
from salvor.notebook import Opened, display, display_style, for_people, read_parameters
from salvor.paper import Paper
from salvor.readiness import report
from salvor.readiness.report import Report
from salvor.run import Watcher
from salvor.trend_charts import Charts
from salvor.trends import Trends

SEEN = "seen.json"
"""The report as it was looked at, which the notebook shows."""
TEMPLATE = "readiness.html"
NOTEBOOK, PAGE = "readiness.ipynb", "readiness.html"
PARAMETERS: Mapping[str, type] = {"platform": str, "service": str, "seen": str}
_SECTIONS = (
    ("", "summary"),
    ("Services", "services"),
    ("Why, and what to do", "reasons"),
    ("Where the expected times come from", "times"),
    ("Targets met, over time", "attainment"),
    ("Detection and recovery, over time", "recovery"),
    ("Availability", "availability"),
    ("How long the steps take", "steps"),
)


def make(found: Report, shown: Watcher) -> None:
    """Write what was seen, the notebook and the page into the platform's folder among the incidents, each whole.

    Raises CannotError when nothing can be written there.
    """
    folder = incidents_folder() / f"readiness-{found.platform}"
    try:
        durable.make_folder(folder)
        durable.replace(folder / SEEN, json.dumps(found.to_json(), ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise CannotError(f"The report cannot be written to {folder}: {error.strerror}.") from error
    if problem := PAPER.make(folder):
        raise CannotError(f"The report could not be made: {problem}", safe="nothing was changed")
    shown.tell(f"The report: {shortest(folder / PAGE)}")


def _read(path: Path) -> Report:
    try:
        return report.from_json(durable.read(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"seen: {path} cannot be read: {type(error).__name__}.", hint="leave it out: it is looked anew"
        ) from error


def headline(found: Report) -> str:
    """The readiness of all services in one sentence."""
    counts = [(found.count(verdict), verdict) for verdict in ("ready", "at risk", "not ready")]
    told = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    return f"{found.title or found.platform}: {told or 'no services'}"


def _heads(folder: Path) -> tuple[str, str]:
    found = _read(folder / SEEN)
    return f"Readiness and trends of {found.platform}", headline(found)


def _body(folder: Path) -> str:
    found = _read(folder / SEEN)
    over_time = trends.of(found.platform)
    data = {"report": found, "trends": over_time, "charts": Charts(over_time)}
    return "\n".join(
        f"{f'<h2>{heading}</h2>' if heading else ''}{pages.section(section, template=TEMPLATE, **data)}"
        for heading, section in _SECTIONS
    )


def _parameters(folder: Path) -> dict[str, Any]:
    return {"seen": str(folder / SEEN)}


SOURCE = "one look at the systems and the journals of all incidents and drills; it changed nothing"
PAPER = Paper("readiness", NOTEBOOK, PAGE, _heads, _body, _parameters, SOURCE)


# ------------------------------------------------------------------------------------------------ the notebook


def open(namespace: Mapping[str, Any]) -> Told:
    """What the cells of `notebooks/readiness.ipynb` call; call it with `globals()`. Raises UsageError."""
    display_style()
    return _open(namespace)


@for_people
def _open(namespace: Mapping[str, Any]) -> Told:
    given = read_parameters(namespace, PARAMETERS)
    if given["seen"]:
        return Told(_read(Path(given["seen"])))
    return Told(report.look(given["platform"], given["service"]))


class Told(Opened):
    """The readiness of a platform as it was looked at, and its trends. Each method shows one section."""

    def __init__(self, found: Report) -> None:
        self.report = found

    @cached_property
    def trends(self) -> Trends:
        """What all incidents and drills of the platform show over time."""
        return trends.of(self.report.platform)

    def show(self, section: str) -> None:
        """Show one of the sections: summary, services, reasons, times, attainment, recovery, availability, steps."""
        display(section, template=TEMPLATE, report=self.report, trends=self.trends, charts=Charts(self.trends))

"""The page of a platform's readiness and trends, and the notebook that makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salvor import durable, inventory, pages, trends
from salvor.errors import CannotError, UsageError
from salvor.journal import brief
from salvor.journal.folders import incidents_folder
from salvor.notebook.cells import Opened, display, display_style, for_people, read_parameters
from salvor.notebook.paper import Paper
from salvor.readiness import report
from salvor.readiness.report import Report
from salvor.run import Watcher
from salvor.secrets import mask_data
from salvor.show import shortest
from salvor.trends import Trends
from salvor.trends.charts import Charts

if TYPE_CHECKING:
    from pydantic import TypeAdapter

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


@dataclass(frozen=True)
class Seen:
    """The services as they were looked at, and what the journals of the platform, or of one service, show over time."""

    report: Report
    trends: Trends


def look(platform: str, service: str = "") -> Seen:
    """Look at all services of a platform, or at one and what it depends on; each journal is read once. Raises
    UsageError when there is none.
    """
    briefs = list(brief.newest_first(incidents_folder(), platform))
    over_time = trends.reckon(briefs, platform, trends.promises(platform), service)
    return Seen(report.look(platform, service, briefs), over_time)


def make(seen: Seen, shown: Watcher) -> None:
    """Write what was seen, the notebook and the page among the incidents, each whole. Raises CannotError when nothing
    can be written there.
    """
    folder = report.folder(seen.report.platform, seen.report.service)
    try:
        durable.make_folder(folder)
        data = mask_data(_adapter().dump_python(seen, mode="json"))
        durable.replace(folder / SEEN, json.dumps(data, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise CannotError(f"The report cannot be written to {folder}: {error.strerror}.") from error
    if problem := PAPER.make(folder):
        raise CannotError(f"The report could not be made: {problem}", safe="nothing was changed")
    shown.tell(f"The report: {shortest(folder / PAGE)}")


def _adapter() -> TypeAdapter[Seen]:
    from pydantic import TypeAdapter

    return TypeAdapter(Seen)


def _read(path: Path) -> Seen:
    try:
        return _adapter().validate_json(durable.read(path))
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
    found = _read(folder / SEEN).report
    return f"Readiness and trends of {', '.join(filter(None, (found.platform, found.service)))}", headline(found)


def _body(folder: Path) -> str:
    data = _data(_read(folder / SEEN))
    return "\n".join(
        f"{f'<h2>{heading}</h2>' if heading else ''}{pages.section(section, template=TEMPLATE, **data)}"
        for heading, section in _SECTIONS
    )


def _data(seen: Seen) -> Mapping[str, Any]:
    return {"report": seen.report, "trends": seen.trends, "charts": Charts(seen.trends)}


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
    return Told(look(given["platform"] or inventory.meant(given["service"]), given["service"]))


class Told(Opened):
    """The readiness of a platform as it was looked at, and its trends. Each method shows one section."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def show(self, section: str) -> None:
        """Show one of the sections: summary, services, reasons, times, attainment, recovery, availability, steps."""
        display(section, template=TEMPLATE, **_data(self.seen))

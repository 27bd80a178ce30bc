"""Every disaster that a stand-in knows, one drill after another, and one table of them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from salvor import clock, journal, show
from salvor.drill import index as drill_index
from salvor.drill import report as drill_report
from salvor.drill.report import Report
from salvor.errors import NotProvenError, SalvorError
from salvor.journal.folders import incidents_folder
from salvor.sandbox import platforms
from salvor.show import Shown

EVERY = "every"
"""The scenario that is all of them."""


def run(platform: str, drill: Callable[[str], None], shown: Shown) -> None:
    """Call `drill` with the name of each disaster; one that fails keeps none of the others from being drilled.

    Raises UsageError when the platform has no stand-in, NotProvenError when one failed, after the last.
    """
    begun = clock.monotonic()
    disasters = platforms.package(platform, "disasters").names()
    failed: list[str] = []
    rows: list[tuple[str, ...]] = []
    for name in disasters:
        before = set(journal.incidents(incidents_folder()))
        try:
            drill(name)
        except SalvorError as error:
            shown.tell(f"\n{error}")
            failed.append(name)
        reports = _since(before, platform, name)
        rows += [_row(name, report) for report in reports] or [(name, "-", "did not begin", "-", "-", "-", "-")]
        if isinstance(shown, show.Json):
            for report in reports:
                shown.write("drilled", **_data(name, report))
        shown.tell("")
    shown.lines(show.table(("disaster", "service", "verdict", "way back", "RTO", "RPO", "report"), rows))
    shown.tell(f"All drills: {show.shortest(incidents_folder() / drill_index.PAGE)}")
    shown.tell(f"{len(disasters)} disasters took {clock.write_duration(clock.monotonic() - begun)}.")
    if failed:
        raise NotProvenError(
            f"The drill failed for {len(failed)} of {len(disasters)} disasters: {', '.join(failed)}.",
            hint="the word of each is above, and in its report",
        )


def _since(before: set[Path], platform: str, scenario: str) -> list[Report]:
    """The drills of this scenario that are not in `before`, the oldest first."""
    found = (drill_report.read(one) for one in journal.incidents(incidents_folder()) if one not in before)
    return [one for one in found if (one.story.platform, one.scenario) == (platform, scenario)][::-1]


def _row(name: str, report: Report) -> tuple[str, ...]:
    return (
        name,
        report.story.service,
        report.word,
        ", ".join(dict.fromkeys(each.way.name for each in report.story.decisions)) or "none",
        *(
            f"{clock.write_duration(figure)} of {clock.write_duration(report.story.target(target))}"
            for target, figure in (("rto", report.rto), ("rpo", report.rpo))
        ),
        show.shortest(incidents_folder() / report.story.incident / drill_report.PAGE),
    )


def _data(name: str, report: Report) -> dict[str, object]:
    """Times in seconds; None: not measured, or no target is set."""
    return {
        "disaster": name,
        "incident": report.story.incident,
        "service": report.story.service,
        "verdict": report.verdict,
        "rto": report.rto,
        "rto_target": report.story.target("rto"),
        "rpo": report.rpo,
        "rpo_target": report.story.target("rpo"),
    }

"""The readiness of a platform's services, told to people, to machines, and to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from salvor import clock, prometheus, show
from salvor.errors import NotProvenError
from salvor.prometheus import Metric
from salvor.readiness import paper, rules
from salvor.readiness.expected import Expected
from salvor.readiness.report import Report, Row, look
from salvor.show import Shown


def run(platform: str, service: str, shown: Shown, *, figures: str | bool = False, report: bool = False) -> None:
    """Look, and tell it. `figures`: as text for Prometheus, into that file or (True) instead of all else; `report`:
    write the notebook and its page too. Raises NotProvenError when a service is not ready.
    """
    if isinstance(figures, str):
        prometheus.check_file(figures, service)
    seen = paper.look(platform, service) if report else None
    found = seen.report if seen else look(platform, service)
    if figures is True:
        shown.lines(prometheus.text(metrics(found)).splitlines())
    else:
        _tell(found, shown)
    if figures and figures is not True:
        prometheus.write(Path(figures).absolute(), metrics(found))
    if seen:
        paper.make(seen, shown)
    bad = [row for row in found.rows if row.verdict == rules.NOT_READY]
    if bad:
        names, first = ", ".join(row.service for row in bad), bad[0].reasons[0]
        raise NotProvenError(f"Not ready: {names}. {first.text}.", safe="nothing was changed", hint=first.hint)


def _tell(found: Report, shown: Shown) -> None:
    if isinstance(shown, show.Json):
        for row in found.to_json()["rows"]:
            shown.write("readiness", platform=found.platform, **row)
    shown.lines(map(show.clean, lines(found)))


def lines(report: Report) -> Iterator[str]:
    """The report for a screen, not cleaned for a terminal yet: a row a service, then why, and the next commands."""
    header = ("service", "verdict", "newest usable backup", "proven", "RTO expected", "allowed", "RPO now", "allowed")
    yield from show.table(header, [_cells(row) for row in report.rows])
    for row in report.rows:
        yield ""
        yield f"{row.title}: {row.verdict}"
        if row.expected:
            yield f"  expected RTO: {_steps(row.expected)}"
            yield f"                with each step at its worst: {clock.write_duration(row.expected.worst)}"
        for reason in row.reasons:
            yield f"  {reason.verdict:9} {reason.text}"
            if reason.hint:
                yield f"            HINT: {reason.hint}"


def _steps(expected: Expected) -> str:
    """Each step, and how it was reckoned where that differs from the others."""
    usual = Counter(step.told for step in expected.steps).most_common(1)[0][0]
    told = [
        f"{step.name} {clock.write_duration(step.median)}" + (f" ({step.told})" if step.told != usual else "")
        for step in expected.steps
    ]
    return f"{', '.join(told)}; {usual}" if len(told) > 1 else "".join(told)


def _cells(row: Row) -> tuple[str, ...]:
    duration = clock.write_duration
    return (
        row.service,
        row.verdict,
        row.told_backup,
        row.told_proof,
        f"{'over ' if row.expected.missing else ''}{duration(row.expected.median)}"
        if row.expected
        else "never measured",
        duration(row.rto),
        duration(row.loses) if row.backups else "no data",
        duration(row.rpo),
    )


def metrics(report: Report) -> list[Metric]:
    """The report as figures for Prometheus."""

    def of_rows(name: str, meaning: str, figures: Iterable[tuple[Row, float | None]]) -> Metric:
        samples = [
            ({"platform": report.platform, "service": row.service}, figure)
            for row, figure in figures
            if figure is not None
        ]
        return Metric(f"salvor_readiness_{name}", meaning, samples)

    rows = report.rows
    now = report.looked_at.timestamp()
    backups = [(row, each) for row in rows for each in row.backups if each.id]
    return [
        of_rows("verdict", "0 ready, 1 at risk, 2 not ready.", [(r, rules.VERDICTS.index(r.verdict)) for r in rows]),
        of_rows(
            "expected_rto_seconds",
            "Expected RTO: the median of each step in our own history.",
            [(row, row.expected.median if row.expected else None) for row in rows],
        ),
        of_rows(
            "worst_rto_seconds",
            "The RTO with each step at its worst.",
            [(row, row.expected.worst if row.expected else None) for row in rows],
        ),
        of_rows("rto_target_seconds", "The RTO that is allowed.", [(row, row.rto) for row in rows]),
        of_rows("rpo_now_seconds", "What a restore of now would lose.", [(row, row.loses) for row in rows]),
        of_rows("rpo_target_seconds", "The RPO that is allowed.", [(row, row.rpo) for row in rows]),
        Metric(
            "salvor_readiness_backup_taken_timestamp_seconds",
            "When the newest usable backup was taken.",
            [
                (
                    {"platform": report.platform, "service": row.service, "system": each.system},
                    now - each.taken_seconds_ago,
                )
                for row, each in backups
            ],
        ),
        of_rows(
            "proven_timestamp_seconds",
            "When a restore was last proven, 0: never.",
            [(row, row.proof.at.timestamp() if row.proof.at else 0.0) for row in rows if row.proof],
        ),
        Metric(
            "salvor_readiness_looked_timestamp_seconds", "When it was looked.", [({"platform": report.platform}, now)]
        ),
    ]

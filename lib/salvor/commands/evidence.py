"""Would we make it today, and how did it go so far: readiness and trends."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import command


@command(
    service="only this service, and what it depends on (default: all)",
    prometheus="as text for Prometheus; =FILE writes it there (for node_exporter, a name that ends in .prom)",
    report="write the notebook and its page too, with the trends: incidents/readiness-PLATFORM[/SERVICE]",
    optional=("prometheus",),
)
def readiness(
    c: Context,
    platform: str = "",
    service: str = "",
    prometheus: str = "",  # invoke makes it True where no value is given
    report: bool = False,
    json: bool = False,
) -> None:
    """Would each service make its targets today: backups, proofs, expected RTO and RPO. Exit code 6: one would not."""
    from salvor import show
    from salvor.readiness import telling

    telling.run(platform, service, show.choose(as_json=json), figures=prometheus, report=report)


@command(
    service="only this service (default: all)",
    by="month, quarter or year",
    report="write them as a page too: incidents/readiness-PLATFORM[/SERVICE]/trends.html",
)
def trends(
    c: Context,
    platform: str = "",
    service: str = "",
    by: str = "month",
    report: bool = False,
    json: bool = False,
) -> None:
    """What all incidents and drills show over time: targets met, detection, recovery, availability, steps."""
    from salvor import show
    from salvor.trends import show as show_trends

    show_trends.run(platform, service, by, show.choose(as_json=json), report=report)


TASKS = (readiness, trends)

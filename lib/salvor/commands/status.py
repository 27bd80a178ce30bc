"""What customers are told: the status page, and notices of maintenance."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import collection, command


@command(
    optional=["publish"],
    publish="publish the page: a folder or s3://bucket/prefix (without a value: where the inventory says)",
    check="end with exit code 6 unless every service is operational, or in maintenance that was announced",
)
def status(c: Context, platform: str = "", publish: str | bool = "", check: bool = False, json: bool = False) -> None:
    """How each service is for its customers; with --publish, put the status page where they read it."""
    from salvor import show
    from salvor.status import told

    shown = show.choose(as_json=json)
    place = publish if isinstance(publish, str) else ""
    told.status(platform, shown, publish=bool(publish), place=place, check=check)


@command(
    "name",
    name="the notice's name, for example move-1; the same name again replaces it",
    from_="when it begins (ISO 8601 with an offset)",
    until="when it is expected to end",
    affects="the services that are in maintenance then, separated by commas (none: it is only told)",
    en="the text in English",
    ko="the text in Korean",
    remove="take the notice away",
)
def notice(
    c: Context,
    name: str,
    platform: str = "",
    from_: str = "",
    until: str = "",
    affects: str = "",
    en: str = "",
    ko: str = "",
    remove: bool = False,
) -> None:
    """Write a notice to customers: inv status.notice move-1 --from=TIME --until=TIME --affects=web --en=... --ko=..."""
    from salvor import show
    from salvor.status import told

    given = {
        "from": from_,
        "until": until,
        "affects": [each.strip() for each in affects.split(",") if each.strip()],
        "text": {"en": en or ko, "ko": ko or en},
    }
    told.notice(platform, name, given, show.choose(), remove=remove)


TASKS = (collection("status", default=status, notice=notice),)

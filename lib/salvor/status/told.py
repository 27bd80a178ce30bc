"""`inv status` and `inv status.notice`: what they say on the terminal, and their exit codes."""

from __future__ import annotations

from collections.abc import Mapping

from salvor import clock, inventory, show
from salvor.errors import NotProvenError, SalvorError
from salvor.inventory import Platform
from salvor.show import Shown
from salvor.status import look, notices
from salvor.status.look import Report
from salvor.status.publish import publish as publish_page
from salvor.status.states import Status

_GOOD = (Status.OPERATIONAL, Status.MAINTENANCE)


def status(platform_name: str, shown: Shown, *, publish: bool, place: str, check: bool) -> None:
    """Say how each service is; publish the page first, when asked. Raises NotProvenError when `check` and one is not
    as it should be.
    """
    platform = inventory.load(platform_name)
    where = ""
    if publish:
        seen, where = publish_page(platform, place)
    else:
        seen = look.report(platform)
    _say(seen, platform, shown)
    if where:
        shown.tell(f"Published: {where}")
    bad = {name: one for name, one in seen.all.items() if one not in _GOOD}
    if check and bad:
        raise NotProvenError(
            f"Not as it should be: {', '.join(f'{name} ({one})' for name, one in bad.items())}.",
            hint=f"inv assess --platform={platform.name} --service={next(iter(bad))}",
        )


def _say(seen: Report, platform: Platform, shown: Shown) -> None:
    titles = {row.service: row.words.en for row in seen.rows}
    if isinstance(shown, show.Json):
        for name, one in seen.all.items():
            shown.write("service", service=name, status=one, is_shown=name in titles, as_of=seen.as_of)
        for each in seen.disruptions:
            shown.write("incident", title=each.words.en, began=each.began, ended=each.ended)
        for notice, _ in seen.notices:
            shown.write("notice", **notice.model_dump(mode="json", by_alias=True))
        return
    rows = [(name, one, titles.get(name, "(not on the page)")) for name, one in seen.all.items()]
    shown.lines(show.table(("service", "status", "as customers know it"), rows))
    for each in seen.disruptions:
        ended = f"over since {each.ended:%Y-%m-%d %H:%M} UTC" if each.ended else "OPEN"
        shown.tell(f"incident: {each.words.en}: {each.began:%Y-%m-%d %H:%M} UTC, {ended}")
    for notice, _ in seen.notices:
        affects = ", ".join(notice.affects) or "nothing"
        shown.tell(f"notice: {notice.from_:%Y-%m-%d %H:%M} to {notice.until:%Y-%m-%d %H:%M} UTC, affects {affects}")
    shown.tell(f"As of {clock.write_time(seen.as_of)}, platform {platform.name}.")


def notice(platform_name: str, name: str, given: Mapping[str, object], shown: Shown, *, remove: bool) -> None:
    """Write a notice, or take it away; then the page is published anew, if the inventory says where."""
    platform = inventory.load(platform_name)
    if remove:
        notices.remove(platform, name)
        shown.tell(f"The notice {name} is taken away.")
    else:
        written = notices.write(platform, name, given)
        shown.tell(f"The notice {name} stands until {written.until:%Y-%m-%d %H:%M} UTC.")
    if not platform.status.publish:
        shown.tell("HINT: inv status --publish=FOLDER shows it to customers")
        return
    try:
        _, where = publish_page(platform)
        shown.tell(f"Published: {where}")
    except SalvorError as error:
        shown.tell(f"owed: the status page: {error.what}")
        shown.tell(f"HINT: {error.hint}")

"""What a platform is like for customers now: each service is looked at, side by side, and our journals are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from salvor import clock
from salvor.deadline import within
from salvor.errors import SalvorError
from salvor.incident import Incident, new_id
from salvor.inventory import Platform, Service
from salvor.journal import brief
from salvor.journal.brief import Brief
from salvor.journal.folders import incidents_folder, operator
from salvor.status import notices
from salvor.status.settings import Notice, Words
from salvor.status.states import Seen, Status, judge
from salvor.wish import Wish

DEADLINE = 25.0
"""Seconds for the look at one service."""
RECENT = timedelta(days=14)
"""For how long an incident that is over stays on the page, and a notice is told ahead."""
_OLDEST = timedelta(days=60)
_OVER = ("recovered", "undone", "closed", "discarded")


@dataclass(frozen=True)
class Row:
    """A service on the page: its inventory's name, what customers call it, and how it is."""

    service: str
    words: Words
    status: Status


@dataclass(frozen=True)
class Disruption:
    """An incident as customers see it; `ended` is None while it goes on. Times are UTC."""

    words: Words
    began: datetime
    ended: datetime | None


@dataclass(frozen=True)
class Report:
    """All that the page says. `all` has every service of the platform, also those that it does not show."""

    title: Words
    as_of: datetime
    every: float
    follow: str
    rows: tuple[Row, ...]
    all: Mapping[str, Status]
    disruptions: tuple[Disruption, ...]
    notices: tuple[tuple[Notice, tuple[Words, ...]], ...]
    """The notices in force and to come, the first one first, with the names of what each affects."""


def report(platform: Platform) -> Report:
    """Look at the platform now. Takes no longer than DEADLINE and a moment; writes nothing."""
    as_of = clock.now()
    shown = names(platform)
    told = {name: one for name, one in notices.all_of(platform).items() if as_of < one.until}
    incidents = list(_incidents(platform.name, as_of - _OLDEST))
    open_ones = {one.service for one in incidents if _ended(one) is None}
    affected = {name for one in told.values() if one.from_ <= as_of for name in one.affects}
    services = platform.in_order()
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="status") as pool:
        seen = dict(
            zip((one.name for one in services), pool.map(lambda one: _look(platform, one), services), strict=True)
        )
    found: dict[str, Status] = {}
    for service in services:  # each after those that it depends on
        found[service.name] = judge(
            seen[service.name],
            in_maintenance=service.name in affected,
            has_incident=service.name in open_ones,
            needs=[found[name] for name in service.depends_on],
        )
    return Report(
        platform.status.title or Words(en=platform.title or platform.name, ko=platform.title or platform.name),
        as_of,
        platform.status.every,
        platform.status.follow,
        tuple(Row(name, words, found[name]) for name, words in shown.items()),
        found,
        tuple(_disruptions(incidents, shown, as_of)),
        tuple(
            (one, tuple(shown[name] for name in one.affects if name in shown))
            for one in sorted(told.values(), key=lambda one: one.from_)
            if one.from_ - as_of <= RECENT
        ),
    )


def names(platform: Platform) -> Mapping[str, Words]:
    """The services that the page shows, and what customers call them: never by their names in the inventory."""
    titled = {one.name: Words(en=one.title, ko=one.title) for one in platform.services.values() if one.title}
    return platform.status.services or titled


def _look(platform: Platform, service: Service) -> Seen:
    incident = Incident(
        new_id(service.name), platform, service, Wish(), "", operator(), incidents_folder() / "none", purpose="status"
    )

    def look() -> Seen:
        parts = [*incident.systems, *incident.own_applications, *incident.routes]
        incident.observe_all(parts)
        answers = incident.check_all(service.checks, "live")
        both = list(zip(service.checks, answers, strict=True))
        return Seen(
            {one.name: incident.observe(one) for one in parts},
            tuple(answer for check, answer in both if check.system is None),
            tuple(answer for check, answer in both if check.system is not None),
        )

    try:
        return within(DEADLINE, look)
    except (SalvorError, OSError):  # whoever operates it asks inv assess; customers are told that it is not known
        return Seen({}, is_complete=False)


def _incidents(platform: str, since: datetime) -> Iterator[Brief]:
    for one in brief.newest_first(incidents_folder(), platform):
        if one is not None and one.detected_at < since:
            return
        if one is not None and one.purpose == "incident" and (one.ways or one.good_at):
            yield one


def _ended(one: Brief) -> datetime | None:
    return one.good_at or min((at for kind, at in one.marks.items() if kind in _OVER), default=None)


def _disruptions(incidents: list[Brief], shown: Mapping[str, Words], now: datetime) -> Iterator[Disruption]:
    for one in incidents:
        ended = _ended(one)
        if one.service in shown and (ended is None or now - ended <= RECENT):
            began = min(one.failed_at or one.detected_at, one.detected_at)
            yield Disruption(shown[one.service], began, ended)

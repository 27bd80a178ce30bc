"""When something is due: the part of systemd's calendar words that cron's users know too, and its moments.

`02:00`, `Sun 02:00`, `Mon..Sat 02:00`, `*-*-01 02:00`, `*-01,04,07,10-01 02:00`, `0/4:00`, `*:0/15`, and the words in
WORDS; with ` UTC` behind it, else by the machine's own time. See systemd.time(7), CALENDAR EVENTS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from pydantic import AfterValidator

WORDS = {
    "hourly": "*:00",
    "daily": "00:00",
    "weekly": "Mon 00:00",
    "monthly": "*-*-01 00:00",
    "quarterly": "*-01,04,07,10-01 00:00",
    "yearly": "*-01-01 00:00",
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM = re.compile(r"(?:([A-Z][A-Za-z,.]*) )?(?:\*-([^-: ]+)-([^-: ]+) )?([^-: ]+):([^-: ]+)( UTC)?", re.ASCII)
_YEARS = 40
"""Within so many years everything comes that ever comes: 29 February on a Monday does, also over a year like 2100."""


@dataclass(frozen=True)
class Calendar:
    """The moments that match: `weekdays` from 0 (Monday), `months`, `days`, `hours` and `minutes` as on a clock."""

    text: str
    weekdays: frozenset[int]
    months: frozenset[int]
    days: frozenset[int]
    hours: frozenset[int]
    minutes: frozenset[int]
    utc: bool = False

    def next(self, after: datetime) -> datetime:
        """The first moment after `after` (UTC)."""
        return next(one for day in self._each(after, 1) for one in self._on(day) if one > after)

    def last(self, until: datetime) -> datetime:
        """The last moment that is not after `until` (UTC)."""
        return next(one for day in self._each(until, -1) for one in reversed(self._on(day)) if one <= until)

    def comes(self) -> bool:
        """Whether there is such a moment at all: there is no 30 February."""
        return any(True for _ in self._each(datetime(2024, 1, 1, tzinfo=UTC), 1))

    def _each(self, moment: datetime, step: int) -> Iterator[date]:
        """The days that match, from the one before the moment's (time zones differ), forward or backward."""
        first = moment.date() - timedelta(days=step)
        for number in range(366 * _YEARS):
            day = first + timedelta(days=step * number)
            if day.month in self.months and day.day in self.days and day.weekday() in self.weekdays:
                yield day

    def _on(self, day: date) -> list[datetime]:
        """Its moments of a day, in their order (UTC)."""
        times = [time(hour, minute) for hour in sorted(self.hours) for minute in sorted(self.minutes)]
        zone = UTC if self.utc else None  # None: what the machine's clock on the wall says
        # Not astimezone: a time that the night lacks, as clocks go forward, would come an hour too early.
        return sorted({datetime.fromtimestamp(datetime.combine(day, each, zone).timestamp(), UTC) for each in times})


def read(text: str) -> Calendar:
    """The calendar that `text` says. Raises ValueError with what is wrong."""
    plain = " ".join(str(text).split())
    word, _, zone = plain.partition(" ")
    whole = f"{WORDS[word]} {zone}".strip() if word in WORDS else plain
    found = _FORM.fullmatch(whole)
    if not found:
        raise ValueError(
            f"{text!r} is no time that comes again; write for example 02:00, Sun 02:00, *-*-01 02:00, 0/4:00 or hourly,"
            " with UTC behind it if it is not the machine's own time"
        )
    weekdays, months, days, hours, minutes, utc = found.groups()
    calendar = Calendar(
        plain,
        _weekdays(weekdays),
        _numbers(months or "*", 1, 12, "month"),
        _numbers(days or "*", 1, 31, "day"),
        _numbers(hours, 0, 23, "hour"),
        _numbers(minutes, 0, 59, "minute"),
        bool(utc),
    )
    if not calendar.comes():
        raise ValueError(f"{text!r} never comes")
    return calendar


def _weekdays(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if first not in _DAYS or (dots and last not in _DAYS):
            raise ValueError(f"{part!r} is no day of the week; they are {', '.join(_DAYS)}, and Mon..Fri")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        if begin > end:
            raise ValueError(f"{part!r} goes round the week's end; write {last}..Sun,Mon..{first} the other way round")
        found |= set(range(begin, end + 1))
    return frozenset(found)


def _numbers(text: str, least: int, most: int, what: str) -> frozenset[int]:
    """`*`, `3`, `1,15`, `9..17`, `0/15`, or several of these with commas between."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\*|\d{1,2})(?:\.\.(\d{1,2}))?(?:/(\d{1,2}))?", part, re.ASCII)
        if not match:
            raise ValueError(f"{part!r} is no {what}")
        first, last, step = match.groups()
        begin = least if first == "*" else int(first)
        end = int(last) if last else most if first == "*" or step else begin
        if not least <= begin <= end <= most or (step and int(step) < 1):
            raise ValueError(f"{part!r} is no {what}: they are {least} to {most}")
        found |= set(range(begin, end + 1, int(step or 1)))
    return frozenset(found)


def _check(text: str) -> str:
    return read(text).text


At = Annotated[str, AfterValidator(_check)]
"""A settings field that says when something is due."""

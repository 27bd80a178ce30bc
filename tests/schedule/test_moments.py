"""When something is due: our own reckoning against systemd's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from salvor.schedule import moments

FORMS = [
    "02:00",
    "Sun 02:00",
    "Mon..Sat 02:00",
    "Mon,Thu 23:59",
    "*-*-01 02:00",
    "*-*-1,15 02:30",
    "*-01,04,07,10-01 02:00",
    "*-*-29..31 00:00",
    "*-02-29 12:00",
    "*:0/15",
    "0/4:00",
    "9..17:05,35",
    "hourly",
    "daily",
    "weekly",
    "monthly",
    "quarterly",
    "yearly",
    "Fri *-*-13 18:00",
    "03:00 UTC",
    "daily UTC",
]


@pytest.fixture(params=["UTC", "Asia/Seoul", "America/New_York"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The machine's own time."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_next_moments_are_those_of_systemd(zone: str) -> None:
    base = datetime(2026, 3, 7, 13, 34, 56, tzinfo=UTC)  # New York changes its clocks in the night after
    said = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=4", f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC", *FORMS],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "TZ": zone, "LC_ALL": "C.UTF-8"},
    ).stdout  # fmt: skip
    answers = said.split("\n\n")
    assert len(answers) == len(FORMS)
    for form, answer in zip(FORMS, answers, strict=True):
        theirs = re.findall(r"(?:\(in UTC\)|Next elapse|Iter\. #\d+): \w{3} ([-\d]+ [:\d]+) UTC", answer)
        moment, ours = base, []
        for _ in range(4):
            moment = moments.read(form).next(moment)
            ours.append(f"{moment:%Y-%m-%d %H:%M:%S}")
        if "02:" in form and zone == "America/New_York" and not form.endswith("UTC"):
            continue  # an hour of one night that does not exist there
        assert ours == theirs, (form, answer)


@pytest.mark.parametrize("zone", ["America/New_York"], indirect=True)
def test_a_time_that_a_night_lacks_comes_an_hour_later_and_one_that_it_has_twice_once(zone: str) -> None:
    for form, first, second in (
        ("02:30", "03-08 07:30", "03-09 06:30"),  # it began at 01:30, an hour too early
        ("01:30", "11-01 05:30", "11-02 06:30"),
    ):
        calendar = moments.read(form)
        begin = calendar.next(datetime.strptime(f"2026-{first} +0000", "%Y-%m-%d %H:%M %z") - timedelta(hours=3))
        assert [f"{one:%m-%d %H:%M}" for one in (begin, calendar.next(begin))] == [first, second]


def test_the_last_moment_is_the_one_before_the_next(zone: str) -> None:
    base = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    for form in FORMS:
        calendar = moments.read(form)
        last = calendar.last(base)
        assert last <= base < calendar.next(base)
        assert calendar.next(last - timedelta(seconds=1)) == last


def test_what_is_rare_comes_nonetheless() -> None:
    base = datetime(2026, 11, 21, tzinfo=UTC)
    leap = moments.read("Thu *-02-29 02:00 UTC")  # 2024, and then
    assert leap.next(base) == datetime(2052, 2, 29, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no time that comes again"),
        ("2 o'clock", "no time that comes again"),
        ("2026-01-01 02:00", "no time that comes again"),
        ("24:00", "no hour"),
        ("02:60", "no minute"),
        ("Foo 02:00", "no day of the week"),
        ("Sat..Mon 02:00", "goes round"),
        ("*-13-01 02:00", "no month"),
        ("*-02-30 02:00", "never comes"),
        ("*:0/0", "no minute"),
        ("02:00 Asia/Seoul", "no time that comes again"),
    ],
)
def test_what_is_no_time_is_an_error(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        moments.read(text)

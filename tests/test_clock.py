"""The clock: times survive writing and reading, and what could be read in two ways is refused."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as some
from salvor import clock
from salvor.errors import UsageError

OFFSETS = some.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = some.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 30), timezones=OFFSETS)  # noqa: DTZ001


@given(MOMENTS)
def test_a_time_that_is_written_is_read_back(moment: datetime) -> None:
    written = clock.write_time(moment)
    assert clock.read_time(written) == moment
    assert clock.read_time(written).utcoffset() == timedelta(0)
    assert written.endswith("+00:00")


@given(MOMENTS)
def test_a_time_in_any_zone_is_read_as_the_same_moment(moment: datetime) -> None:
    assert clock.read_time(f"  {moment.isoformat()} ") == moment


@given(some.lists(MOMENTS, min_size=2))
def test_written_times_sort_as_they_passed(moments: list[datetime]) -> None:
    assert [clock.write_time(moment) for moment in sorted(moments)] == sorted(map(clock.write_time, moments))


@given(some.datetimes())
def test_a_time_without_offset_is_refused(moment: datetime) -> None:
    with pytest.raises(UsageError, match=r"--at: .* has no offset") as refused:
        clock.read_time(moment.isoformat(), argument="--at")
    clock.read_time(refused.value.hint.removeprefix("add one, for example --at=").removesuffix(" for UTC"))
    with pytest.raises(ValueError, match="no offset"):
        clock.write_time(moment)


@given(some.text())
def test_whatever_is_typed_is_read_or_refused_by_name(text: str) -> None:
    try:
        assert clock.read_time(text, argument="--at").tzinfo is UTC
    except UsageError as refused:
        assert refused.what.startswith("--at: ")
        assert "for example --at=" in refused.hint


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00+09:00", "9999-12-31T23:59:59-09:00", "2026-02-30T00:00Z", "now", ""]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        clock.read_time(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (0, 0),
        (1.5, 1.5),
        ("30s", 30),
        ("15m", 900),
        ("1h30m", 5400),
        ("2 d", 172800),
        (" 250ms ", 0.25),
        ("1w", 604800),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert clock.read_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "5x",
        "-3s",
        "1e3s",
        "m",
        "3 m s",
        True,
        -1,
        math.nan,
        math.inf,
        10**400,
        "9" * 400 + "d",
        "5s, 3m",
        None,
    ],
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        clock.read_duration(text)


@given(some.floats(0, 1e10))
def test_a_duration_for_people_is_near_the_true_one(seconds: float) -> None:
    text = clock.write_duration(seconds)
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    words = text.split()
    told = sum(float(figure) * units[unit] for figure, unit in zip(words[::2], words[1::2], strict=True))
    coarsest = units[words[-1]]
    assert abs(told - seconds) <= max(coarsest, 0.51)
    assert clock.write_duration(-seconds).removeprefix("-") == text or seconds == 0


def test_the_clock_can_be_set_and_comes_back() -> None:
    fixed = datetime(2026, 11, 20, 3, 12, tzinfo=UTC)
    with clock.use(lambda: fixed):
        assert clock.now() == fixed
        assert clock.age(fixed - timedelta(hours=1)) == timedelta(hours=1)
    assert abs(clock.now().timestamp() - time.time()) < 5

"""Which backups stay, and why: never less than what is needed to go back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from salvor import clock
from salvor.backups.policy import Keep, read_size
from salvor.backups.retention import decide, together
from salvor.change import Backup, Verdict

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)  # a Saturday
O4O = Keep(daily=7, weekly=4, monthly=12)


@pytest.fixture(autouse=True, scope="module")
def fixed_clock() -> Iterator[None]:
    """It is an hour past NOW, whatever the clock says: nothing here is of a time to come."""
    with clock.use(lambda: NOW + timedelta(hours=1)):
        yield


def backup(days: float, **more: Any) -> Backup:
    """One that was taken so many days before NOW."""
    taken = NOW - timedelta(days=days)
    given: dict[str, Any] = {"id": f"{taken:%Y%m%d-%H%M%S}", "repository": "here", "location": "here", **more}
    return Backup(system="shop-db", way="logical", kind="dump", taken=taken, size=1, **given)


def stays(verdicts: list[Verdict]) -> dict[str, str]:
    return {one.backup.id: ", ".join(one.reasons) for one in verdicts if one.stays}


def test_a_year_of_nights_leaves_seven_days_four_weeks_twelve_months() -> None:
    found = stays(decide([backup(day) for day in range(730)], O4O))
    assert found["20261121-020000"] == "newest good, daily 1, weekly 1, monthly 1"
    assert found["20261115-020000"] == "daily 7, weekly 2", "Sunday, the last day of its week"
    assert found["20261101-020000"] == "weekly 4"
    assert found["20261031-020000"] == "monthly 2"
    assert found["20251231-020000"] == "monthly 12"
    assert len(found) == 7 + 2 + 11, "the first week and the first month are days already, and the second week is one"


def test_a_pause_lets_nothing_go() -> None:
    before = decide([backup(day) for day in (400, 401, 402)], Keep(daily=3))
    assert [one.reasons for one in before] == [("newest good", "daily 1"), ("daily 2",), ("daily 3",)]
    a_year_apart = [backup(0), backup(52 * 7)]  # in weeks of one number
    assert list(stays(decide(a_year_apart, Keep(weekly=2)))) == ["20261121-020000", "20251122-020000"]


def test_of_several_on_one_day_the_newest_stays_and_the_day_is_that_of_utc() -> None:
    hours = [backup(hour / 24) for hour in range(5)]
    assert list(stays(decide(hours, Keep(daily=2)))) == ["20261121-020000", "20261120-230000"]
    seoul = timezone(timedelta(hours=9))
    there = [replace(one, taken=one.taken.astimezone(seoul)) for one in hours]
    assert stays(decide(there, Keep(daily=2))) == stays(decide(hours, Keep(daily=2)))


def test_the_newest_good_and_the_last_proven_stay_whatever_the_policy_says() -> None:
    proven = replace(backup(300), proven=NOW - timedelta(days=200))
    older = replace(backup(301), proven=NOW)
    found = stays(decide([backup(1, usable=False), backup(2), backup(3), proven, older], Keep(yearly=1)))
    assert found[backup(2).id] == "newest good, yearly 1"
    assert found[proven.id] == "last proven", "of the proven ones the newest data"
    assert set(found) == {backup(1).id, backup(2).id, proven.id}
    assert found[backup(1).id] == "nothing newer is good"
    damaged_since = replace(backup(250), proven=NOW, usable=False)
    assert stays(decide([backup(2), damaged_since, proven], Keep(yearly=1)))[proven.id] == "last proven"


def test_what_another_one_needs_stays_to_the_last() -> None:
    full, first = backup(40, id="F"), backup(39, id="F_1", needs=("F",))
    newest = backup(0, id="F_2", needs=("F_1",))
    found = stays(decide([full, first, newest, backup(41, id="old")], Keep(daily=1)))
    assert found == {"F_2": "newest good, daily 1", "F_1": "needed by F_2", "F": "needed by F_1"}
    damaged = replace(newest, usable=False)
    found = stays(decide([backup(5, id="old"), full, first, damaged], Keep(daily=1)))
    assert found["F_2"] == "nothing newer is good" and found["F"] == "needed by F_1", "else nothing could be removed"
    by_a_clock_that_was_ahead = replace(first, taken=NOW - timedelta(days=10))
    proven = replace(newest, taken=NOW - timedelta(days=20), proven=NOW)
    found = stays(decide([full, by_a_clock_that_was_ahead, proven, backup(0, id="N")], Keep(daily=1)))
    assert found == {
        "N": "newest good, daily 1", "F_2": "last proven", "F_1": "needed by F_2", "F": "needed by F_1",
    }  # fmt: skip


def test_what_is_locked_is_left_and_said() -> None:
    found = decide([backup(0), backup(50, hold="object lock until 2027-01-01T00:00:00.000000+00:00")], Keep(daily=1))
    assert found[1].reasons == ("object lock until 2027-01-01T00:00:00.000000+00:00",)


def test_repositories_and_ways_are_counted_each_by_itself() -> None:
    there = [backup(5, repository="there"), backup(6, repository="there")]
    other = [replace(backup(9), way="physical")]
    found = decide([backup(0), backup(1), *there, *other], Keep(daily=1))
    assert [one.stays for one in found] == [True, False, True, False, True]


def test_a_local_copy_goes_when_two_others_have_it_and_not_before() -> None:
    def copies(day: int, *places: str) -> list[Backup]:
        return [backup(day, id=f"{place}-{day}", repository=place) for place in places]

    backups = [
        *copies(0, "local", "s3", "azure"),
        *copies(1, "local", "s3", "azure"),
        *copies(2, "local", "s3"),
        *copies(30, "local"),
    ]
    found = stays(decide(backups, Keep(daily=3), {"local": Keep(daily=1)}))
    assert set(found) == {"local-0", "s3-0", "azure-0", "s3-1", "azure-1", "local-2", "s3-2"}
    assert found["local-2"] == "1 of 2 other repositories have it"
    damaged = [replace(one, usable=one.id != "s3-1") for one in backups]
    found = stays(decide(damaged, Keep(daily=3), {"local": Keep(daily=1)}))
    assert found["local-1"] == "1 of 2 other repositories have it", "a damaged copy is none"


def test_of_a_near_repository_nothing_goes_that_alone_has_the_newest() -> None:
    backups = [backup(day, id=f"{place}-{day}", repository=place) for day in (1, 2) for place in ("near", "far")]
    newest = backup(0, id="near-0", repository="near")
    ahead = [backup(-400, id=f"{place}-ahead", repository=place) for place in ("near", "far")]
    found = stays(decide([newest, *backups, *ahead], Keep(daily=1), near={"near"}))
    assert set(found) == {"near-0", "near-1", "near-2", "far-1", "near-ahead", "far-ahead"}
    assert found["near-2"] == "only near has the newest, and two must"
    there = replace(newest, id="far-0", repository="far")
    assert set(stays(decide([newest, there, *backups], Keep(daily=1), near={"near"}))) == {"near-0", "far-0"}
    there = replace(there, usable=False)
    assert "near-2" in stays(decide([newest, there, *backups], Keep(daily=1), near={"near"})), "that one has it not"


def test_one_file_that_two_systems_share_goes_when_neither_keeps_it() -> None:
    mine = Verdict(backup(3, location="/b/3.tar.gz"), ())
    alone = Verdict(backup(4, location="/b/4.tar.gz"), ())
    theirs = Verdict(replace(mine.backup, system="media"), ("daily 3",))
    assert together([mine, alone, theirs]) == [replace(mine, reasons=("media keeps it",)), alone, theirs]


def test_a_policy_that_keeps_nothing_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="it keeps nothing"):
        Keep()
    with pytest.raises(ValidationError, match="greater than or equal"):
        Keep(daily=-1)


@pytest.mark.parametrize(("text", "size"), [("1MB", 10**6), ("1MiB", 2**20), ("1.5 K", 1500), (7, 7), ("2GiB", 2**31)])
def test_a_size_is_read(text: str | int, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 XB", "one"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        read_size(text)


def a_history(drawn: list[tuple[int, int, int, int]]) -> list[Backup]:
    """Backups taken so many hours ago; which one before it each is built on, whether it is good, and proven."""
    found: list[Backup] = []
    for number, (hours, before, good, proven) in enumerate(sorted(drawn, reverse=True)):
        needs = (found[before].id,) if before < len(found) else ()
        more = {"usable": good > 0, "proven": NOW if proven == 0 else None}
        found.append(backup(hours / 24, id=f"b{number}", needs=needs, **more))
    return found


_drawn = st.tuples(st.integers(0, 9000), st.integers(0, 60), st.integers(0, 5), st.integers(0, 9))
histories = st.lists(_drawn, max_size=40).map(a_history)
policies = st.builds(
    Keep, daily=st.integers(1, 9), weekly=st.integers(0, 9), monthly=st.integers(0, 9), yearly=st.integers(0, 3)
)


@given(histories, policies)
def test_whatever_there_is_one_can_go_back_and_a_second_run_removes_nothing(all_: list[Backup], keep: Keep) -> None:
    verdicts = decide(all_, keep)
    kept = {one.backup.id: one.backup for one in verdicts if one.stays}
    assert len(verdicts) == len(all_)
    for one in kept.values():
        assert set(one.needs) <= kept.keys()
    good = [one for one in all_ if one.usable]
    if good:
        assert max(good, key=lambda one: (one.taken, one.id)).id in kept
    proven = [one for one in good if one.proven]
    if proven:
        assert max(proven, key=lambda one: (one.taken, one.id)).id in kept
    days = {one.taken.date() for one in kept.values() if one.usable}
    assert len(days) >= min(keep.daily, len({one.taken.date() for one in good}))
    again = decide(kept.values(), keep)
    assert all(one.stays for one in again), "what stayed stays"

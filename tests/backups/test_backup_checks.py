"""What is judged of backups: ages, sizes, moments that were missed, what vanished, and how full a disk gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor import clock
from salvor.backups import checks as backup_checks
from salvor.backups.audit import Room
from salvor.backups.checks import Due, Known
from salvor.backups.policy import Expect, Keep
from salvor.backups.report import Looked
from salvor.backups.report import _Memory as Memory
from salvor.change import Backup, Finding, Level, Unread
from salvor.schedule.moments import read

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MB = 10**6


@pytest.fixture(autouse=True)
def fixed_clock() -> Iterator[None]:
    with clock.use(lambda: NOW):
        yield


def dump(hours: float, size: int = 10 * MB, **more: Any) -> Backup:
    taken = NOW - timedelta(hours=hours)
    given: dict[str, Any] = {"kind": "dump", "repository": "here", "proven": NOW, **more}
    return Backup(f"d-{hours}", "shop-db", "logical", taken=taken, size=size, location="here", **given)


def worst(backups: list[Backup], **known: Any) -> list[tuple[str, str]]:
    """The checks that are not all right, and what they say."""
    found = backup_checks.judge("shop-db", backups, Known(**{"rpo": 86400.0, **known}))
    return [(one.check, _said(one)) for one in found if one.level is not Level.PASS]


def _said(one: Finding) -> str:
    return f"{one.level}: {one.figure}; {one.limit}; {one.detail}"


def test_backups_as_they_should_be_say_nothing_bad() -> None:
    assert not worst([dump(hours) for hours in (10, 34, 58)], keep=Keep(daily=7))


def test_no_usable_backup_fails() -> None:
    assert worst([dump(1, usable=False)]) == [("age", "fail: no usable backup; ; inv backup")]
    (found,) = backup_checks.judge("shop-db", [], Known(60, options="--service=shop --platform=o4o"))
    assert found.detail == "inv backup --service=shop --platform=o4o"


def test_what_a_restore_would_lose_is_held_against_the_rpo() -> None:
    (found,) = worst([dump(30)])
    assert found == ("age", "fail: a restore would lose 30 h 00 min; RPO 24 h 00 min; ")
    assert not worst([dump(30, window=(NOW - timedelta(hours=30), NOW))]), "its WAL leads to now"


def test_the_three_alerts_of_a_small_saas() -> None:
    """Today's backup missing, smaller than 1 MB, older than 12 h."""
    expect = Expect.model_validate({"oldest": "12h", "smallest": "1MB", "at": "03:00 UTC", "within": "1h"})
    due = (Due("expect: at", read("03:00 UTC")),)
    assert not worst([dump(8.9)], expect=expect, due=due)
    found = dict(worst([dump(20, size=MB // 2)], expect=expect, due=due))
    assert found["age"] == "fail: the newest backup is 20 h 00 min old; 12 h 00 min; "
    assert "the backup of 2026-11-21 03:00 UTC is missing" in found["schedule"]
    assert found["size"].startswith("fail: dump of 488.3 KiB; at least 976.6 KiB")


def test_a_size_that_the_engine_does_not_say_is_not_called_nothing() -> None:
    unsaid = [dump(hours, size=0) for hours in (10, 34, 58)]
    assert not worst(unsaid)
    assert "0 B" not in str([_said(one) for one in backup_checks.judge("shop-db", unsaid, Known(86400.0))])
    ((check, said),) = worst(unsaid, expect=Expect.model_validate({"smallest": "1MB"}))
    assert check == "size" and said.startswith("unknown: dump: its engine does not say how large it is; at least ")


def test_a_backup_is_missing_only_when_there_was_time_to_make_it() -> None:
    due = (Due("schedule nightly", read("11:00 UTC"), ("dump",)),)
    assert not worst([dump(20)], due=due), "an hour ago: it may still run"
    assert worst([dump(20)], due=due, expect=Expect.model_validate({"within": "30m"}))
    assert not worst([dump(0.5), dump(20)], due=due, expect=Expect.model_validate({"within": "30m"}))
    behind = [dump(1 + 3 / 3600), dump(20)]
    assert not worst(behind, due=due, expect=Expect.model_validate({"within": "30m"})), "a clock that is 3 s slow"
    full = replace(dump(0.5), kind="full")
    assert worst([full, dump(20)], due=due, expect=Expect.model_validate({"within": "30m"})), "another kind"
    unread = (Unread("off-site", "s3://backups", "no answer"),)
    ((_, said),) = worst([dump(20)], due=due, unread=unread, expect=Expect.model_validate({"within": "30m"}))
    assert said.startswith("unknown: the backup of 2026-11-21 11:00 UTC is not in what could be read")
    assert said.endswith("schedule nightly; without off-site")


def test_a_sudden_shrink_fails_and_a_slow_one_does_not() -> None:
    history = [dump(34 + 24 * day, size) for day, size in enumerate([100 * MB, 90 * MB, 110 * MB, 1 * MB])]
    (found,) = worst([dump(10, size=40 * MB), *history])
    assert found[0] == "size" and "half of the median of those before it, 90.6 MiB" in found[1]
    assert not worst([dump(10, size=60 * MB), *history])
    increments = [replace(one, kind="incr") for one in [dump(10, size=1), *history]]
    assert not worst(increments), "an increment is as large as what changed"


def test_what_vanished_is_found_unless_the_policy_let_it_go() -> None:
    nights = [dump(10 + 24 * day) for day in range(9)]
    earlier = backup_checks.remembered(nights, Known(1))
    keep = Keep(daily=7)
    assert not worst(nights[:7], keep=keep, earlier=earlier), "the last two were past the policy"
    (found,) = worst([nights[0], *nights[2:7]], keep=keep, earlier=earlier)
    assert found[0] == "retention" and "1 vanished" in found[1] and nights[1].id in found[1]
    assert set(backup_checks.vanished([nights[0]], Known(1, keep, earlier=earlier))) == {
        f"here {one.id}" for one in nights[1:7]
    }


def test_a_failed_backup_that_somebody_removed_has_not_vanished() -> None:
    nights = [dump(10, usable=False), dump(34)]
    earlier = backup_checks.remembered(nights, Known(1))
    assert "retention" not in dict(worst(nights[1:], keep=Keep(daily=7), earlier=earlier))


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[]",
        '{"shop-db": 1}',
        '{"shop-db": {"backups": {"x": {}}, "free": {}}}',
        '{"shop-db": {"backups": [], "free": []}}',
        '{"shop-db": {"backups": {"x": "y"}, "free": {"here /backup": 5}}}',
    ],
)
def test_a_damaged_memory_is_compared_with_nothing_and_written_anew(damaged: str, tmp_path: Path) -> None:
    path, here = tmp_path / "memory.json", Room("here", "/backup", 100, 50)
    path.write_text(damaged)
    assert Memory(path).backups("shop-db") == {}
    for hour in range(2):
        with clock.use(lambda hour=hour: NOW + timedelta(hours=hour)):  # type: ignore[misc]
            Memory(path).keep([Looked("shop-db", Known(1), [dump(10)], [], [here])])
    assert Memory(path).backups("shop-db").keys() == {"here d-10"}
    assert Memory(path).free("shop-db", here) == {NOW: 50}, "once a day"


def test_room_is_compared_with_that_of_the_same_disk_as_it_was_before_it_was_enlarged(tmp_path: Path) -> None:
    path, here = tmp_path / "memory.json", Room("here", "/backup", 1000, 100)
    elsewhere = replace(here, size=9000, free=8000)
    with clock.use(lambda: NOW - timedelta(days=10)):
        looks = [Looked("shop-db", Known(1), [], [], [here]), Looked("far-db", Known(1), [], [], [elsewhere])]
        Memory(path).keep(looks)
    memory = Memory(path)
    assert list(memory.free("shop-db", here).values()) == [100], "another machine has the same path"
    assert not memory.free("shop-db", replace(here, repository="off-site"))
    enlarged = replace(here, size=6000, free=4100)
    (then,) = memory.free("shop-db", enlarged).values()
    assert then == 5100
    found = backup_checks.fill("shop-db", enlarged, memory.free("shop-db", enlarged), 1)
    assert "full in 41 d 0 h" in found.figure, "100 a day since, though more is free than then"


def test_what_the_policy_let_go_long_ago_is_said() -> None:
    (found,) = worst([dump(10 + 24 * day) for day in range(9)], keep=Keep(daily=7))
    assert found == ("retention", "warn: 2 are there that the policy lets go; ; inv retention removes them")


def test_a_backup_that_became_smaller_is_damaged() -> None:
    earlier = backup_checks.remembered([dump(10), dump(34)], Known(1))
    (found,) = worst([dump(10), dump(34, size=MB)], earlier=earlier)
    assert found[0] == "integrity" and "9.5 MiB when it was looked at last" in found[1]
    again = backup_checks.remembered([dump(10), dump(34, size=MB)], Known(1, earlier=earlier))
    assert worst([dump(10), dump(34, size=MB)], earlier=again) == [found], "it is told at every look"


def test_a_proof_that_is_old_or_missing_warns() -> None:
    assert worst([dump(10, proven=None)])[0][0] == "proven"
    old = [dump(10, proven=None), dump(34, proven=NOW - timedelta(days=40))]
    assert worst(old)[0][1].startswith("warn: a restore was proven 40 d 0 h ago")
    assert not worst(old, expect=Expect.model_validate({"proven": "60d"}))


@pytest.mark.parametrize(
    ("free", "days_ago", "then", "newest", "level", "figure"),
    [
        (900, 10, 1000, 1, Level.PASS, "full in 90 d 0 h"),
        (50, 10, 150, 1, Level.WARN, "full in 5 d 0 h"),
        (5, 10, 105, 1, Level.FAIL, "full in 12 h 00 min"),
        (900, 10, 800, 1, Level.PASS, "900 B free of 1000 B"),
        (900, 0, 1000, 1, Level.PASS, "900 B free of 1000 B"),
        (100, 10, 100, 40, Level.WARN, "100 B free"),
        (100, 10, 100, 140, Level.FAIL, "100 B free"),
    ],
)
def test_how_long_the_room_lasts(free: int, days_ago: int, then: int, newest: int, level: Level, figure: str) -> None:
    found = backup_checks.fill("db", Room("r", "/r", 1000, free), {NOW - timedelta(days=days_ago): then}, newest)
    assert found.level is level and figure in found.figure

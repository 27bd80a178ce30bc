from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor.journal.brief import Brief, newest_first
from salvor.readiness import expected
from salvor.readiness.expected import PEOPLE, Expected

from tests.past import NOW, write

WAYS = {"orders-db": "physical"}
GB = 10**9


def runs(incidents: Path) -> list[Brief]:
    return [each for each in newest_first(incidents) if each]


def reckoned(incidents: Path, ways: dict[str, str] = WAYS, size: int = 0) -> Expected:
    found = expected.reckon(runs(incidents), ways, size)
    assert found
    return found


def step(found: Expected, name: str) -> tuple[float, float, int, str]:
    return next((one.median, one.worst, one.count, one.told) for one in found.steps if one.name == name)


def past(incidents: Path, *restores: float, **more: Any) -> None:
    for number, seconds in enumerate(restores):
        steps = {"assess": 1.0, "restore": seconds, "verify": 4.0, "reroute": 2.0}
        write(incidents, NOW - timedelta(days=number + 1), steps=steps, **({"back": seconds + 10.0} | more))


def test_a_restore_is_reckoned_up_to_the_size_of_today(tmp_path: Path) -> None:
    past(tmp_path, 8.0, 10.0, 20.0, moved=GB)
    found = reckoned(tmp_path, size=2 * GB)
    assert step(found, "restore") == (20.0, 40.0, 3, "1.9 GiB at 95.4 MiB/s, median of 3")
    assert step(found, "verify")[:2] == (8.0, 8.0)
    assert step(found, "assess") == (1.0, 1.0, 3, "median of 3"), "what is not of the data stays"
    assert step(found, "reroute")[:2] == (2.0, 2.0)
    assert (found.median, found.worst) == (34.0, 54.0)
    assert step(found, PEOPLE)[:2] == (3.0, 3.0), "what of the RTO was in no step"


def test_it_is_never_made_less_than_it_took(tmp_path: Path) -> None:
    past(tmp_path, 8.0, moved=GB)
    assert step(reckoned(tmp_path, size=GB // 10), "restore")[:2] == (8.0, 8.0)


def test_without_sizes_it_is_as_it_took(tmp_path: Path) -> None:
    past(tmp_path, 8.0)
    assert step(reckoned(tmp_path, size=GB), "restore") == (8.0, 8.0, 1, "measured once")


def test_only_runs_by_the_same_way_count(tmp_path: Path) -> None:
    past(tmp_path, 8.0)
    past(tmp_path, 1000.0, way="logical")
    past(tmp_path, 1000.0, system="other-db")
    past(tmp_path, 1000.0, purpose="maintenance")
    assert step(reckoned(tmp_path), "restore")[2] == 1
    assert expected.reckon(runs(tmp_path), {"orders-db": "failover"}, 0) is None
    assert step(reckoned(tmp_path, {**WAYS, "media": "snapshot"}), "restore")[2] == 1, "another system was sound then"


def test_only_the_newest_runs_count(tmp_path: Path) -> None:
    past(tmp_path, *[5.0] * expected.MOST_RUNS, 1000.0)
    assert step(reckoned(tmp_path), "restore")[:3] == (5.0, 5.0, expected.MOST_RUNS)


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ({"assess": 1.0}, ("restore", "verify", "reroute")),
        ({"restore": 1.0, "verify": 1.0}, ("reroute",)),
        ({"restore": 1.0, "verify": 1.0, "reroute": 1.0}, ()),
    ],
)
def test_what_no_run_came_through_is_named(tmp_path: Path, steps: dict[str, float], missing: tuple[str, ...]) -> None:
    write(tmp_path, NOW, steps=steps, back=None)
    assert reckoned(tmp_path, size=GB).missing == missing


def test_a_program_brings_no_data_back_and_a_plan_that_overlaps_takes_no_time_away(tmp_path: Path) -> None:
    write(tmp_path, NOW, steps={"assess": 5.0, "reroute": 1.0}, back=2.0)
    found = reckoned(tmp_path, size=0)
    assert found.missing == ()
    assert step(found, PEOPLE)[:2] == (0.0, 0.0)


def test_a_run_in_which_another_system_came_back_otherwise_does_not_count(tmp_path: Path) -> None:
    past(tmp_path, 8.0)
    (run,) = runs(tmp_path)
    run.ways["media"] = "archive"
    assert expected.reckon([run], {**WAYS, "media": "archive"}, 0)
    assert expected.reckon([run], {**WAYS, "media": "snapshot"}, 0) is None


def test_without_a_run_nothing_is_expected(tmp_path: Path) -> None:
    assert expected.reckon([], WAYS, GB) is None
    write(tmp_path, NOW, steps={}, back=None)
    assert expected.reckon(runs(tmp_path), WAYS, GB) is None

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from salvor import clock, trends
from salvor.errors import CannotError, UsageError
from salvor.journal.brief import newest_first
from salvor.pages import chart
from salvor.pages.chart import Series
from salvor.show import Plain
from salvor.trends import Figures, Trends
from salvor.trends import show as show_trends

from tests import page_reader
from tests.past import NOW, write

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def at_noon() -> Iterator[None]:
    with clock.use(lambda: NOW):
        yield


def of(incidents: Path, **more: Any) -> Trends:
    return trends.reckon(newest_first(incidents, "world"), "world", more.pop("promised", {}), **more)


def last(found: Trends, service: str = "orders") -> Figures:
    return next(each for each in found.now if each.service == service)


def test_attainment_counts_what_was_measured_of_incidents_and_drills(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, back=18.0, rpo=70.0)
    write(tmp_path, NOW - 2 * DAY, back=1000.0, rpo=1.0)
    write(tmp_path, NOW - 3 * DAY, purpose="drill", back=899.0, rpo=None)
    write(tmp_path, NOW - 4 * DAY, back=None)
    write(tmp_path, NOW - 5 * DAY, purpose="maintenance")
    month = of(tmp_path).all[-1]
    assert (month.incidents, month.drills) == (3, 1)
    assert (month.rto_met.met, month.rto_met.measured, month.rto_met.said) == (2, 3, "66.6 % of 3")
    assert (month.rpo_met.met, month.rpo_met.measured) == (1, 2)


def test_a_target_is_that_of_its_time(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, back=100.0, targets={"rto": 60.0, "rpo": 60.0})
    write(tmp_path, NOW - 2 * DAY, back=100.0, targets={"rto": 120.0, "rpo": 60.0})
    assert of(tmp_path).all[-1].rto_met.met == 1


def test_detection_and_recovery_are_of_incidents_alone(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, blind=30.0, back=100.0)
    write(tmp_path, NOW - 2 * DAY, blind=None, back=300.0)
    write(tmp_path, NOW - 3 * DAY, purpose="drill", blind=9000.0, back=9000.0)
    month = of(tmp_path).all[-1]
    assert (month.detect, month.recover, month.downtime) == (30.0, 200.0, 430.0)
    assert of(tmp_path / "none").all == ()


def test_downtime_goes_from_the_failure_to_the_first_good_check(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, blind=60.0, back=240.0)
    found = last(of(tmp_path, promised={"orders": 99.9}))
    assert found.downtime == 300.0
    elapsed = (NOW - datetime(2026, 11, 1, tzinfo=UTC)).total_seconds()
    assert found.availability == pytest.approx(1 - 300.0 / elapsed)
    assert found.allowed == pytest.approx(elapsed / 1000)
    assert found.is_promise_kept is True


def test_a_failure_that_is_said_to_be_later_than_its_detection_takes_nothing_away(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, blind=-30.0, back=100.0)
    month = of(tmp_path).all[-1]
    assert (month.detect, month.downtime) == (0.0, 100.0)


def test_the_first_moment_of_a_month_has_figures(tmp_path: Path) -> None:
    first = datetime(2026, 11, 1, tzinfo=UTC)
    write(tmp_path, first - DAY)
    with clock.use(lambda: first):
        assert of(tmp_path).all[-1].availability == 1.0


def test_overlaps_count_once(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, back=600.0)
    write(tmp_path, NOW - DAY + timedelta(seconds=300), back=600.0)
    write(tmp_path, NOW - DAY + timedelta(seconds=100), back=100.0)
    write(tmp_path, NOW - DAY, back=600.0, service="shop")
    found = of(tmp_path)
    assert (last(found).downtime, last(found, "shop").downtime) == (900.0, 600.0)
    assert found.all[-1].downtime == 1500.0, "of all services together"
    assert found.all[-1].availability == pytest.approx(1 - 750.0 / found.all[-1].period.seconds), "and their mean"


def test_an_open_incident_counts_until_now_and_an_ended_one_until_its_end(tmp_path: Path) -> None:
    write(tmp_path, NOW - timedelta(hours=2), back=None, end="")
    write(tmp_path, NOW - DAY, back=None, end="undone", end_after=1800.0, service="shop")
    found = of(tmp_path, promised={"orders": 99.99})
    assert last(found).downtime == 7200.0
    assert last(found).is_promise_kept is False
    assert last(found, "shop").downtime == 1800.0


def test_downtime_is_shared_out_between_the_months(tmp_path: Path) -> None:
    write(tmp_path, datetime(2026, 10, 31, 23, 0, tzinfo=UTC), back=3 * 3600.0)
    found = of(tmp_path)
    assert [(each.period.name, each.downtime) for each in found.services] == [
        ("2026-10", 3600.0), ("2026-11", 7200.0),
    ]  # fmt: skip
    assert [each.incidents for each in found.services] == [1, 0], "it counts in the month of its detection"


def test_months_quarters_and_years_without_gaps(tmp_path: Path) -> None:
    write(tmp_path, datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))
    write(tmp_path, NOW)
    names = {by: [each.period.name for each in of(tmp_path, by=by).all] for by in trends.PERIODS}
    assert names["month"] == ["2025-12", *(f"2026-{month:02d}" for month in range(1, 12))]
    assert names["quarter"] == ["2025-Q4", "2026-Q1", "2026-Q2", "2026-Q3", "2026-Q4"]
    assert names["year"] == ["2025", "2026"]
    year = of(tmp_path, by="year").all[-1].period
    assert (year.begin, year.until) == (datetime(2026, 1, 1, tzinfo=UTC), NOW)


def test_a_quiet_month_is_wholly_available(tmp_path: Path) -> None:
    write(tmp_path, datetime(2026, 9, 3, tzinfo=UTC))
    quiet = of(tmp_path, promised={"orders": 100.0}).services[1]
    assert quiet.is_promise_kept is True, "all that was promised"
    assert (quiet.period.name, quiet.available, quiet.rto_met.said) == ("2026-10", "100 %", "-")


@pytest.mark.parametrize(
    ("value", "said"), [(100.0, "100 %"), (99.99999, "99.999 %"), (99.9, "99.900 %"), (0.0, "0.000 %")]
)
def test_only_what_is_whole_is_called_so(value: float, said: str) -> None:
    assert trends.write_percent(value, 3) == said


def test_steps_are_compared_with_those_of_the_newest_month(tmp_path: Path) -> None:
    for days, seconds in ((40, 10.0), (41, 20.0), (42, 30.0), (1, 60.0)):
        write(tmp_path, NOW - days * DAY, steps={"restore": seconds, "assess": 1.0})
    assess, restore = of(tmp_path).steps
    assert (assess.name, restore.name) == ("assess", "restore"), "in the order of a recovery"
    assert (restore.count, restore.median, restore.worst) == (4, 25.0, 60.0)
    assert (restore.latest, restore.latest_period) == (60.0, "2026-11")


def test_one_service_alone(tmp_path: Path) -> None:
    write(tmp_path, NOW - DAY, service="shop", back=600.0)
    write(tmp_path, NOW - DAY, back=60.0)
    found = of(tmp_path, service="orders")
    assert (found.journals, {each.service for each in found.services}, found.all[-1].downtime) == (1, {"orders"}, 60.0)


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, NOW - DAY)
    (folder / "journal.jsonl").write_bytes(b"nothing\n")
    write(tmp_path, NOW)
    found = of(tmp_path)
    assert (found.journals, found.unreadable) == (1, 1)
    assert list(show_trends.lines(found))[-1].startswith("Journals that cannot be read, and are not counted: 1.")


def test_words_of_a_journal_are_only_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path))
    write(tmp_path, NOW - DAY, service="or\x1b[31mders")
    show_trends.run("world", "", "month", Plain())
    assert "ders" in (said := capsys.readouterr().out) and "\x1b" not in said
    (tmp_path / "readiness-world").write_text("")
    with pytest.raises(CannotError, match="The page cannot be written to"):
        show_trends.run("world", "", "month", Plain(), report=True)


def test_a_period_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'week' is no period"):
        trends.of("world", by="week")


# ------------------------------------------------------------------------------------------------ telling


@pytest.fixture
def eventful(tmp_path: Path) -> Trends:
    for number in range(50):
        purpose = "drill" if number % 3 else "incident"
        write(tmp_path, NOW - DAY - number * 30 * DAY, purpose=purpose, blind=20.0, back=18.0 + 60 * number, rpo=number)
    return of(tmp_path, promised={"orders": 99.9, "quiet": None})


def test_the_tables_hold_the_figures(eventful: Trends) -> None:
    lines = list(show_trends.lines(eventful))
    assert " ".join(lines[0].split()) == "month incidents drills RTO met RPO met to detect to recover down available"
    assert lines[12].split()[:3] == ["2026-11", "1", "0"]
    assert " 20 s       18 s        38 s  " in lines[12]
    assert any(line.startswith("quiet") and line.split()[-2:] == ["100", "%"] for line in lines)


def test_json_is_plain_and_holds_all_periods(eventful: Trends) -> None:
    data = json.loads(json.dumps(show_trends.to_json(eventful)))
    assert len(data["all"]) == len(eventful.all) > show_trends.MOST_PERIODS
    assert data["all"][-1]["period"] == "2026-11"
    assert data["all"][-1]["rto_met"] == {"met": 1, "measured": 1}
    assert data["services"][-2]["promise_kept"] is True


def test_the_page_is_valid_and_has_the_numbers_of_each_picture(eventful: Trends) -> None:
    root = page_reader.read(show_trends.page(eventful))
    assert page_reader.faults(root) == []
    drawings = list(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(drawings) == 4
    words = page_reader.texts(root)
    for figure in ("18 s", "38 s", "99.9", "20 s", "2022-11"):
        assert figure in words
    titles = [page_reader.texts(each) for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "2026-11, down: 38 s" in titles, "each column says its figure"


def test_a_page_about_nothing_is_valid(tmp_path: Path) -> None:
    html = show_trends.page(of(tmp_path))
    assert page_reader.faults(page_reader.read(html)) == []
    assert "Nothing was measured yet." in html


def test_columns_stay_inside_and_clear_of_each_other() -> None:
    values = [None, 0.0, 5.0, 10.0, 1e9, 3.0]
    for count in (1, 2, 12, 36, 400):
        series = [Series(name, name, (values * 70)[:count]) for name in ("first", "second")]
        drawn = chart.columns(
            [f"2026-{number:03d}" for number in range(count)], series, clock.write_duration, limit=7.0
        )
        if drawn is None:
            assert count == 1
            continue
        assert drawn.left_out == max(0, count - chart.MOST_COLUMNS)
        for each in drawn.columns:
            assert drawn.left <= each.x and each.x + each.width <= drawn.right
            assert each.y >= 0 and each.height >= 1 and each.y + each.height <= drawn.height
        places = sorted((each.x, each.x + each.width) for each in drawn.columns)
        assert all(one[1] <= other[0] for one, other in pairwise(places))
        names = drawn.names
        assert all(one.end < other.x for one, other in pairwise(names))
        assert {each.look for each in drawn.columns if each.height > 100} <= {"beyond", "first", "second"}


def test_each_column_bears_its_figure_or_none_does() -> None:
    """Of twelve months those alone that were without any downtime bore one: 0.0 s."""
    for count in (2, 14):
        values = [0.0, 13_320.0] * (count // 2)
        drawn = chart.columns(["2026-11"] * count, [Series("down", "first", values)], clock.write_duration)
        assert drawn
        assert {bool(each.label.text) for each in drawn.columns} == {count == 2}


def test_what_is_beyond_the_limit_looks_so() -> None:
    drawn = chart.columns(
        ["a", "b"], [Series("down", "first", [5.0, 20.0])], clock.write_duration, limit=7.0, limit_name="x"
    )
    assert drawn and drawn.limit
    assert [each.look for each in drawn.columns] == ["first", "beyond"]
    assert drawn.columns[1].y < drawn.limit[0] < drawn.columns[0].y


def test_inv_trends_says_it_and_writes_the_page(tmp_path: Path) -> None:
    write(tmp_path / "incidents", NOW - DAY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = (
        "import os, sys; from salvor import show; from salvor.trends import show as show_trends\n"
        "show_trends.run('world', '', 'month', show.Plain(), report=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={"SALVOR_INCIDENTS": str(tmp_path / "incidents"), "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert "2026-11  1" in done.stdout
    page = tmp_path / "incidents" / "readiness-world" / "trends.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert {path: path.read_bytes() for path in before} == before

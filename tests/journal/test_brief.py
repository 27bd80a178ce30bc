from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salvor.history import History
from salvor.journal import FILE, Journal, brief, story
from salvor.journal.brief import Act

from tests import past, told
from tests.past import NOW


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eventful") / "20261121T003300Z-orders-bbbb"
    told.eventful(folder).journal.close()
    return folder


def of(folder: Path) -> brief.Brief:
    found = brief.read(folder)
    assert found
    return found


def test_the_brief_says_what_the_story_says(eventful: Path) -> None:
    short, whole = of(eventful), story.read(eventful)
    assert (short.incident, short.platform, short.service, short.purpose) == (
        whole.incident, whole.platform, whole.service, whole.purpose,
    )  # fmt: skip
    assert (short.detected_at, short.failed_at) == (whole.detected_at, whole.failed_at)
    assert short.measured == whole.measured
    assert [short.is_met(name) for name in ("rto", "rpo")] == [whole.is_met(name) for name in ("rto", "rpo")]
    assert short.state == whole.state == "recovered, undone, closed"
    assert short.owed == [owed.what for owed in whole.owed if owed.paid is None]
    assert short.ways == {each.system: each.way.name for each in whole.decisions}
    done = [act for act in whole.acts if act.outcome == "done"]
    assert sorted(short.acts) == sorted(Act(act.change.system, act.change.verb, act.seconds or 0.0, 0) for act in done)
    for name, seconds in short.steps.items():
        assert seconds == max(run.seconds for run in whole.steps if run.name == name and run.seconds is not None)


def test_wherever_a_journal_is_torn_its_beginning_is_told(eventful: Path, tmp_path: Path) -> None:
    content = (eventful / FILE).read_bytes()
    first = content.index(b"\n")
    for cut in range(0, len(content), 211):
        (tmp_path / FILE).write_bytes(content[:cut])
        found = brief.read(tmp_path)
        assert (found is None) == (cut < first), cut
        assert found is None or found.service == "orders"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_no_error_and_hides_one_line_only(eventful: Path, data: st.DataObject) -> None:
    lines = (eventful / FILE).read_bytes().split(b"\n")
    number = data.draw(st.integers(1, len(lines) - 2))
    lines[number] = data.draw(st.sampled_from([b"", b"{", b"[]", b'{"kind":"measured"}', lines[number][:-9], b"\xff"]))
    found = brief._tell(b"\n".join(lines))
    assert found
    assert found.detected_at == told.BEGIN
    assert len(found.acts) >= len(of(eventful).acts) - 1


def test_one_that_is_over_is_told_by_its_end(tmp_path: Path) -> None:
    ends = {end: past.write(tmp_path, NOW, end=end) for end in ("closed", "undone", "discarded", "")}
    assert {end: brief.is_over(folder) for end, folder in ends.items()} == {
        "closed": True, "undone": True, "discarded": True, "": False,
    }  # fmt: skip
    assert not brief.is_over(tmp_path / "nothing")


def test_a_note_about_closing_closes_nothing(tmp_path: Path) -> None:
    folder = past.write(tmp_path, NOW, end="")
    with Journal.open(folder, by="kim") as journal:
        journal.append("note", text='","kind":"closed"} "kind":"closed"', more={"kind": "closed"})
    assert not brief.is_over(folder)
    assert not of(folder).is_over


def test_the_newest_come_first_and_a_platform_alone(tmp_path: Path) -> None:
    first = past.write(tmp_path, NOW - timedelta(days=2))
    past.write(tmp_path, NOW - timedelta(days=1), platform="other")
    last = past.write(tmp_path, NOW)
    broken = tmp_path / "20261120T000000Z-orders-ffff"
    broken.mkdir()
    (broken / FILE).write_bytes(b'{"n":1,"at"')
    found = list(brief.newest_first(tmp_path, "world"))
    assert [each and each.incident for each in found] == [last.name, None, first.name]
    assert len(list(brief.newest_first(tmp_path))) == 4
    assert list(brief.newest_first(tmp_path / "none")) == []


def test_an_incident_names_its_service() -> None:
    assert brief.service_of("20261121T003300Z-web-shop-2-3f2a") == "web-shop-2"


def test_history_is_of_the_platform_alone(tmp_path: Path) -> None:
    for days, rto, platform in ((3, 30.0, "world"), (2, 50.0, "world"), (1, 900.0, "other")):
        past.write(
            tmp_path, NOW - timedelta(days=days), back=rto, platform=platform, steps={"restore": rto / 2, "verify": 1.0}
        )
    history = History(tmp_path, "world")
    assert history.expected("orders-db", "physical") == 40.0
    assert history.expected("orders-db", "failover") is None
    assert history.last("orders-db", "stage") == 25.0
    assert history.last("orders-db", "promote") is None
    assert history.proven("orders-db", "b1") is not None
    assert history.proven("orders-db", "b2") is None


def test_a_proof_is_known_however_many_nights_came_since(tmp_path: Path) -> None:
    past.write(tmp_path, NOW - timedelta(days=90), backup="proven-once")
    for days in range(60):
        past.write(tmp_path, NOW - timedelta(days=days), steps={}, purpose="maintenance", back=None)
    assert History(tmp_path, "world").proven("orders-db", "proven-once")


def test_what_a_restore_moved_is_known(tmp_path: Path) -> None:
    folder = past.write(tmp_path, NOW, moved=10**9)
    assert of(folder).acts == [Act("orders-db", "stage", 10.0, 10**9)]

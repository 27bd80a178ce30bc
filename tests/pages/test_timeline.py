from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from salvor.journal import story
from salvor.journal.happened import Story
from salvor.pages import timeline
from salvor.pages.axis import LEFT, RIGHT, Axis
from salvor.pages.labels import WIDTH, Text, place_flags

from tests import told


def drawn(folder: Path, write: Callable[[Path], told.Teller]) -> tuple[Story, timeline.Picture]:
    write(folder).journal.close()
    read = story.read(folder)
    picture = timeline.draw(read)
    assert picture
    return read, picture


def texts(picture: timeline.Picture) -> list[Text]:
    bars = [bar.label for lane in picture.lanes for bar in lane.bars]
    return [*bars, *picture.ticks, *(line.label for line in picture.lines), *(one.label for one in picture.breaks)]


SCENES = {
    "usual": told.usual,
    "eventful": told.eventful,
    "five": lambda folder: told.crowded(folder, 5),
    "sixty": lambda folder: told.crowded(folder, 60),
    "many": lambda folder: told.crowded(folder, 300),
}


@pytest.mark.parametrize("scene", SCENES)
def test_no_text_lies_over_another_and_all_is_inside(tmp_path: Path, scene: str) -> None:
    _, picture = drawn(tmp_path / "20261121T003300Z-orders-aaaa", SCENES[scene])
    placed = [text for text in texts(picture) if text.text]
    for text in placed:
        assert text.x >= 0 and text.end <= WIDTH + 1 and 0 < text.y <= picture.height, text
    for one, other in combinations(placed, 2):
        if abs(one.y - other.y) < 11:
            assert one.end <= other.x or other.end <= one.x, (one, other)


def test_bars_lie_in_their_lanes_and_take_their_time(tmp_path: Path) -> None:
    _, picture = drawn(tmp_path / "20261121T003300Z-orders-aaaa", told.usual)
    assert [lane.name for lane in picture.lanes] == ["assess", "notify", "isolate", "restore", "verify", "reroute"]
    for lane in picture.lanes:
        for bar in lane.bars:
            assert lane.y <= bar.y and bar.y + bar.height <= lane.y + lane.height
            assert bar.x >= LEFT and bar.x + bar.width <= WIDTH
    widths = {bar.label.text: bar.width for lane in picture.lanes for bar in lane.bars}
    stage, verify = widths["stage · 3 min 04 s"], widths["3 passed"]
    assert stage / verify == pytest.approx(184.2 / 9.1, rel=0.01)


def test_the_moments_that_count_are_drawn(tmp_path: Path) -> None:
    _, picture = drawn(tmp_path / "20261121T003300Z-orders-bbbb", told.eventful)
    kinds = {line.kind for line in picture.lines}
    assert kinds >= {"failure", "detection", "target", "recovery", "interruption", "undone", "closed", "repaired"}
    by_kind = {line.kind: line.x for line in picture.lines}
    assert by_kind["failure"] < by_kind["detection"] < by_kind["target"] < by_kind["recovery"] < by_kind["undone"]
    assert {one.kind for one in picture.breaks} == {"idle", "interruption"}
    assert "failed" in {bar.look for lane in picture.lanes for bar in lane.bars}


def test_what_is_not_drawn_is_counted(tmp_path: Path) -> None:
    read, picture = drawn(tmp_path / "20261121T003300Z-orders-cccc", lambda folder: told.crowded(folder, 300))
    shown = sum(bar.kind == "change" for lane in picture.lanes for bar in lane.bars)
    assert (shown, shown + picture.left_out) == (timeline.MOST_BARS, len(read.acts))


def test_nothing_is_drawn_of_nothing() -> None:
    assert timeline.draw(Story("x")) is None


seconds = st.floats(0, 10**7)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30))
def test_time_never_runs_backwards_on_the_axis(pairs: list[tuple[float, float]]) -> None:
    spans = [(told.later(begin), told.later(begin + length)) for begin, length in pairs]
    axis = Axis(spans)
    moments = sorted({moment for span in spans for moment in span})
    places = [axis.x(moment) for moment in moments]
    assert all(one <= other + 1e-6 for one, other in pairwise(places))
    assert places[0] == pytest.approx(LEFT) and places[-1] <= RIGHT + 0.01


@given(st.lists(st.tuples(st.floats(LEFT, RIGHT), st.text("abc ", min_size=1, max_size=25)), max_size=24))
def test_flags_never_lie_over_each_other(lines: list[tuple[float, str]]) -> None:
    flags = place_flags(lines)
    for one, other in combinations(flags, 2):
        if one.row == other.row:
            assert one.end < other.begin or other.end < one.begin


def test_a_failure_is_a_moment_and_a_note_of_the_review_is_none(tmp_path: Path) -> None:
    def write(folder: Path) -> told.Teller:
        teller = told.Teller(folder).assess().line("note", text="the disk is full").line("failed", text="no room")
        return teller.wait(60).resume("lee@ops2", "ops2").recover().line("note", text="action: buy a disk @kim")

    _, picture = drawn(tmp_path / "20261121T003300Z-orders-aaaa", write)
    words = [line.label.text for line in picture.lines]
    assert words.count("note") == 1 and "the work failed" in words

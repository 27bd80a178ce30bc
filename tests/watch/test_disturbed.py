"""A watcher whose clock is set back, and one whose disk takes nothing."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from salvor import journal
from salvor.change import Level
from salvor.errors import CannotError
from salvor.journal import Journal, evidence
from salvor.show import Plain
from salvor.watch import acknowledgement, commands

from tests.journal.test_journal_faults import fill, small_disk
from tests.waiting import until
from tests.watch.place import Place


def test_a_clock_that_is_set_back_by_a_day_holds_nobody_up(place: Place) -> None:
    """What was done seems to be yet to come: for a day nothing was done, and nobody called."""
    day = 86400
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300, 310 - day):
        place.look(watcher, seconds)
    assert (place.pages, place.restarts) == (0, 1)
    place.look(watcher, 440 - day)
    assert place.calls[-1] == "devops called"
    place.look(watcher, 450 - 2 * day)
    assert place.calls[-1] == "lead called"
    place.say(10)
    place.look(watcher, 460 - 2 * day)
    for back in (3, 3):  # a new episode, older by its name than the one before: it is gone on with, then cooled down
        place.say(90)
        for seconds in range(500, 981, 60):
            place.look(watcher, seconds - back * day)
        place.say(10)
        place.look(watcher, 1000 - back * day)
    assert len(place.journals()) == 3
    assert place.restarts == 2


def test_a_clock_that_is_set_back_by_a_second_lets_nobody_begin_to_wait_anew(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 290, 289, 301):
        place.look(watcher, seconds)
    assert place.pages == 0


def test_a_clock_that_is_set_back_by_a_day_lets_a_rule_wait_anew_and_not_for_that_day(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (86400, 86550, 200, 350, 501):
        place.look(watcher, seconds)
    assert place.pages == 0


def test_a_log_that_takes_nothing_holds_nobody_up(place: Place) -> None:
    """Its line came before the move: with a log on a full disk, or a reader that was gone, nothing was ever done."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    place.say(90)
    for seconds in (0, 150, 300, 430, 560):
        with place.at(seconds):
            commands.watch("place", Plain(Full()), once=True)
    assert (place.pages, place.restarts) == (0, 1)
    assert place.calls == ["team acting", "tickets called", "devops called"]


def test_a_lock_that_cannot_be_taken_holds_no_call_back(place: Place) -> None:
    """It was in the log alone, at each look."""
    (place.root / "elsewhere").mkdir()
    (place.root / "incidents").mkdir()
    (place.root / "incidents/.locks").symlink_to(place.root / "elsewhere")
    place.say(90)
    watcher, said = place.watcher()
    for seconds in (0, 300, 600, 890):
        place.look(watcher, seconds)
    assert said.getvalue().count("act failed, and is tried again: The lock on shop cannot be taken") == 1
    assert place.calls == []
    for seconds in (900, 905, 1200, 1510):
        place.look(watcher, seconds)
    assert place.calls == ["tickets called", "devops called", "lead called"]
    place.say(10)
    place.look(watcher, 1520)
    assert place.calls[3:] == ["tickets better", "devops better", "lead better", "team better"]
    assert place.journals()[0].lines[-1]["kind"] == "closed"
    assert (place.pages, place.restarts) == (2, 0)


FullDisk = tuple[Path, Callable[[], None]]


@pytest.fixture
def full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    """A disk for the incidents that takes nothing, and what makes room on it."""
    disk = place.root / "disk"
    disk.mkdir()
    monkeypatch.setenv("SALVOR_INCIDENTS", str(disk / "incidents"))
    with small_disk(disk) as make_room:
        fill(disk)
        yield disk, make_room


def test_a_disk_that_takes_nothing_leads_to_cache_restart_people_once_each_too(
    place: Place, full_disk: FullDisk
) -> None:
    """The watcher did not know what it could not write down: it acted at each look, and never called anybody."""
    disk, make_room = full_disk
    place.say(90)
    watcher, said = place.watcher()
    for seconds in (*range(0, 600, 20), 1200):
        place.look(watcher, seconds)
    assert (place.pages, place.restarts) == (0, 1)
    assert [call for call in place.calls if call.endswith("called")] == [
        "tickets called", "devops called", "lead called",
    ]  # fmt: skip
    make_room()
    place.say(10)
    place.look(watcher, 1210)
    (folder,) = journal.incidents(disk / "incidents")
    assert Journal.read(folder).lines[-1]["kind"] == "closed"
    assert not [each for each in evidence.check(folder) if each.level is Level.FAIL]
    assert place.calls[-4:] == ["tickets better", "devops better", "lead better", "team better"]
    assert said.getvalue().count("-> pages: clear") == 1


def test_what_was_done_is_written_down_when_the_disk_takes_it_though_it_is_over(
    place: Place, full_disk: FullDisk
) -> None:
    """It was held for ever, and lost when the watcher ended."""
    disk, make_room = full_disk
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    place.say(10)
    place.look(watcher, 310)
    with place.at(315):
        commands.show_all("place", Plain(told := io.StringIO()))
    assert "The disk takes nothing: what a watcher does meanwhile" in told.getvalue()
    make_room()
    place.look(watcher, 320)
    (path,) = (disk / "incidents").glob("*/journal.jsonl")
    assert b'"kind":"closed"' in path.read_bytes()


def test_on_a_disk_that_takes_nothing_an_acknowledgement_is_handed_to_the_watcher(
    place: Place, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no such episode on the disk, or its journal did not take the line, which was lost with its process."""
    disk, make_room = full_disk
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300, 430, 560):
        place.look(watcher, seconds)
    assert place.calls[-1] == "devops called"
    episode = (place.root / "last-message").read_text().split("--episode=")[1].strip()
    told = io.StringIO()
    asked = threading.Thread(target=commands.acknowledge, args=(episode, "mine", Plain(told)))
    asked.start()
    assert until(lambda: "The watcher is told in memory" in told.getvalue())
    assert until(lambda: "acknowledged by" in place.look(watcher, 570).move.why)
    asked.join(10)
    assert f"{episode} is acknowledged by watcher@here" in told.getvalue()
    for seconds in range(600, 2400, 200):
        place.look(watcher, seconds)
    assert "lead called" not in place.calls
    monkeypatch.setattr(acknowledgement, "_TAKEN_WITHIN", 0.2)
    with pytest.raises(CannotError, match="is NOT acknowledged"):
        commands.acknowledge("20261121T033355Z-memory-0000", "", Plain(told))
    make_room()
    place.say(10)
    place.look(watcher, 2410)
    journal = Journal.read(disk / "incidents" / episode)
    assert [line["text"] for line in journal.of("acknowledged")] == ["mine"]
    assert journal.lines[-1]["kind"] == "closed"

"""People who are called, acknowledge, work on the service meanwhile, or could not be reached."""

from __future__ import annotations

import io
import threading

import pytest
from salvor.errors import PlanMovedError, UsageError
from salvor.journal import Journal, lock, story
from salvor.session import handover
from salvor.show import Plain
from salvor.watch import commands, moves

from tests.waiting import until
from tests.watch.place import PLATFORM, Place


def test_who_acknowledges_stops_the_calls_and_the_actions(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in range(0, 600, 10):
        place.look(watcher, seconds)
    assert "devops called" in place.calls
    (journal,) = place.journals()
    with place.at(610):
        for _ in range(2):
            commands.acknowledge(journal.folder.name, "I look", Plain(told := io.StringIO()))
    assert "was acknowledged by watcher@here at 03:10:10 UTC; nothing is added" in told.getvalue()
    screen = handover.screen(handover.of(story.read(journal.folder), journal.folder.parent))
    assert "taken by    watcher@here 03:10 UTC: I look" in screen
    for seconds in range(620, 4000, 60):
        move = place.look(watcher, seconds).move
        assert (move.kind, move.why[:40]) == ("wait", "acknowledged by watcher@here at 03:10:10")
    assert "at 2026-11-21 03:10:10 UTC" in place.look(watcher, 86400).move.why
    assert "lead called" not in place.calls
    (line,) = place.journals()[0].of("acknowledged")
    assert (line["by"], line["text"], line["at"][11:19]) == ("watcher@here", "I look", "03:10:10")
    place.say(10)
    place.look(watcher, 86410)
    with pytest.raises(UsageError, match="is over"):
        commands.acknowledge(journal.folder.name, "too late", Plain(io.StringIO()))
    with pytest.raises(UsageError, match="there is no episode"):
        commands.acknowledge("20261121T033355Z-memory-0000", "", Plain(io.StringIO()))


def test_who_could_not_be_called_is_called_again_after_five_minutes(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    (place.root / "deaf").write_text("devops")
    for seconds in (0, 150, 300, 430, 560):
        place.look(watcher, seconds)
    move = place.look(watcher, 570).move
    assert move.why == "called, not taken by devops; next: devops once more at 03:14:20 UTC, lead at 03:19:20 UTC"
    (place.root / "deaf").unlink()
    place.look(watcher, 850)
    assert place.calls == ["team acting", "tickets called", "devops called refused"]
    place.look(watcher, 861)
    assert place.calls[3:] == ["devops called"]
    (journal,) = place.journals()
    path = journal.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    cut = max(number for number, line in enumerate(lines, 1) if b'"kind":"intent"' in line)
    path.write_bytes(b"".join(lines[:cut]))
    (journal.folder / "outbox/called.devops.sent").rename(journal.folder / "outbox/called.devops.sending")
    place.look(place.watcher()[0], 870)  # whether they were called is not known: no reason to wait
    assert place.calls[4:] == ["devops called"]


def test_who_was_not_reached_does_not_hear_that_it_is_better(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    (place.root / "deaf").write_text("devops")
    for seconds in (0, 150, 300, 430, 560):
        place.look(watcher, seconds)
    (place.root / "deaf").unlink()
    place.say(10)
    place.look(watcher, 570)
    assert place.calls[2:] == ["devops called refused", "tickets better", "team better"]


def test_who_acknowledges_between_a_look_and_its_move_stops_the_move(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    with place.at(430):
        seen = watcher.see("memory")
        assert (seen.move.kind, seen.move.stage) == ("act", "then")
        commands.acknowledge(place.journals()[0].folder.name, "", Plain(io.StringIO()))
        moves.make(watcher.platform, seen, watcher.shown, watcher.stopping)
        with Journal.open(place.journals()[0].folder, by="kim") as journal:
            journal.append("closed", result="by hand")
        with pytest.raises(PlanMovedError, match="closed, by somebody else"):
            moves.make(watcher.platform, seen, watcher.shown, watcher.stopping)
    assert place.restarts == 0


def test_who_acknowledges_while_the_watcher_acts_is_told_so_and_is_noted_after_it(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    folder, told = place.journals()[0].folder, io.StringIO()
    asked = threading.Thread(target=commands.acknowledge, args=(folder.name, "mine", Plain(told)))
    with Journal.open(folder, by="watcher"):
        asked.start()
        assert until(lambda: "The watcher acts just now" in told.getvalue())
    asked.join(10)
    assert "is acknowledged by" in told.getvalue()
    assert [line["text"] for line in Journal.read(folder).of("acknowledged")] == ["mine"]


def test_while_an_operator_works_on_the_service_nothing_is_done(place: Place) -> None:
    place.say(90)
    watcher, said = place.watcher()
    with lock.hold("shop", place.root / "incidents", by="kim@ops1", incident="restore"):
        for seconds in (0, 300, 310, 320):
            place.look(watcher, seconds)
    assert place.pages == 2
    assert place.journals() == []
    assert said.getvalue().count("kim@ops1 works on shop now") == 1
    place.look(watcher, 330)
    assert place.pages == 0


def test_who_works_on_the_service_for_long_holds_no_call_back(place: Place) -> None:
    """A backup of hours did: the rule did not act, and called nobody."""
    place.say(90)
    watcher, _ = place.watcher()
    with lock.hold("shop", place.root / "incidents", by="kim@ops1", incident="backup"):
        for seconds in (0, 300, 600, 890):
            place.look(watcher, seconds)
        assert (place.calls, place.journals()) == ([], [])
        for seconds in (900, 905, 910):
            place.look(watcher, seconds)
        assert place.calls == ["tickets called", "devops called"]
        assert "Why you are called: kim@ops1 works on shop now" in (place.root / "last-message").read_text()
        place.say(10)
        place.look(watcher, 920)
        assert len(place.calls) == 2
    place.look(watcher, 930)
    assert place.calls[2:] == ["tickets better", "devops better", "team better"]
    assert (place.pages, place.restarts) == (2, 0)
    place.write(text=PLATFORM.replace("    escalate: on-call\n", ""))
    place.say(90)
    watcher, said = place.watcher()
    with lock.hold("shop", place.root / "incidents", by="kim@ops1", incident="backup"):
        for seconds in range(3000, 4500, 300):
            place.look(watcher, seconds)
    assert said.getvalue().count("\n") == 3, "the rule goes on as it did"

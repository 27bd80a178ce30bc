"""The chain of a rule: cache, restart, people, in that order and once each; and all that stops it."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pytest
from salvor import clock, console, inventory
from salvor.change import Level
from salvor.errors import CannotError, UsageError
from salvor.journal import Journal, evidence, lock, story
from salvor.session import aftermath, handover
from salvor.show import Plain
from salvor.system import Context
from salvor.watch import commands

from tests.watch.place import PLATFORM, Place


def test_an_episode_says_what_can_be_done_with_it_and_nobody_is_told_of_an_undo_of_nothing(place: Place) -> None:
    place.say(91.5)
    watcher, _ = place.watcher()
    for seconds in (0, 301, 430, 560):
        place.look(watcher, seconds)
    (journal,) = place.journals()
    episode, calls = journal.folder.name, place.calls
    assert "Why you are called: it is not better after all" in (place.root / "last-message").read_text()
    screen = "\n".join(handover.screen(handover.of(story.read(journal.folder), journal.folder.parent)))
    assert f"next        inv watch.ack --episode={episode}" in screen
    assert "2 changes: pages: clear" in screen and "acting team, called tickets, called devops" in screen
    assert not re.search("^(RTO|RPO|undo|undoable|or) |STOPPED|inv restore", screen, re.MULTILINE)
    said = io.StringIO()
    aftermath.undo(episode, Plain(said), yes=True)
    assert "has a way back" in said.getvalue()
    with pytest.raises(UsageError, match="is no recovery") as refused:
        console.recover(aftermath.of_id(episode, Plain(said)), Plain(said), yes=True)
    assert refused.value.hint.endswith("inv restore --service=shop --platform=place")
    assert place.calls == calls and place.journals()[0].lines == journal.lines


def test_what_cannot_be_restarted_is_not_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    for name in ("old", "new"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/new")
    (tmp_path / "place.yaml").write_text(
        f"systems:\n  api: {{kind: application, service: salvor-none, releases: {tmp_path}/releases}}\n"
    )
    api = inventory.load("place").open("api", Context("", tmp_path, dict))
    with pytest.raises(CannotError):
        list(api.apply(api.change("roll_back", why="", no_undo="-", release="old", run="")))
    assert (tmp_path / "current").readlink() == Path("releases/new")


def test_memory_at_its_limit_leads_to_cache_restart_people_in_this_order_and_once_each(place: Place) -> None:
    place.say(91.5)
    watcher, said = place.watcher()
    happened: list[tuple[int, tuple[bool, int, list[str]]]] = []
    for seconds in range(0, 2400, 5):
        place.look(watcher, seconds)
        now = (place.pages == 0, place.restarts, [call for call in place.calls if call.endswith("called")])
        if not happened or happened[-1][1] != now:
            happened.append((seconds, now))
    times = [seconds for seconds, _ in happened]
    assert [what for _, what in happened] == [
        (False, 0, []),
        (True, 0, []),
        (True, 1, []),
        (True, 1, ["tickets called", "devops called"]),
        (True, 1, ["tickets called", "devops called", "lead called"]),
    ]
    assert 300 <= times[1] <= 315
    assert times[2] - times[1] == pytest.approx(120, abs=10)
    assert times[3] - times[2] == pytest.approx(120, abs=15)
    assert times[4] - times[3] == pytest.approx(600, abs=15)
    assert [call for call in place.calls if not call.endswith("called")] == ["team acting"]
    place.say(40)
    place.look(watcher, 2405)
    assert sorted(call for call in place.calls if call.endswith("better")) == [
        "devops better",
        "lead better",
        "team better",
        "tickets better",
    ]
    (journal,) = place.journals()
    assert journal.lines[-1]["kind"] == "closed"
    assert "better: 40" in journal.lines[-1]["result"]
    assert [line["change"]["verb"] for line in journal.of("intent") if line["step"] in ("immediately", "then")] == [
        "clear",
        "restart",
    ]
    assert not [each for each in evidence.check(journal.folder) if each.level is Level.FAIL]
    assert "it is not better after all that could be done" in said.getvalue()


def test_better_midway_stops_the_chain_and_says_so(place: Place) -> None:
    place.say(90)
    watcher, said = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    assert place.pages == 0
    place.say(60)
    place.look(watcher, 310)
    assert "better: 60" in said.getvalue()
    place.say(90)
    for seconds in (500, 600, 799):
        place.look(watcher, seconds)
    assert place.restarts == 0
    assert place.calls == ["team acting", "team better"]
    assert place.journals()[0].lines[-1]["result"] == "better: 60"


def test_a_figure_that_flaps_does_not_flap_the_actions(place: Place) -> None:
    place.write(text=PLATFORM.replace("    escalate: on-call\n", ""))
    watcher, _ = place.watcher()
    for seconds in range(0, 1800, 60):
        place.say(90 if seconds % 120 else 50)
        place.look(watcher, seconds)
    assert place.pages == 2
    assert place.journals() == []
    begun = 1800
    for seconds in range(begun, begun + 2 * 3600, 60):  # bad for 6 minutes, good for 1
        place.say(50 if (seconds - begun) % 420 == 360 else 90)
        place.look(watcher, seconds)
    acts = [clock.read_time(line["at"]) for journal in place.journals() for line in journal.of("intent")]
    assert len(place.journals()) >= 3
    begins = sorted(clock.read_time(journal.lines[0]["at"]) for journal in place.journals())
    assert all((b - a).total_seconds() >= 1800 for a, b in itertools.pairwise(begins))
    assert acts


def test_a_fault_that_comes_back_while_its_rule_cools_down_is_people_s(place: Place) -> None:
    """Nobody was called until the cool-down was over."""
    place.say(90)
    watcher, said = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    assert place.pages == 0
    place.say(10)
    place.look(watcher, 310)
    place.fill()
    place.say(90)
    for seconds in (320, 470, 620):
        assert place.pages == 2
        place.look(watcher, seconds)
    assert place.calls[-2:] == ["tickets called", "devops called"]
    assert f"again after {place.journals()[1].folder.name}, and cools down until 03:35:10 UTC" in said.getvalue()
    place.say(10)
    place.look(watcher, 630)
    assert place.look(watcher, 2431).move.kind == "close"
    place.say(90)
    for seconds in (2440, 2590, 2740):  # only what acted cools down
        assert place.pages == 2
        place.look(watcher, seconds)
    assert place.pages == 0


def test_people_are_called_once_for_a_fault_that_comes_and_goes(place: Place) -> None:
    """Each time that it came back within the cool-down they were called, and told that it is better."""
    watcher, _ = place.watcher()
    for begun in range(0, 3600, 600):
        place.say(90)
        for seconds in (0, 150, 300):
            place.look(watcher, begun + seconds)
        place.say(10)
        place.look(watcher, begun + 310)
        watcher, said = place.watcher()  # any watcher goes on
    called = ["tickets called", "devops called", "lead called"]
    assert place.calls == ["team acting", "team better", *called]
    assert "comes and goes: over when it stays good until 04:25:10 UTC" in place.look(watcher, 4000).move.why
    assert "better" not in place.calls[-1]
    place.look(watcher, 5111)
    assert sorted(place.calls[-4:]) == ["devops better", "lead better", "team better", "tickets better"]
    place.say(90)
    for seconds in (5120, 5270, 5420):  # another fault is acted on anew
        place.look(watcher, seconds)
    assert place.calls[-1] == "team acting" and said.getvalue()


def test_a_rule_that_only_calls_calls_once_more_for_what_comes_back_and_then_waits_for_it_to_stay_good(
    place: Place,
) -> None:
    place.write(text=re.sub("    (immediately|then): .*\n", "", PLATFORM))
    watcher, _ = place.watcher()
    for begun in range(0, 2400, 400):
        place.say(90)
        for seconds in (0, 150, 300):
            place.look(watcher, begun + seconds)
        place.say(10)
        place.look(watcher, begun + 310)
    assert place.calls.count("devops called") == 2 and place.calls.count("devops better") == 1


def test_more_actions_than_an_hour_may_have_are_people_s(place: Place) -> None:
    place.write(most=1)
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in range(0, 700, 10):
        place.look(watcher, seconds)
    assert (place.pages, place.restarts) == (0, 0)
    assert "devops called" in place.calls
    assert "1 times within an hour" in (place.root / "last-message").read_text()


def test_actions_within_the_hour_count_though_their_episodes_have_cooled_down(place: Place) -> None:
    place.write(text=PLATFORM.replace("cool_down: 30m", "cool_down: 1m"), most=2)
    watcher, _ = place.watcher()
    for begun in (0, 400, 800):
        assert place.calls[-1:] != ["devops called"]
        place.fill()
        place.say(90)
        for seconds in (0, 150, 300):
            place.look(watcher, begun + seconds)
        place.say(10)
        place.look(watcher, begun + 310)
    assert place.pages == 2
    assert "devops called" in place.calls


def test_a_cool_down_longer_than_an_hour_is_kept_behind_an_episode_that_only_called(place: Place) -> None:
    place.write(text=PLATFORM.replace("cool_down: 30m", "cool_down: 4h"))
    watcher, _ = place.watcher()
    for begun in (0, 400, 3 * 3600):
        place.fill()
        place.say(90)
        for seconds in (0, 150, 300):
            place.look(watcher, begun + seconds)
        assert place.pages == (2 if begun else 0)
        place.say(10)
        place.look(watcher, begun + 310)
    assert place.calls.count("devops called") == 1  # it comes and goes


def test_what_cannot_be_told_acts_on_nothing_and_becomes_people_s(place: Place) -> None:
    place.say(None)
    watcher, _ = place.watcher()
    for seconds in range(0, 590, 30):
        assert place.look(watcher, seconds).reading.bad is None
    assert place.calls == []
    for seconds in (600, 605, 610):
        place.look(watcher, seconds)
    assert place.calls == ["tickets called", "devops called"]
    assert (place.pages, place.restarts) == (2, 0)
    (journal,) = place.journals()
    with place.at(612):  # it is theirs that it cannot be told, not what is told then
        commands.acknowledge(journal.folder.name, "I start Prometheus", Plain(io.StringIO()))
    assert place.look(watcher, 615).move.kind == "wait"
    place.say(90)
    place.look(watcher, 620)
    (journal,) = place.journals()
    assert "can be told again" in journal.lines[-1]["result"]
    assert place.calls[2:] == ["tickets told-again", "devops told-again", "team told-again"]  # it is not better
    for seconds in (640, 900, 921):
        place.look(watcher, seconds)
    assert place.pages == 0  # it was seen bad for five minutes now


def test_unknown_for_a_while_counts_neither_as_bad_nor_as_good(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in range(0, 241, 30):
        place.look(watcher, seconds)
    place.say(None)
    for seconds in range(270, 481, 30):
        place.look(watcher, seconds)
    place.say(90)
    place.look(watcher, 510)
    assert place.pages == 2
    for seconds in range(540, 601, 30):
        place.look(watcher, seconds)
    assert place.pages == 0


def test_in_the_midst_of_a_chain_unknown_stops_what_is_done_and_calls_people(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in range(0, 311, 10):
        place.look(watcher, seconds)
    assert place.pages == 0
    place.say(None)
    for seconds in range(320, 950, 10):
        place.look(watcher, seconds)
    assert place.restarts == 0
    assert "devops called" in place.calls


def test_what_was_begun_goes_on_though_the_rule_names_a_runbook_by_now(place: Place) -> None:
    """At each look it was begun anew on paper, failed, and nobody was called."""
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    path = place.journals()[0].folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    cut = max(number for number, line in enumerate(lines, 1) if b'"kind":"intent"' in line)
    path.write_bytes(b"".join(lines[:cut]))
    place.fill()
    place.write(text=PLATFORM.replace("{{clear: pages, allow: true}}", "{{runbook: restore, allow: true}}"))
    watcher, _ = place.watcher()
    for seconds in (310, 320, 330):
        place.look(watcher, seconds)
    (journal,) = place.journals()
    assert [line["outcome"] for line in journal.of("outcome") if line["step"] == "immediately"] == ["done"]


def test_an_open_episode_whose_rule_is_gone_is_named_by_the_next_watch(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    (journal,) = place.journals()
    told = io.StringIO()
    commands._tell_orphans(inventory.load("place"), Plain(told))
    assert not told.getvalue()
    place.write(text=PLATFORM.replace("  memory:\n", "  memory-of-shop:\n"))
    commands._tell_orphans(inventory.load("place"), Plain(told))
    assert f"HINT: inv incident.close --incident={journal.folder.name}" in told.getvalue()
    with Journal.open(journal.folder, by="kim") as opened:
        opened.append("closed", result="by hand")
    commands._tell_orphans(inventory.load("place"), Plain(told := io.StringIO()))
    assert not told.getvalue()


def test_an_inventory_that_names_no_messages_any_more_lets_an_episode_end(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300, 430, 560):
        place.look(watcher, seconds)
    silent = PLATFORM.replace("    escalate: on-call\n", "").replace(", messages: people}}", "}}")
    place.write(text=silent)
    place.say(10)
    watcher, said = place.watcher()
    place.look(watcher, 570)
    assert place.journals()[0].lines[-1]["kind"] == "closed"
    assert "devops was called, and does not hear that it is over" in said.getvalue()


def test_while_somebody_works_on_a_system_its_action_waits_and_fills_no_journal(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    with lock.hold("pages of place", place.root / "incidents", by="kim@ops1", incident="restore"):
        for seconds in (0, 300, *range(305, 360, 5)):
            place.look(watcher, seconds)
    assert place.pages == 2
    assert len(place.journals()[0].of("resumed")) == 0
    place.look(watcher, 365)
    assert place.pages == 0


def test_what_is_shown_is_what_would_be_done_and_writes_nothing(place: Place) -> None:
    place.say(90)
    stream = io.StringIO()
    with place.at(0):
        commands.show_all("place", Plain(stream))
    assert "memory" in stream.getvalue()
    assert "bad for 0.0 s of 5 min 00 s" in stream.getvalue()
    assert "place is not watched on this machine now" in stream.getvalue()
    assert not (place.root / "incidents").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  memory:\n", "  shop:\n", "'shop' is the name of a service"),
        ("{{clear: pages, allow: true}}", "{{clear: pages}}", "21:19: immediately.0: clear needs allow: true"),
        ("{{restart: program}}", "{{restart: pages}}", "'pages' is a cache: it has no restart"),
        ("{{restart: program}}", "{{restart: nobody}}", "there is no 'nobody'"),
        ("above: 85", "above: 85\n    below: 3", "needs one limit"),
        ("for: 5m", "title: x", "for"),
        ("escalate: on-call", "escalate: nobody", "there is no 'nobody'"),
        ("channel: lead", "channel: boss", "there is no 'boss'"),
        ("channel: devops", "channel: devops, after: 1h", "people stand in the order in which they are called"),
        ("ticket: tickets", "ticket: devops", "a channel stands twice"),
        ("messages: people\n    people", "messages: pages\n    people", "'pages' sends no messages"),
        (
            "clear: pages, allow: true}}",
            "clear: pages, allow: true}}" + 6 * ", {{restart: program}}",
            "these 7 actions",
        ),
        ("service: shop", "service: shops", "there is no 'shops'"),
        ("query: memory", "quer: memory", "there is no such setting"),
    ],
)
def test_a_mistake_is_placed(place: Place, old: str, new: str, said: str) -> None:
    assert old in PLATFORM
    place.write(text=PLATFORM.replace(old, new))
    with pytest.raises(UsageError) as raised:
        inventory.load("place")
    assert said in str(raised.value)
    assert "place.yaml:" in str(raised.value)

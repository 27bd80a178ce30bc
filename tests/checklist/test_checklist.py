"""Checklists: what is run, what is asked, what is written down, and how an interrupted one goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor import clock
from salvor.change import Level
from salvor.checklist import answers, form, walk
from salvor.checklist.answers import Answers
from salvor.errors import CannotError, HeldError, NotProvenError, UsageError
from salvor.journal import Journal, evidence, lock, story
from salvor.journal.folders import incidents_folder
from salvor.session import handover
from salvor.show import Json, Plain

from tests import page_reader, world
from tests.test_console import typing
from tests.world import World

BOOK = """
title: A checklist
every: 1d
items:
  - name: health
    what: Every service answers
    run: [status, --check]
  - name: logs
    ask: Are the logs clean?
    look: In the logs.
  - name: alerts
    ask: Is no alert open?
"""
MANUAL = """
title: A checklist
every: 1d
items:
  - {name: logs, ask: "Are the logs clean?"}
  - {name: alerts, ask: "Is no alert open?"}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "processes"))
    monkeypatch.delenv("SALVOR_SIGNING_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "books").mkdir()
    monkeypatch.setattr(form, "_folder", lambda: tmp_path / "books")
    made = world.make(tmp_path)
    write(made, MANUAL)
    return made


def write(place: World, text: str) -> None:
    (place.root / "books/daily.yaml").write_text(text)


def go(shown: Plain | Json | None = None) -> None:
    walk.walk("daily", "world", shown or Plain())


def walks() -> list[Answers]:
    return list(answers.newest_first("world", "daily"))


def outcomes() -> dict[str, str]:
    return {name: answer.outcome for name, answer in walks()[0].by_item.items()}


def test_what_can_be_run_is_run_and_people_are_asked_the_rest(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, BOOK)
    typing(monkeypatch, "yes\n\nperhaps\n NA \nnobody was on duty\n")
    go()
    assert outcomes() == {"health": "passed", "logs": "yes", "alerts": "not applicable"}
    [seen] = walks()
    assert seen.closed and seen.by_item["alerts"].note == "nobody was on duty"
    assert seen.by_item["logs"].by == "tester@here"
    assert not place.letters
    page = page_reader.read((seen.folder / "checklist.html").read_text())
    assert not page_reader.faults(page)
    words = page_reader.texts(page)
    assert "All is well" in words and "nobody was on duty" in words and "Are the logs clean?" in words
    assert not [each for each in evidence.check(seen.folder) if each.level is Level.FAIL]
    assert "alerts: not applicable: nobody was on duty" in [event.text for event in story.read(seen.folder).events]


def test_no_needs_to_say_what_is_wrong(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "no\n\n  \nthe disk is full, lee mends it\nyes\n\n")
    with pytest.raises(NotProvenError, match=r"To mend: logs \(no\)\."):
        go()
    assert walks()[0].by_item["logs"].note == "the disk is full, lee mends it"
    assert "1 item to mend" in (walks()[0].folder / "checklist.html").read_text()
    assert walks()[0].closed


def test_without_anybody_the_automatic_ones_are_done_and_the_others_are_named(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, BOOK)
    with pytest.raises(CannotError, match="2 items wait for a person: logs, alerts") as left:
        go()
    assert left.value.hint == "at a terminal: inv checklist daily --platform=world"
    assert outcomes() == {"health": "passed"} and not walks()[0].closed
    begun = handover.of(story.read(walks()[0].folder), walks()[0].folder)
    assert begun.commands[0][0] == "inv checklist daily --platform=world"
    typing(monkeypatch, "yes\n\nyes\n\n")
    go()
    [seen] = walks()
    assert seen.closed and len(Journal.read(seen.folder).of("item")) == 3, "what was good is not run again"


def test_what_failed_is_run_again(place: World) -> None:
    write(place, BOOK)
    place.damage()
    with pytest.raises(NotProvenError, match=r"health \(failed\)\. And 2 items wait"):
        go()
    assert "things (degraded)" in walks()[0].by_item["health"].note
    (place.store / "live/data").write_text(world.GOOD)
    with pytest.raises(CannotError, match="2 items wait"):
        go()
    assert outcomes() == {"health": "passed"} and len(walks()) == 1


def test_what_takes_too_long_is_unknown(place: World) -> None:
    write(place, BOOK.replace("run: [status, --check]", "run: [status, --check]\n    within: 0.2s"))
    with pytest.raises(NotProvenError, match=r"health \(unknown\)"):
        go()


def test_one_that_warns_is_done_and_one_that_cannot_begin_is_unknown(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, BOOK)
    inv = place.root / "inv"
    inv.write_text(f"#!/bin/sh\necho {'long ' * 100}\nexit 8\n")
    inv.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(inv))
    with pytest.raises(CannotError, match="2 items wait"):
        go()
    answer = walks()[0].by_item["health"]
    assert answer.outcome == "warned" and answer.note.startswith("long ") and len(answer.note) == 300
    inv.unlink()
    write(place, BOOK.replace("health", "another"))
    with pytest.raises(NotProvenError, match=r"another \(unknown\)"):
        go()


def test_an_item_of_another_platform_is_of_that_one(place: World) -> None:
    write(place, BOOK.replace("[status, --check]", "[status, --check, --platform=moon]"))
    with pytest.raises(NotProvenError, match=r"health \(failed\)"):
        go()
    assert "moon" in walks()[0].by_item["health"].note
    with pytest.raises(UsageError, match="moon"):
        walk.walk("daily", "moon", Plain())
    assert not list(answers.newest_first("moon", "daily"))


def test_each_checklist_of_each_platform_goes_its_own_way(place: World) -> None:
    for name in ("daily", "weekly"):
        (place.root / f"books/{name}.yaml").write_text(MANUAL)
        with pytest.raises(CannotError, match="2 items wait"):
            walk.walk(name, "world", Plain())
    [daily], [weekly] = (list(answers.newest_first("world", name)) for name in ("daily", "weekly"))
    assert daily.folder != weekly.folder
    assert not list(answers.newest_first("moon", "daily"))
    kept = (daily.folder / "journal.jsonl").rename(place.root / "journal.jsonl")
    (daily.folder / "journal.jsonl").symlink_to(kept)  # somebody else may have put it there
    with pytest.raises(CannotError, match="2 items wait"):
        go()
    assert [each.folder != daily.folder for each in walks()] == [True], "what cannot be read is passed over"


def test_a_command_that_is_none_fails(place: World) -> None:
    write(place, BOOK.replace("[status, --check]", "[no-such-command]"))
    with pytest.raises(NotProvenError, match=r"health \(failed\)"):
        go()
    assert "no-such-command" in walks()[0].by_item["health"].note


def test_of_much_that_a_command_says_the_beginning_and_the_end_are_kept(place: World) -> None:
    """Checks say the worst first: of many the note had only those that passed."""
    write(place, BOOK.replace("[status, --check]", "[restore, --help]"))
    with pytest.raises(CannotError, match="wait for a person"):
        go()
    said = walks()[0].by_item["health"].note.splitlines()
    assert said[0].startswith("Usage: inv") and "..." in said and len(said) == 15


def stop_at_second(stopped: Callable[[], str]) -> Callable[[str], str]:
    said = iter(["yes", "fine"])

    def answer(question: str) -> str:
        return next(said, None) or stopped()

    return answer


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], str]) -> None:
    typing(monkeypatch, "")
    monkeypatch.setattr("builtins.input", answer)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EOFError])
def test_an_interrupted_one_goes_on_where_it_was(
    place: World, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop() -> str:
        raise error

    at_a_terminal(monkeypatch, stop_at_second(stop))
    with pytest.raises((KeyboardInterrupt, CannotError)):
        go()
    assert outcomes() == {"logs": "yes"} and not walks()[0].closed
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "yes"

    at_a_terminal(monkeypatch, answer)
    go()
    assert len(asked) == 2 and outcomes() == {"logs": "yes", "alerts": "yes"} and len(walks()) == 1


def killed() -> str:
    signal.raise_signal(signal.SIGKILL)
    return ""


def test_killed_between_two_questions(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        at_a_terminal(monkeypatch, stop_at_second(killed))
        go()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert outcomes() == {"logs": "yes"}
    at_a_terminal(monkeypatch, lambda question: "yes")
    go()
    assert outcomes() == {"logs": "yes", "alerts": "yes"} and walks()[0].closed


def test_one_that_was_left_open_too_long_is_not_gone_on_with(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotError):
        go()
    later = clock.now() + timedelta(days=1, minutes=1)
    with clock.use(lambda: later):
        at_a_terminal(monkeypatch, lambda question: "yes")
        go()
    new, old = walks()
    assert new.closed and old.closed and not old.by_item
    assert "left open" in Journal.read(old.folder).of("closed")[0]["result"]


def test_a_finished_one_is_begun_anew(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch, lambda question: "yes")
    go()
    go()
    assert len(walks()) == 2


def test_two_people_do_not_go_through_it_at_once(place: World) -> None:
    with (
        lock.hold("checklist-world-daily", incidents_folder(), by="lee@there", incident="checklist daily"),
        pytest.raises(HeldError, match="lee@there"),
    ):
        go()


def test_a_secret_that_was_typed_is_not_written(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "no\npassword=hunter2hunter2\nyes\n\n")
    with pytest.raises(NotProvenError):
        go()
    for file in walks()[0].folder.iterdir():
        assert b"hunter2" not in file.read_bytes()


def test_hostile_words_are_only_words_on_the_page(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "no\n<script>alert(1)</script>\x1b[31m\u202e\nyes\n\n")
    with pytest.raises(NotProvenError):
        go()
    text = (walks()[0].folder / "checklist.html").read_text()
    assert "<script>alert" not in text and "\x1b" not in text and "\u202e" not in text
    page_reader.read(text)


def test_in_json(place: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, BOOK)
    typing(monkeypatch, "yes\n\nyes\n\n")  # who reads JSON is no person, also at a terminal
    with pytest.raises(CannotError, match="2 items wait"):
        go(Json())
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["item"], each["outcome"]) for each in said if each["kind"] == "item"] == [("health", "passed")]


def test_the_list_says_when_each_was_done_last(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    walk.listing("world", Plain())
    assert "never" in capsys.readouterr().out
    with pytest.raises(CannotError):
        go()
    walk.listing("world", Plain())
    assert "open; 2 items left" in capsys.readouterr().out


def test_it_is_signed_where_a_key_is_configured(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = place.root / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=20)
    monkeypatch.setenv("SALVOR_SIGNING_KEY", str(key))
    with pytest.raises(CannotError, match="2 items wait"):
        go()
    assert not (walks()[0].folder / evidence.SEAL).exists(), "it goes on"
    at_a_terminal(monkeypatch, lambda question: "yes")
    go()
    found = {each.check: each.level for each in evidence.check(walks()[0].folder)}
    assert found["seal"] is Level.PASS and found["signature"] is Level.UNKNOWN  # whose key, only a list can tell


def test_a_key_that_is_gone_and_a_page_that_cannot_be_written_are_owed(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALVOR_SIGNING_KEY", str(place.root / "none"))
    with pytest.raises(CannotError, match="2 items wait"):
        go()
    (walks()[0].folder / "checklist.html").unlink()
    (walks()[0].folder / "checklist.html").mkdir()
    at_a_terminal(monkeypatch, lambda question: "yes")
    go()
    said = capsys.readouterr().out
    assert walks()[0].closed and "owed: the signature: --key: there is no file" in said
    assert "owed: checklist.html: " in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "a checklist is a mapping"),
        ("title: x\nevery: 1d\nitems: []", "items"),
        ("title: x\nevery: soon\nitems: [{name: a, ask: b}]", "is not a duration"),
        ("title: x\nevery: 1d\nitems:\n  - {name: a, ask: b}\n  - {name: a, ask: c}", "stands twice"),
        ("title: x\nevery: 1d\nitems:\n  - {name: a, ask: b, run: [status]}", "an item has what and run"),
        ("title: x\nevery: 1d\nitems:\n  - {name: a, run: [status]}", "an item has what and run"),
        ("title: x\nevery: 1d\nitems:\n  - {name: a, what: b, run: [status], look: c}", "an item has what and run"),
        ("title: x\nevery: 0s\nitems: [{name: a, ask: b}]", "greater than 0"),
        ("title: x\nevery: 1d\nitems:\n  - {name: A B, ask: b}", "name"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(place: World, text: str, said: str) -> None:
    write(place, text)
    with pytest.raises(UsageError, match=said) as refused:
        go()
    assert "daily.yaml:" in refused.value.what
    with pytest.raises(UsageError, match="no checklist 'yearly'"):
        walk.walk("yearly", "world", Plain())


# ------------------------------------------------------------------------------------------ those that are shipped


def test_those_that_are_shipped_run_commands_that_there_are() -> None:
    from tasks import namespace

    assert form.names() == ["daily", "monthly", "weekly"]
    for name in form.names():
        book = form.load(name)
        assert any(item.run for item in book.items) and any(item.ask for item in book.items)
        for item in book.items:
            if item.run:
                options: set[str] = set()
                for argument in namespace[item.run[0]].get_arguments():
                    options |= {f"--{each.replace('_', '-')}" for each in argument.names}
                given: list[Any] = [word.partition("=")[0] for word in item.run[1:]]
                assert set(given) <= options and "--platform" in options, item.run

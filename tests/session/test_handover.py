"""The screen for whoever goes on with an incident: one screen, and the exact next command."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from salvor import clock, show
from salvor.change import Level
from salvor.errors import CannotError
from salvor.journal import lock, story
from salvor.session import aftermath, handover
from salvor.session.handover import Handover
from salvor.session.opening import open_session
from salvor.show import Plain

from tests import told, world
from tests.told import BEGIN, Teller

ID = "20261121T003300Z-orders-aaaa"


def written(tmp_path: Path, name: str = "usual") -> Handover:
    getattr(told, name)(tmp_path / ID).journal.close()
    return Handover(story.read(tmp_path / ID))


def text(this: Handover) -> str:
    lines = list(handover.screen(this))
    assert len(lines) <= 24, "one screen"
    assert max(map(len, lines)) <= 130
    return "\n".join(lines)


def killed(tmp_path: Path) -> Teller:
    """Killed while it staged."""
    teller = Teller(tmp_path / ID, failed_at=BEGIN - timedelta(seconds=60))
    teller.approve(told.FENCE, told.STAGE).assess()
    teller.step("isolate", lambda: teller.act("isolate", told.FENCE, 0.4), 1)
    teller.line("step", step="restore", phase="begun", planned=1)
    teller.line("intent", step="restore", change=told.STAGE.to_json())
    teller.journal.close()
    return teller


def test_killed_midway_it_says_where_and_how_to_go_on(tmp_path: Path) -> None:
    teller = killed(tmp_path)
    with clock.use(lambda: teller.now + timedelta(minutes=5)):
        said = text(Handover(story.read(tmp_path / ID)))
    assert re.search(r"^state +open, STOPPED at 00:33:02 UTC while orders-db: stage$", said, re.M)
    assert "now         nobody works on it" in said
    assert "of the RTO are left" in said
    assert re.search(
        r"^steps +assess 1\.6 s, notify -, isolate 0\.5 s, restore STOPPED, verify -, reroute -$", said, re.M
    )
    assert re.search(r"^unfinished +orders-db: stage$", said, re.M)
    assert re.search(r"^undoable +orders-db: stage, orders-db: fence$", said, re.M), "as the plan of inv undo has it"
    assert f"next        inv restore --incident={ID}: goes on" in said


def test_killed_on_a_machine_whose_clock_is_behind_it_says_where(tmp_path: Path) -> None:
    teller = Teller(tmp_path / ID)
    teller.assess().wait(-600).resume("lee@ops2", "ops2")
    teller.line("step", step="isolate", phase="begun", planned=1)
    teller.line("intent", step="isolate", change=told.FENCE.to_json())
    teller.journal.close()
    story_of_it = story.read(tmp_path / ID)
    assert story_of_it.unfinished == ["orders-db: fence"]
    ahead = Teller(tmp_path / "ahead")
    ahead.line("step", step="isolate", phase="begun", planned=1).line(
        "intent", step="isolate", change=told.FENCE.to_json()
    )
    ahead.wait(-600).resume("lee@ops2", "ops2").journal.close()
    assert story.read(tmp_path / "ahead").unfinished == [], "that was the other machine's"


def test_under_way_it_names_who_works_on_it(tmp_path: Path) -> None:
    killed(tmp_path)
    with lock.hold("orders", tmp_path, by="kim@ops1", incident=ID):
        this = handover.of(story.read(tmp_path / ID), tmp_path)
        said = text(this)
    assert this.is_held and "open, under way" in said
    assert "kim@ops1 works on it since " in said and f"kill {os.getpid()} on " in said
    assert handover.of(story.read(tmp_path / ID), tmp_path).holder is None, "nobody, once it is released"


def test_another_incident_of_the_service_is_another(tmp_path: Path) -> None:
    killed(tmp_path)
    with lock.hold("orders", tmp_path, by=f"kim@{'o' * 40}", incident="20261121T013300Z-orders-bbbb"):
        this = handover.of(story.read(tmp_path / ID), tmp_path)
    assert f"kill {os.getpid()} on " in text(this), "however long the names are"
    assert not this.is_held and "another incident of this service" in text(this) and "STOPPED" in text(this)


def test_failed_it_says_on_what_and_its_hint(tmp_path: Path) -> None:
    teller = Teller(tmp_path / ID)
    teller.approve(told.FENCE, told.STAGE).assess().step("isolate", lambda: teller.act("isolate", told.FENCE, 0.4), 1)
    teller.verify(Level.FAIL)
    teller.line("failed", text="verify did not pass:\n  orders-db: fingerprint\nSafe now: nothing\nHINT: inv backups")
    teller.journal.close()
    said = text(Handover(story.read(tmp_path / ID)))
    assert re.search(
        r"^state +open, FAILED at 00:33:\d\d UTC: verify did not pass: orders-db: fingerprint$", said, re.M
    )
    assert re.search(r"^hint +inv backups$", said, re.M)
    assert "verify 9.1 s NOT PASSED" in said


@pytest.mark.parametrize("later", [60, -600], ids=["later", "by a clock that is behind"])
def test_what_was_resumed_after_a_failure_has_not_failed(tmp_path: Path, later: float) -> None:
    teller = Teller(tmp_path / ID)
    teller.assess().line("failed", text="the disk is full").wait(later).resume("lee@ops2", "ops2")
    teller.journal.close()
    assert "FAILED" not in text(Handover(story.read(tmp_path / ID)))


def test_recovered_it_says_what_the_day_after_needs(tmp_path: Path) -> None:
    this = written(tmp_path)
    said = text(this)
    assert "RTO         3 min 20 s of 15 min 00 s allowed: met" in said
    assert "way back    physical 20261121-003000F (also possible: logical)" in said
    assert re.search(r"^done +4 changes: orders-db: fence, orders-db: stage, ", said, re.M)
    assert re.search(r"^undoable +orders-dns: point, orders-db: promote, ", said, re.M), "the newest first"
    assert "told        declared on-call, recovered on-call" in said
    assert [command.split()[1] for command, _ in this.commands] == ["protect", "undo", "discard", "incident.close"]


def test_an_undo_that_was_stopped_is_told_and_gone_on_with(tmp_path: Path) -> None:
    """It was called recovered, and the next command was inv protect, while its data was being swapped back."""
    teller = told.usual(tmp_path / ID)
    assert told.POINT.undo
    back = replace(told.POINT, arguments=told.POINT.undo.arguments, undo=None)
    teller.act("undo", back, 0.1, "unknown", "it was stopped", undoing=told.POINT.key)
    this = Handover(story.read(tmp_path / ID))
    assert "state       recovered, and its undo was begun, and STOPPED" in text(this)
    assert [command.split()[1] for command, _ in this.commands] == ["undo", "restore"]
    teller.act("reroute", told.POINT, 0.1).journal.close()
    assert "STOPPED" not in text(Handover(story.read(tmp_path / ID))), "it went forward again"


def test_closed_it_says_that_what_was_live_is_still_there(tmp_path: Path) -> None:
    """Who closed the record, as the screen offers, was never told of the second copy on the disk again."""
    teller = told.usual(tmp_path / ID).line("closed", result="recovered")
    assert [command for command, _ in Handover(story.read(tmp_path / ID)).commands] == [f"inv discard --incident={ID}"]
    teller.line("discarded", result="1 kept thing removed").journal.close()
    assert Handover(story.read(tmp_path / ID)).commands == []


def test_undone_and_closed_it_is_over_but_for_what_is_owed(tmp_path: Path) -> None:
    this = written(tmp_path, "eventful")
    said = text(this)
    assert "MISSED" in said and "owed        record.html: No space left on device" in said
    assert "1 of them taken back" in said
    assert [command for command, _ in this.commands] == [f"inv incident.record --incident={ID}"]
    assert "undoable" not in said, "it is closed"


def test_what_cannot_be_undone_says_why(tmp_path: Path) -> None:
    teller = Teller(tmp_path / ID)
    for_good = replace(told.FENCE, undo=None, no_undo="nobody knows")
    teller.assess().step("isolate", lambda: teller.act("isolate", for_good, 1.0), 1)
    teller.journal.close()
    assert "undo        not past orders-db: fence: nobody knows" in text(Handover(story.read(tmp_path / ID)))


def test_the_command_of_a_drill_is_a_drill(tmp_path: Path) -> None:
    teller = Teller(tmp_path / ID, purpose="drill", scenario="rehearsal", runbook="rehearsal")
    teller.assess().journal.close()
    this = Handover(story.read(tmp_path / ID))
    assert this.commands[0][0] == "inv drill --service=orders --platform=sandbox"
    assert "drill, rehearsal of Orders" in text(this)


def test_the_next_command_is_the_one_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a world that broke midway: the command that the screen names brings it back."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    place = world.make(tmp_path)
    place.damage()
    sitting = place.session()
    plan = sitting.plan()
    with sitting.begin():
        sitting.approve(plan, "--yes")
        for name in ("assess", "isolate"):
            sitting.act(name)
    incident = sitting.incident.id
    capsys.readouterr()
    aftermath.show_incident(incident, Plain())
    said = capsys.readouterr().out
    assert f"next        inv restore --incident={incident}: goes on" in said
    aftermath.show_incident(incident, show.Json())
    assert f'"next": ["inv restore --incident={incident}"' in capsys.readouterr().out
    from salvor import console

    console.recover(open_session("things", Plain(), platform="world", incident=incident), Plain(), yes=True)
    assert place.live == world.GOOD
    aftermath.show_incident(incident, Plain())
    assert "next        inv protect --service=things --platform=world" in capsys.readouterr().out


@pytest.mark.parametrize("journal", [b"", b"\x00\xff\n"])
def test_a_journal_that_says_of_nothing_is_no_incident_to_go_on_with(
    journal: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path))
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "journal.jsonl").write_bytes(journal)
    with pytest.raises(CannotError, match="has lost its first line") as refused:
        aftermath.show_incident(ID, Plain())
    assert refused.value.hint == f"inv incident.check --incident={ID}"

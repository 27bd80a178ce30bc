"""Promise 7: the recovery goes on when its journal cannot be written, and the lines are not lost."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor import console
from salvor.change import Level
from salvor.journal import Journal, evidence
from salvor.show import Plain

from tests import world
from tests.journal.test_journal_faults import fill as fill_disk
from tests.journal.test_journal_faults import mounted
from tests.world import BAD, GOOD, World

pytestmark = pytest.mark.root


HINT = re.compile(r"HINT: make room: df -h .*; then before any other command on this incident: (.*)")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Iterator[World]:
    """A damaged world whose incidents are on a disk of 128 KiB of their own."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path)
    made.damage()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with mounted(tmp_path / "incidents", "-t", "tmpfs", "-o", "size=128k,mode=700", "none"):
        yield made


def fill(place: World) -> Path:
    fill_disk(place.root / "incidents")
    return place.root / "incidents/ballast"


def is_whole(place: World) -> bool:
    [journal] = place.journals()
    return all(finding.level is not Level.FAIL for finding in evidence.check(journal.folder))


def test_full_from_the_beginning(small: World, capsys: pytest.CaptureFixture[str]) -> None:
    filler = fill(small)
    sitting = small.session()
    console.recover(sitting, Plain(), yes=True)
    assert (small.live, small.sign, small.kept) == (GOOD, "127.0.0.1", [BAD])
    assert small.letters == ["declared", "recovered"]
    said = capsys.readouterr().out
    assert said.count("cannot be written: No space left on device") == 1
    assert "the recovery goes on" in said and f"HINT: in another terminal, make room: df -h {filler.parent}" in said
    with sitting.begin():  # the record could not be made either
        sitting.runner.owe("the record", "no room")
    said += capsys.readouterr().out
    filler.unlink()
    command = HINT.findall(said)[-1]
    subprocess.run(["sh", "-c", command], check=True)
    assert is_whole(small)
    assert [line["what"] for line in small.journals()[0].of("owed")] == ["the record"]
    assert small.session().incident.recovered_once
    assert [line["outcome"] for line in small.journals()[0].of("outcome")] == ["done"] * 6


def test_ctrl_c_names_what_comes_before_the_same_command(small: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its lines the incident is not there, and the same command begins another one."""
    filler, sitting = fill(small), small.session()
    with pytest.raises(KeyboardInterrupt, match="HINT: what the journal lacks first, as said above"), sitting.begin():
        for name in ("assess", "isolate"):
            sitting.approve(sitting.plan(name), "test")
            sitting.act(name)
        with console.telling_failure(sitting):
            raise KeyboardInterrupt
    filler.unlink()
    (command,) = HINT.findall(capsys.readouterr().out)
    subprocess.run(["sh", "-c", command], check=True)
    assert small.session().incident.id == sitting.incident.id


def test_an_old_hint_puts_nothing_in_the_place_of_a_journal_that_was_written_again(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A watcher goes on when there is room: who did then as its log said cut its journal to the lines of before."""
    sitting, filler = small.session(), fill(small)
    for text in ("one", "two", "three"):
        if text == "three":
            filler.unlink()
        with sitting.begin():
            sitting.runner.note("note", text=text)
    hints = HINT.findall(capsys.readouterr().out)
    assert len(hints) == 2
    for hint in hints:
        assert subprocess.run(["sh", "-c", hint]).returncode == 1
    assert [line["text"] for line in small.journals()[0].of("note")] == ["one", "two", "three"]
    assert is_whole(small)


def test_on_a_disk_that_can_only_be_read_nobody_is_told_to_make_room(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    sitting = small.session()
    remount = ["mount", "-o", "remount,ro", str(small.root / "incidents")]
    subprocess.run(remount, check=True)
    with sitting.begin():
        sitting.runner.note("note", text="one")
    said = capsys.readouterr().out
    assert said.count(f"make it writable: findmnt -T {small.root / 'incidents'}") == 2 and "make room" not in said


@pytest.mark.parametrize(("first", "last"), [("isolate", "verify"), ("restore", "reroute"), ("verify", "reroute")])
def test_full_for_a_while(small: World, capsys: pytest.CaptureFixture[str], first: str, last: str) -> None:
    sitting = small.session()
    filler = None
    with sitting.begin():
        sitting.approve(sitting.plan(), "test")
        for name in (step.__name__ for step in sitting.runbook.steps):
            if name == first:
                filler = fill(small)
            sitting.act(name)
            if name == last:
                assert sitting.journal
                assert sitting.journal.pending > 0
                assert filler
                filler.unlink()
    said = capsys.readouterr().out
    assert said.count("The journal is written again") == 1
    assert (small.live, small.sign) == (GOOD, "127.0.0.1")
    assert is_whole(small)
    assert len(Journal.read(sitting.incident.folder).of("intent")) == 6

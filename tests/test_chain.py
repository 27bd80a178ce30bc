"""The chain on a small world: what it does, what it refuses, how it resumes, and how it goes back."""

from __future__ import annotations

import hashlib
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from salvor import clock, console, cutover, whole_platform
from salvor.change import UNSEEN, Decision, Finding, Level, Reachable, State, WayBack, plan_hash
from salvor.errors import CannotError, HeldError, NotProvenError, PlanMovedError, UsageError
from salvor.roles import Restorable
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import kind

from tests import trouble, world
from tests.world import BAD, GOOD, World


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Iterator[World]:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    yield world.make(tmp_path)


def everything(root: Path) -> dict[str, str]:
    """Every path below `root` with a digest of its content, mode and time."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = f"{content} {status.st_mode:o} {status.st_mtime_ns}"
    return found


def test_a_damaged_service_comes_back(place: World) -> None:
    place.damage()
    place.recover()
    assert (place.live, place.sign, place.letters, place.kept) == (GOOD, "127.0.0.1", ["declared", "recovered"], [BAD])


def test_a_healthy_service_is_left_alone(place: World) -> None:
    before = everything(place.root)
    place.recover()
    assert everything(place.root) == before


def test_a_way_that_loses_more_than_is_allowed_says_so_before_it_is_approved(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = place.root / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("kind: folder,", "kind: folder, loses: 172800,"))
    place.damage()
    said = "NOTE: copy would lose 2 d 0 h of store, more than the 24 h 00 min that are allowed. If you know when"
    console.assess(place.session(), Plain())
    assert said in capsys.readouterr().out
    console.recover(place.session(), Plain(), plan_only=True)
    assert said in capsys.readouterr().out


def test_yes_does_not_stand_for_a_loss_that_room_on_a_disk_would_spare(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = place.root / "inventory/world.yaml"
    described = inventory.read_text()
    inventory.write_text(described.replace("kind: folder,", "kind: folder, loses: 172800, with_room_loses: 5,"))
    place.damage()
    before = everything(place.root)
    hash_ = place.session().plan().hash
    said = (
        "copy would lose 2 d 0 h of store, more than the 24 h 00 min that are allowed; replay would lose 5.0 s, and "
        "lacks room: it needs 9 MB, where 1 MB are free."
    )
    for _ in range(2):
        with pytest.raises(CannotError) as refused:
            place.recover()
        assert said in refused.value.what
        assert f"make room, then the same command; or, to lose that, the same command with --approve={hash_}" in (
            refused.value.hint
        )
    with pytest.raises(CannotError, match="lacks room"):
        whole_platform.restore("world", Plain(), whole_platform.Asked(), yes=True)
    assert everything(place.root) == before
    assert f"NOTE: {said}" in capsys.readouterr().out
    console.recover(place.session(), Plain(), "isolate", yes=True)  # a fence loses nothing
    with pytest.raises(CannotError, match="lacks room"):
        console.recover(place.session(), Plain(), "restore", yes=True)  # that copy is what loses it
    with pytest.raises(CannotError, match="lacks room") as refused:
        place.recover()
    assert f"then inv undo --incident={place.journals()[0].lines[0]['incident']}, then" in refused.value.hint
    trouble.order(place.root, "store", "promote", "fail")
    with pytest.raises(CannotError, match="does not want"):
        console.recover(place.session(), Plain(), approve=place.session().plan().hash)
    place.recover()  # what was read and approved goes on
    assert place.live == GOOD
    for losses in ("loses: 60, with_room_loses: 5", "loses: 172800, with_room_loses: 172800"):
        inventory.write_text(described.replace("kind: folder,", f"kind: folder, {losses},"))
        place.damage()
        place.recover()  # within what is allowed, or no more than with room
        assert place.live == GOOD
    inventory.write_text(described.replace("kind: folder,", "kind: folder, with_room_loses: 5,"))
    place.damage()
    with pytest.raises(CannotError, match="copy would lose nobody knows how much of store"):
        place.recover()


def test_what_was_written_since_the_failure_is_said_not_to_come_back(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    place.damage()
    failed = clock.now() - timedelta(minutes=12)
    console.assess(open_session("things", Plain(), platform="world", failed_at=failed), Plain())
    said = f"NOTE: what was written to store since {clock.write_time(failed)} (12 min "
    assert said in capsys.readouterr().out
    console.assess(place.session(), Plain())
    assert "does not come back" not in capsys.readouterr().out


def test_who_reads_that_it_failed_reads_that_nobody_can_write(place: World) -> None:
    def failing(verb: str) -> str:
        trouble.order(place.root, "store", verb, "fail")
        with pytest.raises(CannotError, match="does not want") as failed:
            place.recover()
        return failed.value.safe

    place.damage()
    assert failing("fence") == ""
    incident = str(place.journals()[0].lines[0]["incident"])
    shut = f"store is fenced by now, so nobody can write there: inv undo --incident={incident} takes that back"
    assert [failing(verb) for verb in ("stage", "promote")] == [shut, shut]
    trouble.order(place.root, "store", "demote", "fail")
    assert place.recover() == incident
    with pytest.raises(CannotError, match="does not want") as failed:
        aftermath.undo(incident, Plain(), yes=True)
    assert failed.value.safe == "", "what is live takes writes still"


def test_a_plan_shows_the_whole_chain_and_writes_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    place.damage()
    before = everything(place.root)
    console.recover(place.session(), Plain(), plan_only=True)
    shown = capsys.readouterr().out
    assert everything(place.root) == before
    for verb in ("fence", "stage", "promote", "point", "moment=declared", "moment=recovered"):
        assert verb in shown
    assert "NONE: a letter cannot be taken back" in shown


def test_the_plan_that_was_shown_is_the_plan_that_runs(place: World) -> None:
    place.damage()
    planned = place.session().plan()
    session = place.session()
    console.recover(session, Plain(), approve=planned.hash)
    intents = [line["change"]["key"] for line in place.journals()[0].of("intent")]
    assert sorted(intents) == sorted(change.key for change in planned.changes)
    assert planned.hash == plan_hash(planned.changes)


def test_the_same_command_again_does_nothing(place: World) -> None:
    place.damage()
    incident = place.recover()
    lines = len(place.journals()[0].lines)
    assert place.recover() == incident
    assert len(place.journals()[0].lines) == lines
    assert place.letters == ["declared", "recovered"]


def test_a_second_disaster_is_a_new_incident(place: World) -> None:
    place.damage()
    first = place.recover()
    place.damage()
    assert place.recover() != first
    assert place.live == GOOD


def test_a_moved_plan_is_refused(place: World) -> None:
    place.damage()
    planned = place.session().plan()
    (place.store / "backups/b2").mkdir()
    (place.store / "backups/b2/data").write_text(GOOD)
    with pytest.raises(PlanMovedError):
        console.recover(place.session(), Plain(), approve=planned.hash)
    assert place.live == BAD


def test_what_was_not_proven_is_not_cut_over(place: World) -> None:
    place.damage()
    (place.store / "backups/b1/data").write_text("also bad\n")
    with pytest.raises(NotProvenError):
        place.recover()
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    assert place.letters == ["declared", "failed"]


def test_undo_takes_all_of_it_back(place: World) -> None:
    place.damage()
    before = everything(place.store)
    incident = place.recover()
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, place.sign, place.kept) == (BAD, "10.0.0.1", [])
    assert everything(place.store) == before
    with pytest.raises(CannotError, match="undone already"):
        aftermath.undo(incident, Plain(), yes=True)


def test_discard_leaves_only_the_record(place: World) -> None:
    place.damage()
    incident = place.recover()
    aftermath.discard(incident, Plain(), yes=True)
    assert (place.live, place.kept) == (GOOD, [])
    assert sorted(path.name for path in place.store.iterdir()) == ["backups", "fence", "live"]
    with pytest.raises(CannotError, match="discarded already"):
        aftermath.discard(incident, Plain(), yes=True)


def test_discard_leaves_what_another_incident_kept(place: World) -> None:
    incidents = []
    for _ in range(2):
        place.damage()
        incidents.append(place.recover())
    first, second = incidents
    aftermath.discard(second, Plain(), yes=True)
    assert [path.name for path in place.store.glob("kept-*")] == [f"kept-{first}"]


def test_discard_before_recovery_is_refused(place: World) -> None:
    place.damage()
    (place.store / "backups/b1/data").write_text("also bad\n")
    session = place.session()
    with pytest.raises(NotProvenError):
        console.recover(session, Plain(), yes=True)
    with pytest.raises(CannotError, match="has not recovered"):
        aftermath.discard(session.incident.id, Plain(), yes=True)


def test_a_dead_notifier_is_owed_and_stops_nothing(place: World) -> None:
    place.damage()
    (place.root / "post").rmdir()
    place.recover()
    assert place.live == GOOD
    owed = place.journals()[0].of("owed")
    assert owed
    assert all("post office is closed" in line["why"] for line in owed)


def test_somebody_elses_change_of_the_route_is_not_trampled(place: World) -> None:
    place.damage()
    session = place.session()
    plan = session.plan()
    (place.root / "sign").write_text("10.9.9.9")
    with pytest.raises(PlanMovedError):
        console.recover(place.session(), Plain(), approve=plan.hash)
    assert place.sign == "10.9.9.9"


def test_a_second_operator_is_told_who_holds_it(place: World) -> None:
    place.damage()
    first = place.session()
    with first.begin(), pytest.raises(HeldError, match="tester@here"):
        place.recover()
    place.recover()
    assert place.live == GOOD


def test_other_arguments_on_an_open_incident_are_refused(place: World) -> None:
    place.damage()
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("isolate")
    with pytest.raises(UsageError, match="begun with other arguments"):
        place.session(source="b1")


def test_no_way_back_is_said_with_the_reasons(place: World) -> None:
    place.damage()
    with pytest.raises(CannotError, match="no backup nope"):
        place.recover(source="nope")
    assert place.live == BAD


def test_what_cannot_be_looked_at_is_not_called_broken(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(place.store / "backups/b1")
    unknown = State(Reachable.UNKNOWN, UNSEEN, None, "no answer.")
    monkeypatch.setattr(kind("folder"), "observe", lambda self: unknown)
    with pytest.raises(CannotError, match=r"store cannot be looked at \(no answer\.\) and no way back is open") as no:
        place.session().plan()
    assert no.value.hint.startswith("mend what keeps each way from being open, then the same command again")


def test_questions_that_nobody_answers_cost_their_deadline_once(place: World) -> None:
    inventory = place.root / "inventory/world.yaml"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        checks = [f"      - {{name: page {number}, http: '{url}', deadline: 2s}}\n" for number in range(6)]
        inventory.write_text(inventory.read_text().rstrip("\n") + "\n" + "".join(checks))
        begun = time.monotonic()
        (assessed,) = place.session().plan().steps[:1]
        assert time.monotonic() - begun < 2 * 2.0
    assert sum("no answer within 2.0 s" in finding.figure for finding in assessed.findings) == 6


def test_lines_that_were_cut_off_are_found_in_the_mirror(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    place.damage()
    incident = place.recover()
    aftermath.check_incident(incident, "", Plain())
    journal = place.journals()[0].folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(NotProvenError, match=f"line {len(lines) - 1}"):
        aftermath.check_incident(incident, "", Plain())


@pytest.mark.parametrize(("figure", "refuted"), [("no answer", False), ("2", True)])
def test_only_a_wrong_answer_of_a_copy_refutes_the_way_that_it_was_staged(
    place: World, figure: str, refuted: bool
) -> None:
    """Who gives no answer may have been killed a moment ago: a step further back would lose what it had."""
    incident = place.session().incident
    [store] = incident.systems
    [check] = incident.checks_of(store.name)
    incident.learn({"kind": "decision", "decision": decided(store).to_json()})
    said = Finding(store.name, check.name, Level.FAIL, figure).to_json()
    incident.learn({"kind": "finding", "step": "verify", "finding": said})
    assert cutover.is_refuted(incident, store) == refuted
    said = Finding(store.name, "integrity", Level.FAIL, "2 pages").to_json()
    incident.learn({"kind": "finding", "step": "verify", "finding": said})
    assert cutover.is_refuted(incident, store) == refuted, "a copy that is rotten says nothing of what was live"
    incident.learn({"kind": "decision", "decision": decided(store).to_json()})
    assert not cutover.is_refuted(incident, store), "it was of the way before"


def decided(store: Restorable) -> Decision:
    return Decision(store.name, "x", "it is down", WayBack("copy", True, "a backup"))

"""Programs in the chain: stopped before what they work on is swapped, started after, restarted when they hang."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor import clock, console
from salvor.drill import rehearsal
from salvor.errors import CannotError, NotProvenError, UsageError
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.steps import reroute

from tests import trouble, world
from tests.world import BAD, GOOD, World

PROGRAMS = """
  shop: {{kind: program, path: {root}/shop, works_on: {root}/store, uses: [store]}}
  office: {{kind: program, path: {root}/office, works_on: {root}/store, uses: [store]}}
  reports: {{kind: program, path: {root}/reports, works_on: {root}/store, uses: [store]}}
  guide: {{kind: program, path: {root}/guide, works_on: {root}/store}}
services:
  shop:
    tier: 2
    rto: 5m
    rpo: 1d
    depends_on: [things]
    applications: [shop]
    messages: post
    checks:
      - {{name: it sells, command: [grep, -q, "^run-[0-9]*$", "{root}/shop"]}}
  office: {{tier: 3, rto: 5m, rpo: 1d, depends_on: [shop], applications: [office]}}
  rest: {{tier: 3, rto: 5m, rpo: 1d, depends_on: [things], applications: [reports, guide]}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Iterator[World]:
    """The small world, with three services of programs: reports is stopped, the others run; guide uses no data."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path)
    inventory = tmp_path / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("services:\n", PROGRAMS.format(root=tmp_path), 1))
    for name in ("shop", "office", "guide"):
        (tmp_path / name).write_text("run-0")
    (tmp_path / "reports").write_text("")
    yield made


def session(service: str) -> Session:
    return open_session(service, Plain(), platform="world")


def recover(service: str) -> str:
    sitting = session(service)
    console.recover(sitting, Plain(), yes=True)
    return sitting.incident.id


def runs(place: World) -> dict[str, str]:
    return {name: (place.root / name).read_text() for name in ("shop", "office", "reports", "guide")}


def acts(place: World, name: str) -> list[str]:
    path = place.root / f"{name}.acts"
    return path.read_text().splitlines() if path.exists() else []


def test_people_are_told_that_it_is_back_when_all_of_it_is(place: World) -> None:
    def owed() -> list[object]:
        return [change.arguments["moment"] for change in session("things").plan("notify").changes]

    place.damage()
    trouble.order(place.root, "post", "recovered", "fail")
    recover("things")
    sign, shop = place.root / "sign", place.root / "shop"
    assert owed() == ["recovered"]
    run = shop.read_text()
    shop.write_text("")
    assert owed() == [], "a program that it stopped does not run"
    shop.write_text(run)
    sign.write_text("10.0.0.9")
    assert owed() == [], "users are led elsewhere"
    sign.unlink()
    sign.mkdir()
    assert owed() == [], "nobody can tell where users are led"
    sign.rmdir()
    sign.write_text("127.0.0.1")
    assert owed() == ["recovered"]


def test_a_program_of_which_nobody_can_tell_whether_it_runs_is_not_called_back(place: World) -> None:
    place.damage()
    sitting, shop = session("things"), place.root / "shop"
    plan = sitting.plan()
    with sitting.begin():
        sitting.approve(plan, "a test")
        for name in ("isolate", "restore", "verify"):
            sitting.act(name)
        shop.unlink()
        shop.mkdir()
        with pytest.raises(NotProvenError, match="shop: runs: unknown: it gives no answer"):
            sitting.act("reroute")
    assert place.live == GOOD and not sitting.incident.recovered_once


def test_a_service_that_fails_is_not_put_down_to_others_while_its_program_gives_no_answer(place: World) -> None:
    shop = place.root / "shop"
    shop.unlink()
    shop.mkdir()
    with pytest.raises(CannotError, match=r"what may be why gives no answer: shop: it gives no answer\.") as refused:
        recover("shop")
    assert "by hand" not in refused.value.hint


def test_programs_are_stopped_before_the_swap_and_started_after_in_their_order(place: World) -> None:
    place.damage()
    starts = [change for change in session("things").plan().changes if change.verb == "start"]
    assert {change.why for change in starts} == {"it was stopped for the cutover"}
    recover("things")
    assert place.live == GOOD
    for name in ("shop", "office"):
        assert acts(place, name) == ["stop bad", "start good"]
    began = {words[0] + " " + words[1]: float(words[2]) for words in _acts_of_all(place)}
    assert began["shop start"] < began["office start"]
    assert runs(place) == {"shop": "run-1", "office": "run-1", "reports": "", "guide": "run-0"}
    assert place.letters == ["declared", "recovered"]


def _acts_of_all(place: World) -> list[list[str]]:
    return [line.split() for line in (place.root / "acts").read_text().splitlines()]


def test_undo_leaves_the_programs_as_they_were(place: World) -> None:
    place.damage()
    aftermath.undo(recover("things"), Plain(), yes=True)
    assert place.live == BAD
    assert [bool(run) for run in runs(place).values()] == [True, True, False, True]
    assert acts(place, "shop") == ["stop bad", "start good", "stop good", "start bad"]


def test_a_program_that_was_killed_is_started_again_and_its_service_is_back(place: World) -> None:
    (place.root / "shop").write_text("")
    begun = clock.monotonic()
    incident = recover("shop")
    assert clock.monotonic() - begun < reroute._RECONNECT_SECONDS, "it is not asked before it is started"
    assert runs(place)["shop"] == "run-1"
    assert acts(place, "office") == []
    [journal] = place.journals()
    [measured] = journal.of("measured")
    assert journal.folder.name == incident
    assert measured["rto"] >= 0 and measured["rpo"] == 0
    assert place.letters == ["declared", "recovered"]


def test_a_program_that_hangs_is_restarted_once(place: World) -> None:
    (place.root / "shop").write_text("run-0 hung")
    _, before, *_, cut_over, after = session("shop").plan().steps
    assert [[change.arguments["moment"] for change in step.changes] for step in (before, after)] == [
        ["declared"],
        ["recovered"],
    ]
    assert [change.why for change in cut_over.changes] == ["it did not do its work"]
    recover("shop")
    assert acts(place, "shop") == ["stop good", "start good"]
    recover("shop")
    assert acts(place, "shop") == ["stop good", "start good"]


def test_nobody_is_told_that_a_program_is_back_which_runs_and_does_not_do_its_work(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reroute, "_RECONNECT_SECONDS", 0.0)
    (place.root / "shop").write_text("run-0 hung")
    inventory = place.root / "inventory/world.yaml"
    works = inventory.read_text()
    inventory.write_text(works.replace("^run-[0-9]*$", "^sells$"))
    for _ in range(2):
        with pytest.raises(NotProvenError, match="it sells"):
            recover("shop")
        assert place.letters == ["declared", "failed"]
    inventory.write_text(works)
    recover("shop")
    assert place.letters == ["declared", "failed", "recovered"]


def test_a_program_that_does_not_come_back_is_no_matter_of_backups(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salvor.steps.reroute._RECONNECT_SECONDS", 0.0)
    (place.root / "shop").write_text("")
    inventory = place.root / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("^run-[0-9]*$", "^sells$"))
    with pytest.raises(NotProvenError) as refused:
        recover("shop")
    assert refused.value.hint.startswith("mend what is named above, then the same command again; or inv undo")


def test_data_is_back_although_a_program_on_it_waits_for_something_else_that_is_broken(place: World) -> None:
    """Of two broken systems below one program the first is brought back, and taken back, in one call each."""
    (place.root / "shop.needs").write_text(str(place.root / "pictures"))
    place.damage()
    incident = recover("things")
    assert place.live == GOOD
    assert all(runs(place)[name] for name in ("shop", "office"))
    aftermath.undo(incident, Plain(), yes=True)
    assert place.live == BAD
    assert all(runs(place)[name] for name in ("shop", "office"))


def test_a_program_is_not_blamed_for_what_it_depends_on(place: World) -> None:
    (place.root / "shop").write_text("run-0 hung")
    (place.store / "live" / "data").unlink()
    with pytest.raises(CannotError, match="store: answers: down") as refused:
        recover("shop")
    assert refused.value.hint == "inv restore --service=things"
    assert acts(place, "shop") == []


def test_a_service_of_programs_alone_is_not_rehearsed_and_what_can_be_is_named(place: World) -> None:
    with pytest.raises(UsageError, match="shop holds no data") as refused:
        rehearsal.run("shop", "world", Plain())
    assert refused.value.hint == "the data that it needs: inv drill --service=things --platform=world"
    assert acts(place, "shop") == [] and place.journals() == []


def test_what_is_dead_again_after_a_recovery_is_a_new_incident(place: World) -> None:
    for _ in range(2):
        (place.root / "shop").write_text("")
        recover("shop")
    assert len(place.journals()) == 2
    assert runs(place)["shop"] == "run-2"


def test_killed_between_stop_and_start_the_same_command_starts_what_it_stopped(place: World) -> None:
    from tests.faults.test_kill_every_line import in_child

    place.damage()

    def restore(place: World) -> None:
        os.environ.update(world.environment(place.root))
        recover("things")

    line = next(
        line
        for line in range(8, 40)
        if in_child(place, restore, line, "after")[0] < 0 and acts(place, "shop") == ["stop bad"]
    )
    assert line
    assert runs(place)["shop"] == ""
    recover("things")
    assert place.live == GOOD
    assert runs(place) == {"shop": "run-1", "office": "run-1", "reports": "", "guide": "run-0"}


def test_an_undo_that_stopped_midway_starts_what_it_did_not_reach_when_it_goes_on(place: World) -> None:
    place.damage()
    incident = recover("things")
    trouble.order(place.root, "office", "start", "fail")
    with pytest.raises(CannotError, match="does not want to"):
        aftermath.undo(incident, Plain(), yes=True)
    assert not runs(place)["office"]
    aftermath.undo(incident, Plain(), yes=True)  # the shop's way back, which was made, has the same words
    assert [bool(run) for run in runs(place).values()] == [True, True, False, True]

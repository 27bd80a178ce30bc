"""A step that needs a second person waits for one: on the small world, with real files and processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from salvor import clock, console
from salvor.errors import CannotError, PlanMovedError, UsageError
from salvor.journal import story
from salvor.notebook import cells as notebook
from salvor.session import aftermath, handover
from salvor.show import Json, Plain

from tests import trouble
from tests.approval.second_person import (
    SECOND,
    approve,
    ask_for_two,
    lines,
    restoring,
    the_incident,
    waits,
)
from tests.waiting import until
from tests.world import BAD, GOOD, World


def test_the_step_waits_until_somebody_else_approves(place: World) -> None:
    with restoring(place) as command:
        assert until(waits(place))
        time.sleep(0.3)
        assert (place.live, place.sign) == (BAD, "10.0.0.1"), "it waits"
        shown = list(handover.screen(handover.of(story.read(place.journals()[0].folder), place.journals()[0].folder)))
        assert any(line.startswith("waits       reroute of plan") for line in shown)
        approve(place)
        said = command.result(20)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    [confirmed] = lines(place, "confirmed")
    assert confirmed["who"] == SECOND
    assert confirmed["hash"] == lines(place, "approved")[0]["hash"]
    assert clock.age(clock.read_time(confirmed["said_at"])) < timedelta(minutes=1)
    assert confirmed["where"]
    begun = next(line for line in lines(place, "intent") if line["step"] == "reroute")
    assert confirmed["n"] < begun["n"]
    assert f"Somebody else than tester@here: inv incident.approve --incident={the_incident(place)}" in said
    assert (sorted(place.letters[:2]), place.letters[2:]) == (["asked", "declared"], ["recovered"])  # sent side by side
    [by_two] = [each for each in story.read(place.journals()[0].folder).approvals if each.by == SECOND]
    assert by_two.changes
    sentences = [event.text for event in story.read(place.journals()[0].folder).events]
    assert any(f"{SECOND} approved plan {confirmed['hash']} as the second person" in each for each in sentences)


def test_yes_is_no_second_person_and_nothing_is_done_at_the_deadline(place: World) -> None:
    ask_for_two(place, "{steps: [reroute], within: 1s}")
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("\n    second_person: {steps: [reroute], within: 20s}", ""))
    with pytest.raises(CannotError, match="nobody else approved the plan") as refused:
        console.recover(place.session(), Plain(), yes=True)
    assert "inv incident.approve --incident=" in refused.value.hint
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    assert not [line for line in lines(place, "intent") if line["step"] == "reroute"]
    approve(place)  # now that the command has ended
    console.recover(place.session(), Plain(), yes=True)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    assert len(lines(place, "asked")) == 1


def test_an_approval_while_the_copy_is_still_staged_is_waited_for_no_longer(place: World) -> None:
    trouble.order(place.root, "store", "stage", "slow")
    with restoring(place) as command:
        approve(place)
        assert not waits(place)()
        said = command.result(20)
    assert place.live == GOOD
    assert "waits for a second person" not in said.split("== assess")[1]


def test_a_clock_that_jumps_neither_ends_the_wait_nor_the_approval(place: World) -> None:
    jump = timedelta()
    with clock.use(lambda: clock._system_clock() + jump), restoring(place) as command:
        assert until(waits(place))
        jump = timedelta(days=400)
        time.sleep(0.7)
        assert not command.done()
        jump = -timedelta(days=400)
        approve(place)
        jump = timedelta(days=1)
        command.result(20)
    assert place.live == GOOD


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_it_waits_nothing_is_done_and_the_same_command_goes_on(place: World, by: signal.Signals) -> None:
    code = (
        "from salvor import console; from salvor.commands.ending import ends_with_exit_code\n"
        "from salvor.session.opening import open_session; from salvor.show import Plain\n"
        "opened = open_session('things', Plain(), platform='world')\n"
        "ends_with_exit_code(console.recover)(opened, Plain(), yes=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "processes")}
    command = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert until(waits(place), 30)
    time.sleep(0.3)
    command.send_signal(by)
    said, _ = command.communicate(timeout=30)
    assert command.returncode == (130 if by is signal.SIGINT else -by), said
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    approve(place)
    with restoring(place) as again:
        again.result(20)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")


def test_the_plan_says_which_steps_wait(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    console.recover(place.session(), Plain(), plan_only=True)
    assert "NOTE: reroute waits until somebody other than tester@here approves the plan" in capsys.readouterr().out
    console.recover(place.session(), Json(), plan_only=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["second_person"] for each in said if each["kind"] == "plan"] == [["reroute"]]
    assert not place.journals()


def test_in_the_notebook_it_waits_as_well(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("salvor.notebook.live.make_record", lambda session, shown: None)
    walk = notebook.open({"service": "things", "platform": "world", "approve": "yes"})
    for step in ("assess", "notify", "isolate", "restore", "verify"):
        walk.act(step)
    with ThreadPoolExecutor(1) as pool:
        act = pool.submit(walk.act, "reroute")
        time.sleep(0.7)
        assert not act.done() and place.live == BAD
        approve(place)
        act.result(20)
    walk.act("notify", again=True)
    walk.finish()
    assert place.live == GOOD
    assert "reroute waits until somebody other than" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["undo", "discard"])
def test_what_ends_an_incident_may_need_two_as_well(place: World, name: str) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("[reroute]", f"[{name}]"))
    console.recover(place.session(), Plain(), yes=True)
    incident = the_incident(place)
    work = {"undo": aftermath.undo, "discard": aftermath.discard}[name]
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(work, incident, Plain(), yes=True)
        assert until(lambda: lines(place, "asked"))
        time.sleep(0.3)
        assert place.kept == [BAD] and place.live == GOOD
        approve(place)
        command.result(20)
    assert place.kept == []


def test_a_rehearsal_needs_nobody(place: World) -> None:
    place.store.joinpath("live/data").write_text(GOOD)
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("[reroute]", "[restore, undo]"))
    book = Path(__file__).parents[2] / "runbooks/rehearsal.py"
    assert book.exists()
    session = place.session(runbook="rehearsal")
    assert session.incident.steps_of_two == ()


def test_the_runner_itself_does_nothing_that_only_one_approved(place: World) -> None:
    session = place.session()
    plan = session.plan()
    with session.begin():
        session.approve(plan, "a test")
        for name in ("assess", "isolate", "restore", "verify"):
            session.act(name)
        with pytest.raises(PlanMovedError, match="what no second person approved"):
            session.runner.run(session.step("reroute"))
        (place.root / "sign").write_text("10.0.0.9")
        with pytest.raises(PlanMovedError, match="what nobody approved"):  # for which no second person is waited for
            session.act("reroute")
        (place.root / "sign").write_text("10.0.0.1")
    assert (place.live, place.sign) == (BAD, "10.0.0.1")


def test_a_setting_that_could_not_be_is_refused(place: World) -> None:
    for wrong in ("{steps: []}", "{steps: [verify]}", "{steps: [reroute], within: 0s}", "{steps: [reroute], x: 1}"):
        path = place.root / "inventory/world.yaml"
        text = path.read_text()
        path.write_text(text.replace("{steps: [reroute], within: 20s}", wrong))
        with pytest.raises(UsageError, match="second_person"):
            place.session()
        path.write_text(text)

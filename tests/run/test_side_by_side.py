"""Changes at once and in order, and what one that fails means for the others."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from salvor import console, maintenance, run
from salvor.change import Change, Progress, State
from salvor.errors import (
    CannotError,
    NotConvergedError,
    NotProvenError,
    OutcomeUnknownError,
    SalvorError,
    WarnedError,
)
from salvor.incident import Incident
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Json, Plain
from salvor.system import System

from tests import trouble
from tests.world import BAD, GOOD, World


def test_independent_systems_at_once_and_dependent_ones_in_order(two: World) -> None:
    for store in ("store", "shelf"):
        trouble.order(two.root, store, "stage", "slow")
    two.recover()
    acts = trouble.acts(two.root)
    (store_begun, store_ended), (shelf_begun, shelf_ended) = acts["store stage"], acts["shelf stage"]
    overlap = min(store_ended, shelf_ended) - max(store_begun, shelf_begun)
    assert overlap > 0.8 * max(store_ended - store_begun, shelf_ended - shelf_begun)
    for store, sign in (("store", "sign"), ("shelf", "sign-shelf")):
        assert acts[f"{store} promote"][1] <= acts[f"{sign} point"][0]
        assert (two.root / sign).read_text() == "127.0.0.1"
        assert (two.root / store / "live" / "data").read_text() == GOOD


def test_what_one_system_has_to_do_is_done_one_after_the_other(place: World) -> None:
    def stage_and_fence(incident: Incident) -> Iterator[Change]:
        """Two changes of one system."""
        [store] = incident.systems
        state = incident.observe(store)
        if not state.staged:
            yield store.change("stage", stage="side-folder", backup="b1", why="-", no_undo="-")
        if state.writable:
            yield store.change("fence", identity=state.identity, why="-", no_undo="-")

    trouble.order(place.root, "store", "stage", "slow")
    session = place.session()
    with session.begin():
        session.runner.approve(session.runner.plan([stage_and_fence]), "test")
        session.runner.run(stage_and_fence)
    acts = trouble.acts(place.root)
    assert acts["store stage"][1] <= acts["store fence"][0]


@pytest.mark.parametrize(("trouble_of", "says"), [("fail", CannotError), ("unknown before", OutcomeUnknownError)])
def test_what_fails_of_a_protection_keeps_nothing_else_of_it_from_being_done(
    two: World, monkeypatch: pytest.MonkeyPatch, trouble_of: str, says: type[SalvorError]
) -> None:
    """A standby that cannot be rebuilt, beside a repository that cannot be read: the backup is taken all the same."""
    store = type(two.session().incident.system("store"))

    def redundancy(self: System, tell: object) -> Iterator[Change]:
        yield self.change("fence", identity="x", why="w", no_undo="n")
        if self.name == "shelf":
            raise says("its repository cannot be read.")
        yield self.change("discard", identity="x", kept="old", why="w", no_undo="n")

    (two.root / "store" / "old").mkdir()
    monkeypatch.setattr(store, "redundancy", redundancy)
    trouble.order(two.root, "store", "fence", trouble_of)
    stream = io.StringIO()
    with pytest.raises(SalvorError, match=r"it does not want to|store: fence"):
        maintenance.protect("things", "world", Plain(stream), yes=True)
    assert "NOTE: this does not do all: its repository cannot be read" in stream.getvalue()
    assert "protected again" not in stream.getvalue()
    assert not (two.root / "store" / "old").exists(), "what comes after it is done"
    assert "shelf fence" in trouble.acts(two.root)


def test_a_service_whose_users_are_led_elsewhere_is_not_called_protected(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when its recovery was stopped between the cutover and the turn of the route."""
    store = place.session().incident.system("store")
    change = store.change("discard", identity="x", kept="x", why="w", no_undo="n")
    monkeypatch.setattr(type(store), "redundancy", lambda self, tell: iter([change]))
    with pytest.raises(WarnedError, match=r"not led to what is live: sign: users are led to 10\.0\.0\.1\."):
        maintenance.protect("things", "world", Plain(), yes=True)
    assert "protected again" not in capsys.readouterr().out
    (place.root / "sign").write_text("127.0.0.1")
    maintenance.protect("things", "world", Plain(), yes=True)
    assert "protected again" in capsys.readouterr().out


def test_each_step_looks_at_all_that_is_broken_at_once(two: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = two.session()
    store = type(session.incident.system("store"))
    look, both = store.observe, threading.Barrier(2)

    def in_company(self: System) -> State:
        both.wait(timeout=20)  # a look that no other one goes beside breaks it
        return look(self)

    monkeypatch.setattr(run, "A_MOMENT", 0.0)
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("assess")
        monkeypatch.setattr(store, "observe", in_company)
        for step in ("isolate", "restore", "verify", "reroute"):
            session.act(step)
    assert {(two.root / one / "live" / "data").read_text() for one in ("store", "shelf")} == {GOOD}


def test_a_look_that_takes_long_tells_how_far_it_is_and_ends_when_it_is_to_stop(two: World) -> None:
    stream = io.StringIO()
    session = open_session("things", Json(stream), platform="world")
    hears = session.incident.system("store").context.hears
    hears("store", Progress(0, None, "bytes", "reading"))
    hears("store", Progress(1, 4, "bytes", "reading"))
    assert [json.loads(line)["done"] for line in stream.getvalue().splitlines()] == [1]
    session.runner.stop()
    with pytest.raises(KeyboardInterrupt):
        hears("store", Progress(2, 4, "bytes", "reading"))
    hears("store", None)


def test_what_fails_on_one_system_lets_the_other_end_and_begins_nothing_more(two: World) -> None:
    trouble.order(two.root, "shelf", "stage", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        two.recover()
    assert "store stage" in trouble.acts(two.root)
    assert not two.intents("promote")
    two.recover()
    assert len(two.intents("stage")) == 3
    assert {(two.root / store / "live" / "data").read_text() for store in ("store", "shelf")} == {GOOD}


def test_of_a_copy_that_is_gone_midway_is_said_what_went_live_before(two: World) -> None:
    trouble.order(two.root, "shelf", "promote", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        two.recover()
    session = two.session()
    shutil.rmtree(two.root / "shelf" / f"stage-{session.incident.id}")
    with session.begin():
        session.approve(session.plan(), "test")
        with pytest.raises(NotProvenError, match="shelf: proven") as refused:
            session.act("reroute")
    assert (two.root / "store" / "live" / "data").read_text() == GOOD
    assert refused.value.safe == "only store went live before, and nothing else was cut over"


def test_what_waits_for_one_system_is_not_begun_when_another_failed_meanwhile(two: World) -> None:
    class Meanwhile(Plain):
        def ended(self, change: Change, *arguments: Any) -> None:
            if (change.system, change.verb) == ("store", "promote"):
                threading.Timer(0.3, hanging.unlink).start()

    trouble.order(two.root, "store", "promote", "fail")
    hanging = trouble.order(two.root, "shelf", "promote", "hang")
    with pytest.raises(CannotError, match="it does not want to"):
        console.recover(open_session("things", Meanwhile(), platform="world"), Plain(), yes=True)
    assert (two.root / "shelf" / "live" / "data").read_text() == GOOD, "what was under way has ended"
    assert not two.intents("point")


def test_an_unknown_promotion_holds_up_its_own_route_alone(two: World) -> None:
    trouble.order(two.root, "store", "promote", "unknown before")
    with pytest.raises(NotConvergedError):
        two.recover()
    assert (two.root / "sign").read_text() == "10.0.0.1"
    assert (two.root / "sign-shelf").read_text() == "127.0.0.1"


def test_undo_goes_backwards_on_all_of_them(two: World) -> None:
    incident = two.recover()
    aftermath.undo(incident, Plain(), yes=True)
    for store, sign in (("store", "sign"), ("shelf", "sign-shelf")):
        assert (two.root / sign).read_text() == "10.0.0.1"
        assert (two.root / store / "live" / "data").read_text() == BAD
    began = [line["change"]["key"] for line in two.lines("intent") if not line.get("undoing")]
    waits = {line["change"]["key"] for line in two.lines("intent") if line["change"]["system"] != "post"}
    back = [line["undoing"] for line in two.lines("intent") if line.get("undoing")]
    assert back == [key for key in reversed(began) if key in waits]

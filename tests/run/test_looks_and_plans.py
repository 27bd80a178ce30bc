"""What the runner looks at and plans: nothing twice, and nothing that nobody approved."""

from __future__ import annotations

import time

import pytest
from salvor import console, run
from salvor.change import State
from salvor.errors import (
    PlanMovedError,
)
from salvor.session import aftermath
from salvor.show import Plain
from salvor.system import System
from salvor.undo import undo_plan

from tests.world import BAD, GOOD, World


def test_what_was_just_seen_is_not_looked_at_again(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = place.session()
    store = type(session.incident.system("store"))
    look, looks = store.observe, []

    def counted(self: System) -> State:
        looks.append(self.name)
        return look(self)

    monkeypatch.setattr(store, "observe", counted)
    monkeypatch.setattr(run, "A_MOMENT", 600.0)
    console.recover(session, Plain(), yes=True)
    assert place.live == GOOD
    assert looks == 4 * ["store"], "for the plan, and after each of fence, stage and promote"


def test_what_was_seen_earlier_is_looked_at_again(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "A_MOMENT", 0.05)
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        (place.store / "live").rename(place.store / "moved")
        (place.store / "live").mkdir()
        time.sleep(0.1)
        session.act("assess")
        with pytest.raises(PlanMovedError, match="fence identity=inode:"):
            session.act("isolate")
    assert not place.intents("fence")


def test_a_plan_leaves_nothing_behind_in_memory_either(place: World) -> None:
    session = place.session()
    first = session.plan()
    assert first.steps[0].decisions
    assert not session.incident.decisions
    assert not session.incident.findings
    assert session.plan().hash == first.hash
    with pytest.raises(Exception, match="A plan writes nothing"):
        session.runner.note("note", text="x")


def test_a_step_that_plans_anew_what_nobody_approved_is_refused(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan("isolate"), "test")
        session.act("isolate")
        with pytest.raises(PlanMovedError, match="restore now plans what nobody approved:\n  store: stage"):
            session.act("restore")
    assert not (place.store / f"stage-{session.incident.id}").exists()


def test_the_runner_itself_does_nothing_that_nobody_approved(place: World) -> None:
    session = aftermath.of_id(place.recover(), Plain())
    with session.begin():
        assert session.journal
        back, undoing = undo_plan(session.incident, session.journal)
        with pytest.raises(PlanMovedError, match="undo now plans what nobody approved:\n  sign: point"):
            session.runner.undo(back, undoing)
        with pytest.raises(PlanMovedError, match="discard now plans what nobody approved:\n  sign: point"):
            session.runner.act("discard", back)
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])

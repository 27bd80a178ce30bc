"""Changes whose answer was lost: they are looked at, and never repeated blindly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from salvor import console, maintenance, plan
from salvor.change import Change, Level
from salvor.errors import (
    CannotError,
    NotConvergedError,
    OutcomeUnknownError,
    PlanMovedError,
)
from salvor.incident import Incident
from salvor.journal import brief, incidents, story
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain

from tests import trouble
from tests.world import BAD, GOOD, World

VERBS = {"fence": "store", "stage": "store", "promote": "store", "point": "sign"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_change_whose_answer_was_lost_is_looked_at_and_never_repeated(place: World, verb: str) -> None:
    trouble.order(place.root, VERBS[verb], verb, "unknown after")
    place.recover()
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    assert len(place.intents(verb)) == 1
    [outcome] = [line for line in place.lines("outcome") if line["outcome"] == "unknown"]
    [observed] = place.lines("observed")
    assert outcome["key"] == observed["key"] == place.intents(verb)[0]["change"]["key"]
    assert (observed["outcome"], outcome["error"]) == ("done", "no answer in time")
    assert place.letters == ["declared", "recovered"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_change_that_did_not_happen_is_not_repeated_blindly(place: World, verb: str) -> None:
    trouble.order(place.root, VERBS[verb], verb, "unknown before")
    with pytest.raises(NotConvergedError, match=f"still plans:\n  {VERBS[verb]}: {verb}") as left:
        place.recover()
    assert left.value.exit_code == 4
    assert len(place.intents(verb)) == 1
    [observed] = place.lines("observed")
    assert observed["outcome"] == "not done"
    assert place.letters == ["declared", "failed"]
    place.recover()
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    assert len(place.intents(verb)) == 2


def test_in_one_step_a_change_is_made_once_however_many_answers_are_lost(place: World) -> None:
    class Meanwhile(Plain):
        def ended(self, change: Change, *arguments: Any) -> None:
            if change.verb == "stage":
                (place.store / "fence").unlink()

    def fence_and_stage(incident: Incident) -> Iterator[Change]:
        """Fence it, then stage."""
        [store] = incident.systems
        state = incident.observe(store)
        if state.writable:
            yield store.change("fence", identity=state.identity, why="-", no_undo="-")
        if not state.staged:
            yield store.change("stage", stage="side-folder", backup="b1", why="-", no_undo="-")

    for verb in ("fence", "stage"):
        trouble.order(place.root, "store", verb, "unknown after")
    session = open_session("things", Meanwhile(), platform="world")
    with session.begin():
        session.runner.approve(session.runner.plan([fence_and_stage]), "test")
        with pytest.raises(NotConvergedError, match="still plans:\n  store: fence"):
            session.runner.run(fence_and_stage)
    assert (len(place.intents("fence")), len(place.intents("stage"))) == (1, 1)


def test_nothing_goes_past_a_promotion_that_may_not_have_happened(place: World) -> None:
    trouble.order(place.root, "store", "promote", "unknown before")
    with pytest.raises(NotConvergedError):
        place.recover()
    assert not place.intents("point")
    assert place.sign == "10.0.0.1"


def test_a_world_that_moved_while_an_answer_was_awaited_is_not_changed_without_approval(place: World) -> None:
    class Meanwhile(Plain):
        def ended(self, change: Change, *arguments: Any) -> None:
            if change.verb == "promote":
                (place.root / "sign").write_text("10.9.9.9")

    trouble.order(place.root, "store", "promote", "unknown after")
    session = place.session()
    session.runner.watcher = Meanwhile(io.StringIO())
    with pytest.raises(PlanMovedError, match=r"reroute now plans what nobody approved:\n  sign: point"):
        console.recover(session, Plain(), yes=True)
    assert place.sign == "10.9.9.9"


def test_an_undo_whose_answer_was_lost_stops_and_goes_on_when_asked_again(place: World) -> None:
    incident = place.recover()
    trouble.order(place.root, "store", "demote", "unknown after")
    with pytest.raises(OutcomeUnknownError, match="store: demote"):
        aftermath.undo(incident, Plain(), yes=True)
    assert (place.sign, place.live) == ("10.0.0.1", BAD)
    assert not place.intents("unfence")
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.sign, place.live, place.kept) == ("10.0.0.1", BAD, [])
    assert len(place.intents("point")) == 2  # there and back: what was taken back is not taken back again
    assert place.lines("undone")


def test_an_undo_and_assess_tell_of_a_copy_that_followed_what_is_taken_back(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident = place.recover()
    store = type(place.session().incident.system("store"))
    look = store.observe
    monkeypatch.setattr(store, "observe", lambda self: replace(look(self), left_behind=("b follows what is gone",)))
    stream = io.StringIO()
    aftermath.undo(incident, Plain(stream), yes=True)
    assert "NOTE: b follows what is gone. inv protect --service=things" in stream.getvalue()
    [told] = [one for one in place.session().plan("assess").steps[0].findings if one.check == "is followed"]
    assert told.level is Level.WARN and "inv protect --service=things" in told.detail


def test_a_backup_of_which_nobody_knows_is_not_called_done(place: World) -> None:
    session = place.session()
    [change] = [session.incident.systems[0].change("fence", identity="x", why="w", no_undo="n")]
    trouble.order(place.root, "store", "fence", "unknown after")
    with session.begin():
        session.runner.approve(plan.Plan((plan.PlannedStep("protect", (), (), (change,)),)), "test")
        with pytest.raises(OutcomeUnknownError, match="store: fence"):
            session.runner.act("protect", [change])


def test_maintenance_that_failed_is_closed_since_nobody_goes_on_with_it(place: World) -> None:
    platform = place.session().incident.platform
    sitting = maintenance.sitting(platform.service("things"), platform, Plain())
    trouble.order(place.root, "store", "fence", "fail")

    def upkeep(incident: Incident) -> Iterator[Change]:
        """Fence it."""
        yield incident.systems[0].change("fence", identity="x", why="w", no_undo="n")

    with pytest.raises(CannotError, match="it does not want to"):
        maintenance.work(sitting, upkeep, Plain(), plan_only=False, approve="", yes=True)
    [folder] = incidents(place.root / "incidents")
    told = brief.read(folder)
    assert told and told.state == story.read(folder).state == "failed, closed"

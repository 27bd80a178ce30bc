"""The runner: unknown outcomes, changes side by side, messages that hang or fail, and the way back."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from salvor import console, maintenance, outgoing, plan, run
from salvor.change import Change, Level, State, Undo
from salvor.errors import (
    CannotError,
    NotConvergedError,
    NotProvenError,
    OutcomeUnknownError,
    PlanMovedError,
    SalvorError,
    UsageError,
)
from salvor.incident import Incident
from salvor.journal import brief, incidents, story
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import System
from salvor.undo import undo_plan

from tests import trouble, world
from tests.world import BAD, GOOD, World


def recover(place: World, **more: Any) -> str:
    session = place.session(**more)
    console.recover(session, Plain(), yes=True)
    return session.incident.id


def lines(place: World, *kinds: str) -> list[dict[str, Any]]:
    return place.journals()[0].of(*kinds)


def intents(place: World, verb: str) -> list[dict[str, Any]]:
    return [line for line in lines(place, "intent") if line["change"]["verb"] == verb]


VERBS = {"fence": "store", "stage": "store", "promote": "store", "point": "sign"}


# ------------------------------------------------------------------------------------------------------ looks


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
    assert not intents(place, "fence")


# ------------------------------------------------------------------------------------------ unknown outcomes


@pytest.mark.parametrize("verb", VERBS)
def test_a_change_whose_answer_was_lost_is_looked_at_and_never_repeated(place: World, verb: str) -> None:
    trouble.order(place.root, VERBS[verb], verb, "unknown after")
    recover(place)
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    assert len(intents(place, verb)) == 1
    [outcome] = [line for line in lines(place, "outcome") if line["outcome"] == "unknown"]
    [observed] = lines(place, "observed")
    assert outcome["key"] == observed["key"] == intents(place, verb)[0]["change"]["key"]
    assert (observed["outcome"], outcome["error"]) == ("done", "no answer in time")
    assert place.letters == ["declared", "recovered"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_change_that_did_not_happen_is_not_repeated_blindly(place: World, verb: str) -> None:
    trouble.order(place.root, VERBS[verb], verb, "unknown before")
    with pytest.raises(NotConvergedError, match=f"still plans:\n  {VERBS[verb]}: {verb}") as left:
        recover(place)
    assert left.value.exit_code == 4
    assert len(intents(place, verb)) == 1
    [observed] = lines(place, "observed")
    assert observed["outcome"] == "not done"
    assert place.letters == ["declared", "failed"]
    recover(place)
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    assert len(intents(place, verb)) == 2


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
    assert (len(intents(place, "fence")), len(intents(place, "stage"))) == (1, 1)


def test_nothing_goes_past_a_promotion_that_may_not_have_happened(place: World) -> None:
    trouble.order(place.root, "store", "promote", "unknown before")
    with pytest.raises(NotConvergedError):
        recover(place)
    assert not intents(place, "point")
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
    incident = recover(place)
    trouble.order(place.root, "store", "demote", "unknown after")
    with pytest.raises(OutcomeUnknownError, match="store: demote"):
        aftermath.undo(incident, Plain(), yes=True)
    assert (place.sign, place.live) == ("10.0.0.1", BAD)
    assert not intents(place, "unfence")
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.sign, place.live, place.kept) == ("10.0.0.1", BAD, [])
    assert len(intents(place, "point")) == 2  # there and back: what was taken back is not taken back again
    assert lines(place, "undone")


def test_an_undo_and_assess_tell_of_a_copy_that_followed_what_is_taken_back(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident = recover(place)
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


# ------------------------------------------------------------------------------------------ side by side


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path, ("store", "shelf"))
    for store in ("store", "shelf"):
        (tmp_path / store / "live" / "data").write_text(BAD)
    return made


def test_independent_systems_at_once_and_dependent_ones_in_order(two: World) -> None:
    for store in ("store", "shelf"):
        trouble.order(two.root, store, "stage", "slow")
    recover(two)
    acts = trouble.acts(two.root)
    (store_begun, store_ended), (shelf_begun, shelf_ended) = acts["store stage"], acts["shelf stage"]
    overlap = min(store_ended, shelf_ended) - max(store_begun, shelf_begun)
    assert overlap > 0.8 * max(store_ended - store_begun, shelf_ended - shelf_begun)
    for store, sign in (("store", "sign"), ("shelf", "sign-shelf")):
        assert acts[f"{store} promote"][1] <= acts[f"{sign} point"][0]
        assert (two.root / sign).read_text() == "127.0.0.1"
        assert (two.root / store / "live" / "data").read_text() == GOOD


@pytest.mark.parametrize("trouble_of", ["fail", "unknown before"])
def test_what_fails_of_a_protection_keeps_nothing_else_of_it_from_being_done(
    two: World, monkeypatch: pytest.MonkeyPatch, trouble_of: str
) -> None:
    """A standby that cannot be rebuilt, beside a repository that cannot be read: the backup is taken all the same."""
    store = type(two.session().incident.system("store"))

    def redundancy(self: System, tell: object) -> Iterator[Change]:
        yield self.change("fence", identity="x", why="w", no_undo="n")
        if self.name == "shelf":
            raise CannotError("its repository cannot be read.")
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


def test_what_fails_on_one_system_lets_the_other_end_and_begins_nothing_more(two: World) -> None:
    trouble.order(two.root, "shelf", "stage", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        recover(two)
    assert "store stage" in trouble.acts(two.root)
    assert not intents(two, "promote")
    recover(two)
    assert len(intents(two, "stage")) == 3
    assert {(two.root / store / "live" / "data").read_text() for store in ("store", "shelf")} == {GOOD}


def test_of_a_copy_that_is_gone_midway_is_said_what_went_live_before(two: World) -> None:
    trouble.order(two.root, "shelf", "promote", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        recover(two)
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
    assert not intents(two, "point")


def test_an_unknown_promotion_holds_up_its_own_route_alone(two: World) -> None:
    trouble.order(two.root, "store", "promote", "unknown before")
    with pytest.raises(NotConvergedError):
        recover(two)
    assert (two.root / "sign").read_text() == "10.0.0.1"
    assert (two.root / "sign-shelf").read_text() == "127.0.0.1"


def test_undo_goes_backwards_on_all_of_them(two: World) -> None:
    incident = recover(two)
    aftermath.undo(incident, Plain(), yes=True)
    for store, sign in (("store", "sign"), ("shelf", "sign-shelf")):
        assert (two.root / sign).read_text() == "10.0.0.1"
        assert (two.root / store / "live" / "data").read_text() == BAD
    began = [line["change"]["key"] for line in lines(two, "intent") if not line.get("undoing")]
    waits = {line["change"]["key"] for line in lines(two, "intent") if line["change"]["system"] != "post"}
    back = [line["undoing"] for line in lines(two, "intent") if line.get("undoing")]
    assert back == [key for key in reversed(began) if key in waits]


# ------------------------------------------------------------------------------------------ the way back


def test_a_change_without_undo_says_so_before_approval_and_blocks_undo_before_anything_is_undone(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = place.root / "inventory" / "world.yaml"
    inventory.write_text(inventory.read_text().replace("kind: folder,", "kind: folder, goes_back: false,"))
    console.recover(place.session(), Plain(), plan_only=True)
    assert "undo   NONE: this folder never goes back" in capsys.readouterr().out
    incident = recover(place)
    assert "go back:    none: store: promote" in capsys.readouterr().out
    before = (place.live, place.sign, place.kept, place.letters)
    with pytest.raises(
        CannotError, match=r"store: promote .* cannot be undone: this folder never goes back"
    ) as blocked:
        aftermath.undo(incident, Plain(), yes=True)
    assert "nothing was undone" in blocked.value.safe
    assert (place.live, place.sign, place.kept, place.letters) == before
    assert not [line for line in lines(place, "intent") if line.get("undoing")]


def test_what_was_begun_last_is_taken_back_first(place: World) -> None:
    session = place.session()
    [store] = session.incident.systems
    [sign] = session.incident.routes
    fence = store.change("fence", identity="x", why="w", undo=Undo("unfence", {"identity": "x"}))
    point = sign.change(
        "point", address="a", expected="b", why="w", undo=Undo("point", {"address": "b", "expected": "a"})
    )
    with session.begin():
        for change in (fence, point, fence):
            session.runner.note("intent", step="isolate", change=change.to_json())
    assert session.journal
    back, undoing = undo_plan(session.incident, session.journal)
    assert [(each.system, each.verb) for each in back] == [("store", "unfence"), ("sign", "point")]
    assert [undoing[each.key] for each in back] == [fence.key, point.key]


def test_undo_after_an_undo_that_failed_and_another_restore_takes_all_of_it_back(place: World) -> None:
    incident = recover(place)
    trouble.order(place.root, "store", "unfence", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        aftermath.undo(incident, Plain(), yes=True)
    assert place.live == BAD
    recover(place)  # the operator goes forward instead
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, place.sign, place.kept) == (BAD, "10.0.0.1", [])
    assert not (place.store / "fence").exists()


def test_what_nobody_saw_end_is_seen_by_who_goes_on(place: World) -> None:
    session = place.session()
    plan = session.plan()
    [fence] = [change for change in plan.changes if change.verb == "fence"]
    with session.begin():
        session.approve(plan, "test")
        session.runner.note("intent", step="isolate", change=fence.to_json())  # and it was killed
    recover(place)
    [observed] = lines(place, "observed")
    assert (observed["key"], observed["outcome"]) == (fence.key, "not done")
    assert (place.live, len(intents(place, "fence"))) == (GOOD, 2)


def test_what_nobody_saw_end_is_seen_undone(place: World) -> None:
    session = place.session()
    plan = session.plan()
    [fence] = [change for change in plan.changes if change.verb == "fence"]
    with session.begin():
        session.approve(plan, "test")
        session.runner.note("intent", step="isolate", change=fence.to_json())  # and it was killed
    aftermath.undo(session.incident.id, Plain(), yes=True)
    [observed] = lines(place, "observed")
    assert (observed["key"], observed["outcome"]) == (fence.key, "not done")
    assert not (place.store / "fence").exists()


def test_a_way_back_that_the_journal_would_mask_is_none_and_says_so(place: World) -> None:
    sign = place.root / "sign"
    sign.write_text("postgres://app:hunter2@old")
    plan = place.session().plan()
    [point] = [change for change in plan.changes if change.verb == "point"]
    assert point.undo is None
    assert "looks like a secret" in point.no_undo
    incident = recover(place)
    assert sign.read_text() == "127.0.0.1"
    assert "hunter2" not in (place.journals()[0].folder / "journal.jsonl").read_text()
    with pytest.raises(CannotError, match=r"sign: point .* cannot be undone"):
        aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, sign.read_text()) == (GOOD, "127.0.0.1")


def test_a_route_that_gives_no_answer_is_mended_and_the_same_command_goes_on(place: World) -> None:
    sign = place.root / "sign"
    sign.unlink()
    sign.mkdir()
    with pytest.raises(NotProvenError, match="sign: leads to what is live: unknown") as refused:
        recover(place)
    assert "mend what is named above, then the same command again" in refused.value.hint  # no other backup would help
    sign.rmdir()
    sign.write_text("10.0.0.1")
    recover(place)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")


def test_a_masked_argument_does_not_change_what_was_undone(place: World) -> None:
    """The key of a change is that of what was done, not of what the journal shows of it."""
    sign = place.root / "sign"
    sign.write_text("token=hunter2")
    incident = recover(place)
    [point] = intents(place, "point")
    assert "hunter2" not in str(point)
    assert point["change"]["key"] in {line["key"] for line in lines(place, "outcome")}
    assert place.session().resumed
    assert place.session().incident.id == incident
    recover(place)
    assert len(intents(place, "point")) == 1


def test_a_decision_that_the_journal_would_mask_is_refused_before_anything_is_done(place: World) -> None:
    (place.store / "backups" / "b1").rename(place.store / "backups" / "password=hunter2")
    with pytest.raises(UsageError, match="needs what looks like a secret") as refused:
        recover(place)
    assert "hunter2" not in str(refused.value)
    assert not place.journals()
    assert place.letters == []


# ------------------------------------------------------------------------------------------ what only plans


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
    session = aftermath.of_id(recover(place), Plain())
    with session.begin():
        assert session.journal
        back, undoing = undo_plan(session.incident, session.journal)
        with pytest.raises(PlanMovedError, match="undo now plans what nobody approved:\n  sign: point"):
            session.runner.undo(back, undoing)
        with pytest.raises(PlanMovedError, match="discard now plans what nobody approved:\n  sign: point"):
            session.runner.act("discard", back)
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])


# ------------------------------------------------------------------------------------------ messages and watchers


def test_a_notifier_that_hangs_holds_nobody_and_is_owed(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "DEADLINE", 0.5)
    monkeypatch.setattr(outgoing, "IN_ORDER", 0.1)
    hanging = trouble.order(place.root, "post", "declared", "hang")
    begun = time.monotonic()
    recover(place)
    assert time.monotonic() - begun < 10
    assert (place.live, place.letters) == (GOOD, ["recovered"])
    [owed] = lines(place, "owed")
    assert owed["what"] == "post: send moment=declared"
    written = len(place.journals()[0].lines)
    hanging.unlink()
    for thread in threading.enumerate():
        if thread.name.startswith("message"):
            assert thread.daemon
            thread.join(5)
    assert len(place.journals()[0].lines) == written  # it does not write into a journal that was given back
    assert place.letters == ["recovered", "declared"]


def test_messages_on_one_channel_keep_their_order(place: World) -> None:
    declared = trouble.order(place.root, "post", "declared", "hang")
    threading.Timer(1.0, declared.unlink).start()
    recover(place)
    assert place.letters == ["declared", "recovered"]


def test_an_undo_is_over_when_what_it_owes_is_written(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = recover(place)
    monkeypatch.setattr(outgoing, "DEADLINE", 0.3)
    hanging = trouble.order(place.root, "post", "undone", "hang")
    aftermath.undo(incident, Plain(), yes=True)
    assert [line["kind"] for line in lines(place, "owed", "undone")] == ["owed", "undone"]
    hanging.unlink()


@pytest.mark.parametrize("trouble_with", ["fail", "unknown after"])
def test_nobody_hears_that_it_is_undone_who_heard_of_nothing(place: World, trouble_with: str) -> None:
    for moment in ("declared", "recovered"):
        trouble.order(place.root, "post", moment, trouble_with)
    incident = recover(place)
    aftermath.undo(incident, Plain(), yes=True)
    assert ("undone" in place.letters) == (trouble_with == "unknown after")


def test_what_was_owed_is_tried_again(place: World) -> None:
    trouble.order(place.root, "post", "declared", "fail")
    recover(place)
    assert [line["why"] for line in lines(place, "owed")] == ["it does not want to"]
    assert place.letters == ["recovered"]
    recover(place)
    assert sorted(place.letters) == ["declared", "recovered"]


def test_an_outbox_that_is_broken_does_not_hide_what_failed(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.store / "backups/b1/data").write_text("also bad\n")
    session = place.session()
    outbox = session.incident.outbox
    assert outbox
    messages = type(outbox).messages

    def broken(self: Any, moment: str) -> Any:
        if moment == "failed":
            raise RuntimeError("the template is broken")
        return messages(self, moment)

    monkeypatch.setattr(type(outbox), "messages", broken)
    with pytest.raises(NotProvenError):
        console.recover(session, Plain(), yes=True)
    assert "the template is broken" in [line["why"] for line in lines(place, "owed")]


class Gone(io.StringIO):
    """A terminal that goes away after some lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left = lines

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("lines_shown", [30, 40, 50, 70])
def test_a_terminal_that_goes_away_stops_no_recovery(place: World, lines_shown: int) -> None:
    session = place.session()
    session.runner.watcher = Plain(Gone(lines_shown))
    console.recover(session, Plain(io.StringIO()), yes=True)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    assert {line["outcome"] for line in lines(place, "outcome")} == {"done"}


def test_stopped_by_the_operator_a_change_ends_at_its_next_sign_of_progress(place: World) -> None:
    trouble.order(place.root, "store", "stage", "slow")
    session = place.session()
    pressed = threading.Event()

    class Pressing(Plain):
        def progress(self, *arguments: Any) -> None:
            if not pressed.is_set():
                pressed.set()
                os.kill(os.getpid(), signal.SIGINT)

    session.runner.watcher = Pressing(io.StringIO())
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        console.recover(session, Plain(io.StringIO()), yes=True)
    assert time.monotonic() - begun < 1.8
    assert [line["outcome"] for line in lines(place, "outcome")][-1] == "unknown"
    recover(place)
    assert (place.live, place.kept) == (GOOD, [BAD])


def test_findings_of_each_step_are_in_the_journal(place: World) -> None:
    recover(place)
    steps = {line["step"] for line in lines(place, "finding")}
    assert {"assess", "verify", "reroute"} <= steps
    assert {line["finding"]["level"] for line in lines(place, "finding") if line["step"] == "reroute"} == {Level.PASS}


@pytest.fixture(autouse=True)
def no_thread_is_left_to_write() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("message", "change")):
            thread.join(5)
            assert not thread.is_alive()

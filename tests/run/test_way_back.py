"""Undo: what was done last is taken back first, and nothing past what cannot be taken back."""

from __future__ import annotations

import pytest
from salvor import console
from salvor.change import Undo
from salvor.errors import (
    CannotError,
    NotProvenError,
    UsageError,
)
from salvor.session import aftermath
from salvor.show import Plain
from salvor.undo import undo_plan

from tests import trouble
from tests.world import BAD, GOOD, World


def test_a_change_without_undo_says_so_before_approval_and_blocks_undo_before_anything_is_undone(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = place.root / "inventory" / "world.yaml"
    inventory.write_text(inventory.read_text().replace("kind: folder,", "kind: folder, goes_back: false,"))
    console.recover(place.session(), Plain(), plan_only=True)
    assert "undo   NONE: this folder never goes back" in capsys.readouterr().out
    incident = place.recover()
    assert "go back:    none: store: promote" in capsys.readouterr().out
    before = (place.live, place.sign, place.kept, place.letters)
    with pytest.raises(
        CannotError, match=r"store: promote .* cannot be undone: this folder never goes back"
    ) as blocked:
        aftermath.undo(incident, Plain(), yes=True)
    assert "nothing was undone" in blocked.value.safe
    assert (place.live, place.sign, place.kept, place.letters) == before
    assert not [line for line in place.lines("intent") if line.get("undoing")]


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
    incident = place.recover()
    trouble.order(place.root, "store", "unfence", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        aftermath.undo(incident, Plain(), yes=True)
    assert place.live == BAD
    place.recover()  # the operator goes forward instead
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, place.sign, place.kept) == (BAD, "10.0.0.1", [])
    assert not (place.store / "fence").exists()


def killed_before_the_fence(place: World) -> tuple[str, str]:
    """The incident, and the key of its fence, which was about to be put up when the operator's process was killed."""
    session = place.session()
    plan = session.plan()
    [fence] = [change for change in plan.changes if change.verb == "fence"]
    with session.begin():
        session.approve(plan, "test")
        session.runner.note("intent", step="isolate", change=fence.to_json())  # and it was killed
    return session.incident.id, fence.key


def test_what_nobody_saw_end_is_seen_by_who_goes_on(place: World) -> None:
    _, fence = killed_before_the_fence(place)
    place.recover()
    [observed] = place.lines("observed")
    assert (observed["key"], observed["outcome"]) == (fence, "not done")
    assert (place.live, len(place.intents("fence"))) == (GOOD, 2)


def test_what_nobody_saw_end_is_seen_undone(place: World) -> None:
    incident, fence = killed_before_the_fence(place)
    aftermath.undo(incident, Plain(), yes=True)
    [observed] = place.lines("observed")
    assert (observed["key"], observed["outcome"]) == (fence, "not done")
    assert not (place.store / "fence").exists()


def test_a_way_back_that_the_journal_would_mask_is_none_and_says_so(place: World) -> None:
    sign = place.root / "sign"
    sign.write_text("postgres://app:hunter2@old")
    plan = place.session().plan()
    [point] = [change for change in plan.changes if change.verb == "point"]
    assert point.undo is None
    assert "looks like a secret" in point.no_undo
    incident = place.recover()
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
        place.recover()
    assert "mend what is named above, then the same command again" in refused.value.hint  # no other backup would help
    sign.rmdir()
    sign.write_text("10.0.0.1")
    place.recover()
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")


def test_a_masked_argument_does_not_change_what_was_undone(place: World) -> None:
    """The key of a change is that of what was done, not of what the journal shows of it."""
    sign = place.root / "sign"
    sign.write_text("token=hunter2")
    incident = place.recover()
    [point] = place.intents("point")
    assert "hunter2" not in str(point)
    assert point["change"]["key"] in {line["key"] for line in place.lines("outcome")}
    assert place.session().resumed
    assert place.session().incident.id == incident
    place.recover()
    assert len(place.intents("point")) == 1


def test_a_decision_that_the_journal_would_mask_is_refused_before_anything_is_done(place: World) -> None:
    (place.store / "backups" / "b1").rename(place.store / "backups" / "password=hunter2")
    with pytest.raises(UsageError, match="needs what looks like a secret") as refused:
        place.recover()
    assert "hunter2" not in str(refused.value)
    assert not place.journals()
    assert place.letters == []

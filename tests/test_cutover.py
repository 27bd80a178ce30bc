"""What is broken, what is fenced, what is proven, and when it is back."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from salvor import console, cutover, whole_platform
from salvor.change import UNSEEN, Change
from salvor.errors import CannotError, NotProvenError
from salvor.session import aftermath
from salvor.show import Plain
from salvor.steps import isolate, reroute
from salvor.wish import Wish

from tests import trouble
from tests.world import BAD, GOOD, World


def test_a_verify_that_was_cut_off_proves_nothing(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore"):
            session.act(name)
        [broken] = session.incident.broken
        staged = cutover.staged(session.incident, broken)
        assert staged
        passed = {"subject": "store", "check": "content", "level": "pass", "evidence": staged.identity}
        session.runner.note("step", step="verify", phase="begun", planned=0)
        session.runner.note("finding", step="verify", finding=passed)
    assert not cutover.is_proven(place.session().incident, broken)
    again = place.session()
    with again.begin():
        again.runner.note("step", step="verify", phase="begun", planned=0)  # and it is cut off once more
    with pytest.raises(NotProvenError, match="was not passed by verify"):
        console.recover(place.session(), Plain(), "reroute", yes=True)
    assert place.live == BAD
    console.recover(place.session(), Plain(), "verify", yes=True)
    console.recover(place.session(), Plain(), "reroute", yes=True)
    assert place.live == GOOD


def test_one_bad_finding_takes_the_proof_away(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore", "verify"):
            session.act(name)
        assert cutover.is_proven(session.incident, session.incident.broken[0])
        (place.store / f"stage-{session.incident.id}" / "data").write_text("rotten\n")
        with pytest.raises(NotProvenError):
            session.act("verify")
        with pytest.raises(NotProvenError, match="was not passed by verify"):
            session.act("reroute")
    assert place.live == BAD


def test_a_copy_of_another_backup_is_none_of_the_way_that_is_pinned(place: World) -> None:
    (place.store / "backups/b0").mkdir()
    (place.store / "backups/b0" / "data").write_text(f"older {GOOD}")
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore", "verify"):
            session.act(name)
        [broken] = session.incident.broken
        assert cutover.is_proven(session.incident, broken)
        [way] = broken.system.ways_back(Wish(source="b0"))
        session.runner.note("decision", decision=replace(broken.decision, way=way).to_json())
        [broken] = session.incident.broken
        assert cutover.staged(session.incident, broken) is None
        assert not cutover.is_proven(session.incident, broken)
        session.approve(session.plan(), "test")
        for name in ("restore", "verify", "reroute"):
            session.act(name)
    assert place.live == f"older {GOOD}"


def test_nobody_is_led_to_what_was_put_in_place_and_never_proven(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore"):
            session.act(name)
        (place.store / "live").rename(place.store / "by-hand")
        (place.store / f"stage-{session.incident.id}").rename(place.store / "live")
        [store] = session.incident.systems
        (place.store / "fence").write_text(store.observe().identity)
        session.incident.look_again()
        with pytest.raises(NotProvenError, match="was not passed by verify"):
            session.act("reroute")
    assert place.sign == "10.0.0.1"


@pytest.mark.parametrize("level", ["fail", "unknown"])
def test_what_comes_after_a_bad_finding_gives_no_proof_back(place: World, level: str) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore"):
            session.act(name)
        [broken] = session.incident.broken
        staged = cutover.staged(session.incident, broken)
        assert staged
        for levels, is_proven in ((["pass", "warn"], True), (["pass", level, "pass"], False)):
            session.runner.note("step", step="verify", phase="begun", planned=0)
            for each in levels:
                found = {"subject": "store", "check": "content", "level": each, "evidence": staged.identity}
                session.runner.note("finding", step="verify", finding=found)
            session.runner.note("step", step="verify", phase="ended", seconds=1.0)
            assert cutover.is_proven(session.incident, broken) is is_proven


def test_only_what_was_broken_is_fenced(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("assess")
    (place.store / "live").rename(place.root / "by-hand")
    (place.store / "live").mkdir()
    (place.store / "live" / "data").write_text(GOOD)
    assert session.plan("isolate").changes == (), "somebody replaced it"


def test_what_was_restored_is_not_fenced_although_nobody_could_look_at_what_was_broken(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("assess")
        [broken] = session.incident.broken
        session.runner.note("decision", decision=replace(broken.decision, identity=UNSEEN).to_json())
        session.approve(session.plan(), "test")
        for name in ("isolate", "restore", "verify", "reroute"):
            session.act(name)
        assert place.live == GOOD
        assert session.plan("isolate").changes == ()


def test_what_takes_no_writes_is_broken(place: World) -> None:
    (place.store / "live" / "data").write_text(GOOD)
    (place.store / "fence").write_text(place.session().incident.systems[0].observe().identity)
    [step] = place.session().plan("assess").steps
    assert [decision.seen for decision in step.decisions] == ["it takes no writes: a folder"]


def test_what_was_brought_back_and_takes_no_writes_is_broken_again(place: World) -> None:
    session = place.session()
    console.recover(session, Plain(), yes=True)
    assert place.session().incident.id == session.incident.id
    (place.store / "fence").write_text(session.incident.systems[0].observe().identity)
    assert place.session().incident.id != session.incident.id


@pytest.mark.parametrize("tries", [4, 1000])
def test_it_is_back_when_its_checks_pass_through_the_route(
    place: World, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    monkeypatch.setattr(reroute, "_RECONNECT_SECONDS", 0.0 if tries < 10 else 0.5)
    tried, inventory = place.root / "tried", place.root / "inventory/world.yaml"
    if tries < 10:  # users' machines may believe the old address for so long
        inventory.write_text(inventory.read_text().replace("leads_to: store", "leads_to: store, ttl: 30"))
    script = f"grep -q 127.0.0.1 {place.root}/sign || exit 0; echo >> {tried}; [ $(wc -l < {tried}) -ge {tries} ]"
    inventory.write_text(f"{inventory.read_text()}      - {{name: it answers, command: [sh, -c, '{script}']}}\n")
    if tries < 10:
        console.recover(place.session(), Plain(), yes=True)
    else:
        with pytest.raises(NotProvenError, match="it answers"):
            console.recover(place.session(), Plain(), yes=True)
    assert place.live == GOOD
    assert bool(place.lines("recovered")) is (tries < 10)


def test_a_cluster_that_came_up_again_is_fenced_and_names_its_database_by_then(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("assess")
        incident, [broken] = session.incident, session.incident.broken
        up = replace(incident.observe(broken.system), identity=f"{broken.identity}/16388")
        monkeypatch.setattr(incident, "observe", lambda system: up)
        fences = [one for one in isolate.isolate(incident) if isinstance(one, Change)]
        assert [(one.verb, one.arguments["identity"]) for one in fences] == [("fence", broken.identity)]
        assert cutover.is_of_this_world(incident, broken)


def test_it_is_done_only_while_every_route_is_seen_to_lead_there(place: World) -> None:
    place.recover()
    incident = place.session().incident

    def is_done() -> bool:
        incident.look_again()
        return cutover.is_done(incident)

    assert is_done()
    (place.root / "sign").write_text("10.0.0.1")
    assert not is_done()
    (place.root / "sign").unlink()
    (place.root / "sign").mkdir()  # it gives no answer
    assert not is_done()


def test_what_was_lost_put_back_and_lost_again_is_another_incident(place: World) -> None:
    """A loss looks like any other, and the backup that was pinned is of the first."""
    shutil.rmtree(place.store / "live")
    trouble.order(place.root, "sign", "point", "fail")
    with pytest.raises(CannotError):
        console.recover(place.session(), Plain(), yes=True)
    assert place.live == GOOD and place.session().resumed
    shutil.rmtree(place.store / "live")
    assert not place.session().resumed


def test_what_was_never_seen_or_takes_no_writes_is_not_what_somebody_brought_back(place: World) -> None:
    session = place.session()
    with session.begin():
        session.approve(session.plan(), "test")
        session.act("assess")
        incident, [broken] = session.incident, session.incident.broken
        session.runner.note("decision", decision=replace(broken.decision, identity=UNSEEN).to_json())
        assert cutover.brought_back(incident) == {}, "it may be what broke"
        session.runner.note("decision", decision=replace(broken.decision, identity="another").to_json())
        assert set(cutover.brought_back(incident)) == {"store"}
        (place.store / "fence").write_text(broken.system.observe().identity)
        incident.look_again()
        assert cutover.brought_back(incident) == {}, "it takes no writes"


def test_what_somebody_else_brought_back_is_told_by_the_plan_and_not_replaced(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(place.store / "live")
    trouble.order(place.root, "store", "promote", "fail")
    with pytest.raises(CannotError, match="it does not want to"):
        console.recover(place.session(), Plain(), yes=True)
    (place.store / "live").mkdir()
    (place.store / "live" / "data").write_text(mended := f"{GOOD}and what was written since\n")
    for plan_only in (True, False):
        with pytest.raises(CannotError, match=r"store takes writes, and is .*, not absent: somebody") as refused:
            console.recover(place.session(), Plain(), plan_only=plan_only, yes=True)
        assert place.live == mended and "inv undo --incident=" in refused.value.hint
    capsys.readouterr()
    console.assess(place.session(), Plain())
    said = capsys.readouterr().out
    assert "somebody brought it back" in said and "HINT: inv undo" in said and "Way back" not in said
    whole_platform.assess("world", Plain())
    said = capsys.readouterr().out
    assert "healthy" in said and "inv undo --incident=" in said
    aftermath.undo(place.session().incident.id, Plain(), yes=True)
    assert place.live == mended and not place.session().resumed

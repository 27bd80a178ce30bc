"""Sessions: which incident a command goes on with, what it refuses, and what counts when another was quicker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from salvor import clock, console, maintenance, run, whole_platform
from salvor.change import Change
from salvor.commands.recovery import restore
from salvor.errors import CannotError, HeldError, PlanMovedError, UsageError
from salvor.incident import Incident
from salvor.journal import FILE, Journal
from salvor.journal.folders import find, of_incident, operator
from salvor.messages import render
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.wish import Wish

from tests import trouble, world
from tests.world import BAD, GOOD, World


def begun(place: World, **more: Any) -> Session:
    """An incident of which only the first steps are done."""
    sitting = place.session(**more)
    with sitting.begin():
        sitting.approve(sitting.plan(), "test")
        sitting.act("isolate")
    return sitting


def opened(place: World, **named: Any) -> Session:
    return open_session("things", Plain(), platform="world", **named)


# ------------------------------------------------------------------------------------------ which incident


def test_an_open_incident_is_gone_on_with(place: World) -> None:
    first = begun(place)
    again = place.session()
    assert (again.resumed, again.incident.id) == (True, first.incident.id)
    assert again.incident.decisions["store"].identity == first.incident.decisions["store"].identity


def test_the_same_arguments_go_on_with_it_and_others_are_refused(place: World) -> None:
    then = clock.now() - timedelta(minutes=5)
    sitting = opened(place, wish=Wish(source="b1"), failed_at=then, runbook_name="from_backup")
    with sitting.begin():
        sitting.approve(sitting.plan(), "test")
        sitting.act("isolate")
    for same in (
        {},
        {"wish": Wish(source="b1")},
        {"failed_at": then},
        {"runbook_name": "from_backup"},
        {"wish": Wish(source="b1"), "failed_at": then, "runbook_name": "from_backup"},
    ):
        assert opened(place, **same).incident.id == sitting.incident.id
    for other in (
        {"wish": Wish(source="b2")},
        {"wish": Wish(at=then)},
        {"failed_at": then + timedelta(seconds=1)},
        {"runbook_name": "restore"},
        {"wish": Wish(source="b1"), "failed_at": then, "runbook_name": "restore"},
    ):
        with pytest.raises(UsageError, match="was begun with other arguments") as refused:
            opened(place, **other)
        assert f"--incident={sitting.incident.id}" in refused.value.hint
        with pytest.raises(UsageError, match="was begun with other arguments"):
            opened(place, incident=sitting.incident.id, **other)


def test_an_incident_by_its_id_must_be_of_the_service_and_platform(place: World) -> None:
    incident = begun(place).incident.id
    other = place.root / "inventory" / "other.yaml"
    shutil.copy(place.root / "inventory" / "world.yaml", other)
    with pytest.raises(UsageError, match="is not of the service 'things' of the platform 'other'") as refused:
        open_session("things", Plain(), platform="other", incident=incident)
    assert "leave --service and --platform out" in refused.value.hint
    assert of_incident(incident) == ("world", "things")


@pytest.mark.parametrize(
    "incident", ["20261121T003300Z-things-0000", "../../etc", "", "x", "20261121T003300Z-things-0000\n"]
)
def test_an_incident_that_is_not_there(place: World, incident: str) -> None:
    known = begun(place).incident.id
    with pytest.raises(UsageError, match="--incident: there is no incident") as refused:
        find(incident)
    assert known in refused.value.hint
    is_one = incident.endswith("0000")
    assert (f"one of another machine comes by inv incident.take --incident={incident}" in refused.value.hint) == is_one


def test_an_incident_that_is_over_is_not_gone_on_with(place: World) -> None:
    incident = place.recover()
    aftermath.undo(incident, Plain(), yes=True)
    sitting = opened(place, incident=incident)
    with pytest.raises(CannotError, match=f"{incident} is undone") as refused:
        console.recover(sitting, Plain(), yes=True)
    assert refused.value.hint == "inv restore --service=things --platform=world looks anew"
    assert place.recover() != incident
    assert place.live == GOOD


def test_a_drill_and_an_incident_are_two_things(place: World) -> None:
    first = begun(place)
    assert opened(place, purpose="drill").incident.id != first.incident.id


def test_old_journals_that_cannot_be_read_hold_nobody_up(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.root / "incidents"
    for number, content in enumerate(
        ["", "{}\n", '{"kind": "intent"}\n', "\0\xff\n", '{"kind":"opened","platform":"world"}\n[]\n']
    ):
        old = folder / f"2099010{number + 1}T000000Z-things-000{number}"
        old.mkdir(mode=0o700)
        (old / FILE).write_text(content)
    linked = folder / "20990109T000000Z-things-0009"
    linked.mkdir()
    (linked / FILE).symlink_to("/etc/hostname")
    place.recover()
    assert place.live == GOOD
    assert "It is passed over." in capsys.readouterr().out


def test_an_incident_whose_first_line_is_lost_says_so(place: World) -> None:
    incident = begun(place).incident
    whole = (incident.folder / FILE).read_text()
    (incident.folder / FILE).write_text(whole.split("\n", 1)[1])
    for work in (lambda: of_incident(incident.id), lambda: aftermath.undo(incident.id, Plain(), yes=True)):
        with pytest.raises(CannotError, match="has lost its first line") as refused:
            work()
        assert refused.value.hint == f"inv incident.check --incident={incident.id}"


def test_a_line_that_is_not_ours_is_told_and_stops_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    incident = place.recover()
    with (place.root / "incidents" / incident / FILE).open("a") as file:
        file.write('{"foo":1}\n')
    aftermath.undo(incident, Plain(), yes=True)
    assert place.live == BAD
    assert "it cannot be read in line 42" in capsys.readouterr().out


def test_what_another_version_wrote_is_not_gone_on_with_and_holds_nobody_up(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = begun(place).incident
    journal = newer.folder / FILE
    journal.write_text(journal.read_text().replace('"wish":{', '"wish":{"later":1,'))
    with pytest.raises(CannotError, match=r"says what this Salvor does not know: .* 'later'") as refused:
        aftermath.undo(newer.id, Plain(), yes=True)
    assert f"inv incident.check --incident={newer.id}" in refused.value.hint
    assert place.recover() != newer.id
    assert place.live == GOOD
    assert "'later'. It is passed over." in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ two operators


def test_what_counts_is_the_journal_under_the_lock(place: World) -> None:
    """Two operators look at an open incident; the slower one goes on where the quicker one stopped."""
    begun(place)
    quick, slow = place.session(), place.session()
    console.recover(quick, Plain(), yes=True)
    assert not slow.incident.recovered_once
    with slow.begin():
        assert slow.incident.recovered_once
        slow.approve(slow.plan(), "test")
        slow.act("reroute")
    assert len([line for line in place.journals()[0].of("intent") if line["change"]["verb"] == "promote"]) == 1
    assert len(place.journals()[0].of("recovered")) == 1


def test_an_override_leaves_what_is_on_its_way_as_it_was_pinned(place: World) -> None:
    trouble.order(place.root, "store", "promote", "fail")
    with pytest.raises(CannotError, match="does not want to"):
        place.recover()
    pinned = place.session().incident.decisions
    resumed = place.session(overrides={"promote-without-fence": "its machine is off"})
    assert pinned and resumed.incident.decisions == pinned


def test_what_another_pinned_since_the_plan_stays_pinned(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "A_MOMENT", 600.0)
    with place.session().begin():
        pass  # its first line alone is written
    slow, quick = place.session(), place.session()
    planned = slow.plan()
    shutil.copytree(place.store / "backups/b1", place.store / "backups/b2")
    with quick.begin():
        quick.act("assess")
    with slow.begin():
        slow.approve(planned, "test")
        slow.act("assess")
    [decision] = place.journals()[0].of("decision")
    assert decision["decision"]["way"]["backup"] == "b2"


def test_of_two_new_incidents_the_second_is_not_begun(place: World) -> None:
    slow = place.session()
    quick = begun(place)
    assert quick.incident.id != slow.incident.id
    with pytest.raises(PlanMovedError, match=f"{quick.incident.id} of things was begun meanwhile") as refused:
        console.recover(slow, Plain(), yes=True)
    assert "same command again" in refused.value.hint
    assert len(place.journals()) == 1
    assert place.recover() == quick.incident.id


def test_the_lock_is_given_back_whatever_happens(place: World) -> None:
    sitting = place.session()
    with pytest.raises(ZeroDivisionError), sitting.begin():
        raise ZeroDivisionError
    with place.session().begin(), pytest.raises(HeldError, match="tester@here"), place.session().begin():
        pass
    with place.session().begin():
        pass


def test_one_session_may_begin_again_and_again(place: World) -> None:
    """As the cells of a notebook do."""
    sitting = place.session()
    for name in ("isolate", "restore", "verify", "reroute", "notify"):
        with sitting.begin():
            sitting.approve(sitting.plan(name), "test")
            sitting.act(name)
    assert (place.live, sorted(place.letters)) == (GOOD, ["declared", "recovered"])
    assert len(place.journals()[0].of("resumed")) == 4
    assert len(place.journals()[0].of("decision")) == 1


def test_undo_that_was_approved_is_refused_when_somebody_went_on(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = begun(place).incident.id

    def while_the_operator_thinks(*arguments: Any, **named: Any) -> str:
        place.recover()
        return "typed at the terminal"

    monkeypatch.setattr(aftermath, "approval", while_the_operator_thinks)
    with pytest.raises(PlanMovedError, match="The incident moved"):
        aftermath.undo(incident, Plain())
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    assert not [line for line in place.journals()[0].of("intent") if line.get("undoing")]


def test_a_system_that_the_inventory_describes_no_more(place: World) -> None:
    incident = place.recover()
    inventory = place.root / "inventory" / "world.yaml"
    described = inventory.read_text()
    inventory.write_text(described.replace("  sign:", "  signpost:").replace("routes: [sign]", "routes: [signpost]"))
    with pytest.raises(UsageError, match="has no system 'sign' any more"):
        aftermath.undo(incident, Plain(), yes=True)
    assert place.live == GOOD
    inventory.write_text(described)
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, place.sign) == (BAD, "10.0.0.1")


def test_what_came_later_is_in_the_way_only_where_it_changed_what_is_live(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    incident = place.recover()
    sitting = place.session().incident

    def maintained(name: str) -> str:
        """Maintenance whose one change has no way back."""

        def step(its: Incident) -> Iterator[Change]:
            """What is done between incidents."""
            change = its.system("store").change("drop", stage="side-folder", why="test", no_undo="test")
            if change.key not in its.outcomes:
                yield change

        step.__name__ = name
        with clock.use(lambda: sitting.detected_at + timedelta(minutes=1)):
            session = maintenance.sitting(sitting.service, sitting.platform, Plain())
            assert maintenance.work(session, step, Plain(), plan_only=False, approve="", yes=True)
        return session.incident.id

    later = maintained("protect")
    capsys.readouterr()
    aftermath.show_incident(incident, Plain())
    shown = capsys.readouterr().out
    assert f"not past {later}" in shown and f"inv undo --incident={incident}" not in shown
    with pytest.raises(CannotError, match=f"{later} came after") as refused:
        aftermath.undo(incident, Plain(), yes=True)
    assert "inv undo" not in refused.value.hint, "it would be refused too"
    shutil.rmtree(find(later))
    maintained("backup")
    maintained("retention")
    aftermath.undo(incident, Plain(), yes=True)
    assert (place.live, place.sign) == (BAD, "10.0.0.1")


def test_discard_is_refused_while_an_undo_is_on_its_way(place: World) -> None:
    incident = place.recover()
    trouble.order(place.root, "store", "unfence", "fail")
    with pytest.raises(CannotError, match="does not want"):
        aftermath.undo(incident, Plain(), yes=True)
    with pytest.raises(CannotError, match="has not recovered"):
        aftermath.discard(incident, Plain(), yes=True)


# ------------------------------------------------------------------------------------------ what is measured


def test_rto_and_rpo_are_measured_from_detection_and_the_newest_commit(place: World) -> None:
    now = [datetime(2026, 1, 1, 0, 10, tzinfo=UTC)]
    with clock.use(lambda: now[0]):
        sitting = place.session()
        with sitting.begin():
            sitting.approve(sitting.plan(), "test")
            for name in ("isolate", "restore", "verify"):
                sitting.act(name)
            now[0] += timedelta(seconds=90)
            sitting.act("reroute")
    measured = sitting.incident.measured
    assert (measured["rto"], measured["rpo"]) == (90.0, 600.0)  # the backup is of 2026-01-01 00:00
    assert (measured["rto_target"], measured["rpo_target"]) == (300.0, 86400.0)
    assert Journal.read(sitting.incident.folder).of("measured")[-1]["rto"] == 90.0
    assert [console.target(rto, 90.0).rpartition(": ")[2] for rto in (90.0, 90.1)] == ["met", "MISSED"]


@pytest.mark.parametrize(
    ("at", "failed", "rpo"), [(5, None, 300.0), (None, 7, 420.0), (5, 7, 300.0), (None, 20, 600.0)]
)
def test_what_is_lost_counts_until_the_time_asked_for_or_the_failure(
    place: World, at: int | None, failed: int | None, rpo: float
) -> None:
    def past(minutes: int | None) -> datetime | None:
        return None if minutes is None else datetime(2026, 1, 1, 0, minutes, tzinfo=UTC)

    with clock.use(lambda: datetime(2026, 1, 1, 0, 10, tzinfo=UTC)):
        sitting = opened(place, wish=Wish(at=past(at)), failed_at=past(failed))
        console.recover(sitting, Plain(), yes=True)
    assert sitting.incident.measured["rpo"] == rpo


def test_where_the_proof_knows_that_nothing_is_missing_an_old_commit_is_no_loss(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody wrote since: the newest commit is of 00:00, the disaster of no known time, its detection of 00:10."""
    inventory = place.root / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("kind: folder,", "kind: folder, lacks: 0.0,"))
    with clock.use(lambda: datetime(2026, 1, 1, 0, 10, tzinfo=UTC)):
        console.recover(sitting := place.session(), Plain(), yes=True)
    assert sitting.incident.measured["rpo"] == 0.0
    assert "met: nothing is missing: every commit up to the failure" in capsys.readouterr().out
    console.make_record(sitting, Plain())
    assert "nothing is missing: every commit" in (sitting.incident.folder / "record.html").read_text()


def test_a_call_that_was_killed_before_it_made_the_record_leaves_it_to_the_next_one(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident = place.recover()
    made: list[str] = []
    monkeypatch.setattr(console, "make_record", lambda session, shown: made.append(session.incident.id))
    restore.body(Context(), service="things", platform="world", plan=True)  # type: ignore[attr-defined]
    assert made == []
    restore.body(Context(), service="things", platform="world", yes=True)  # type: ignore[attr-defined]
    whole_platform.restore("world", Plain(), whole_platform.Asked(), yes=True)
    assert made == [incident, incident]
    (place.root / "incidents" / incident / "record.html").write_text("made")
    restore.body(Context(), service="things", platform="world", yes=True)  # type: ignore[attr-defined]
    assert made == [incident, incident]


def test_the_loss_of_what_was_cut_over_before_a_break_counts_with_the_rest(
    place: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.make(tmp_path / "two", ("store", "attic"))
    for name, value in world.environment(two.root).items():
        monkeypatch.setenv(name, value)
    inventory = two.root / "inventory/world.yaml"
    newer = f"kind: folder, taken: 2026-01-01T00:09:00Z, root: {two.root}/attic"
    inventory.write_text(inventory.read_text().replace(f"kind: folder, root: {two.root}/attic", newer))
    for name in ("store", "attic"):
        (two.root / name / "live" / "data").write_text(BAD)
    trouble.order(two.root, "attic", "promote", "fail")
    with clock.use(lambda: datetime(2026, 1, 1, 0, 10, tzinfo=UTC)):
        with pytest.raises(CannotError, match="does not want"):
            two.recover()
        console.recover(again := two.session(), Plain(), yes=True)
    assert again.resumed and again.incident.placed == {"store", "attic"}
    assert (again.incident.measured["rpo"], again.incident.measured["newest_commit"]) == (
        600.0,
        "2026-01-01T00:00:00.000000+00:00",
    )


def test_no_rto_is_measured_against_the_clock_of_another_machine_that_is_ahead(place: World) -> None:
    sitting = place.session()
    sitting.incident.detected_at += timedelta(hours=1)
    console.recover(sitting, Plain(), yes=True)
    assert sitting.incident.recovered_once and sitting.incident.measured["rto"] is None


def test_the_operator_has_a_name_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALVOR_OPERATOR", "kim")
    assert operator() == "kim"
    monkeypatch.delenv("SALVOR_OPERATOR")

    def nobody() -> str:
        raise KeyError("no such uid")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert operator().startswith("user-")


def test_the_world_before_is_untouched_by_looking(place: World) -> None:
    before = sorted(path for path in place.root.rglob("*"))
    sitting = place.session()
    sitting.plan()
    assert sorted(path for path in place.root.rglob("*")) == before
    assert place.live == BAD


def test_customers_are_told_of_a_service_by_the_name_that_their_status_page_has(place: World) -> None:
    described = place.root / "inventory/world.yaml"
    described.write_text(described.read_text() + "\nstatus: {services: {things: {en: Things for sale, ko: 상점}}}\n")
    facts = opened(place).incident.facts()
    assert render("declared", "customers", "ko", facts).subject == "[상점] 서비스 장애 안내"
    assert render("declared", "customers", "en", facts).subject == "Things for sale: service disruption"
    assert "Things for sale" not in render("declared", "operators", "en", facts).body
    paid = {**facts, "title_ko": "결제 서비스", "title": "결제 서비스"}
    assert render("declared", "customers", "ko", paid).subject == "[결제 서비스] 장애 안내"
    for audience, moment in (("customers", "declared"), ("customers", "recovered"), ("operators", "failed")):
        body = render(moment, audience, "ko", paid).body  # type: ignore[arg-type]
        assert "결제 서비스" in body and "서비스 서비스" not in body


def test_a_plan_names_no_incident_that_is_never_begun(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    console.recover(place.session(), Plain(), plan_only=True)
    assert "New incident of things" in (said := capsys.readouterr().out)
    assert "-things-" not in said
    assert f"This is incident {place.recover()}." in capsys.readouterr().out


@pytest.mark.parametrize("how", ["test", "notebook"])
def test_a_plan_is_carried_out_by_no_other_option(place: World, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It promises to write nothing: with --test a copy was staged all the same, with --notebook --yes all was done."""
    place.damage()
    options: dict[str, Any] = {how: True, "plan": True, "yes": True}
    with pytest.raises(SystemExit) as ended:
        restore(Context(), service="things", platform="world", **options)
    assert ended.value.code == 2
    assert f"--{how} and --plan do not go together" in capsys.readouterr().err
    assert not place.journals() and place.live == BAD

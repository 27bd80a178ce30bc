"""Readiness looked at on the small world: what really is there, broken in one way at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from salvor import clock, console, prometheus
from salvor.backups import report as backup_report
from salvor.change import Backup, Finding, Level, WayBack
from salvor.drill import rehearsal
from salvor.errors import NotProvenError, UsageError
from salvor.journal.brief import newest_first
from salvor.notebook.paper import Paper
from salvor.readiness import looks, report, telling
from salvor.readiness.report import Report, Row
from salvor.readiness.rules import Proof
from salvor.show import Json, Plain

from tests import past, world
from tests.world import World

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
"""Twelve hours after the small world's backups were taken; its RPO is a day."""


@pytest.fixture(autouse=True)
def at_noon() -> Iterator[None]:
    with clock.use(lambda: NOON):
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return world.make(tmp_path)


@pytest.fixture
def drilled(place: World) -> World:
    """It was broken, and brought back; it is as before."""
    place.damage()
    console.recover(place.session(), Plain(), yes=True)
    return place


def row(service: str = "things") -> Row:
    return next(each for each in report.look("world").rows if each.service == service)


def reasons(service: str = "things") -> list[str]:
    return [reason.text for reason in row(service).reasons]


def describe(place: World, **entries: str) -> None:
    """More systems and services in the inventory."""
    path = place.root / "inventory" / "world.yaml"
    text = path.read_text().replace(
        "services:\n", f"{entries.get('systems', '')}services:\n{entries.get('services', '')}"
    )
    path.write_text(text)


def test_what_was_never_tried_is_at_risk(place: World) -> None:
    found = row()
    assert found.verdict == "at risk"
    assert [reason.text for reason in found.reasons] == [
        "no recovery was ever measured: nobody knows what it takes",
        "no restore of store was ever proven",
    ]
    assert {reason.hint for reason in found.reasons} == {"inv drill --service=things --platform=world"}
    assert (found.backup and found.backup.id, found.loses, found.proof and found.proof.at) == ("b1", 43200.0, None)


def test_a_real_recovery_makes_it_ready(drilled: World) -> None:
    found = row()
    assert (found.verdict, found.reasons) == ("ready", ())
    assert found.expected and found.expected.missing == ()
    (incident,) = drilled.journals()
    assert found.proof and found.proof.incident == incident.folder.name
    assert found.expected.median < 5.0
    assert {"restore", "verify", "reroute", "planning and approval"} <= {step.name for step in found.expected.steps}
    telling.run("world", "", Plain())


def test_looking_changes_nothing(drilled: World, capsys: pytest.CaptureFixture[str]) -> None:
    def everything() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in drilled.root.rglob("*")}

    before = everything()
    telling.run("world", "", Plain())
    telling.run("world", "", Plain(), figures=True)
    assert everything() == before


def test_no_backup_is_not_ready(drilled: World) -> None:
    shutil.rmtree(drilled.store / "backups" / "b1")
    assert (row().verdict, reasons()[0]) == ("not ready", "store has no usable backup")
    assert row().reasons[0].hint == "inv backup --service=things --platform=world"
    with pytest.raises(NotProvenError, match=r"Not ready: things\. store has no usable backup") as raised:
        telling.run("world", "", Plain())
    assert raised.value.exit_code == 6


def test_a_loss_beyond_the_rpo_is_not_ready(drilled: World) -> None:
    with clock.use(lambda: NOON + timedelta(days=1)):
        assert row().verdict == "not ready"
        assert "a restore of store would lose the last 36 h 00 min, and 24 h 00 min are allowed (RPO)" in reasons()


def test_what_is_expected_is_of_the_way_that_a_restore_of_now_would_go() -> None:
    """WAL reaches further than a dump that was made after its backup; a drill of that way measures it."""
    taken = NOON - timedelta(hours=3)
    window = (taken, NOON - timedelta(seconds=7))
    wal = Backup("F", "db", "physical", "full", taken, 5, "repo", window=window, content=9)
    dump = Backup("D", "db", "logical", "dump", NOON - timedelta(hours=1), 1, "dumps")

    def newest(*backups: Backup, closed: tuple[str, ...] = ()) -> looks.Newest:
        ways = [WayBack(name, name not in closed, "it needs 9 GB") for name in ("failover", "physical", "logical")]
        return looks._newest("db", list(backups), ways)

    found = newest(dump, wal)
    assert (found.id, found.kind, found.taken_seconds_ago) == ("D", "dump", 3600.0)
    assert (found.way, found.size, found.loses) == ("physical", 9, 7.0)
    spoilt = replace(dump, usable=False)
    assert newest(spoilt, wal).id == "F"
    problem = "db has no usable backup, and 1 that cannot be used, or of a time to come"
    assert newest(spoilt).problem == problem
    ahead = replace(dump, id="A", taken=NOON + timedelta(days=900))
    assert newest(ahead, dump) == newest(dump), "its clock was wrong"
    assert newest(ahead).problem == problem
    stopped = replace(wal, window=(taken, taken))
    assert (newest(stopped, dump).way, newest(dump).size) == ("logical", 1)
    without_room = newest(dump, wal, closed=("physical",))
    assert (without_room.way, without_room.loses, without_room.is_closed) == ("logical", 3600.0, False)
    assert without_room.problem == "db would be restored by logical, not by physical: it needs 9 GB"
    assert newest(dump, wal, closed=("logical", "failover")) == found, "nobody would take it"
    shut = newest(dump, wal, closed=("physical", "logical"))
    assert (shut.is_closed, shut.way) == (True, "physical")
    assert shut.problem == "no restore of db could begin: logical: it needs 9 GB; physical: it needs 9 GB"
    unseen = looks._newest("db", [wal], TimeoutError("no answer"))
    assert unseen.problem == "whether a restore of db could begin cannot be told: no answer"
    assert not unseen.is_closed


def test_a_service_that_nothing_could_be_restored_of_is_not_ready(drilled: World) -> None:
    path = drilled.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("kind: folder, ", "kind: folder, closed: it needs 9 GB, "))
    assert (row().verdict, reasons()) == ("not ready", ["no restore of store could begin: copy: it needs 9 GB"])


def test_an_expected_rto_beyond_the_target_is_not_ready(place: World) -> None:
    slow = {"restore": 290.0, "verify": 5.0, "reroute": 6.0}
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store", "way": "copy"}
    for days in (1, 2, 3):
        past.write(
            place.root / "incidents", NOON - timedelta(days=days), purpose="drill", steps=slow, back=301.0, **kwargs
        )
    assert reasons() == ["a recovery is expected to take 5 min 01 s, and 5 min 00 s are allowed (RTO)"]
    assert row().verdict == "not ready"


def test_a_worst_case_beyond_the_target_is_at_risk(place: World) -> None:
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store", "way": "copy"}
    for days, seconds in ((1, 5.0), (2, 400.0), (3, 5.0)):
        at = NOON - timedelta(days=days)
        past.write(
            place.root / "incidents",
            at,
            steps={"restore": seconds, "verify": 1.0, "reroute": 1.0},
            back=seconds + 2,
            **kwargs,
        )
    assert (row().verdict, reasons()) == (
        "at risk",
        ["with each step at its worst a recovery takes 6 min 42 s, and 5 min 00 s are allowed (RTO)"],
    )


def test_a_rehearsal_measures_no_cutover(place: World) -> None:
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store", "way": "copy"}
    steps = {"restore": 5.0, "verify": 1.0}
    past.write(place.root / "incidents", NOON - timedelta(days=1), purpose="drill", steps=steps, back=None, **kwargs)
    (reason,) = row().reasons
    assert reason.text.startswith("never measured: reroute; the expected RTO is without it, until an incident")
    assert not reason.hint, "inv drill, once more, would measure it no more than this one did"


def test_an_old_proof_is_at_risk(drilled: World) -> None:
    with clock.use(lambda: NOON + timedelta(days=36)):
        assert "the last proven restore of store was 36 d 0 h ago, and 35 d 0 h are allowed" in reasons()


def test_the_last_proof_of_a_backup_counts_and_of_several_systems_the_oldest(drilled: World) -> None:
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store"}
    past.write(drilled.root / "incidents", NOON + timedelta(hours=1), way="standby", backup="", **kwargs)
    (incident, _) = sorted(drilled.journals(), key=lambda one: str(one.lines[0]["detected_at"]))
    found = row()
    assert found.proof and found.proof.incident == incident.folder.name, "a standby that took over proves no backup"
    (run,) = [
        each for each in newest_first(drilled.root / "incidents") if each and each.incident == found.proof.incident
    ]
    again = run.proofs[0]._replace(at=NOON + timedelta(minutes=5))
    (backup,) = found.backups
    assert report._proof(backup, [replace(run, proofs=[*run.proofs, again])]).at == again.at
    never, newer = Proof("b"), Proof("c", at=NOON)
    older = Proof("a", at=NOON - timedelta(days=1))
    assert replace(found, proofs=(newer, older)).proof == older
    assert replace(found, proofs=(newer, never, older)).proof == never
    old, missing = replace(backup, taken_seconds_ago=10e6), replace(backup, id="")
    assert replace(found, backups=(backup, old)).backup == old
    assert replace(found, backups=(old, missing, backup)).backup == missing


def checked() -> Sequence[Finding]:
    (looked,) = backup_report.look("things", "world", Plain())[0]
    return looked.findings


def test_a_drill_that_failed_since_the_last_proof_is_at_risk(drilled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paper, "make", lambda self, folder: "")  # a kernel takes seconds
    data = drilled.store / "backups/b1/data"
    data.write_text(world.BAD)
    with clock.use(lambda: NOON + timedelta(hours=1)), pytest.raises(NotProvenError):
        rehearsal.run("things", "world", Plain())
    failed = drilled.journals()[0].folder.name
    (reason,) = row().reasons
    assert (reason.verdict, reason.hint) == ("at risk", f"inv incident.show --incident={failed}")
    assert reason.text == f"the drill {failed} of store failed, and no restore was proven since"
    (found,) = (each for each in checked() if each.check == "proven")
    assert (found.level, found.figure) == (
        Level.FAIL,
        f"the drill {failed} failed, and no restore was proven since",
    ), "inv backups --check said that it is proven"
    (run, *earlier) = (each for each in newest_first(drilled.root / "incidents") if each)
    run.ways["store"] = "failover"
    assert not report._proof(row().backups[0], [run, *earlier]).failed, "it says nothing of the backups"
    data.write_text(world.GOOD)
    with clock.use(lambda: NOON + timedelta(hours=2)):
        rehearsal.run("things", "world", Plain())
    assert row().verdict == "ready"
    assert {each.level for each in checked() if each.check == "proven"} == {Level.PASS}


def test_what_is_down_is_not_ready(drilled: World) -> None:
    (drilled.store / "live" / "data").unlink()
    assert (row().verdict, reasons()[0]) == ("not ready", "store is down: a folder")
    assert row().reasons[0].hint == "inv assess --service=things --platform=world"


def test_an_open_incident_is_not_ready_and_an_open_drill_at_risk(drilled: World) -> None:
    at = NOON + timedelta(seconds=1)
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store", "way": "copy", "end": ""}
    past.write(drilled.root / "incidents", at, purpose="maintenance", back=None, owed=("a backup",), **kwargs)
    assert row().verdict == "ready", "what is done between incidents is none"
    drill = past.write(drilled.root / "incidents", at, purpose="drill", back=None, **kwargs)
    assert row().verdict == "at risk"
    assert (row().reasons[0].text, row().reasons[0].hint) == (
        f"the drill {drill.name} did not come to its end: what it staged may still be there",
        f"inv undo --incident={drill.name}",
    )
    incident = past.write(drilled.root / "incidents", at, back=None, **kwargs)
    assert (row().verdict, reasons()[0]) == ("not ready", f"the incident {incident.name} has not recovered")


def test_owed_work_is_at_risk_until_it_is_closed(drilled: World) -> None:
    kwargs: dict[str, Any] = {"platform": "world", "service": "things", "system": "store", "way": "copy"}
    at, owed = NOON - timedelta(days=1), ("people: send recovered",)
    open_ = past.write(drilled.root / "incidents", at, end="", owed=owed, **kwargs)
    past.write(drilled.root / "incidents", at, owed=owed, **kwargs)
    assert reasons() == [f"still owed by {open_.name}: people: send recovered"]


def test_a_service_is_no_readier_than_what_it_depends_on(drilled: World) -> None:
    describe(
        drilled,
        systems=f"  run: {{kind: daemon, path: {drilled.root}/sign}}\n",
        services="  shop: {rto: 5m, rpo: 1d, depends_on: [things], applications: [run]}\n",
    )
    assert row("shop").needs == {"things": "ready"}
    shutil.rmtree(drilled.store / "backups" / "b1")
    rows = report.look("world", "shop").rows
    assert [each.service for each in rows] == ["things", "shop"], "what it depends on comes first"
    assert rows[1].verdict == "not ready"
    assert rows[1].reasons[0].text == "it depends on things, which is not ready"
    assert rows[1].told_backup == "no data"


def test_a_program_is_as_ready_as_what_it_depends_on(drilled: World) -> None:
    describe(
        drilled,
        systems=f"  run: {{kind: daemon, path: {drilled.root}/sign}}\n",
        services="  shop: {rto: 5m, rpo: 1d, depends_on: [things], applications: [run]}\n",
    )
    assert (row("shop").verdict, reasons("shop")) == ("ready", [])


def test_one_service_alone_is_looked_at_alone(drilled: World) -> None:
    describe(
        drilled,
        systems=f"  run: {{kind: daemon, path: {drilled.root}/sign}}\n",
        services=(
            "  shop: {rto: 5m, rpo: 1d, depends_on: [things], applications: [run]}\n"
            "  office: {rto: 5m, rpo: 1d, depends_on: [shop], applications: [run]}\n"
        ),
    )
    assert [each.service for each in report.look("world", "things").rows] == ["things"]
    assert [each.service for each in report.look("world", "office").rows] == ["things", "shop", "office"]
    with pytest.raises(UsageError, match="no service 'nothing'"):
        report.look("world", "nothing")


def test_a_system_that_hangs_holds_up_no_other(drilled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    door = f"{{port: {silent.getsockname()[1]}, user: x, agent: false}}"
    fifo = drilled.root / "hangs" / "fence"
    fifo.parent.mkdir()
    os.mkfifo(fifo)  # whoever reads it waits
    describe(
        drilled,
        systems=(
            f"  stuck: {{kind: folder, root: {fifo.parent}}}\n"
            f"  door: {{kind: pointer, path: {fifo}, leads_to: stuck}}\n"
            f"  far: {{kind: application, address: 127.0.0.1, ssh: {door}, service: x}}\n"
        ),
        services=(
            "  frozen: {rto: 5m, rpo: 1d, systems: [stuck], routes: [door]}\n"
            "  shop: {rto: 5m, rpo: 1d, applications: [far]}\n"
        ),
    )
    monkeypatch.setattr(looks, "DEADLINE", 0.5)
    begun = clock.monotonic()
    try:
        rows = {each.service: each for each in report.look("world").rows}
    finally:
        silent.close()
        with suppress(OSError):
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # lets the reader go
    assert clock.monotonic() - begun < 5.0
    assert rows["things"].verdict == "ready"
    told = {reason.text for reason in rows["frozen"].reasons}
    silence = "no answer within 0.5 s"
    assert {f"stuck gives no answer: {silence}", f"door gives no answer: {silence}", f"door: {silence}"} <= told
    assert f"machine 127.0.0.1: {silence}" in {reason.text for reason in rows["shop"].reasons}


def test_the_inventory_is_held_against_reality(drilled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (drilled.root / "sign").write_text("")
    describe(
        drilled,
        systems=(
            "  people: {kind: outbox, channels: {oncall: {url: env:NOBODY_SET_THIS, severities: [critical]}}}\n"
            "  gone: {kind: application, address: 127.0.0.1, ssh: {port: 1, keys: [/no/such/key]}, service: x}\n"
        ),
        services="  shop: {rto: 5m, rpo: 1d, applications: [gone], messages: people}\n",
    )
    assert reasons() == ["sign: it leads nowhere: leads to "]
    (drilled.root / "sign").unlink()
    (drilled.root / "sign").mkdir()
    (reason,) = reasons()
    assert "gives no answer" in reason, "where it leads cannot be told"
    found = "\n".join(reasons("shop"))
    assert "people: oncall: The secret 'env:NOBODY_SET_THIS' is empty or not set." in found
    assert "gone: the SSH key /no/such/key is not there" in found
    assert "machine 127.0.0.1: " in found


# ------------------------------------------------------------------------------------------------ telling


@pytest.fixture
def found(drilled: World) -> Report:
    """Of a service that was drilled, and of one that depends on it and never was."""
    shutil.copytree(drilled.store / "backups", drilled.root / "spare" / "backups")
    shutil.copytree(drilled.store / "live", drilled.root / "spare" / "live")
    describe(
        drilled,
        systems=f"  spare: {{kind: folder, root: {drilled.root}/spare}}\n",
        services="  shop: {rto: 5m, rpo: 1d, depends_on: [things], systems: [spare]}\n",
    )
    return report.look("world")


def test_the_report_comes_back_from_json_as_it_was(found: Report) -> None:
    assert TypeAdapter(Report).validate_json(json.dumps(found.to_json())) == found


def test_people_are_told_why_and_what_next(found: Report) -> None:
    lines = list(telling.lines(found))
    assert lines[0].split()[:2] == ["service", "verdict"]
    assert [line.split()[:2] for line in lines[1:3]] == [["things", "ready"], ["shop", "at"]]
    told = "\n".join(lines)
    assert "full b1, 12 h 00 min old" in lines[1]
    assert "at risk   no recovery was ever measured: nobody knows what it takes\n" in told
    assert "HINT: inv drill --service=shop --platform=world" in told


def test_machines_are_told_a_line_a_service(found: Report, capsys: pytest.CaptureFixture[str]) -> None:
    telling._tell(found, Json())
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["kind"], first["service"], first["verdict"], first["backups"][0]["id"]) == (
        "readiness", "things", "ready", "b1",
    )  # fmt: skip
    assert second["reasons"][0]["hint"] == "inv drill --service=shop --platform=world"


def test_prometheus_gets_figures(found: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telling.run("world", "", Plain(), figures=str(tmp_path / "salvor.prom"))
    said = (tmp_path / "salvor.prom").read_text()
    with pytest.raises(UsageError, match="leave out --service"):
        telling.run("world", "things", Plain(), figures=str(tmp_path / "salvor.prom"))
    assert (tmp_path / "salvor.prom").read_text() == said, "the other services' figures were gone"
    assert "verdict" in capsys.readouterr().out, "the table is told too"
    labels = '{platform="world",service="things"}'
    assert f"salvor_readiness_verdict{labels} 0.0\n" in said
    assert 'salvor_readiness_verdict{platform="world",service="shop"} 1.0\n' in said
    assert f"salvor_readiness_rpo_now_seconds{labels} 43200.0\n" in said
    assert f"salvor_readiness_rto_target_seconds{labels} 300.0\n" in said
    assert 'salvor_readiness_expected_rto_seconds{platform="world",service="shop"}' not in said, "never measured"
    taken = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    labels = '{platform="world",service="things",system="store"}'
    assert f"salvor_readiness_backup_taken_timestamp_seconds{labels} {taken}\n" in said
    telling.run("world", "", Plain(), figures=True)
    assert capsys.readouterr().out == prometheus.text(telling.metrics(report.look("world")))

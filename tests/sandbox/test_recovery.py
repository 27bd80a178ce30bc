"""The main job, on real engines under constant writes: each disaster, one command, and what survived."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import psycopg
import pytest
from salvor import clock, console, maintenance, sandbox
from salvor.change import Level
from salvor.errors import CannotError, NotProvenError
from salvor.journal import Journal
from salvor.journal.evidence import check
from salvor.postgres import rebuild
from salvor.postgres.cluster import View
from salvor.sandbox import database, disasters, names, survivors
from salvor.sandbox.layout import Layout
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

ALLOWED_TO_LOSE = {"kill-primary": 30, "freeze-primary": 30, "lose-datadir": 30, "corrupt-pages": 30}
"""Acknowledged orders that a replica may not have had yet, within the RPO; a restore to a moment loses none before."""

WAY = {"drop-table": "physical", "wrong-update": "physical"}


def break_it(disaster: str) -> datetime:
    time.sleep(1.0)  # of writes
    return disasters.strike(disaster)


def recover(moment: datetime | None = None) -> Session:
    """What `inv restore --service=orders --failed-at=MOMENT --yes` does."""
    sitting = open_session("orders", Plain(), failed_at=moment)
    console.recover(sitting, Plain(), yes=True)
    return sitting


def ask(found: Layout, question: str) -> int:
    """The answer of the live database, as the application asks it: through the route."""
    address, _ = names.resolve(found)
    with psycopg.connect(
        host=address, port=found.database_port, dbname="orders", user="shop", password=found.secret("shop.password")
    ) as connection:
        row = connection.execute(question.encode()).fetchone()
    assert row
    return int(row[0])


def messages(found: Layout) -> list[tuple[str, str]]:
    """What people got: moment and channel."""
    lines = found.messages.read_text().splitlines() if found.messages.exists() else []
    keys = [json.loads(line)["key"] for line in lines]
    return sorted((key.split("/")[1], key.split("/")[2]) for key in keys)


def serves_again() -> None:
    """Orders are acknowledged again, and every part of the sandbox but the old primary works."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        down = [part.name for part in sandbox.status() if not part.up]
        if not [name for name in down if not name.startswith("database")]:
            return
        time.sleep(0.2)
    raise AssertionError(sandbox.status())


def share(found: Layout) -> None:
    """Have another database live in the cluster."""
    with database.server(found, "a").connect("postgres", writes=True) as connection:
        connection.execute("create database accounts")


@pytest.mark.parametrize("disaster", sorted(disasters.names()))
def test_each_disaster_is_recovered_by_one_command(fresh_sandbox: Layout, disaster: str) -> None:
    moment = break_it(disaster)
    sitting = recover(moment)
    serves_again()
    counted = survivors.survivors(moment)
    assert counted.before > 10
    assert counted.before - counted.before_survived <= ALLOWED_TO_LOSE.get(disaster, 0)
    assert ask(fresh_sandbox, "select count(*) from orders where amount <= 0") == 0
    way = sitting.incident.decisions["orders-db"].way.name
    assert way == WAY.get(disaster, "failover")
    assert sitting.incident.measured["rto"] < sitting.incident.service.rto
    assert sitting.incident.measured["rpo"] <= sitting.incident.service.rpo
    told = messages(fresh_sandbox)
    assert told == sorted({*told}), "a message was sent twice"
    assert {moment for moment, _ in told} == {"declared", "recovered"}
    assert not [finding for finding in check(sitting.incident.folder) if finding.level is Level.FAIL]
    if disaster == "freeze-primary":
        disasters.wake()
        time.sleep(1.0)
        assert nobody_can_write(fresh_sandbox, "a")


def test_damage_that_nobody_could_see_before_is_found_in_the_copy_and_the_next_one_is_from_before_it(
    fresh_sandbox: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a cluster that others share, which cannot say so while it is down: its identity is another one afterwards."""
    share(fresh_sandbox)
    moment = break_it("wrong-update")
    for member in ("a", "b"):
        database.server(fresh_sandbox, member).kill()
    with pytest.raises(NotProvenError, match="prices make sense"):
        recover(moment)
    assert "the same command again takes it" in capsys.readouterr().out
    sitting = recover(moment)
    serves_again()
    assert ask(fresh_sandbox, "select count(*) from orders where amount <= 0") == 0
    counted = survivors.survivors(moment)
    assert counted.before == counted.before_survived > 10
    decided = [line["decision"]["way"]["arguments"] for line in Journal.read(sitting.incident.folder).of("decision")]
    assert [arguments["target"].partition(":")[0] for arguments in decided] == ["latest", "before"]


def nobody_can_write(found: Layout, member: str) -> bool:
    """Whether the application is kept out of a member, also after somebody starts it again."""
    server = database.server(found, member)
    if not server.processes():
        server.start()
    try:
        psycopg.connect(
            host=server.address,
            port=server.port,
            dbname="orders",
            user="shop",
            password=found.secret("shop.password"),
            connect_timeout=5,
        ).close()
    except psycopg.OperationalError as error:
        return "pg_hba.conf rejects" in str(error)
    return False


def test_undo_then_restore_again_then_discard(fresh_sandbox: Layout) -> None:
    moment = break_it("wrong-update")
    first = recover(moment)
    serves_again()
    aftermath.undo(first.incident.id, Plain(), yes=True)
    assert ask(fresh_sandbox, "select count(*) from orders where amount <= 0") > 1000, "the world is as before: damaged"
    second = recover(moment)
    assert second.incident.id != first.incident.id
    assert ask(fresh_sandbox, "select count(*) from orders where amount <= 0") == 0
    member = fresh_sandbox.data("a").parent
    assert [path.name for path in member.glob("data.kept-*") if path.is_dir()]
    aftermath.discard(second.incident.id, Plain(), yes=True)
    left = sorted(path.name for path in member.iterdir() if path.is_dir())
    assert left == ["data"], "nothing of the incident is left but its record"
    assert ask(fresh_sandbox, "select count(*) from orders where amount <= 0") == 0


def test_a_cluster_from_a_dump_is_new_to_the_repository_and_is_protected_again(
    fresh_sandbox: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """initdb gives it another system identifier: pgBackRest refuses its WAL and its backups until it is told."""
    moment = break_it("drop-table")
    sitting = open_session("orders", Plain(), failed_at=moment, wish=Wish(ways=("logical",)))
    console.recover(sitting, Plain(), yes=True)
    assert sitting.incident.measured["rpo"] == pytest.approx(
        (moment - cluster().backups()[-1].taken).total_seconds(), abs=0.01
    )
    with pytest.raises(CannotError, match="another cluster") as refused:
        maintenance.backup("orders", "sandbox", "full", Plain())
    assert "inv protect" in refused.value.hint
    views: list[View] = []

    def look() -> View:
        views.append(cluster().site.view())
        return views[-1]

    waits: list[str] = []
    assert [one.member.name for one in rebuild.unprotected(look, waits.append)] == ["b"]
    assert (len(views), waits) == (1, []), "nobody waits for a standby of another cluster to follow"
    repository = fresh_sandbox.root / "repository"
    repository.rename(gone := repository.with_name("repository.gone"))
    with pytest.raises(CannotError, match="missing stanza path") as refused:
        maintenance.protect("orders", "sandbox", Plain(), yes=True)
    assert refused.value.safe == "what was planned above is done"
    said = capsys.readouterr().out
    assert "NOTE: this does not do all: pgBackRest cannot read" in said and "protected again" not in said
    assert database.streams(fresh_sandbox), "the standby was rebuilt all the same"
    gone.rename(repository)
    replaced = re.findall(r"inv discard --incident=(\S+)", said)[-1]
    maintenance.protect("orders", "sandbox", Plain(), yes=True)
    assert "protected again" in capsys.readouterr().out
    aftermath.show_incident(replaced, Plain())
    assert f"inv discard --incident={replaced}" in capsys.readouterr().out
    assert list(fresh_sandbox.data("b").parent.glob("data.kept-*"))
    aftermath.discard(replaced, Plain(), yes=True)
    assert not list(fresh_sandbox.data("b").parent.glob("data.kept-*"))
    assert database.streams(fresh_sandbox)
    assert not list(cluster().redundancy())
    newest, *others = cluster().backups()
    assert (newest.kind, newest.way) == ("full", "physical")
    assert newest.taken > moment
    assert not newest.detail
    assert ["cluster before this one" in other.detail for other in others if other.way == "physical"] == [True]
    back_to = clock.now()
    time.sleep(1.0)
    again = open_session("orders", Plain(), wish=Wish(at=back_to), anew=True)
    assert again.plan("assess").steps[0].decisions[0].way.backup == newest.id


def cluster() -> Postgres:
    found = open_session("orders", Plain(), anew=True).incident.system("orders-db")
    assert isinstance(found, Postgres)
    return found


def test_the_journal_of_a_recovery_tells_all_of_it(fresh_sandbox: Layout) -> None:
    share(fresh_sandbox)  # the database alone has another identity than the cluster that is down
    sitting = recover(break_it("kill-primary"))
    told = Journal.read(sitting.incident.folder)
    begun = [line["change"]["verb"] for line in told.of("intent") if line["change"]["system"] != "people"]
    assert begun == ["fence", "promote", "point"]
    assert {line["outcome"] for line in told.of("outcome")} == {"done"}
    assert told.of("measured")[-1]["rto"] > 0
    for secret in ("operator.password", "shop.password", "tsig.secret"):
        for path in sitting.incident.folder.rglob("*"):
            if path.is_file():
                assert fresh_sandbox.secret(secret) not in path.read_text(errors="replace")

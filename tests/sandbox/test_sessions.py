"""Sessions of a real server that are ended, and those that are not."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
from salvor import clock, inventory, secrets
from salvor.postgres.settings import PostgresSettings
from salvor.sandbox.layout import Layout
from salvor.system import Context
from salvor.systems.postgres import Postgres
from salvor.watch import actions
from salvor.watch.rules import Action


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("test", tmp_path, dict)


def opened(context: Context) -> Postgres:
    settings = inventory.load("sandbox").settings["orders-db"]
    assert isinstance(settings, PostgresSettings)
    return Postgres("orders-db", settings, context)


def session(system: Postgres, application: str) -> psycopg.Connection:
    member, operator = system.settings.members[0], system.settings.operator
    return psycopg.connect(
        host=member.address,
        port=member.port,
        dbname="orders",
        user=operator.user,
        password=secrets.resolve(operator.password),
        application_name=application,
    )


def lives(one: psycopg.Connection) -> bool:
    try:
        one.execute("select 1")
    except psycopg.Error:
        return False
    return True


def test_only_those_that_are_meant_are_ended(sandbox: Layout, context: Context) -> None:
    system = opened(context)
    idle, busy, other = (session(system, name) for name in ("shop-old", "shop-busy", "shop-other"))
    idle.execute("select 1")  # in a transaction from now on
    busy.autocommit = True
    busy.execute("select 1")
    time.sleep(0.3)
    before = clock.write_time(clock.now())
    other.execute("select 1")
    system.end_sessions(before, idle_in_transaction=60.0)
    system.end_sessions(before, role="nobody-of-this-name")
    assert all(map(lives, (idle, busy, other)))
    idle.rollback()
    idle.execute("select 1")
    time.sleep(0.3)
    system.end_sessions(clock.write_time(clock.now()), idle_in_transaction=0.1, application="shop-old")
    assert not lives(idle)
    assert lives(busy)
    late = session(system, "shop-busy")
    for _ in range(2):
        system.end_sessions(before, application="shop-busy")
    assert not lives(busy)
    assert lives(late)
    for one in (other, late):
        one.close()


def test_the_action_asks_the_server_for_its_time(sandbox: Layout, context: Context) -> None:
    from salvor.incident import Incident
    from salvor.wish import Wish

    platform = inventory.load("sandbox")
    incident = Incident("watch", platform, platform.service("orders"), Wish(), "watch", "tester", context.folder)
    action = Action.model_validate({"reset_connections": "orders-db", "application": "shop-new", "allow": True})
    one = session(opened(context), "shop-new")
    change = actions.change(action, incident, "-", "-")
    assert clock.age(clock.read_time(str(change.arguments["before"]))).total_seconds() == pytest.approx(0, abs=5)
    assert change.destructive
    list(incident.system("orders-db").apply(change))
    assert not lives(one)

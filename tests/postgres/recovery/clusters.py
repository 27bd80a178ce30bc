from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from salvor.change import Change, Reachable, State, Undo, WayBack
from salvor.postgres.cluster import Sighting
from salvor.postgres.server import Server
from salvor.postgres.settings import PostgresSettings
from salvor.sandbox import configuration, database, layout
from salvor.sandbox.layout import Layout
from salvor.system import Context
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.waiting import until

_numbers = itertools.count(1)


@dataclass
class Cluster:
    """The sandbox's database, its application, and the system under test working for one incident."""

    sandbox: Layout
    system: Postgres
    acknowledged: list[str] = field(default_factory=list)

    def server(self, member: str) -> Server:
        return database.server(self.sandbox, member)

    def observe(self) -> State:
        return self.system.observe()

    def other_incident(self) -> Cluster:
        return Cluster(self.sandbox, open_system(self.sandbox), self.acknowledged)

    # --- the application

    def shop(self, member: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=self.server(member).address,
            port=self.sandbox.database_port,
            user="shop",
            password=self.sandbox.secret("shop.password"),
            dbname="orders",
            autocommit=True,
            connect_timeout=3,
        )

    def write(self, member: str = "a", count: int = 20) -> None:
        """Orders, each acknowledged by the server before the next one."""
        with self.shop(member) as connection:
            for _ in range(count):
                reference = f"test-{next(_numbers)}"
                connection.execute(
                    "insert into orders (reference, customer_id, amount, status) values (%s, 1, 10, 'paid')",
                    [reference],
                )
                self.acknowledged.append(reference)

    def missing(self, member: str) -> set[str]:
        """The acknowledged orders that the live server does not have."""
        with self.server(member).session("orders", deadline=10) as connection:
            rows = connection.execute("select reference from orders where reference like 'test-%%'").fetchall()
        return set(self.acknowledged) - {row[0] for row in rows}

    # --- what the runner would do

    def begin(self, verb: str, **arguments: Any) -> Generator[Any, None, None]:
        yield from self.system.apply(Change(self.system.name, verb, arguments, "a test", no_undo="a test"))

    def do(self, verb: str, **arguments: Any) -> list[Any]:
        return list(self.begin(verb, **arguments))

    def undo(self, undo: Undo | None) -> None:
        assert undo
        self.do(undo.verb, **undo.arguments)

    def way(self, name: str, wish: Wish) -> WayBack:
        return next(way for way in self.system.ways_back(wish) if way.name == name)

    def recover(self, way: WayBack, identity: str) -> None:
        """The chain, without its looks."""
        assert way.possible, way.why
        self.do("fence", identity=identity)
        if way.arguments is not None:
            self.do("stage", **way.arguments)
        self.do("promote", **way.promote)

    # --- disasters

    def signal_all(self, member: str, number: signal.Signals) -> None:
        for process in self.server(member).all_processes():
            os.kill(process.pid, number)

    def crash(self, member: str) -> None:
        self.server(member).kill()


def open_system(sandbox: Layout, incident: str = "") -> Postgres:
    settings = PostgresSettings.model_validate(
        {
            "kind": "postgres",
            "database": "orders",
            "members": [
                {"name": name, "address": address, "port": sandbox.database_port, "data": str(sandbox.data(name))}
                for name, address in layout.ADDRESSES.items()
            ],
            "side_port": sandbox.side_port,
            "programs": database.PROGRAMS,
            "run_as": sandbox.run_as,
            "operator": {"user": "salvor", "password": f"file:{sandbox.root}/secrets/operator.password"},
            "pgbackrest": {"config": f"{sandbox.root}/pgbackrest.conf", "stanza": configuration.STANZA},
        }
    )
    incident = incident or f"20261121T000000Z-orders-{next(_numbers):04x}"
    return Postgres("orders-db", settings, Context(incident, Path("/nowhere"), dict))


def without_programs(one: Sighting) -> Sighting:
    """A member on whose machine no WAL can be read."""
    return replace(one, member=replace(one.member, server=replace(one.member.server, programs="/nowhere")))


def is_up(state: State) -> bool:
    return state.reachable is Reachable.UP and state.writable is True


def now(cluster: Cluster, member: str = "a") -> datetime:
    """The time of its server, a little apart from every commit."""
    time.sleep(0.05)
    with cluster.server(member).session() as connection:
        row = connection.execute("select clock_timestamp()").fetchone()
    time.sleep(0.05)
    assert row
    moment: datetime = row[0]
    return moment


def lsn(cluster: Cluster) -> int:
    """How far its primary has written, in bytes."""
    with cluster.server("a").session() as connection:
        row = connection.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    assert row
    return int(row[0])


def wait_until_streaming(cluster: Cluster) -> None:
    """Until its standby follows. One that was started before its primary was there asks again after 5 s."""

    def follows() -> bool:
        with cluster.server("a").session() as connection:
            found = connection.execute("select from pg_stat_replication where state = 'streaming'").fetchone()
        return found is not None

    assert until(follows), "the standby does not follow"


def wait_until_replayed(cluster: Cluster) -> None:
    """Until its standby has all that its primary wrote so far."""
    wanted = lsn(cluster)

    def is_there() -> bool:
        with cluster.server("b").session() as connection:
            row = connection.execute("select pg_last_wal_replay_lsn() - '0/0'").fetchone()
        return bool(row and row[0] and row[0] >= wanted)

    assert until(is_there), "the standby does not replay"


def wait_until_archived(cluster: Cluster, member: str = "a") -> None:
    """Until the archive has all that a server wrote so far."""
    with cluster.server(member).session(deadline=30, writes=True) as connection:
        row = connection.execute("select pg_walfile_name(pg_switch_wal() - 1)").fetchone()
        for _ in range(100):
            done = connection.execute("select coalesce(last_archived_wal, '') from pg_stat_archiver").fetchone()
            if row and done and done[0] >= row[0]:
                return
            time.sleep(0.1)
    raise AssertionError("the archive does not take WAL")

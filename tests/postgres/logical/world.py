"""A cluster of the tests' own with an application, and the system under test working for one incident."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from salvor.change import Change, Level, Undo, WayBack
from salvor.postgres.server import Server
from salvor.postgres.settings import PostgresSettings
from salvor.system import Context
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.conftest import free_port, programs

_numbers = itertools.count(1)
PASSWORD = "operator's \\ secret"


class World:
    """A cluster of the test's own, with an application, and the system under test working for one incident."""

    def __init__(self, home: Path, run_as: str | None) -> None:
        self.home, self.run_as = home, run_as
        self.data, self.port, self.side_port = home / "data", free_port(), free_port()
        (home / "password").write_text(PASSWORD)
        (home / "password").chmod(0o600)
        self.system = self.another_incident()

    def another_incident(self) -> Postgres:
        settings = PostgresSettings.model_validate(
            {
                "kind": "postgres",
                "database": "orders",
                "members": [{"name": "a", "address": "127.0.0.1", "port": self.port, "data": str(self.data)}],
                "side_port": self.side_port,
                "programs": str(programs()),
                "run_as": self.run_as or "",
                "operator": {"user": "salvor", "password": f"file:{self.home}/password"},
                "dumps": str(self.home / "dumps"),
            }
        )
        incident = f"20261121T000000Z-orders-{next(_numbers):04x}"
        return Postgres("orders-db", settings, Context(incident, self.home / incident, dict))

    @property
    def server(self) -> Server:
        return self.system.site.members[0].server

    def run(self, *argv: str | Path) -> None:
        prefix = ("runuser", "-u", self.run_as, "--") if self.run_as else ()
        subprocess.run([*prefix, *map(str, argv)], check=True, stdout=subprocess.DEVNULL, timeout=120, cwd="/")

    def make(self) -> None:
        pwfile = self.home / "pwfile"
        pwfile.write_text(PASSWORD)
        if self.run_as:
            shutil.chown(pwfile, self.run_as)
        options = ["-U", "salvor", "-A", "scram-sha-256", "--pwfile", pwfile, "-k", "-E", "UTF8", "--locale=C.UTF-8"]
        self.run(programs() / "initdb", "-D", self.data, *map(str, options), "--no-sync")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
            )
            file.write("work_mem = '5MB'\n")
        self.server.start()
        with self.server.connect(writes=True) as connection:
            connection.execute("create role shop login password 'shop'")
            connection.execute("create role auditor")
            connection.execute("create database orders owner shop")
            connection.execute("alter database orders set work_mem to '7MB'")
            connection.execute("alter database orders set search_path to 'a b', public")
            connection.execute("revoke connect on database orders from public")
            connection.execute("grant connect on database orders to auditor with grant option")
        with self.shop() as connection:
            connection.execute("create table orders (id int generated always as identity primary key, note text)")
            connection.execute("insert into orders (note) select md5(g::text) from generate_series(1, 500) g")
            connection.execute("create function twice(x int) returns int language sql as 'select 2 * x'")
            connection.execute("grant select on orders to auditor")

    def shop(self, database: str = "orders") -> psycopg.Connection[Any]:
        where = f"host=127.0.0.1 port={self.port} user=shop password=shop dbname={database} connect_timeout=5"
        return psycopg.connect(where, autocommit=True)

    def count(self) -> int:
        with self.shop() as connection:
            row = connection.execute("select count(*) from orders").fetchone()
        assert row
        return int(row[0])

    def describe(self) -> dict[str, Any]:
        """What an undo must leave as it was."""
        with self.server.connect() as connection:
            rows = connection.execute(
                """select datname, d.oid, pg_get_userbyid(datdba), datallowconn, setconfig,
                    (select array_agg(distinct (grantee::regrole, privilege_type, is_grantable)::text)
                        from aclexplode(coalesce(datacl, acldefault('d', datdba))))
                from pg_database d left join pg_db_role_setting on setdatabase = d.oid order by 1"""
            ).fetchall()
            roles = connection.execute("select rolname from pg_roles order by 1").fetchall()
        hba = self.server.shell.read(f"{self.data}/pg_hba.conf")
        return {"databases": rows, "roles": roles, "hba": hba}

    # --- what the runner would do

    def do(self, verb: str, **arguments: Any) -> list[Any]:
        return list(self.system.apply(Change(self.system.name, verb, arguments, "a test", no_undo="a test")))

    def do_until(self, verb: str, stop: Callable[[int, Any], bool], way: WayBack) -> None:
        """Break a verb off at one of its reports of progress."""
        half = iter(self.system.apply(Change(self.system.name, verb, way.arguments or {}, "a test", no_undo="a test")))
        with closing(half):  # type: ignore[type-var]  # it is a generator
            for number, progress in enumerate(half):
                if stop(number, progress):
                    return

    def undo(self, undo: Undo | None) -> None:
        assert undo
        self.do(undo.verb, **undo.arguments)

    def way(self, wish: Wish = Wish()) -> WayBack:  # noqa: B008  # frozen
        (way,) = (way for way in self.system.ways_back(wish) if way.name == "logical")
        return way

    def levels(self, way: WayBack, wish: Wish = Wish()) -> dict[str, Level]:  # noqa: B008  # frozen
        return {finding.check: finding.level for finding in self.system.verify(way, wish)}

"""PostgreSQL with pgBackRest on a machine of its own (systemd in nspawn), reached over its network: the data directory
lost, the network cut midway, the machine dead midway. The chain is that of `inv restore`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from salvor import clock, console, maintenance
from salvor.errors import SalvorError
from salvor.session.opening import open_session
from salvor.shell import Shell
from salvor.show import Plain
from salvor.ssh.host import Host

from tests import machine
from tests.machine import Machine
from tests.meddler import Meddler

pytestmark = pytest.mark.timeout(280)
PROGRAMS = "/usr/lib/postgresql/15/bin"
DATA = "/var/lib/postgresql/orders/data"
SETTINGS = """\
listen_addresses = '*'
unix_socket_directories = '/var/run/postgresql'
archive_mode = on
archive_command = 'pgbackrest --stanza=orders archive-push %p'
"""
PASSWORD = "of-the-operator"
REPOSITORY = """\
[global]
repo1-path=/var/lib/pgbackrest
repo1-retention-full=2
compress-type=zst
start-fast=y
[orders]
pg1-path={data}
"""
INVENTORY = """\
systems:
  orders-db:
    kind: postgres
    database: orders
    members:
      - name: a
        address: {address}
        data: {data}
        host: {address}
        ssh: {{user: root, keys: ["{key}"], host_keys: ["{host_key}"], agent: false}}
    side_port: 5499
    programs: {programs}
    run_as: postgres
    operator: {{user: salvor, password: "file:{password}"}}
    pgbackrest: {{stanza: orders}}
services:
  orders:
    rto: 15m
    rpo: 1m
    systems: [orders-db]
    checks:
      - {{name: the orders are there, system: orders-db, sql: select count(*) from orders, at_least: 100}}
      - {{name: prices make sense, system: orders-db, sql: select count(*) from orders where price <= 0, at_most: 0}}
"""


class Shop:
    """The machine, its database, and who buys there."""

    def __init__(self, made: Machine) -> None:
        self.machine = made

    @property
    def shell(self) -> Shell:
        return Host(self.machine.address, self.machine.settings, "postgres").open()

    def ask(self, statement: str) -> int:
        where = f"host={self.machine.address} dbname=orders user=salvor connect_timeout=5"
        with psycopg.connect(where, password=PASSWORD, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return int((cursor.fetchone() or (0,))[0]) if cursor.description else cursor.rowcount

    def buy(self, orders: int) -> datetime:
        """Orders come in, and their WAL is archived. Returns a moment when they are all there."""
        for _ in range(orders):
            self.ask("insert into orders (price) values (1)")
        moment = clock.now()
        name = self.ask("select ('x' || right(pg_walfile_name(pg_switch_wal()), 8))::bit(32)::bigint")
        until = time.monotonic() + 20
        done = "select ('x' || right(last_archived_wal, 8))::bit(32)::bigint from pg_stat_archiver"
        while self.ask(done) < name:
            assert time.monotonic() < until, "its WAL is not archived"
            time.sleep(0.1)
        return moment

    def make(self) -> None:
        """A cluster with one database and one backup."""
        folder = self.machine.root / "etc/pgbackrest"
        folder.mkdir(exist_ok=True)
        (folder / "pgbackrest.conf").write_text(REPOSITORY.format(data=DATA))
        (folder / "pgbackrest.conf").chmod(0o644)
        places = [str(Path(DATA).parent), "/var/lib/pgbackrest", "/var/log/pgbackrest"]
        Host(self.machine.address, self.machine.settings).open().run(["install", "-d", "-o", "postgres", *places])
        options = ["-k", "-E", "UTF8", "--locale=C.UTF-8", "--auth-local=peer", "--auth-host=scram-sha-256"]
        self.shell.run([f"{PROGRAMS}/initdb", "-D", DATA, *options], deadline=60.0)
        self.append("pg_hba.conf", "host all all all scram-sha-256\n")
        self.append("postgresql.conf", SETTINGS)
        self.start()
        statements = (
            f"create role salvor superuser login password '{PASSWORD}'",
            "create database orders owner salvor",
        )
        for statement in statements:
            self.shell.run(["psql", "-X", "-q", "-c", statement])
        self.shell.run(["pgbackrest", "--stanza=orders", "stanza-create"])
        self.ask("create table orders (id bigint generated always as identity primary key, price int, note text)")
        self.ask("insert into orders (price, note) select g, repeat(md5(g::text), 20) from generate_series(1, 20000) g")

    def append(self, name: str, text: str) -> None:
        self.shell.run(["sh", "-c", 'cat >> "$1"', "sh", f"{DATA}/{name}"], input=text.encode())

    def start(self) -> None:
        self.shell.run([f"{PROGRAMS}/pg_ctl", "-D", DATA, "-l", f"{DATA}.log", "-w", "-s", "start"], deadline=60.0)

    # --- what can happen to it

    def cut_the_network(self) -> None:
        """Every packet is dropped for eight seconds, in both directions."""
        chains = "".join(
            f"add chain inet cut {hook} {{ type filter hook {hook} priority -300; policy drop; }}\n"
            for hook in ("input", "output")
        )
        within = ["ip", "netns", "exec", self.machine.namespace, "nft"]
        subprocess.run([*within, "-f", "-"], input=f"add table inet cut\n{chains}", text=True, check=True, timeout=20)
        time.sleep(8.0)
        subprocess.run([*within, "delete", "table", "inet", "cut"], check=True, timeout=20)

    def lose_power(self) -> None:
        self.machine.stop()
        self.machine.boot()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with machine.running(systemd=True, megabytes=1500) as made:
        found = Shop(made)
        found.make()
        yield found


@pytest.fixture
def ready(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Backed up, and described by an inventory."""
    (tmp_path / "inventory").mkdir()
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    described = INVENTORY.format(
        address=shop.machine.address,
        data=DATA,
        key=shop.machine.folder / "id",
        host_key=(shop.machine.folder / "host_key.pub").read_text().strip(),
        programs=PROGRAMS,
        password=tmp_path / "password",
    )
    (tmp_path / "inventory/shop.yaml").write_text(described)
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path / "inventory"))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    maintenance.backup("orders", "shop", "full", Plain())
    return shop


def recover(shown: Plain, failed_at: datetime | None = None) -> str:
    sitting = open_session("orders", shown, platform="shop", failed_at=failed_at)
    console.recover(sitting, shown, yes=True)
    return sitting.incident.id


def test_a_lost_data_directory(ready: Shop) -> None:
    ready.buy(10)
    before = ready.ask("select count(*) from orders")
    ready.shell.run(["sh", "-c", 'kill -9 $(head -n 1 "$1/postmaster.pid"); rm -rf "$1"', "sh", DATA])
    recover(Plain())
    assert ready.ask("select count(*) from orders") == before
    ready.buy(1)


@pytest.mark.parametrize("disturbance", ["cut_the_network", "lose_power"])
def test_a_wrong_statement_with_trouble_midway(ready: Shop, disturbance: str) -> None:
    """The same command again and again, until it comes through: nothing that was there before is lost."""
    moment = ready.buy(10)
    before = ready.ask("select count(*) from orders")
    time.sleep(0.2)
    ready.ask("update orders set price = 0")
    ready.buy(1)
    shown = Meddler("stage", getattr(ready, disturbance))
    incidents = set()
    for _ in range(6):
        try:
            incidents.add(recover(shown, failed_at=moment))
            break
        except SalvorError as error:
            shown.tell(f"{type(error).__name__}: {error}")
        assert shown.meddled
        shown.meddled.join()
    assert len(incidents) == 1
    assert (
        ready.ask("select count(*) from orders where price > 0") == before == ready.ask("select count(*) from orders")
    )
    ready.buy(1)

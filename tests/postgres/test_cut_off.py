"""A primary that cannot be fenced by itself, on a machine of its own: the machine is cut off, and its standby, which is
here, takes over. The chain is that of `inv restore`.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from salvor import console, shell
from salvor.approval.terminal import approval
from salvor.change import UNSEEN, Change, Reachable
from salvor.errors import CannotError
from salvor.postgres import cluster, server
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.connection import Operator
from salvor.postgres.promotion import require_fence
from salvor.postgres.server import Server
from salvor.session.opening import open_session
from salvor.shell import Shell
from salvor.show import Plain
from salvor.ssh.host import Host
from salvor.wish import Wish

from tests import machine
from tests.machine import Machine
from tests.postgres.conftest import free_port, programs

pytestmark = pytest.mark.timeout(120)
PASSWORD = "of-the-operator"
DATA = "/var/lib/postgresql/orders"
INVENTORY = """\
systems:
  db-a:
    kind: host
    address: {address}
    ssh: &ssh {{user: root, keys: ["{key}"], host_keys: ["{host_key}"], agent: false}}
  orders-db:
    kind: postgres
    database: postgres
    members:
      - {{name: a, address: {address}, data: {data}, host: {address}, ssh: *ssh}}
      - {{name: b, address: {ours}, port: {port}, data: {standby}}}
    side_port: 5499
    programs: {programs}
    run_as: postgres
    operator: {{user: salvor, password: "file:{password}"}}
services:
  orders: {{rto: 15m, rpo: 1m, systems: [orders-db]}}
"""


@dataclass
class Site:
    """The machine with the primary, the folder with the standby, and the port of that."""

    made: Machine
    folder: Path
    port: int

    @property
    def there(self) -> Shell:
        return Host(self.made.address, self.made.settings, "postgres").open()

    def ask(self, address: str, port: int, statement: str) -> object:
        where = f"host={address} port={port} dbname=postgres user=salvor connect_timeout=1"
        with psycopg.connect(where, password=PASSWORD, autocommit=True) as connection:
            return (connection.execute(statement.encode()).fetchone() or (None,))[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with machine.running(systemd=False, megabytes=300) as made:
        folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
        subprocess.run(["chown", "postgres", folder], check=True)
        site = Site(made, folder, free_port())
        here = shell.local("postgres")
        bin_ = programs()
        options = ["-k", "-N", "-E", "UTF8", "--locale=C.UTF-8", "--auth-local=peer", "--auth-host=scram-sha-256"]
        Host(made.address, made.settings).open().run(["install", "-d", "-o", "postgres", str(Path(DATA).parent)])
        script = f"""
            {bin_}/initdb -D {DATA} {" ".join(options)} && cd {DATA} || exit
            printf 'host all all all scram-sha-256\\nhost replication all all scram-sha-256\\n' >> pg_hba.conf
            printf "listen_addresses = '*'\\nfsync = off\\nunix_socket_directories = '/tmp'\\n" >> postgresql.conf
            {bin_}/pg_ctl -D {DATA} -l {DATA}.log -w -s start &&
                psql -h /tmp -X -q -c "create role salvor superuser login replication password '{PASSWORD}'"
        """
        site.there.run(["sh", "-c", script], deadline=60.0)
        copied = f"""
            {bin_}/pg_basebackup -D {folder}/b -d 'host={made.address} user=salvor' -R -X stream -c fast &&
            printf "listen_addresses = '{made.operator}'\\nport = {site.port}\\n" >> {folder}/b/postgresql.conf &&
            {bin_}/pg_ctl -D {folder}/b -l {folder}/b.log -w -s start
        """
        try:
            here.run(["sh", "-c", copied], environment={"PGPASSWORD": PASSWORD}, deadline=60.0)
            yield site
        finally:
            here.run([f"{bin_}/pg_ctl", "-D", f"{folder}/b", "-m", "immediate", "stop"], check=False)
            subprocess.run(["rm", "-rf", folder], check=False)


@pytest.fixture
def described(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    text = INVENTORY.format(
        address=site.made.address,
        key=site.made.folder / "id",
        host_key=(site.made.folder / "host_key.pub").read_text().strip(),
        data=DATA,
        ours=site.made.operator,
        port=site.port,
        standby=site.folder / "b",
        programs=programs(),
        password=tmp_path / "password",
    )
    (tmp_path / "shop.yaml").write_text(text)
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    monkeypatch.setattr(cluster, "_ANSWERS_SECONDS", 0.05)
    monkeypatch.setattr(server, "_THAW_SECONDS", 0.05)
    return tmp_path


def planned(overrides: dict[str, str]) -> tuple[Change, ...]:
    session = open_session("orders", Plain(io.StringIO()), platform="shop", wish=Wish(overrides=overrides))
    return session.plan().changes


def recover() -> str:
    stream = io.StringIO()
    console.recover(open_session("orders", Plain(stream), platform="shop"), Plain(stream), yes=True)
    return stream.getvalue()


def test_a_primary_that_cannot_be_fenced_has_its_machine_cut_off(
    site: Site, described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site.made
    with pytest.raises(CannotError, match="Nothing of orders is live on db-x: it is on db-a"):
        planned({"fence-machine:db-x": "somebody mistook it"})
    cut, promote = planned({"fence-machine:db-a": "a ransom note was found there"})
    assert (cut.system, cut.verb, cut.destructive, cut.undo and cut.undo.verb) == ("db-a", "fence", True, "unfence")
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return str(cut.arguments["identity"])

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    approval(Plain(io.StringIO()), (cut, promote), approve="", yes=False)
    assert "a ransom note" in asked[0] and f"Type {cut.arguments['identity']} to allow it" in asked[0]
    assert (promote.verb, promote.arguments["stage"]) == ("promote", "standby b")

    # Half dead: the kernel took writing from its disk, and its server hangs. SSH answers.
    root = Host(made.address, made.settings).open()
    root.run(["sh", "-c", f"mount --bind {DATA} {DATA} && mount -o remount,ro,bind {DATA}"])
    processes = root.run(["pidof", "postgres"]).stdout.split()
    root.run(["kill", "-STOP", *processes])
    with pytest.raises(CannotError, match=r"Read-only file system(.|\n)*fence-machine:NAME=REASON"):
        recover()
    assert "db-a: fence identity=machine" in recover()
    assert site.ask(made.operator, site.port, "select pg_is_in_recovery()") is False
    root.run(["kill", "-CONT", *processes])
    with pytest.raises(psycopg.OperationalError):
        site.ask(made.address, 5432, "select 1")
    made.stop()
    made.boot()
    assert made.answers() and not made.answers(source=made.stranger)


def test_of_two_that_nobody_can_see_the_one_that_is_not_cut_off_may_write() -> None:
    def unseen(name: str, *, is_cut_off: bool) -> Sighting:
        there = Server(shell.local(None), "/nowhere", "/nowhere", "127.0.0.1", 1, Operator("salvor", "env:NONE"))
        return Sighting(Member(name, there), None, None, Reachable.UNKNOWN, "no answer", None, is_cut_off=is_cut_off)

    cut_off, other = unseen("a", is_cut_off=True), unseen("b", is_cut_off=False)
    for both in ((cut_off, other), (other, cut_off)):
        with pytest.raises(CannotError, match="not known that the old primary cannot write any more: b "):
            require_fence(View(both), UNSEEN, "", "")
    require_fence(View((cut_off,)), UNSEEN, "", "")
    require_fence(View((cut_off,)), "7@1:2", "", "")  # as it was seen before its machine was cut off

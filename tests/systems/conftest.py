"""The servers that the systems' tests talk to: real ones, on free ports, stopped at the end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from salvor.change import Change, Undo
from salvor.sandbox.layout import Layout
from salvor.ssh.settings import SshSettings
from salvor.system import Context, System

from tests import machine
from tests.machine import Machine

SECRET = "c2Fsdm9yIHRlc3RzIHNpZ24gd2l0aCB0aGlzIGtleSE="


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """What a system under test is told: an incident whose folder does not exist yet."""
    return Context("20261121T003300Z-orders-3f2a", tmp_path / "incident", dict)


def free_port() -> int:
    """A port of loopback that is free for TCP and UDP now."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        port = int(tcp.getsockname()[1])
        udp.bind(("127.0.0.1", port))
        return port


@dataclass
class Knot:
    """A running Knot that serves `sandbox.test`, whose record `orders-db` leads to 127.0.0.11."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(5)


_CONFIGURATION = """
server:
    listen: 127.0.0.1@{port}
    rundir: "{folder}"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{folder}"
log:
  - target: "{folder}/log"
    any: info
key:
  - id: salvor
    algorithm: hmac-sha256
    secret: {secret}
  - id: reader
    algorithm: hmac-sha256
    secret: {secret}
remote:
  - id: follower
    address: 127.0.0.1@{follower}
  - id: leader
    address: 127.0.0.1@{leader}
acl:
  - id: salvor
    key: salvor
    action: update
  - id: transfer
    address: 127.0.0.1
    action: [transfer, notify]
zone:
  - domain: sandbox.test
    storage: "{folder}"
    file: zone
    zonefile-sync: -1
    zonefile-load: {load}
    journal-content: all
    acl: [salvor, transfer]
    {role}
"""

_ZONE = """
$ORIGIN sandbox.test.
@ 3600 SOA ns.sandbox.test. hostmaster.sandbox.test. 1 3600 600 86400 1
@ 3600 NS ns
ns 3600 A 127.0.0.1
orders-db 5 A {address}
alias 5 CNAME orders-db
pair 5 A 127.0.0.11
pair 5 A 127.0.0.12
six 5 AAAA ::1
"""

StartKnot = Callable[..., Knot]


@pytest.fixture
def start_knot(tmp_path: Path) -> Iterator[StartKnot]:
    """Starts servers of the zone: `start_knot()`, or `start_knot(leader=PORT)` for one that transfers it from there.

    `follower` is the port that is told of changes; `address` is what `orders-db` leads to at first.
    """
    with ExitStack() as stack:

        def start(*, port: int = 0, leader: int = 0, follower: int = 0, address: str = "127.0.0.11") -> Knot:
            port = port or free_port()
            folder = tmp_path / f"knot-{port}"
            folder.mkdir()
            (folder / "zone").write_text(_ZONE.format(address=address))
            role = "master: leader" if leader else "notify: follower" if follower else ""
            text = _CONFIGURATION.format(
                folder=folder,
                port=port,
                secret=SECRET,
                leader=leader or 1,
                follower=follower or 1,
                role=role,
                load="none" if leader else "whole",
            )
            (folder / "knot.conf").write_text(text)
            log = stack.enter_context((folder / "said").open("wb"))
            command = ["/usr/sbin/knotd", "--config", str(folder / "knot.conf")]
            knot = Knot(folder, port, subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(knot.stop)
            _wait_for_zone(knot)
            return knot

        yield start


def _wait_for_zone(knot: Knot) -> None:
    from salvor.authoritative import ask

    until = time.monotonic() + 10
    while ask(knot.server, "sandbox.test", "ns.sandbox.test", "A").values != ("127.0.0.1",):
        assert knot.process.poll() is None, (knot.folder / "said").read_text() + (knot.folder / "log").read_text()
        assert time.monotonic() < until, (knot.folder / "log").read_text()
        time.sleep(0.02)


@pytest.fixture
def knot(start_knot: StartKnot) -> Knot:
    """One server of the zone `sandbox.test`, which takes updates signed with the key `salvor`."""
    return start_knot()


# ---------------------------------------------------------------------------- what test_contract.py asks of every kind


@dataclass(frozen=True)
class Case:
    """One kind of system for the contract tests: one that is up, one that is down, and changes to be made in order."""

    up: System
    down: System
    changes: tuple[Change, ...]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """A reference to the key's secret."""
    file = tmp_path / "tsig.secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return f"file:{file}"


@pytest.fixture
def dns_case(start_knot: StartKnot, secret: str, context: Context) -> Case:
    from salvor.systems.dns import Dns, DnsSettings

    def opened(server: str) -> Dns:
        settings = {
            "kind": "dns",
            "leads_to": "orders-db",
            "zone": "sandbox.test",
            "record": "orders-db.sandbox.test",
            "servers": [server],
            "key": {"name": "salvor", "secret": secret},
        }
        return Dns("orders-dns", DnsSettings.model_validate(settings), context)

    up = opened(start_knot().server)
    change = up.change_to("127.0.0.12", up.observe())
    assert change
    return Case(up, opened("127.0.0.1:1"), (change,))


@pytest.fixture
def route53_case(context: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    import boto3
    from moto import mock_aws
    from salvor.systems.route53 import Route53, Route53Settings

    def opened(zone: str) -> Route53:
        settings = {"kind": "route53", "leads_to": "orders-db", "record": "db.example.com", "hosted_zone": zone}
        return Route53("orders-dns", Route53Settings.model_validate(settings), context)

    with mock_aws():
        client = boto3.client("route53", region_name="us-east-1")
        zone = client.create_hosted_zone(Name="example.com", CallerReference="test")["HostedZone"]["Id"]
        record = {"Name": "db.example.com", "Type": "A", "TTL": 5, "ResourceRecords": [{"Value": "127.0.0.11"}]}
        batch = {"Changes": [{"Action": "UPSERT", "ResourceRecordSet": record}]}
        client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch=batch)
        up, down = (opened(zone.removeprefix("/hostedzone/")) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            assert down.client
        change = up.change_to("127.0.0.12", up.observe())
        assert change
        yield Case(up, down, (change,))


@pytest.fixture
def outbox_case(context: Context, tmp_path: Path) -> Iterator[Case]:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from salvor.systems.outbox import Outbox, OutboxSettings

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as receiver:
        Thread(target=receiver.serve_forever, args=(0.02,), daemon=True).start()

        def settings(port: int) -> OutboxSettings:
            channel = {"url": f"json://127.0.0.1:{port}/oncall", "severities": ["critical", "info"]}
            return OutboxSettings.model_validate({"kind": "outbox", "channels": {"oncall": channel}})

        (tmp_path / "file").touch()
        up = Outbox("people", settings(receiver.server_port), context)
        down = Outbox("people", settings(1), replace(context, folder=tmp_path / "file"))
        yield Case(up, down, (*up.messages("declared"), *up.messages("recovered")))
        receiver.shutdown()


@pytest.fixture
def postgres_case(sandbox: Layout, context: Context, tmp_path: Path) -> Iterator[Case]:
    from salvor import inventory
    from salvor.postgres.settings import PostgresSettings
    from salvor.systems.postgres import Postgres

    settings = inventory.load("sandbox").settings["orders-db"]
    assert isinstance(settings, PostgresSettings)
    nothing = settings.members[0].model_copy(update={"port": 1, "data": str(tmp_path / "nothing")})
    up = Postgres("orders-db", settings, context)
    down = Postgres("orders-db", settings.model_copy(update={"members": (nothing,)}), context)
    identity = up.observe().identity
    back = Undo("unfence", {"identity": identity})
    fence = up.change("fence", why="it still takes writes", undo=back, identity=identity)
    yield Case(up, down, (fence,))
    list(up.apply(up.change("unfence", why="-", no_undo="-", identity=identity)))


@pytest.fixture(scope="module")
def old_machine() -> Iterator[Machine]:
    """A machine without systemd, for the tests of a module."""
    with machine.running(systemd=False) as made:
        yield made


@pytest.fixture
def host_case(old_machine: Machine, context: Context) -> Iterator[Case]:
    from salvor.systems.host import Host, HostSettings

    def opened(address: str, settings: SshSettings) -> Host:
        return Host("web", HostSettings(kind="host", address=address, ssh=settings), context)

    up = opened(old_machine.address, old_machine.settings)
    identity = up.observe().identity
    back = Undo("unfence", {"identity": identity})
    yield Case(
        up,
        opened("127.0.0.1", SshSettings(port=1, user="nobody")),
        (up.change("fence", why="it may be hostile", undo=back, identity=identity),),
    )
    up.unfence(identity)


@pytest.fixture
def application_case(old_machine: Machine, context: Context) -> Iterator[Case]:
    from salvor.systems.application import Application, ApplicationSettings

    script = old_machine.root / "etc" / "init.d" / "shop"
    script.write_text(machine.OLD_SCRIPT)
    script.chmod(0o755)

    def opened(address: str, settings: SshSettings) -> Application:
        said = ApplicationSettings(kind="application", address=address, ssh=settings, service="shop")
        return Application("api", said, context)

    up = opened(old_machine.address, old_machine.settings)
    up.start()
    change = up.change("stop", why="it works on what is swapped", undo=Undo("start"))
    yield Case(up, opened("127.0.0.1", SshSettings(port=1, user="nobody")), (change,))
    up.stop()
    script.unlink()


@pytest.fixture
def cache_case(context: Context, tmp_path: Path) -> Case:
    from salvor.systems.cache import Cache, CacheSettings

    def opened(path: Path) -> Cache:
        return Cache("pages", CacheSettings(kind="cache", path=str(path)), context)

    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page").write_text("a page")
    up = opened(tmp_path / "pages")
    before = up.observe().details["now"] + 1
    return Case(
        up, opened(tmp_path / "nothing"), (up.change("clear", why="-", no_undo="it fills again", before=before),)
    )


@pytest.fixture
def files_case(context: Context, tmp_path: Path) -> Case:
    from salvor.files.settings import FilesSettings
    from salvor.systems.files import Files

    def opened(**reached: object) -> Files:
        settings = {"kind": "files", "path": str(tmp_path / "srv/media"), **reached}
        return Files("media", FilesSettings.model_validate(settings), context)

    (tmp_path / "srv/media").mkdir(parents=True)
    up, down = opened(), opened(address="127.0.0.1", ssh={"port": 1, "user": "nobody"})
    identity = up.observe().identity
    back = Undo("unfence", {"identity": identity})
    return Case(up, down, (up.change("fence", why="it still takes writes", undo=back, identity=identity),))


@pytest.fixture
def schedules_case(old_machine: Machine, context: Context) -> Iterator[Case]:
    from salvor.schedule.entry import Caller
    from salvor.systems.schedules import Schedules, SchedulesSettings

    caller = Caller(platform="shop", python="/usr/bin/python3", folder="/srv", stamps="/srv/stamps")

    def opened(address: str, settings: SshSettings) -> Schedules:
        return Schedules(
            "schedules", SchedulesSettings(kind="schedules", caller=caller, address=address, ssh=settings), context
        )

    up = opened(old_machine.address, old_machine.settings)
    back = Undo("remove", {"name": "nightly"})
    change = up.change("install", why="-", undo=back, name="nightly", at="02:00", run=["backup", "--service=shop"])
    yield Case(up, opened("127.0.0.1", SshSettings(port=1, user="nobody")), (change,))
    up.remove("nightly")

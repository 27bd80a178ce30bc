"""The servers that the systems' tests talk to: real ones, on free ports, stopped at the end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from salvor.system import Context

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

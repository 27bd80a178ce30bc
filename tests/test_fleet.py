"""The same work on many hosts: those that are down, silent or broken hold up nobody."""

from __future__ import annotations

import gc
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from salvor import fleet
from salvor.errors import CannotError, CommandError, SalvorError
from salvor.shell import Shell
from salvor.ssh.host import Host
from salvor.ssh.settings import SshSettings

from tests import ssh_server
from tests.ssh_server import Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ssh_server.serving(f"127.0.0.{number}")) for number in range(30, 34)]


def host(server: Server, **more: object) -> Host:
    said = {
        "user": ssh_server.USER,
        "port": server.port,
        "keys": (str(server.home / ".ssh" / "id_ed25519"),),
        "host_keys": ((server.folder / "host_key.pub").read_text(),),
        "agent": False,
        **more,
    }
    return Host(server.address, SshSettings.model_validate(said))


def who(name: str, there: Shell) -> str:
    return there.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout.split()[2] if there.where != "this machine" else name


def test_every_host_answers_for_itself(servers: list[Server]) -> None:
    hosts = {server.address: host(server) for server in servers}
    hosts["local"] = Host("")
    hosts["by openssh"] = host(servers[0], client="openssh")
    hosts["behind"] = host(
        servers[1], jump=[{"address": servers[2].address, **host(servers[2]).ssh.model_dump(exclude=_NOT_OF_A_JUMP)}]
    )
    answers = {one.host: one for one in fleet.each(hosts, who, at_once=3)}
    assert {name: one.error for name, one in answers.items()} == dict.fromkeys(hosts)
    assert {one.answer for one in answers.values()} == {"local", *(server.address for server in servers)}
    assert answers["behind"].answer == servers[1].address
    assert all(0 < one.seconds < 10 for one in answers.values())


_NOT_OF_A_JUMP = {"jump", "sudo_password", "client"}


def test_errors_are_answers(servers: list[Server]) -> None:
    other = host(servers[1]).ssh.host_keys
    port = ssh_server.free_port("127.0.0.35")
    hosts = {
        "good": host(servers[0]),
        "changed": host(servers[2], host_keys=other),
        "refuses": host(servers[3], user="no-such-user"),
        "down": Host("127.0.0.35", SshSettings(port=port, user="x")),
        "no name": Host("-oProxyCommand=x"),
        "unresolved": Host("no-such-host.invalid", SshSettings(user="x")),
        "fails": host(servers[1]),
    }

    def work(name: str, there: Shell) -> str:
        return there.run(["sh", "-c", f"test {name} != fails"]).stdout or "fine"

    answers = {one.host: one for one in fleet.each(hosts, work, deadline=5)}
    assert answers["good"].answer == "fine"
    said = {name: one.error for name, one in answers.items() if one.error}
    assert set(said) == set(hosts) - {"good"}
    assert isinstance(said["fails"], CommandError)
    for name, words in {
        "changed": "has changed",
        "refuses": "refuses us: .*; it was shown .*/id_ed25519",
        "down": "cannot be reached over SSH: .*refused",
        "no name": "neither a host's name",
        "unresolved": r"cannot be reached over SSH: [^\[]*$",
    }.items():
        with pytest.raises(CannotError, match=words):
            raise said[name]


def test_silent_hosts_hold_up_nobody(servers: list[Server]) -> None:
    with ExitStack() as stack:
        silent = {}
        for number in range(60):  # the system accepts for them; nobody speaks
            listening = stack.enter_context(socket.create_server(("127.0.0.36", 0)))
            silent[f"silent-{number}"] = Host("127.0.0.36", SshSettings(port=listening.getsockname()[1], user="x"))
        hosts = {**silent, **{server.address: host(server) for server in servers}}
        begun = time.monotonic()
        when = {}
        for one in fleet.each(hosts, who, at_once=2, deadline=3):
            when[one.host] = (time.monotonic() - begun, one.error)
        assert len(when) == 64
        for server in servers:
            assert when[server.address][1] is None
            assert when[server.address][0] < 2.9
        assert max(seconds for seconds, _ in when.values()) < 8
        assert sum(isinstance(error, SalvorError) for _, error in when.values()) == 60


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_are_bounded_and_nothing_is_left(servers: list[Server]) -> None:
    hosts = {
        f"{server.address} {number}": host(server, agent=bool(number)) for server in servers for number in range(2)
    }
    hosts |= {f"{name} again": one for name, one in hosts.items()}
    list(fleet.each(hosts, who))
    before, files, turn = threading.active_count(), open_files(), sys.getswitchinterval()
    most = 0

    def work(name: str, there: Shell) -> None:
        nonlocal most
        there.run(["true"])
        most = max(most, threading.active_count())

    assert len([one for one in fleet.each(hosts, work, at_once=3) if one.error is None]) == 16
    assert most - before < 3 * 8
    until = time.monotonic() + 10
    while time.monotonic() < until and (threading.active_count() > before or open_files() > files):
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert open_files() <= files
    assert (gc.get_freeze_count(), sys.getswitchinterval()) == (0, turn)


def test_a_defect_is_raised_and_stopping_begins_no_more(servers: list[Server]) -> None:
    hosts = {f"{number}": host(servers[number % 4]) for number in range(12)}
    begun = []

    def work(name: str, there: Shell) -> None:
        begun.append(name)
        there.run(["sleep", "0.2"])

    some = fleet.each(hosts, work, at_once=1)
    next(some)
    some.close()  # type: ignore[attr-defined]
    time.sleep(1)
    assert len(begun) <= 2
    with pytest.raises(ZeroDivisionError):
        list(fleet.each(hosts, lambda name, there: 1 // 0))


def test_no_host_at_all() -> None:
    assert list(fleet.each({}, who)) == []

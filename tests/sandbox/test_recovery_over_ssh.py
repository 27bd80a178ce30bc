"""The main job on servers that live on other hosts: only commands and their output cross the wire (real sshd)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from salvor import console
from salvor.errors import SalvorError
from salvor.sandbox import database, disasters, survivors
from salvor.sandbox.layout import ADDRESSES, Layout
from salvor.session import Session
from salvor.session.opening import open_session
from salvor.show import Plain

from tests import ssh_server
from tests.meddler import Meddler
from tests.sandbox.test_recovery import ask, messages, serves_again

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hosts(
    fresh_sandbox: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, ssh_server.Server]]:
    """The sshd of each member's host, and an inventory that reaches the members through them only."""
    inventory = tmp_path / "inventory" / "sandbox"
    inventory.mkdir(parents=True)
    text = (ROOT / "inventory/sandbox/platform.yaml").read_text()
    text = text.replace('run_as: "${postgres_user}"', 'run_as: ""')
    with ExitStack() as stack:
        found = {}
        for name, address in ADDRESSES.items():
            server = found[name] = stack.enter_context(ssh_server.serving(address))
            key = (server.folder / "host_key.pub").read_text().strip()
            door = f'user: {ssh_server.USER}, port: {server.port}, keys: ["{server.home}/.ssh/id_ed25519"]'
            host = f'host: {address}, ssh: {{{door}, host_keys: ["{key}"], agent: false}}, '
            text = text.replace(f"name: {name}, address", f"name: {name}, {host}address")
        (inventory / "platform.yaml").write_text(text)
        monkeypatch.setenv("SALVOR_INVENTORY", str(inventory.parent))
        yield found


def recover(shown: Plain, **wishes: object) -> Session:
    sitting = open_session("orders", shown, **wishes)  # type: ignore[arg-type]
    console.recover(sitting, shown, yes=True)
    return sitting


def is_whole(found: Layout) -> bool:
    """Orders are acknowledged again, the damage is gone, and nobody was told anything twice."""
    serves_again()
    told = messages(found)
    return ask(found, "select count(*) from orders where amount <= 0") == 0 and len(told) == len({*told})


def test_a_failover_of_hosts(fresh_sandbox: Layout, hosts: dict[str, ssh_server.Server]) -> None:
    moment = disasters.strike("kill-primary")
    sitting = recover(Plain(), failed_at=moment)
    assert sitting.incident.decisions["orders-db"].way.name == "failover"
    assert is_whole(fresh_sandbox)
    counted = survivors.survivors(moment)
    assert counted.before - counted.before_survived <= 30


def break_connections(hosts: dict[str, ssh_server.Server]) -> None:
    for host in hosts.values():
        host.end_sessions()


def freeze(hosts: dict[str, ssh_server.Server]) -> None:
    """As a network that drops every packet, and lets them through again."""
    frozen = [pid for host in hosts.values() for pid in (host.process.pid, *host.sessions())]
    for signal_, then in ((signal.SIGSTOP, 6.0), (signal.SIGCONT, 0.0)):
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal_)
        time.sleep(then)


@pytest.mark.parametrize("meddle", [break_connections, freeze])
def test_a_restore_on_a_host_whose_connection_fails_midway(
    fresh_sandbox: Layout, hosts: dict[str, ssh_server.Server], meddle: Callable[[dict[str, ssh_server.Server]], None]
) -> None:
    time.sleep(1.0)  # of writes
    moment = disasters.strike("wrong-update")
    shown = Meddler("stage", lambda: meddle(hosts))
    for _ in range(4):
        try:
            sitting = recover(shown, failed_at=moment)
            break
        except SalvorError as error:
            shown.tell(f"{type(error).__name__}: {error}")
        assert shown.meddled
        shown.meddled.join()
    assert sitting.incident.decisions["orders-db"].way.name == "physical"
    assert is_whole(fresh_sandbox)
    counted = survivors.survivors(moment)
    assert counted.before > 10 and counted.before == counted.before_survived


def test_a_host_that_is_gone_is_not_taken_for_a_server_that_is_down(
    fresh_sandbox: Layout, hosts: dict[str, ssh_server.Server]
) -> None:
    """Its sshd does not answer and its server is frozen: whether it writes cannot be told, and nothing is promoted."""
    disasters.strike("freeze-primary")
    os.kill(hosts["a"].process.pid, signal.SIGSTOP)
    with pytest.raises(SalvorError) as refused:
        recover(Plain())
    assert "HINT" in str(refused.value)
    with database.server(fresh_sandbox, "b").session() as connection:
        row = connection.execute("select pg_is_in_recovery()").fetchone()
    assert row == (True,)

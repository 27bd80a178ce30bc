"""Changes to machines by hand: planned, approved, journalled, made, and planned again until nothing is left."""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from salvor import journal
from salvor.errors import CannotError, PlanMovedError, UsageError
from salvor.host import services
from salvor.host.fence import Seen, refuse_another_way_in
from salvor.hosts import work as host_work
from salvor.journal import Journal
from salvor.session import aftermath
from salvor.show import Plain
from salvor.ssh.host import Host

from tests import machine
from tests.machine import OLD_SCRIPT, Machine

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def made() -> Iterator[Machine]:
    with machine.running(systemd=False) as made:
        script = made.root / "etc" / "init.d" / "shop"
        script.write_text(OLD_SCRIPT)
        script.chmod(0o755)
        yield made


@pytest.fixture
def incidents(made: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory with the machine, and one that is down."""
    ssh = {name: list(value) if isinstance(value, tuple) else value for name, value in _said(made).items()}
    systems = {
        "web": {"kind": "host", "address": made.address, "ssh": ssh},
        "down": {"kind": "host", "address": "127.0.0.44", "ssh": {"port": 1, "user": "nobody"}},
    }
    (tmp_path / "machines.yaml").write_text(yaml.safe_dump({"systems": systems}))
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    return tmp_path / "incidents"


def _said(made: Machine) -> dict[str, Any]:
    return made.settings.model_dump(include={"user", "keys", "host_keys", "agent"})


def do(work: Any, limit: str = "web", **how: Any) -> str:
    stream = io.StringIO()
    name = getattr(work, "__name__", "work")
    host_work.carry_out(name, work, "machines", limit, Plain(stream), **how)
    return stream.getvalue()


def test_a_fence_is_planned_then_made_once_and_lifted(made: Machine, incidents: Path) -> None:
    planned = do(host_work.fence, plan_only=True)
    assert "web: fence identity=machine " in planned
    assert "undo   web: unfence identity=machine " in planned
    assert not incidents.exists()
    assert made.answers(source=made.stranger)
    with pytest.raises(PlanMovedError):
        do(host_work.fence, approve="0123456789ab")
    hash_ = planned.split("Plan hash: ")[1].split()[0]
    try:
        do(host_work.fence, approve=hash_)
        assert not made.answers(source=made.stranger)
        (folder,) = journal.incidents(incidents)
        kinds = [line["kind"] for line in Journal.read(folder).lines]
        assert kinds[0] == "opened"
        assert {"approved", "intent", "outcome", "closed"} <= set(kinds)
        assert "Nothing to do" in do(host_work.fence, yes=True)
        inventory = incidents.parent / "machines.yaml"
        described = yaml.safe_load(inventory.read_text())
        described["systems"]["web"]["management"] = ["10.9.0.0/24"]
        inventory.write_text(yaml.safe_dump(described))
        stream = io.StringIO()
        with pytest.raises(CannotError, match="nothing was done on 1 of 1 machines: web"):
            host_work.carry_out("fence", host_work.fence, "machines", "web", Plain(stream), yes=True)
        assert f"stays reachable from {made.operator}/32, which is not what" in stream.getvalue()
    finally:
        do(host_work.unfence, yes=True)
    assert made.answers(source=made.stranger)
    assert "Nothing to do" in do(host_work.unfence, yes=True)


def test_a_fence_that_lets_in_others_than_the_inventory_says_now_is_named() -> None:
    seen = Seen(True, True, True, reached_from=("10.9.0.0/24", "198.18.0.1/32"))
    same, other = ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("10.8.0.0/24")
    refuse_another_way_in("web", seen, [same])  # besides it, whoever raised the fence
    refuse_another_way_in("web", Seen(True, True, True), [other])  # one that an older Salvor raised does not say it
    for now in ([], [other], [same, other]):
        with pytest.raises(CannotError, match="which is not what its management: says now"):
            refuse_another_way_in("web", seen, now)


def test_the_journal_of_a_fence_can_be_taken_back(made: Machine, incidents: Path) -> None:
    do(host_work.fence, yes=True)
    assert not made.answers(source=made.stranger)
    (folder,) = journal.incidents(incidents)
    aftermath.undo(folder.name, Plain(io.StringIO()), yes=True)
    assert made.answers(source=made.stranger)
    assert "undone" in {line["kind"] for line in Journal.read(folder).lines}


def test_who_does_not_answer_hinders_nobody_and_is_told(made: Machine, incidents: Path) -> None:
    with pytest.raises(CannotError, match="nothing can be planned on 1 of 2 machines: down"):
        do(host_work.start("shop"), "*", plan_only=True)
    with pytest.raises(CannotError, match="nothing was done on 1 of 2 machines: down"):
        do(host_work.start("shop"), "*", yes=True)
    there = Host(made.address, made.settings).open()
    assert services.see(there, "shop").runs
    run = services.see(there, "shop").run
    do(host_work.restart("shop"), yes=True)
    second = services.see(there, "shop").run
    assert second not in ("", run)
    do(host_work.stop("shop"), yes=True)
    assert services.see(there, "shop").state == "stopped"
    assert "Nothing to do" in do(host_work.stop("shop"), yes=True)
    do(host_work.restart("shop"), yes=True)
    assert services.see(there, "shop").runs, "what was stopped is started"
    with pytest.raises(CannotError, match="nothing was done on 1 of 1 machines"):
        do(host_work.restart("no-such"), yes=True)


LEAVES = """#!/bin/sh
case $1 in
stop) touch /run/leaves ;;
status) [ -e /run/leaves ] || exit 0; rm "$0"; exit 3 ;;
esac
"""
"""A service that nobody finds any more once it was seen to be stopped."""


def test_what_was_done_where_nobody_could_look_again_is_not_said_to_be_undone(made: Machine, incidents: Path) -> None:
    script = made.root / "etc" / "init.d" / "leaves"
    script.write_text(LEAVES)
    script.chmod(0o755)
    with pytest.raises(CannotError, match="done on web, and nobody could look there since") as told:
        do(host_work.stop("leaves"), yes=True)
    assert not script.exists() and "nothing was" not in str(told.value)


MUTE = (
    "#!/bin/sh\n[ $1 != restart ] || { echo x >>/run/mute; exit 0; }\necho 'Usage: mute {start|stop|restart}'\nexit 3\n"
)


def test_a_script_that_tells_no_run_is_restarted_once(
    made: Machine, incidents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_STAYS", "_SETTLES"):
        monkeypatch.setattr(services, name, 0.1)
    script = made.root / "etc" / "init.d" / "mute"
    script.write_text(MUTE)
    script.chmod(0o755)
    do(host_work.restart("mute"), yes=True)
    assert Host(made.address, made.settings).open().read("/run/mute") == "x\n"


def test_a_selection_is_needed(incidents: Path) -> None:
    for limit in ("", "no-such"):
        with pytest.raises(UsageError, match="--limit"):
            do(host_work.fence, limit, yes=True)
    with pytest.raises(CannotError, match="nothing was done on 1 of 1 machines: down"):
        do(host_work.fence, "down", yes=True)

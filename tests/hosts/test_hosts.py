"""All machines of a platform: how they are, the worst first; one command on many, in batches, with a budget."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from salvor import clock, clone, hosts, inventory, maintenance
from salvor.change import Finding, Level
from salvor.errors import NotProvenError, OutcomeUnknownError, SalvorError, UsageError, WarnedError
from salvor.hosts import looks, record, rolling, work
from salvor.journal import Journal
from salvor.show import Json, Plain, Terminal
from salvor.steps.assess import assess

from tests import ssh_server
from tests.ssh_server import Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]
ALL_AT_ONCE = rolling.rolling(0, None, "20s")


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ssh_server.serving(f"127.0.0.{number}")) for number in range(40, 43)]


def reached(server: Server) -> dict[str, Any]:
    key = str(server.home / ".ssh" / "id_ed25519")
    host_key = (server.folder / "host_key.pub").read_text()
    said = {"user": ssh_server.USER, "port": server.port, "keys": [key], "host_keys": [host_key], "agent": False}
    return {"address": server.address, "ssh": said}


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes the inventory `machines` with these systems."""
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))

    def write(systems: Mapping[str, Any], services: Mapping[str, Any] | None = None) -> str:
        text = yaml.safe_dump({"systems": systems, "services": services or {}})
        (tmp_path / "machines.yaml").write_text(text)
        return "machines"

    return write


@pytest.fixture
def three(describe: Any, servers: list[Server]) -> str:
    written = describe({f"web-{n}": {"kind": "host", **reached(server)} for n, server in enumerate(servers, 1)})
    assert isinstance(written, str)
    return written


def said_by(platform: str, *argv: str, limit: str = "*", how: rolling.Rolling = ALL_AT_ONCE) -> tuple[str, str]:
    """What is shown, and the error's name."""
    stream = io.StringIO()
    try:
        rolling.run(platform, limit, argv, how, Plain(stream))
    except SalvorError as error:
        return stream.getvalue(), type(error).__name__
    return stream.getvalue(), ""


# ------------------------------------------------------------------------------------------ how they are


def test_the_worst_comes_first(describe: Any, servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_CONNECTING", 2.0)
    with socket.create_server(("127.0.0.43", 0)) as silent:
        nobody = {"user": "nobody", "agent": False}
        platform = describe(
            {
                "well": {"kind": "host", **reached(servers[0])},
                "lacks": {"kind": "host", **reached(servers[1]), "services": ["no-such-service"]},
                "silent": {"kind": "host", "address": "127.0.0.43", "ssh": {**nobody, "port": silent.getsockname()[1]}},
                "refuses": {"kind": "host", "address": "127.0.0.43", "ssh": {**nobody, "port": 1}},
            }
        )
        stream = io.StringIO()
        found = looks.show_all(platform, "*", Plain(stream))
        with pytest.raises(NotProvenError, match="3 of 4 machines have something wrong: refuses, silent, lacks"):
            looks.verdict(found)
        lines = stream.getvalue().splitlines()
        assert [line.split()[:2] for line in lines[1:5]] == [
            ["refuses", "DOWN"],
            ["silent", "UNKNOWN"],
            ["lacks", "up"],
            ["well", "up"],
        ]
        assert "no-such-service: absent" in lines[3]
        assert any("HINT" not in line and "ssh -p 1 -- nobody@127.0.0.43 true" in line for line in lines)
        stream = io.StringIO()
        looks.show_all(platform, "well,refuses", Json(stream))
        said = {one["name"]: one for one in map(json.loads, stream.getvalue().splitlines())}
        assert {name: one["reachable"] for name, one in said.items()} == {"well": "up", "refuses": "down"}
        assert said["well"]["facts"]["memory"] > said["well"]["facts"]["memory_free"] > 0
        assert said["refuses"]["facts"] is None
        low = Finding("well", "memory", Level.WARN, "5 % free")
        with pytest.raises(WarnedError, match="1 of 2 machines warn: well"):
            looks.verdict([replace(found[-1], wrong=(low,)), replace(found[-1], wrong=())])
        looks.verdict([replace(found[-1], wrong=())])


def test_a_terminal_shows_how_many_have_answered(three: str) -> None:
    stream = io.StringIO()
    looks.show_all(three, "*", Terminal(Console(file=stream, force_terminal=True, width=100)))
    assert "3 of 3 machines" in stream.getvalue()


def test_the_growth_of_disks_is_told_from_the_looks_of_days_before(describe: Any, tmp_path: Path) -> None:
    platform = describe({"here": {"kind": "host"}})
    kept = tmp_path / "incidents" / ".looks" / "machines.json"

    def shown() -> str:
        stream = io.StringIO()
        looks.show_all(platform, "*", Plain(stream))
        return stream.getvalue()

    now = clock.now()
    with clock.use(lambda: now - timedelta(days=2)):
        assert "full in" not in shown()
    before = kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    taken = json.loads(before)
    (at,) = taken["here"]
    taken["here"][at] = dict.fromkeys(taken["here"][at], 0)  # it was empty then, so it doubles in two days
    kept.write_text(json.dumps(taken))
    used, free = _root()
    expected = 2 * free / used < 7
    assert ("full in" in shown()) is expected
    assert len(json.loads(kept.read_text())["here"]) == 2
    shown()
    assert len(json.loads(kept.read_text())["here"]) == 2  # one a day
    kept.write_text("{ damaged")
    assert "full in" not in shown()


def _root() -> tuple[int, int]:
    said = subprocess.run(["df", "-P", "-k", "/"], capture_output=True, text=True, check=True).stdout.split()
    return int(said[-4]), int(said[-3])


# ------------------------------------------------------------------------------------------ which ones


def test_machines_of_databases_are_hosts_too_and_each_is_there_once(describe: Any) -> None:
    gate = {"address": "gate"}
    members = [
        {"name": "a", "address": "10.0.0.1", "data": "/data/a", "host": "10.0.0.1"},
        {"name": "b", "address": "10.0.0.2", "data": "/data/b", "host": "10.0.0.2"},
        {"name": "c", "address": "127.0.0.1", "data": "/data/c"},
        {"name": "d", "address": "127.0.0.1", "port": 5433, "data": "/data/d"},
        {"name": "e", "address": "10.0.0.2", "port": 5433, "data": "/data/e", "host": "10.0.0.2", "ssh": {"port": 22}},
        {
            "name": "f",
            "address": "10.0.0.2",
            "port": 5434,
            "data": "/data/f",
            "host": "10.0.0.2",
            "ssh": {"port": 2202},
        },
        {
            "name": "g",
            "address": "10.0.0.2",
            "port": 5435,
            "data": "/data/g",
            "host": "10.0.0.2",
            "ssh": {"jump": [gate]},
        },
    ]
    database = {
        "kind": "postgres", "database": "orders", "members": members, "side_port": 5499, "programs": "/usr/bin",
        "operator": {"user": "salvor", "password": "env:X"},
    }  # fmt: skip
    service = {"rto": "15m", "rpo": "30s", "systems": ["orders-db"]}
    systems = {
        "orders-db": database,
        "big-one": {"kind": "host", "address": "10.0.0.1"},
        "web": {"kind": "host", "address": "10.0.0.9"},
        "behind-9": {"kind": "host", "address": "10.0.0.9", "ssh": {"port": 2201}},
        "web-again": {"kind": "host", "address": "10.0.0.9", "run_as": "root"},
    }
    places = hosts.places(inventory.load(describe(systems, {"orders": service})))
    at_2 = {"10.0.0.2", "10.0.0.2:2202", "10.0.0.2@gate"}
    assert set(places) == {"big-one", "web", "behind-9", "web-again", *at_2, "this-machine"}
    assert places["10.0.0.2:2202"].host.ssh.port == 2202
    assert places["10.0.0.2@gate"].host.ssh.jump
    assert (places["behind-9"].host.ssh.port, places["web-again"].host.run_as) == (2201, "root")
    for limit, names in {
        "*": set(places),
        "orders": {"big-one", *at_2, "this-machine"},
        "10.0.0.2": at_2,
        "10.0.0.2:2202": {"10.0.0.2:2202"},
        "orders-db,web*,behind-9": set(places),
        "10.0.0.*": set(places) - {"this-machine"},
        "w?b": {"web"},
    }.items():
        assert set(hosts.select(places, limit)) == names, limit
    with pytest.raises(UsageError, match=r"10\.0\.0\.2:2202: only commands can be run there"):
        work.carry_out("start", work.start("x"), "machines", "*:2202", Plain(io.StringIO()), plan_only=True)
    with pytest.raises(UsageError, match="this-machine: only commands can be run there") as error:
        work.carry_out("start", work.start("x"), "machines", "this-machine", Plain(io.StringIO()), plan_only=True)
    assert error.value.hint.endswith("NAME: {kind: host}"), "an address would be reached over SSH"
    for limit in ("wep", "web,ordres", "", " ", "web,"):
        with pytest.raises(UsageError, match="selects no machine"):
            hosts.select(places, limit)


def test_a_platform_without_machines_says_so(describe: Any) -> None:
    platform = describe({"people": {"kind": "outbox", "channels": {"a": {"url": "json://127.0.0.1/"}}}})
    with pytest.raises(UsageError, match="names no machine"):
        looks.show_all(platform, "*", Plain(io.StringIO()))


# ------------------------------------------------------------------------------------------ one command on many


def test_equal_answers_are_shown_once(three: str, servers: list[Server]) -> None:
    odd = servers[1].address
    said, error = said_by(three, f'set -- $SSH_CONNECTION; [ "$3" = {odd} ] && echo odd || echo "the same" >&2')
    assert said.splitlines() == [
        "ok      done on 2: web-1, web-3",
        "        the same",
        "ok      done on 1: web-2",
        "        odd",
    ]
    assert not error
    said, error = said_by(three, "sh", "-c", 'echo "$0|$1"; exit 7', "a  b", "*", limit="web-1")
    assert said.splitlines() == ["FAIL    failed on 1: web-1", "        a  b|*", "        (exit code 7)"]
    assert error == "CannotError"


def test_batches_stop_when_the_budget_is_spent(three: str, servers: list[Server]) -> None:
    with tempfile.NamedTemporaryFile("r") as began:
        Path(began.name).chmod(0o666)  # the server's user writes there
        command = f'set -- $SSH_CONNECTION; echo "$3" >> {began.name}; [ "$3" != {servers[0].address} ]'
        for failures, expected in ((0, 1), (1, 3)):
            said, error = said_by(three, command, how=rolling.rolling(1, failures, "20s"))
            assert began.read().split() == [server.address for server in servers[:expected]]
            assert ("not begun on 2: web-2, web-3" in said) is (expected == 1)
            assert error == "CannotError"


def test_what_was_run_where_is_written_down(three: str, servers: list[Server], tmp_path: Path) -> None:
    command = f"set -- $SSH_CONNECTION; echo seen; [ $3 != {servers[1].address} ]"
    said_by(three, command, limit="web-1,web-2", how=rolling.rolling(1, 1, "20s"))
    (folder,) = (tmp_path / "incidents").glob("*-hosts-*")
    opened, *notes, closed = Journal.read(folder).lines
    assert (opened["platform"], opened["how"]["batch"], closed["result"]) == ("machines", 1, "done")
    told = [(one["machines"], one.get("outcome"), one.get("exit_code"), one.get("said")) for one in notes]
    assert told == [
        (["web-1"], None, None, None),
        (["web-1"], "done", 0, ["seen"]),
        (["web-2"], None, None, None),
        (["web-2"], "failed", 1, ["seen", "(exit code 1)"]),
    ]
    assert command in notes[0]["text"]


def test_who_stops_it_finds_how_far_it_was(three: str, tmp_path: Path) -> None:
    reached = {name: place.host for name, place in hosts.places(inventory.load(three)).items()}
    with (
        pytest.raises(KeyboardInterrupt),
        record.kept("hosts.run", three, "true", {}, Plain(io.StringIO())) as kept,
    ):
        ran = rolling._rolled(reached, lambda name, there: rolling.Said(name), rolling.rolling(3, 0, "20s"), kept)
        first = next(ran)
        ran.close()  # type: ignore[attr-defined]
        raise KeyboardInterrupt
    (folder,) = (tmp_path / "incidents").glob("*-hosts-*")
    *_, ended, closed = Journal.read(folder).lines
    assert (ended["machines"], ended["outcome"]) == ([first.host], "done")
    assert closed["result"] == "interrupted: how it ended where is not known"


def test_what_does_not_end_is_unknown(three: str) -> None:
    stream = io.StringIO()
    with pytest.raises(OutcomeUnknownError, match="unknown on 1 of 1") as caught:
        rolling.run(three, "web-2", ["sleep 30"], rolling.rolling(0, None, "1s"), Plain(stream))
    assert "it was stopped there" in stream.getvalue()
    assert "HINT: look there: inv hosts --limit=web-2" in str(caught.value)


def test_machines_that_are_down_are_no_success(describe: Any, servers: list[Server]) -> None:
    down = {
        f"down-{number}": {"kind": "host", "address": f"127.0.0.{number}", "ssh": {"user": "nobody", "port": 1}}
        for number in (43, 44)
    }
    platform = describe({"up": {"kind": "host", **reached(servers[0])}, **down})
    said, error = said_by(platform, "echo up")
    assert said.splitlines() == [
        "ok      done on 1: up",
        "        up",
        "FAIL    unreachable on 2: down-43, down-44",
        "        it cannot be reached over SSH: Connection refused.",
    ]
    assert error == "CannotError"
    platform = describe({**down, "up": {"kind": "host", **reached(servers[0])}})
    said, _ = said_by(platform, "echo up", how=rolling.rolling(1, 1, "20s"))
    assert "not begun on 1: up" in said, "who cannot be reached has failed, too"


def test_wrong_ways_to_roll_are_refused() -> None:
    for batch, failures, deadline in ((0, 1, "1s"), (-1, None, "1s"), (1, -2, "1s"), (0, None, "soon")):
        with pytest.raises(UsageError):
            rolling.rolling(batch, failures, deadline)


def test_a_plan_says_which_old_algorithms_were_opened(describe: Any) -> None:
    with ssh_server.serving("127.0.0.43", more="KexAlgorithms diffie-hellman-group14-sha1") as old:
        there = reached(old)
        there["ssh"]["legacy"] = True
        platform = describe(
            {"old": {"kind": "host", **there}, "tree": {"kind": "files", "path": "/etc/ssh", **there}},
            {"photos": {"rto": "1h", "rpo": "1h", "systems": ["tree"]}},
        )
        stream = io.StringIO()
        shown = Plain(stream)
        with pytest.raises(SalvorError, match="nothing can be planned"):
            work.carry_out("start", work.start("no-such"), platform, "old", shown, plan_only=True)
        loaded = inventory.load(platform)
        session = maintenance.sitting(loaded.services["photos"], loaded, shown)
        maintenance.work(session, assess, shown, plan_only=True, approve="", yes=False)
    for name in ("old: SSH", "tree: answers"):
        (line,) = [line for line in stream.getvalue().splitlines() if name in line]
        assert line.endswith("opened for it alone: key exchange diffie-hellman-group14-sha1"), name


def test_the_words_after_two_hyphens_are_the_command(three: str) -> None:
    def typed(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "invoke", "hosts.run", f"--platform={three}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=clone.root())
        return done.returncode, done.stdout, done.stderr

    assert typed("--limit=web-1", "--", "printf", "%s|", "a  b", "--batch=1", "*")[:2] == (
        0,
        "ok      done on 1: web-1\n        a  b|--batch=1|*|\n",
    )
    assert typed("--limit=web-1", "--", "echo one | wc -l")[1].split()[-1] == "1"
    assert typed("--limit=web-1", "--command=exit 3")[0] == 3
    code, _, error = typed("--limit=", "--", "true")  # as of a variable that is not set
    assert (code, "--limit= is empty" in error) == (2, True)
    assert typed()[0] == 2

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import psycopg
import pytest
import salvor.sandbox
from salvor import clock, inventory
from salvor.errors import CannotError, HeldError, UsageError
from salvor.sandbox import database, disasters, names, parts, processes, receiver, survivors, traces, writer
from salvor.sandbox.layout import Layout

from tests.conftest import place_for_a_sandbox
from tests.running_here import command_lines
from tests.waiting import until


def ask(sandbox: Layout, member: str, question: str, *arguments: object) -> object:
    with database.server(sandbox, member).session("orders") as connection:
        row = connection.execute(question.encode(), arguments or None).fetchone()
        assert row
        return row[0]


def get(port: int, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def post(port: int, path: str, content: object, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
    try:
        connection.request("POST", path, json.dumps(content), headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


def up_of(parts: list[salvor.sandbox.Part]) -> dict[str, bool]:
    return {part.name: part.up for part in parts}


def acknowledged(sandbox: Layout) -> int:
    return len(writer.acknowledged(sandbox.acknowledged))


# --------------------------------------------------------------------------------------------------- as it stands


def test_every_part_is_up_and_the_second_up_is_quick(sandbox: Layout) -> None:
    assert all(up_of(salvor.sandbox.status()).values()), salvor.sandbox.status()
    before = [processes.find(processes.module(part, sandbox.place)) for part in ("shop", "writer", "receiver")]
    begun = clock.monotonic()
    salvor.sandbox.up(tell=lambda text: None)
    assert clock.monotonic() - begun < 4
    assert before == [processes.find(processes.module(part, sandbox.place)) for part in ("shop", "writer", "receiver")]


def test_the_inventory_loads(sandbox: Layout) -> None:
    platform = inventory.load("sandbox")
    assert platform.service("orders").systems == ("orders-db",)


def test_the_files_of_a_sandbox_are_closed_to_others(sandbox: Layout) -> None:
    for folder, _, files in os.walk(sandbox.place):
        assert Path(folder).stat().st_mode & 0o077 == 0 or Path(folder) == sandbox.root
        for name in files:
            path = Path(folder) / name
            if not path.is_socket() and "names" not in path.parts:
                assert path.stat().st_mode & 0o077 == 0, path
    for path in (sandbox.root / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (sandbox.root / "pgbackrest.conf").stat().st_mode & 0o777 == 0o600


def test_no_secret_stands_in_any_argv(sandbox: Layout) -> None:
    secrets = [sandbox.secret(name).encode() for name in Layout.SECRETS]
    words = [word for each in command_lines().values() for word in each]
    assert not any(secret in word for secret in secrets for word in words)


def test_the_cluster_is_what_a_careful_team_runs(sandbox: Layout) -> None:
    assert ask(sandbox, "a", "show data_checksums") == "on"
    assert ask(sandbox, "a", "show track_commit_timestamp") == "on"
    assert ask(sandbox, "a", "show wal_log_hints") == "on"
    assert ask(sandbox, "a", "select pg_is_in_recovery()") is False
    assert ask(sandbox, "b", "select pg_is_in_recovery()") is True
    assert int(str(ask(sandbox, "a", "select count(*) from orders"))) >= 80_000
    assert ask(sandbox, "a", "select count(*) from orders where amount <= 0") == 0
    assert ask(sandbox, "a", "select count(*) > 0 from customers where profile ->> 'city' = '서울'") is True
    assert ask(sandbox, "a", "select not rolsuper from pg_roles where rolname = 'shop'") is True


def test_a_password_is_asked_for(sandbox: Layout) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no password supplied|password authentication failed"):
        psycopg.connect(host="127.0.0.11", port=sandbox.database_port, dbname="orders", user="shop", password="")


def test_an_acknowledged_order_reaches_the_standby(sandbox: Layout) -> None:
    before = acknowledged(sandbox)
    assert until(lambda: acknowledged(sandbox) > before + 20)
    reference, _ = writer.acknowledged(sandbox.acknowledged)[-1]
    assert until(lambda: ask(sandbox, "b", "select count(*) from orders where reference = %s", reference) == 1, 5)


def test_a_half_written_line_is_not_an_order(tmp_path: Path) -> None:
    file = tmp_path / "acknowledged.jsonl"
    file.write_text('{"reference": "x", "at": "2026-11-20T03:12:00+00:00"}\n{"reference": "y", "at"')
    assert [reference for reference, _ in writer.acknowledged(file)] == ["x"]
    assert writer.acknowledged(tmp_path / "none") == []


def test_the_repository_is_encrypted_and_takes_the_wal(sandbox: Layout) -> None:
    pgbackrest = ["pgbackrest", f"--config={sandbox.root}/pgbackrest.conf", "--stanza=orders"]
    told = sandbox.shell.run([*pgbackrest, "info", "--output=json"]).stdout
    (stanza,) = json.loads(told)
    assert stanza["cipher"] == "aes-256-cbc"
    assert stanza["backup"][0]["type"] == "full"
    newest = ask(sandbox, "a", "select pg_walfile_name(pg_current_wal_lsn())")

    def is_archived() -> bool:
        (now,) = json.loads(sandbox.shell.run([*pgbackrest, "info", "--output=json"]).stdout)
        return bool(now["archive"][-1]["max"] >= str(newest))

    assert until(is_archived)


def test_the_shop_takes_orders_and_refuses_nonsense(sandbox: Layout) -> None:
    order = {
        "reference": "mine",
        "customer": 7,
        "lines": [{"product": 3, "quantity": 2}, {"product": 4, "quantity": 1}],
    }
    assert post(sandbox.shop_port, "/orders", order) == 201
    assert post(sandbox.shop_port, "/orders", order) == 409
    assert post(sandbox.shop_port, "/orders", order | {"reference": "other", "customer": 99_999_999}) == 400
    assert (
        post(sandbox.shop_port, "/orders", order | {"reference": "other", "lines": [{"product": 0, "quantity": 1}]})
        == 400
    )
    assert post(sandbox.shop_port, "/orders", "nonsense") == 400
    code, told = get(sandbox.shop_port, "/orders")
    assert code == 200
    orders = told["orders"]
    assert isinstance(orders, list)
    assert len(orders) == 20
    wanted = ask(
        sandbox,
        "a",
        "select sum(quantity * l.price) from order_lines l join orders o on o.id = order_id where reference = 'mine'",
    )
    assert ask(sandbox, "a", "select amount from orders where reference = 'mine'") == wanted
    assert ask(sandbox, "a", "select count(*) from orders where reference = 'other'") == 0


def test_the_dns_server_takes_signed_updates_only_and_the_shop_follows(sandbox: Layout) -> None:
    import dns.query
    import dns.rcode
    import dns.tsig
    import dns.update

    def point(address: str, secret: str | None) -> int:
        update = dns.update.UpdateMessage(names.ZONE)
        update.replace("orders-db", names.TIME_TO_LIVE, "A", address)
        if secret:
            update.use_tsig(dns.tsig.Key("salvor", secret, "hmac-sha256"))
        return int(dns.query.tcp(update, "127.0.0.1", port=sandbox.dns_port, timeout=5).rcode())

    assert point("127.0.0.12", None) != dns.rcode.NOERROR
    assert names.resolve(sandbox) == ("127.0.0.11", 5)
    try:
        assert point("127.0.0.12", sandbox.secret("tsig.secret")) == dns.rcode.NOERROR
        assert names.resolve(sandbox) == ("127.0.0.12", 5)
        # The standby refuses to be written to; the shop goes there soon after the time to live has passed.
        assert until(lambda: get(sandbox.shop_port, "/health")[0] == 503, 7)
    finally:
        assert point("127.0.0.11", sandbox.secret("tsig.secret")) == dns.rcode.NOERROR
    assert until(lambda: get(sandbox.shop_port, "/health")[0] == 200, 7)


def test_the_receiver_counts_what_comes_again(sandbox: Layout) -> None:
    known, repeated = receiver.count(sandbox.messages)
    for key in ("one", "one", "two"):
        assert (
            post(sandbox.receiver_port, "/oncall", {"title": "주문", "message": "멈춤"}, {receiver.KEY_HEADER: key})
            == 204
        )
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"], mail[receiver.KEY_HEADER] = (
        "a@sandbox.test",
        "b@sandbox.test",
        "복구 중",
        "one",
    )
    mail.set_content("주문을 받을 수 없습니다")
    with smtplib.SMTP("127.0.0.1", sandbox.mail_port, timeout=5) as server:
        server.send_message(mail)
    assert receiver.count(sandbox.messages) == (known + 3, repeated + 1)
    newest = receiver.messages(sandbox.messages)[-1]
    assert (newest.channel, newest.title, newest.text) == ("b@sandbox.test", "복구 중", "주문을 받을 수 없습니다")


# ------------------------------------------------------------------------------------------------------- disasters


def test_an_unknown_disaster_and_no_sandbox_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="drop-table"):
        disasters.strike("meteor")
    monkeypatch.setenv("SALVOR_SANDBOX", str(tmp_path / "none"))
    with pytest.raises(CannotError, match=r"HINT: inv sandbox\.up"):
        disasters.strike("drop-table")
    assert salvor.sandbox.status() == []
    salvor.sandbox.down()
    assert list(tmp_path.iterdir()) == []


def struck(sandbox: Layout, name: str) -> None:
    """Strike once customers have ordered, and check what every disaster has in common."""
    assert until(lambda: acknowledged(sandbox) > 30)
    begun = clock.now()
    moment = disasters.strike(name)
    assert begun <= moment <= clock.now()
    assert disasters.struck(sandbox)[-1] == disasters.Struck(name, moment, "a")


def test_drop_table(fresh_sandbox: Layout) -> None:
    struck(fresh_sandbox, "drop-table")
    assert ask(fresh_sandbox, "a", "select to_regclass('orders') is null") is True
    assert get(fresh_sandbox.shop_port, "/health")[0] == 503
    stopped = acknowledged(fresh_sandbox)
    time.sleep(0.5)
    assert acknowledged(fresh_sandbox) == stopped
    moment = disasters.struck(fresh_sandbox)[0].moment
    # the table was locked by then, so nothing that was acknowledged was committed later
    assert all(
        at <= moment or (at - moment).total_seconds() < 0.5 for _, at in writer.acknowledged(fresh_sandbox.acknowledged)
    )


def test_wrong_update_while_orders_come_in(fresh_sandbox: Layout) -> None:
    struck(fresh_sandbox, "wrong-update")
    assert int(str(ask(fresh_sandbox, "a", "select count(*) from orders where amount = 0"))) >= 80_000
    assert get(fresh_sandbox.shop_port, "/health")[0] == 200
    before = acknowledged(fresh_sandbox)
    assert until(lambda: acknowledged(fresh_sandbox) > before + 10)
    seen = survivors.survivors(disasters.struck(fresh_sandbox)[0].moment)
    assert seen.before > 0
    assert seen.after > 0
    assert seen.lost == 0


def test_kill_primary(sandbox: Layout) -> None:
    struck(sandbox, "kill-primary")
    assert processes.working_in(sandbox.data("a")) == []
    assert until(lambda: get(sandbox.shop_port, "/health")[0] == 503)
    assert up_of(salvor.sandbox.status())["database a"] is False
    with pytest.raises(CannotError, match="nothing left to break"):
        disasters.strike("drop-table")
    salvor.sandbox.up(tell=lambda text: None)
    assert all(up_of(salvor.sandbox.status()).values())
    seen = survivors.survivors(disasters.struck(sandbox)[0].moment)
    assert seen.lost == 0  # what PostgreSQL acknowledged is on the disk
    assert seen.before > 0
    assert seen.newest


def test_a_killed_server_starts_again_although_its_number_is_taken(sandbox: Layout) -> None:
    disasters.strike("kill-primary")
    (other,) = database.server(sandbox, "b").processes()
    for path in (sandbox.data("a") / "postmaster.pid", *(sandbox.root / "a").glob(".s.PGSQL.*.lock")):
        path.write_text(re.sub(r"\A\d+", str(other), path.read_text()))
    salvor.sandbox.up(tell=lambda text: None)
    assert all(up_of(salvor.sandbox.status()).values())


def test_lose_datadir(fresh_sandbox: Layout) -> None:
    struck(fresh_sandbox, "lose-datadir")
    assert not fresh_sandbox.data("a").exists()
    assert until(lambda: get(fresh_sandbox.shop_port, "/health")[0] == 503)
    said: list[str] = []
    salvor.sandbox.up(tell=said.append)
    assert any("data directory is lost" in line for line in said)
    assert not fresh_sandbox.data("a").exists()


def test_corrupt_pages(fresh_sandbox: Layout) -> None:
    struck(fresh_sandbox, "corrupt-pages")
    assert until(lambda: "DataCorrupted" in str(get(fresh_sandbox.shop_port, "/health")))
    with pytest.raises(psycopg.errors.DataCorrupted):
        ask(fresh_sandbox, "a", "select count(*) from orders where amount <= 0")
    assert ask(fresh_sandbox, "b", "select count(*) from orders where amount <= 0") == 0
    stopped = acknowledged(fresh_sandbox)
    time.sleep(0.5)
    assert acknowledged(fresh_sandbox) <= stopped + 2


def test_freeze_primary_and_wake(sandbox: Layout) -> None:
    struck(sandbox, "freeze-primary")
    tree = processes.working_in(sandbox.data("a"))
    assert len(tree) > 5
    status = [Path(f"/proc/{process.pid}/status") for process in tree]
    assert until(lambda: all("State:\tT" in one.read_text() for one in status)), "a running one stops a moment later"
    assert until(lambda: get(sandbox.shop_port, "/health")[0] == 503)
    # the kernel still accepts for it: it looks neither up nor down
    socket.create_connection(("127.0.0.11", sandbox.database_port), timeout=2).close()
    disasters.wake()
    assert until(lambda: get(sandbox.shop_port, "/health")[0] == 200)
    disasters.wake()


# ------------------------------------------------------------------------------------------------ odd states, down


def test_down_leaves_nothing(fresh_sandbox: Layout) -> None:
    disasters.strike("freeze-primary")
    # what a recovery may leave: a server on a staged copy
    b = fresh_sandbox.data("b")
    side = fresh_sandbox.root / "a" / "data.staged"
    fresh_sandbox.shell.run(["cp", "-a", str(b), str(side)])
    fresh_sandbox.shell.run(["rm", f"{side}/postmaster.pid", f"{side}/standby.signal"])
    options = f"-c listen_addresses=127.0.0.11 -c port={fresh_sandbox.side_port} -c archive_mode=off"
    pg_ctl = [f"{database.PROGRAMS}/pg_ctl", "-D", str(side), "-W", "-s", "-l", f"{side}.log", "-o", options, "start"]
    fresh_sandbox.shell.run(pg_ctl)
    assert until(lambda: len(processes.working_in(side)) > 0)
    assert len(traces.of(fresh_sandbox)) > 10
    salvor.sandbox.down()
    assert until(lambda: not traces.of(fresh_sandbox), 2)
    salvor.sandbox.down()


def test_a_killed_up_is_finished_by_the_next_and_removed_by_down() -> None:
    with place_for_a_sandbox():
        argv = [sys.executable, "-c", "from salvor import sandbox; sandbox.up(tell=lambda text: None)"]
        for seconds in (0.4, 1.5, 3.0):
            child = subprocess.Popen(argv, start_new_session=True)
            time.sleep(seconds)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            with pytest.raises(CannotError, match="no sandbox"):
                salvor.sandbox.find()
        # its daemons hold none of its pipes, or this would wait for them
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        assert all(up_of(salvor.sandbox.status()).values())
        mine = salvor.sandbox.find()
        (mine.root / "database-is-made").unlink()  # as if killed just before the end
        mine.variables.unlink()
        salvor.sandbox.down()
        assert traces.of(mine) == []


def test_a_full_folder_is_refused_and_left_alone() -> None:
    with place_for_a_sandbox() as base:
        for folder in (base / "sandbox", base / "data"):
            if folder.name == "data" and os.geteuid() != 0:
                continue
            folder.mkdir()
            (folder / "letter.txt").write_text("dear")
            with pytest.raises(UsageError, match="not a sandbox's"):
                salvor.sandbox.up()
            salvor.sandbox.down()
            assert (folder / "letter.txt").read_text() == "dear"
            (folder / "letter.txt").unlink()
            folder.rmdir()


def test_a_port_that_was_taken_meanwhile_is_named(sandbox: Layout) -> None:
    processes.stop(processes.find(processes.module("shop", sandbox.place)))
    with socket.create_server(("127.0.0.1", sandbox.shop_port)):
        with pytest.raises(CannotError, match=f"port {sandbox.shop_port}.*taken") as error:
            salvor.sandbox.up(tell=lambda text: None)
        assert "--fresh" in error.value.hint
    salvor.sandbox.up(tell=lambda text: None)
    assert up_of(salvor.sandbox.status())["shop"]


def test_after_a_power_cut_it_comes_up_with_every_acknowledged_order(sandbox: Layout) -> None:
    assert until(lambda: acknowledged(sandbox) > 30)
    daemons = [processes.module(part, sandbox.place) for part in ("writer", "shop", "receiver")]
    everything = [process for argv in (*daemons, names.argv(sandbox)) for process in processes.find(argv)]
    processes.kill(everything + processes.working_in(sandbox.root))
    assert not any(up_of(salvor.sandbox.status()).values())
    moment = clock.now()
    salvor.sandbox.up(tell=lambda text: None)
    assert until(lambda: all(up_of(salvor.sandbox.status()).values()))
    seen = survivors.survivors(moment)
    assert seen.before > 30
    assert seen.lost == 0


def test_paths_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("it's here", "a b", "a\nb", "a" * 90, "주문"):
        path = f"/srv/{name}"
        monkeypatch.setenv("SALVOR_SANDBOX", path)
        monkeypatch.setenv("SALVOR_SANDBOX_ROOT", path)
        with pytest.raises(UsageError, match="cannot be a sandbox's"):
            salvor.sandbox.up()
        assert not Path(path).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")
def test_a_folder_that_the_servers_cannot_enter_is_told_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with place_for_a_sandbox() as base:
        base.chmod(0o700)
        with pytest.raises(CannotError, match="cannot enter"):
            salvor.sandbox.up()
        assert list(base.iterdir()) == []


@contextmanager
def as_who_is_not_root(owned: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    shutil.chown(owned, 65534, 65534)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_what_a_recovery_fenced_is_removed_by_who_is_not_root_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALVOR_SANDBOX_ROOT", raising=False)
    with place_for_a_sandbox() as base, as_who_is_not_root(base):
        found = Layout.plan(base / "sandbox")
        found.make()
        fenced = found.root / "dumps" / "kept"
        (fenced / "inner").mkdir(parents=True)
        (fenced / "link").symlink_to("/etc")
        fenced.chmod(0o200)
        found.remove()
        assert list(base.iterdir()) == []


def test_a_home_that_takes_nothing_is_told() -> None:
    with place_for_a_sandbox() as base, as_who_is_not_root(base):
        base.chmod(0o500)
        with pytest.raises(CannotError, match=r"cannot be made: .*/(data|sandbox): Permission denied") as refused:
            parts.begin(Layout)
        assert refused.value.hint == "name others: SALVOR_SANDBOX=/tmp/my-sandbox inv sandbox.up"
        assert list(base.iterdir()) == []
        base.chmod(0o700)


def test_two_commands_at_once_do_not_meet(sandbox: Layout) -> None:
    with parts.alone(Layout), pytest.raises(HeldError):
        salvor.sandbox.down()
    assert sandbox.variables.exists()


# ------------------------------------------------------------------------------------------------------- processes


def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    argv = ["/bin/sleep", "3141"]
    processes.start(argv, tmp_path / "log")
    (running,) = processes.find(argv)
    processes.start(argv, tmp_path / "log")
    assert processes.find(argv) == [running]
    recycled = processes.Process(running.pid, running.started - 1)
    assert not processes.alive(recycled)
    processes.kill([recycled])
    assert processes.alive(running)
    processes.stop([running])
    assert not processes.alive(running)
    assert processes.find(argv) == []


def test_a_daemon_is_known_as_soon_as_it_is_started(tmp_path: Path) -> None:
    argvs = [["/bin/sleep", f"31415.{number}"] for number in range(30)]
    found = []
    for argv in argvs:
        processes.start(argv, tmp_path / "log")
        found.append(processes.find(argv))
    processes.kill([process for each in found for process in each])
    assert [len(each) for each in found] == [1] * 30


def test_a_deaf_and_a_frozen_process_are_stopped_all_the_same(tmp_path: Path) -> None:
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); time.sleep(99)",
    ]
    frozen = ["/bin/sleep", "2718"]
    for argv in (deaf, frozen):
        processes.start(argv, tmp_path / "log")
    assert until(lambda: "1" in (tmp_path / "log").read_text())
    both = processes.find(deaf) + processes.find(frozen)
    processes.send(processes.find(frozen), signal.SIGSTOP)
    processes.stop(both, deadline=0.5)
    assert not any(processes.alive(process) for process in both)


def test_a_daemon_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo the disk is full; exit 1"]
    processes.start(argv, tmp_path / "log")
    with pytest.raises(CannotError, match="the disk is full"):
        processes.wait_until(lambda: False, argv, tmp_path / "log", deadline=5)

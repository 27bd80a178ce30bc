"""What is seen of a server from its machine, without one that runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from salvor import shell
from salvor.errors import CannotError
from salvor.postgres import beside, cluster
from salvor.postgres.connection import Line, Operator
from salvor.postgres.server import _AWAIT_END, Server

from tests.postgres.conftest import PostgresServer, programs


@pytest.fixture
def server() -> Iterator[Server]:
    """A data directory in which nothing runs, of a user whom PostgreSQL's programs work for."""
    user = "postgres" if os.geteuid() == 0 else None
    place = Path(tempfile.mkdtemp(prefix="salvor-look-"))
    data = place / "data"
    data.mkdir(mode=0o700)
    (data / "PG_VERSION").write_text("15\n")
    if user:
        shutil.chown(place, user)
        shutil.chown(data, user)
    yield Server(shell.local(user), str(programs()), str(data), "127.0.0.1", 1, Operator("salvor", "env:NOBODY"))
    shutil.rmtree(place)


@contextmanager
def pretender(server: Server, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the server: by its name, its arguments, and the folder that it works in."""
    program = Path(server.data).with_name("postgres")
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    argv, who = [str(program), "-D", server.data], server.shell.user
    with subprocess.Popen(
        argv, cwd=server.data, user=who, group=who, stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_directory_that_we_may_not_look_into_is_not_lost(server: Server) -> None:
    data = Path(server.data)
    stranger = replace(server, shell=shell.local("nobody")) if os.geteuid() == 0 else server
    for closed in (data.parent, data):
        if closed == data and os.geteuid() == 0:
            data.parent.chmod(0o755)
        closed.chmod(0o700 if os.geteuid() == 0 else 0)
        with pytest.raises(CannotError, match=f"may not look into {closed}; run_as: names"):
            stranger.look()
        closed.chmod(0o700)


def test_a_server_is_one_process_however_its_state_changes(server: Server) -> None:
    """A look finds it by its folder and by its command line: it may be running once, and asleep once."""
    restless = "while :; do i=0; while [ $((i += 1)) -lt 2000 ]; do :; done; sleep 0.002; done"
    with pretender(server, restless) as process:
        assert [server.processes() for _ in range(20)] == [[process.pid]] * 20


def test_a_process_is_found_when_its_directory_was_renamed_or_removed(server: Server) -> None:
    renamed = replace(server, data=f"{server.data}.kept-1")
    with pretender(server, "read -r _") as process:
        Path(server.data).rename(renamed.data)
        assert server.processes() == renamed.processes() == [process.pid]
        assert [one.pid for one in renamed.look().processes] == [process.pid], "a whole look sees the same"
        (Path(renamed.data) / "PG_VERSION").unlink()
        Path(renamed.data).rmdir()
        assert server.processes() == renamed.processes() == [process.pid]
        assert replace(server, data=f"{server.data}.salvor-1").processes() == [], "a folder beside it is another one"
    assert server.processes() == []


def test_the_access_rules_are_those_that_the_settings_name(server: Server) -> None:
    """Also through a file that is included, by ALTER SYSTEM, and with the settings elsewhere, as on Debian."""
    data = Path(server.data)
    elsewhere = data.parent / "etc"
    elsewhere.mkdir()
    for place, text in ((data, "beside the data\n"), (elsewhere, "elsewhere\n")):
        (place / "pg_hba.conf").write_text(text)
    set_there = f"  HBA_File = '{elsewhere}/pg_hba.conf'\n"
    (elsewhere / "more.conf").write_text(set_there)
    outside = replace(server, configuration=f"{elsewhere}/postgresql.conf")

    def seen(where: Server, settings: str, automatic: str = "") -> str | None:
        Path(where.configuration_file).write_text(settings)
        (data / "postgresql.auto.conf").write_text(automatic)
        return where.look().access

    assert seen(server, "port = 1\n#hba_file = 'none'\n") == "beside the data\n"
    assert seen(outside, "port = 1\n") == "beside the data\n"
    assert seen(outside, set_there) == "elsewhere\n"
    assert seen(server, f"include_if_exists '{elsewhere}/more.conf'\n") == "elsewhere\n"
    (data / "postgresql.conf").unlink()
    assert seen(server, "port = 1\n", set_there) == "elsewhere\n"


def test_nobody_waits_for_a_process_that_has_ended(server: Server) -> None:
    """Also when nobody has taken note of its end yet, so that it still has a number."""
    counting = ["sh", "-c", f"sleep() {{ echo slept; }}\n{_AWAIT_END}", "sh", server.data]
    with pretender(server, "read -r _") as process:
        assert process.stdin
        assert server.shell.run([*counting, str(process.pid)]).stdout.split() == ["slept"] * 49
        process.stdin.close()
        while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
            time.sleep(0.01)
        assert server.shell.run([*counting, str(process.pid)]).stdout == ""


def test_a_line_is_kept_and_made_anew_when_it_broke(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD_OF_NOBODY", "nothing")
    operator = Operator("postgres", "env:PASSWORD_OF_NOBODY")
    server = Server(
        shell.local(postgres_server.run_as),
        str(postgres_server.bin),
        str(postgres_server.data),
        postgres_server.address,
        postgres_server.port,
        operator,
    )
    with Line(server, deadline=5.0) as line:
        first = line.ask("select pg_backend_pid()")
        assert first and line.ask("select pg_backend_pid()") == first
        with server.session(writes=True) as other:
            other.execute("select pg_terminate_backend(%s, 5000)", first)
        with pytest.raises(psycopg.Error):
            line.ask("select 1")
        second = line.ask("select pg_backend_pid()")
        assert second and second != first


def test_of_what_stands_beside_only_its_own_is_removed(server: Server) -> None:
    staged, live = Path(f"{server.data}.salvor-1"), Path(server.data).with_name("space")
    own = Path(f"{live}.salvor-1")
    for place in (live / "PG_15", own / "PG_15", staged / "pg_tblspc"):
        server.shell.run(["mkdir", "-p", "--", str(place)])
    for number, place in enumerate((live, own)):
        server.shell.run(["ln", "-s", "--", str(place), f"{staged}/pg_tblspc/{number}"])
    beside.remove(server, str(staged), tablespaces="own")
    assert not staged.exists() and not own.exists()
    assert (live / "PG_15").exists(), "the live cluster uses it"
    for path in (server.data, f"{server.data}-2", "/nowhere"):
        with pytest.raises(CannotError, match="it was not removed"):
            beside.remove(server, path, tablespaces="own")
    assert Path(server.data, "PG_VERSION").exists()


def test_a_machine_whose_disk_hangs_is_one_that_cannot_be_looked_at(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of two deadlines ended the look decided whether anything could be planned."""
    control = tmp_path / "pg_controldata"
    control.write_text("#!/bin/sh\nexec sleep 60\n")
    control.chmod(0o755)
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.3)
    hanging = cluster.Member("a", replace(server, shell=shell.local(), programs=str(tmp_path)))
    for seen in cluster.view([hanging] * 12, "orders", "").sightings:
        assert seen.look is None and ("no answer within" in seen.detail or "did not end within" in seen.detail)

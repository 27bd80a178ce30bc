import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from salvor import clock
from salvor.errors import CannotError, HeldError
from salvor.journal.lock import hold, holder

from tests.journal.test_journal_faults import fill, mounted

INCIDENT = "20261121T003300Z-orders-3f2a"
HOLDER = """
import sys
from pathlib import Path
from salvor.journal.lock import hold
with hold(sys.argv[1], Path(sys.argv[2]), by="kim", incident=sys.argv[3]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the service orders until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "orders", str(folder), INCIDENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_another_operator_is_named(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        with pytest.raises(HeldError) as raised, hold("orders", tmp_path, by="lee", incident="other"):
            pass
        with hold("auth", tmp_path, by="lee", incident="other"):
            pass
    host = socket.gethostname()
    assert re.fullmatch(
        rf"kim works on orders now: incident {INCIDENT}, since \d{{4}}-\d\d-\d\dT[\d:.]+\+00:00, "
        rf"process {process.pid} on {re.escape(host)}\.",
        raised.value.what,
    )
    assert f"inv incident.show --incident={INCIDENT}" in raised.value.hint
    assert f"kill {process.pid}" in raised.value.hint
    assert raised.value.exit_code == 7


def test_who_ends_releases_it_and_leaves_no_name(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        process.communicate("", timeout=10)
    assert (tmp_path / ".locks" / "orders.lock").read_bytes() == b""
    with hold("orders", tmp_path, by="lee", incident="other"):
        pass


def test_who_is_killed_releases_it(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert b'"by": "kim"' in (tmp_path / ".locks" / "orders.lock").read_bytes()
        with hold("orders", tmp_path, by="lee", incident="other"):
            holder = json.loads((tmp_path / ".locks" / "orders.lock").read_text())
    assert (holder["by"], holder["pid"]) == ("lee", os.getpid())


def test_who_crashed_is_never_named_as_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name stays in the file; until the next holder has written its own, nobody may take the old one for it."""
    with another(tmp_path) as process:
        process.kill()
        process.wait(10)
    file = tmp_path / ".locks" / "orders.lock"
    crashed = file.read_bytes()
    assert holder("orders", tmp_path) is None
    with another(tmp_path) as process:
        current = file.read_bytes()
        monkeypatch.setattr("salvor.journal.lock.time.sleep", lambda seconds: file.write_bytes(current))
        for before in (crashed, b""):  # as in the moment before the new name is there
            file.write_bytes(before)
            with (
                pytest.raises(HeldError, match=f"process {process.pid} "),
                hold("orders", tmp_path, by="l", incident="o"),
            ):
                pass
        assert (holder("orders", tmp_path) or {})["pid"] == process.pid
    there = json.loads(crashed) | {"host": "another-machine"}  # on a disk that two share: its process cannot be asked
    file.write_text(json.dumps(there))
    assert holder("orders", tmp_path) == there


def test_of_many_who_start_at_once_one_works_and_the_others_are_told_who(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from salvor.errors import HeldError
from salvor.journal.lock import hold
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold("orders", Path(sys.argv[1]), by="kim", incident="i"):
        print("works", flush=True)
        sys.stdin.read()
except HeldError as error:
    print(error.what, flush=True)
"""
    argv = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(6)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
    said = {process.pid: process.stdout.readline().strip() for process in processes if process.stdout}
    for process in processes:
        process.communicate(timeout=30)
    [winner] = [pid for pid, words in said.items() if words == "works"]
    assert all(f"process {winner} on" in words for pid, words in said.items() if pid != winner)


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 20, 3, 12, tzinfo=UTC)
    with (
        clock.use(lambda: moment),
        hold("orders", tmp_path, by="kim", incident="one"),
        pytest.raises(HeldError, match="since 2026-11-20T03:12:00"),
        hold("orders", tmp_path, by="kim", incident="two"),
    ):
        pass
    with hold("orders", tmp_path, by="kim", incident="two"):
        pass


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold("orders", tmp_path, by="kim", incident="one"):
        raise ZeroDivisionError
    with hold("orders", tmp_path, by="kim", incident="two"):
        pass


@pytest.mark.parametrize("service", ["../../etc/passwd", "a/b", "..", "주문", "with space\nand newline"])
def test_any_name_of_a_service_stays_in_the_folder(tmp_path: Path, service: str) -> None:
    with hold(service, tmp_path / "incidents", by="kim", incident="one"):
        assert len(list((tmp_path / "incidents" / ".locks").iterdir())) == 1
        with pytest.raises(HeldError), hold(service, tmp_path / "incidents", by="lee", incident="two"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["incidents"]


def test_nobody_else_can_read_or_redirect_it(tmp_path: Path) -> None:
    with hold("orders", tmp_path, by="kim", incident="one"):
        pass
    locks = tmp_path / ".locks"
    assert locks.stat().st_mode & 0o777 == 0o700
    assert (locks / "orders.lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "precious").write_text("precious")
    (locks / "auth.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CannotError, match="symbolic link"), hold("auth", tmp_path, by="kim", incident="one"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    for folder in ("elsewhere", "incidents"):
        (tmp_path / folder).mkdir()
    (tmp_path / "incidents/.locks").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(CannotError, match="cannot be taken"),
        hold("orders", tmp_path / "incidents", by="kim", incident="one"),
    ):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_on_a_read_only_disk_the_lock_is_in_memory(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        with (
            another(tmp_path) as process,
            pytest.raises(HeldError, match=f"process {process.pid} "),
            hold("orders", tmp_path, by="l", incident="o"),
        ):
            pass
        with hold("orders", tmp_path, by="lee", incident="other"):
            assert not list(tmp_path.iterdir())


def test_on_a_full_disk_the_lock_holds_without_a_name(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        fill(tmp_path)
        with (
            another(tmp_path),
            pytest.raises(HeldError, match="Another process works on orders") as raised,
            hold("orders", tmp_path, by="lee", incident="other"),
        ):
            pass
        assert "lslocks" in raised.value.hint

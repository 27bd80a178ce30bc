"""A host over SSH that is unknown, refuses us, gives no answer, dies or freezes; and one connection for many."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from salvor import clock, shell
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.shell import Shell
from salvor.ssh import wire
from salvor.ssh.settings import SshSettings

from tests import ssh_server
from tests.ssh_server import Server, connected
from tests.waiting import within

pytestmark = pytest.mark.timeout(60)
needs_sshd = pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")


@needs_sshd
def test_an_unknown_host_key_is_refused_with_its_fingerprint(
    as_its_user: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CannotError, match="is not known: it shows ssh-ed25519 SHA256:") as refused:
        connected(as_its_user)
    assert as_its_user.fingerprint in refused.value.what
    assert f"ssh-keyscan -p {as_its_user.port} -- {as_its_user.address} >>" in refused.value.hint
    assert not (tmp_path / ".ssh" / "known_hosts").exists()


@needs_sshd
def test_a_changed_host_key_is_refused_with_both_fingerprints(
    as_its_user: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    ssh_server.make_key(tmp_path / "other")
    kind, text, *_ = (tmp_path / "other.pub").read_text().split()
    entry = f"[{as_its_user.address}]:{as_its_user.port}"
    (tmp_path / ".ssh" / "known_hosts").write_text(f"{entry} {kind} {text}\n")
    with pytest.raises(CannotError, match="has changed") as refused:
        connected(as_its_user)
    assert as_its_user.fingerprint in refused.value.what
    assert refused.value.what.count("SHA256:") == 2
    assert f"ssh-keygen -R {shlex.quote(entry)}" in refused.value.hint


@needs_sshd
def test_a_key_that_the_host_does_not_know(
    as_its_user: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text((as_its_user.home / ".ssh" / "known_hosts").read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CannotError, match="refuses us"):  # no key at all
        connected(as_its_user)
    ssh_server.make_key(tmp_path / ".ssh" / "id_ed25519")
    with pytest.raises(CannotError, match="refuses us: Authentication failed") as refused:
        connected(as_its_user)
    assert refused.value.hint.startswith(f"ssh -p {as_its_user.port} -- {ssh_server.USER}@{as_its_user.address} true")


@needs_sshd
def test_a_user_whom_the_host_does_not_know(as_its_user: Server) -> None:
    with pytest.raises(CannotError, match="refuses us"):
        shell.connect(as_its_user.address, user="no-such-user", port=as_its_user.port)


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-hello\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_host_that_accepts_and_never_answers(says: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.9", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):  # closed at the end of the test
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(says)
                    kept.append(connection)

        kept: list[socket.socket] = []
        threading.Thread(target=accept, daemon=True).start()
        with pytest.raises(CannotError, match="cannot be reached over SSH"):
            within(5, lambda: shell.connect("127.0.0.9", user="x", port=listening.getsockname()[1], deadline=1))
        for connection in kept:
            connection.close()
    assert capfd.readouterr().err == ""  # no traceback of the library's own


def test_a_host_that_is_not_there() -> None:
    port = ssh_server.free_port("127.0.0.9")
    with pytest.raises(CannotError, match="cannot be reached over SSH"):
        within(5, lambda: shell.connect("127.0.0.9", user="x", port=port, deadline=2))
    with pytest.raises(CannotError, match="cannot be reached over SSH"):
        within(8, lambda: shell.connect("no-such-host.invalid", user="x", deadline=3))


def test_a_name_that_looks_like_an_option_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for client in ("paramiko", "openssh"):
        settings = SshSettings(client=client)
        with pytest.raises(CannotError, match="neither a host's name nor an IP address"):
            shell.connect(f"-oProxyCommand=touch {tmp_path}/owned", settings=settings, deadline=2)
    assert not (tmp_path / "owned").exists()


@needs_sshd
def test_a_host_that_dies_while_a_command_runs(as_its_user: Server) -> None:
    there = connected(as_its_user)
    threading.Timer(0.5, as_its_user.end_sessions).start()
    with pytest.raises(OutcomeUnknownError, match=r"connection to 127\.0\.0\.9 broke"):
        within(10, lambda: there.run(["sleep", "20"]))
    assert there.run(["echo", "again"]).stdout == "again\n"  # it connects anew
    assert connected(as_its_user).run(["echo", "again"]).stdout == "again\n"


@needs_sshd
def test_a_host_that_freezes(as_its_user: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BEGINNING", 1.0)
    there = connected(as_its_user)
    there.run(["true"])  # from now on, the session has all its processes
    frozen = as_its_user.sessions()
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CannotError, match="does not run a command: it opened no channel"):
            within(5, lambda: there.run(["true"], deadline=2))
        as_its_user.process.send_signal(signal.SIGSTOP)
        with pytest.raises(CannotError, match="cannot be reached"):
            within(5, lambda: connected(as_its_user, deadline=1))
    finally:
        as_its_user.process.send_signal(signal.SIGCONT)
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert connected(as_its_user).run(["echo", "awake"]).stdout == "awake\n"


@needs_sshd
def test_a_connection_is_opened_when_it_is_needed_and_kept(as_its_user: Server) -> None:
    opened = 0

    def open_shell() -> Shell:
        nonlocal opened
        opened += 1
        return connected(as_its_user)

    there = shell.OnDemand("the host", open_shell)
    assert opened == 0
    with ThreadPoolExecutor(4) as pool:
        assert {result.stdout for result in pool.map(lambda _: there.run(["echo", "x"]), range(8))} == {"x\n"}
    assert opened == 1


def test_a_host_that_gives_no_answer_is_asked_once_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    asked = 0

    def open_shell(seconds: float) -> shell.Shell:
        nonlocal now, asked
        now, asked = now + seconds, asked + 1
        raise CannotError("no answer")

    for seconds, times in ((1.1, 1), (0.9, 5)):  # one that is silent, and one that refuses
        asked = 0
        found = shell.OnDemand("there", lambda seconds=seconds: open_shell(seconds))  # type: ignore[misc]
        for _ in range(5):
            with pytest.raises(CannotError, match="no answer"):
                found.run(["true"])
        assert asked == times
    asked = 0
    found = shell.OnDemand("there", lambda: open_shell(1.1))
    for pause, times in ((9.9, 1), (0.2, 1), (0.0, 2)):
        with pytest.raises(CannotError):
            found.run(["true"])
        assert asked == times
        now += pause

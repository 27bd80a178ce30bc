"""Commands on this machine, as another user, and over SSH against a real sshd: the same promises everywhere."""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from salvor import clock, running, secrets, shell
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.running import Command, Running
from salvor.shell import Shell
from salvor.ssh import wire
from salvor.ssh.settings import SshSettings

from tests import ssh_server
from tests.ssh_server import Server
from tests.waiting import until

pytestmark = pytest.mark.timeout(60)

needs_sshd = pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user without sudo")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ssh_server.serving() as server:
        yield server


@pytest.fixture
def as_its_user(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return server


def connected(server: Server, deadline: float = 10.0, client: Literal["paramiko", "openssh"] = "paramiko") -> Shell:
    settings = SshSettings(user=ssh_server.USER, port=server.port, client=client)
    return shell.connect(server.address, settings=settings, deadline=deadline)


@pytest.fixture(
    params=[
        "local",
        pytest.param("user", marks=[needs_root, pytest.mark.root]),
        pytest.param("ssh", marks=needs_sshd),
        pytest.param("openssh", marks=needs_sshd),
    ]
)
def there(request: pytest.FixtureRequest) -> Shell:
    """A shell of each kind."""
    if request.param == "local":
        return shell.local()
    if request.param == "user":
        return shell.local("postgres")
    return connected(
        request.getfixturevalue("as_its_user"), client="openssh" if request.param == "openssh" else "paramiko"
    )


def within(seconds: float, work: Callable[[], object]) -> object:
    """What `work` returns or raises, which it must do in `seconds`."""
    begun = time.monotonic()
    try:
        return work()
    finally:
        assert time.monotonic() - begun < seconds


# ------------------------------------------------------------------------------------------ the same everywhere


def test_a_command_and_what_it_said(there: Shell) -> None:
    result = there.run(["sh", "-c", "echo out; echo err >&2; pwd"])
    assert (result.exit_code, result.stderr) == (0, "err\n")
    assert result.stdout.startswith("out\n")
    assert 0 < result.seconds < 20


@pytest.mark.parametrize(
    "word", ["it's", 'a "b" $HOME `id` \\n', "", "-x", "new\nline", "주문 ✓", "*", "~", "!x", "a;b|c&d"]
)
def test_words_arrive_as_they_are(there: Shell, word: str) -> None:
    assert there.run(["printf", "%s|", word, "end"]).stdout == f"{word}|end|"


def test_a_failure_says_what_where_and_how_to_try_it(there: Shell) -> None:
    with pytest.raises(CommandError, match=r"sh on .* ended with exit code 7: it broke") as failed:
        there.run(["sh", "-c", "echo it broke >&2; exit 7"])
    assert failed.value.exit_code_of_command == 7
    assert failed.value.stderr == "it broke\n"
    assert failed.value.hint.endswith(": sh -c 'echo it broke >&2; exit 7'")
    assert there.run(["sh", "-c", "exit 7"], check=False).exit_code == 7
    assert not there.succeeds(["false"])


def test_a_disk_that_is_full_is_what_a_failure_says_however_much_is_said_after_it(there: Shell) -> None:
    with pytest.raises(CommandError, match=r"1: cat: write error: No space left on device\n") as failed:
        there.run(["sh", "-c", "echo making it >&2; echo x | cat > /dev/full; seq 20 >&2; exit 1"])
    assert failed.value.hint == f"make room on {there.where} (df -h shows where), then the same command again"


def test_a_failure_holds_no_secret(there: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_hidden", None)
    secrets.remember("swordfish-9")
    with pytest.raises(CommandError) as failed:
        there.run(["sh", "-c", "echo swordfish-9 PGPASSWORD=other >&2; exit 7"])
    assert "swordfish-9" not in f"{failed.value} {failed.value.stderr}"
    assert "other" not in f"{failed.value} {failed.value.stderr}"


def test_a_command_that_a_signal_ended(there: Shell) -> None:
    # OpenSSH's client does not tell; the shell between does, as shells do.
    how = r"(was ended by (SIGKILL|a signal|SIGHUP)|ended with exit code 137)"
    with pytest.raises(CommandError, match=rf"sh on .* {how}"):
        there.run(["sh", "-c", "kill -9 $$"])


def test_a_command_that_is_not_there(there: Shell) -> None:
    with pytest.raises(CannotError, match="no-such-program"):
        there.run(["no-such-program"])


def test_standard_input(there: Shell) -> None:
    assert there.run(["cat"], input=b"a\nb").stdout == "a\nb"
    assert there.run(["cat"]).stdout == ""
    large = b"x" * 3_000_000
    assert there.run(["wc", "-c"], input=large).stdout.strip() == "3000000"
    assert within(20, lambda: there.run(["true"], input=large).exit_code) == 0


def test_the_environment_is_seen_by_the_command_alone(there: Shell) -> None:
    value = 'it\'s a "s3cret" $HOME\nof two lines 주문'
    with ThreadPoolExecutor() as pool:
        command = ["sh", "-c", 'sleep 0.7; printf %s "$PLANTED_SECRET"; cat']
        running = pool.submit(there.run, command, environment={"PLANTED_SECRET": value}, input=b"|input")
        seen: list[str] = []
        while not (running.done() or any("PLANTED_SECRET" in line for line in seen)):
            seen = [_cmdline(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        assert any("PLANTED_SECRET" in line for line in seen)  # the command itself, whose script names the variable
        assert not any("s3cret" in line for line in seen)
        assert running.result().stdout == f"{value}|input"


def _cmdline(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def test_lines_come_as_they_are_said(there: Shell, folder: str) -> None:
    waits = 'echo one; until [ -e "$1" ]; do sleep 0.05; done; echo two; printf three'
    said = there.stream(["sh", "-c", waits, "sh", f"{folder}/go on"], deadline=20)
    assert next(said) == "one"
    there.run(["touch", f"{folder}/go on"])
    assert list(said) == ["two", "three"]


def test_a_stream_that_fails_says_so_at_its_end(there: Shell) -> None:
    said = there.stream(["sh", "-c", "echo one; echo it broke >&2; exit 3"], deadline=10)
    assert next(said) == "one"
    with pytest.raises(CommandError, match="exit code 3: it broke"):
        next(said)


def test_what_comes_quicker_than_it_is_taken_is_all_there(there: Shell) -> None:
    said = there.stream(["seq", "1", "50000"], deadline=30)
    first = [next(said) for _ in range(3)]
    time.sleep(0.5)
    assert [*first, *said] == [str(number) for number in range(1, 50001)]


def slowly(lines: Iterator[str]) -> None:
    for _ in lines:
        time.sleep(0.001)


LONG = {
    "silent": ["sleep", "30"],
    "chatty": ["sh", "-c", "while :; do echo x; done"],
    "closed its output": ["sh", "-c", "exec >&- 2>&-; sleep 30"],
    "ignores signals": ["sh", "-c", "trap '' TERM HUP; sleep 30"],
}


@pytest.mark.parametrize("command", LONG.values(), ids=LONG)
def test_a_deadline_ends_it(there: Shell, command: list[str]) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"did not end within 0.3 s") as late:
        within(6, lambda: there.run(command, deadline=0.3))
    assert "inv assess" in late.value.hint
    if command == LONG["chatty"]:
        with pytest.raises(OutcomeUnknownError):
            within(6, lambda: slowly(there.stream(command, deadline=0.3)))
    assert there.run(["true"]).exit_code == 0


def test_silence_ends_it_where_that_is_asked_for(there: Shell) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"sh on .* said nothing for 0.4 s; it was stopped"):
        within(6, lambda: there.run(["sh", "-c", "echo one; sleep 20"], deadline=20, idle=0.4))
    slow = ["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done"]
    assert list(there.stream(slow, deadline=20, idle=2)) == ["1", "2", "3", "4"]


def test_a_folder_to_work_in(there: Shell, folder: str) -> None:
    odd = f'{folder}/-it\'s "odd" $x'
    there.run(["mkdir", "--", odd])
    assert there.run(["pwd"], folder=odd).stdout == f"{odd}\n"
    assert list(there.stream(["pwd"], deadline=10, folder=odd)) == [odd]
    with pytest.raises(CannotError, match="no-such"):
        there.run(["pwd"], folder=f"{folder}/no-such")


def test_output_as_bytes(there: Shell) -> None:
    said = b"".join(
        there.pieces(["sh", "-c", "head -c 3000000 /dev/urandom | tee /dev/stderr 2>/dev/null"], deadline=30)
    )
    assert len(said) == 3_000_000
    assert b"".join(there.pieces(["printf", "\\036\\0a\\036b\\036"], deadline=10)) == b"\x1e\0a\x1eb\x1e"


def test_what_is_given_up_is_ended(there: Shell) -> None:
    mark = f"98762.{os.getpid()}"
    with pytest.raises(OutcomeUnknownError, match="it was stopped"):
        there.run(["sh", "-c", f"trap '' TERM HUP; sleep {mark} | cat; true"], deadline=0.6)
    assert until(lambda: not _running(["sleep", mark]))
    said = there.stream(["sh", "-c", f"echo one; sleep {mark}"], deadline=30)
    assert next(said) == "one"
    said.close()  # type: ignore[attr-defined]
    assert until(lambda: not _running(["sleep", mark]))


def test_what_it_leaves_in_the_background_holds_nobody(there: Shell) -> None:
    result = within(5, lambda: there.run(["sh", "-c", "sleep 8 & echo begun; printf 'and on'"], deadline=7))
    assert result.stdout == "begun\nand on"  # type: ignore[attr-defined]


def test_a_busy_machine_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(descriptor: int, most: int) -> bytes:
        time.sleep(0.2)  # whoever reads gets no turn, and the command has ended long since
        return read(descriptor, most)

    def put_late(self: running.Running, said: str | bytes | None) -> None:
        if said is not None:
            time.sleep(0.2)
        put(self, said)

    read, put = os.read, running.Running._put
    monkeypatch.setattr(os, "read", late)
    monkeypatch.setattr(running.Running, "_put", put_late)
    monkeypatch.setattr(running, "LINGER", 0.05)
    result = shell.local().run(["sh", "-c", "echo one; echo wrong >&2; printf two"], deadline=20)
    assert (result.stdout, result.stderr) == ("one\ntwo", "wrong\n")


def test_a_line_of_ten_megabytes(there: Shell) -> None:
    command = ["sh", "-c", "head -c 10000000 /dev/zero | tr '\\0' x"]
    assert len(there.run(command, deadline=50).stdout) == 10_000_000
    pieces = list(there.stream(command, deadline=50))
    assert sum(map(len, pieces)) == 10_000_000
    assert max(map(len, pieces)) < 2_000_000


def test_output_that_is_no_text(there: Shell) -> None:
    said = there.run(["printf", "\\377\\376a\\0b\\nc"]).stdout
    assert said == "��a\0b\nc"
    assert there.run(["sh", "-c", "head -c 100000 /dev/urandom"]).exit_code == 0


def test_letters_that_are_cut_between_two_reads_are_whole(there: Shell) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do printf '주문 '; i=$((i+1)); done"
    assert there.run(["sh", "-c", script], deadline=50).stdout == "주문 " * 30000


def test_output_without_end_is_given_up(there: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "_MOST_OUTPUT", 1_000_000)
    with pytest.raises(CannotError, match="prints without end"):
        within(15, lambda: there.run(["cat", "/dev/zero"], deadline=20))


def test_many_at_once(there: Shell) -> None:
    with ThreadPoolExecutor(8) as pool:
        said = pool.map(lambda number: there.run(["echo", str(number)]).stdout, range(40))
        assert list(said) == [f"{number}\n" for number in range(40)]


@pytest.fixture
def folder(there: Shell) -> Iterator[str]:
    made = there.run(["mktemp", "-d"]).stdout.strip()
    yield made
    there.run(["rm", "-rf", "--", made])


@pytest.mark.parametrize("name", ["plain", 'it\'s "odd" $x', "-rf", "주문"])
def test_files(there: Shell, folder: str, name: str) -> None:
    path = f"{folder}/{name}"
    assert there.read(path) is None
    assert not there.exists(path)
    there.write(path, "one\n주문\n")
    assert there.exists(path)
    assert there.read(path) == "one\n주문\n"
    there.write(path, "", mode=0o640)
    assert there.read(path) == ""
    assert there.run(["stat", "-c", "%a", path]).stdout == "640\n"
    assert there.run(["ls", "-A", folder]).stdout == f"{name}\n"


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(there: Shell, folder: str) -> None:
    path = f"{folder}/file"
    there.write(path, "whole")
    there.run(["ln", "-s", "/etc/passwd", f"{path}.salvor-new"])  # planted: it is not written through
    there.write(path, "new")
    assert there.read(path) == "new"
    there.run(["mkdir", f"{path}.salvor-new"])
    with pytest.raises(CommandError):
        there.write(path, "newer")
    assert there.read(path) == "new"


def test_a_file_that_comes_in_part_changes_nothing(tmp_path: Path) -> None:
    class Broken(type(shell.local())):  # type: ignore[misc]
        """As over a connection that breaks: what is read ends too early."""

        def _start(self, command: Command) -> Running:
            cut = [piece[:3] for piece in command.stdin] if command.stdin else None
            return super()._start(replace(command, stdin=cut))  # type: ignore[no-any-return]

    path = str(tmp_path / "file")
    shell.local().write(path, "whole")
    with pytest.raises(CommandError):
        Broken("here").write(path, "new content")
    assert shell.local().read(path) == "whole"


def test_a_file_that_cannot_be_flushed_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync = str(tmp_path / "file"), tmp_path / "programs" / "sync"
    shell.local().write(path, "whole")
    sync.parent.mkdir()
    sync.write_text("#!/bin/sh\nexit 1\n")
    sync.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sync.parent}:{os.environ['PATH']}")
    with pytest.raises(CommandError):
        shell.local().write(path, "new")
    assert shell.local().read(path) == "whole"


def test_a_file_that_may_not_be_read_is_not_one_that_is_not_there(there: Shell) -> None:
    with pytest.raises(CommandError, match="cat on"):
        there.read("/proc/1/mem" if there.run(["id", "-u"]).stdout.strip() == "0" else "/etc/shadow")


# ------------------------------------------------------------------------------------------ this machine


def test_after_a_crash_nothing_goes_on_unseen(tmp_path: Path) -> None:
    code = "import sys; from salvor import shell; shell.local(sys.argv[1] or None).run(['sleep', sys.argv[2]])"
    for number, user in enumerate(["", *(["postgres"] if os.geteuid() == 0 else [])]):
        mark = f"98765.{os.getpid()}{number}"
        parent = subprocess.Popen([sys.executable, "-c", code, user, mark], env={**os.environ, "PYTHONPATH": "lib"})
        assert until(lambda mark=mark: _running(["sleep", mark]))  # type: ignore[misc]
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
        assert until(lambda mark=mark: not _running(["sleep", mark]))  # type: ignore[misc]


def _running(argv: list[str]) -> bool:
    return any(_cmdline(path).split("\0")[:-1] == argv for path in Path("/proc").glob("[0-9]*/cmdline"))


def test_a_deadline_ends_what_the_command_started() -> None:
    mark = f"98764.{os.getpid()}"
    with pytest.raises(OutcomeUnknownError):
        shell.local().run(["sh", "-c", f"sleep {mark} | cat"], deadline=0.3)
    assert until(lambda: not _running(["sleep", mark]))


def test_closing_a_stream_ends_the_command() -> None:
    mark = f"98763.{os.getpid()}"
    said = shell.local().stream(["sh", "-c", f"echo one; sleep {mark}"], deadline=30)
    assert next(said) == "one"
    said.close()  # type: ignore[attr-defined]
    assert until(lambda: not _running(["sleep", mark]))


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(CannotError, match="There is no user 'no-such-user'"):
        shell.local("no-such-user")


def test_our_own_user_is_as_we_are() -> None:
    import pwd

    assert shell.local(pwd.getpwuid(os.geteuid()).pw_name).user is None


@needs_root
@pytest.mark.root
def test_another_user_has_its_own_groups_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_ROOT", "and nobody else")
    for user in ("postgres", "nobody"):  # nobody's group has another name
        said = (
            shell.local(user)
            .run(["sh", "-c", "id -un; echo $HOME; echo $OF_ROOT; id -Gn"], environment={"A": "b"})
            .stdout
        )
        name, home, ours, groups = said.split("\n")[:4]
        assert (name, home, ours) == (user, os.path.expanduser(f"~{user}"), "")  # noqa: PTH111 - of that user
        assert groups == subprocess.run(["id", "-Gn", user], capture_output=True, text=True, check=True).stdout.strip()


def test_no_thread_and_no_file_is_left() -> None:
    here = shell.local()
    here.run(["true"])
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(20):
        here.run(["sh", "-c", "echo x; echo y >&2"], input=b"z")
        with pytest.raises(OutcomeUnknownError):
            here.run(["sh", "-c", "while :; do echo x; done"], deadline=0.05)
    assert until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files)
    assert until(lambda: threading.active_count() <= threads)


# ------------------------------------------------------------------------------------------ a host over SSH


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
            for _ in range(2):
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

    there = shell.on_demand("the host", open_shell)
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
        found = shell.on_demand("there", lambda seconds=seconds: open_shell(seconds))  # type: ignore[misc]
        for _ in range(5):
            with pytest.raises(CannotError, match="no answer"):
                found.run(["true"])
        assert asked == times
    asked = 0
    found = shell.on_demand("there", lambda: open_shell(1.1))
    for pause, times in ((9.9, 1), (0.2, 1), (0.0, 2)):
        with pytest.raises(CannotError):
            found.run(["true"])
        assert asked == times
        now += pause


@pytest.fixture
def sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """We are nobody, on a machine without sudo, or with one that only says something."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)

    def says(what: str) -> None:
        (tmp_path / "sudo").write_text(f'#!/bin/sh\necho "{what}" >&2\nexit 1\n')
        (tmp_path / "sudo").chmod(0o755)

    return says


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("sudo: a password is required", "sudo: a password is required"),
        ("Sorry, user nobody is not allowed to execute '/usr/bin/true' as root on db-a.", "Sorry, user nobody is not"),
        ("sudo: sorry, you are not allowed to set the following environment variables: X", "sudo: sorry, you are not"),
        (None, "sudo is not installed"),
    ],
)
def test_who_may_not_become_another_user_is_told_what_to_allow(
    sudo: Callable[[str], None], said: str | None, why: str
) -> None:
    """It was told that the machine gives no answer, and a command by hand that fails alike; a file was 'not there'."""
    if said:
        sudo(said)
    with pytest.raises(CannotError, match=f"^nobody may not run commands as root on this machine: {why}") as error:
        shell.local("root").exists("/")
    assert "echo 'nobody ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/salvor" in error.value.hint


def test_what_sudo_only_remarks_is_no_refusal(sudo: Callable[[str], None]) -> None:
    sudo("sudo: unable to resolve host db-a: Name or service not known")
    assert not shell.local("root").exists("/")

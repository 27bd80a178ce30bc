"""Commands on this machine: what they leave behind, other users, and a sudo that refuses."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from salvor import shell
from salvor.errors import CannotError, OutcomeUnknownError

from tests.running_here import runs
from tests.waiting import until

pytestmark = pytest.mark.timeout(60)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user without sudo")


def test_after_a_crash_nothing_goes_on_unseen(tmp_path: Path) -> None:
    code = "import sys; from salvor import shell; shell.local(sys.argv[1] or None).run(['sleep', sys.argv[2]])"
    for number, user in enumerate(["", *(["postgres"] if os.geteuid() == 0 else [])]):
        mark = f"98765.{os.getpid()}{number}"
        parent = subprocess.Popen([sys.executable, "-c", code, user, mark], env={**os.environ, "PYTHONPATH": "lib"})
        assert until(lambda mark=mark: runs(["sleep", mark]))  # type: ignore[misc]
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
        assert until(lambda mark=mark: not runs(["sleep", mark]))  # type: ignore[misc]


def test_a_deadline_ends_what_the_command_started() -> None:
    mark = f"98764.{os.getpid()}"
    with pytest.raises(OutcomeUnknownError):
        shell.local().run(["sh", "-c", f"sleep {mark} | cat"], deadline=0.3)
    assert until(lambda: not runs(["sleep", mark]))


def test_at_our_end_nothing_that_a_command_started_is_left() -> None:
    """As when a second Ctrl-C waits for none of the threads in which commands run."""
    mark = f"98762.{os.getpid()}"
    code = "import sys, threading; from salvor import shell; line = ['sh', '-c', f'sleep {sys.argv[1]} | cat']; "
    code += (
        "threading.Thread(target=shell.local().run, args=(line,), daemon=True).start(); sys.stdin.read(); sys.exit(130)"
    )
    ours = {"env": {**os.environ, "PYTHONPATH": "lib"}, "stdin": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, mark], **ours) as parent:  # type: ignore[call-overload]
        assert until(lambda: runs(["sleep", mark]))
    assert parent.returncode == 130
    assert until(lambda: not runs(["sleep", mark]), 2.0)


def test_closing_a_stream_ends_the_command() -> None:
    mark = f"98763.{os.getpid()}"
    said = shell.local().stream(["sh", "-c", f"echo one; sleep {mark}"], deadline=30)
    assert next(said) == "one"
    said.close()  # type: ignore[attr-defined]
    assert until(lambda: not runs(["sleep", mark]))


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(CannotError, match="There is no user 'no-such-user'"):
        shell.local("no-such-user")


def test_our_own_user_is_as_we_are() -> None:
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

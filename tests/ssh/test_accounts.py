"""Other users on a host: by sudo without a password, with one, without the right, without sudo; by su from root."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from salvor import secrets, shell
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.shell import Shell
from salvor.ssh.settings import SshSettings

from tests import ssh_server
from tests.ssh_server import Account, Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a mount namespace with accounts of its own"),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]
PASSWORD = "correct horse 'battery' $staple"
Client = Literal["paramiko", "openssh"]
ACCOUNTS = (
    Account("oncall", password=PASSWORD, sudo="ALL=(ALL) ALL"),
    Account("helper", sudo="ALL=(ALL) NOPASSWD: ALL"),
    Account("guest", password=PASSWORD),
    Account("shut", sudo="ALL=(ALL) ALL", login_shell="/usr/sbin/nologin"),
    Account("service"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ssh_server.serving_accounts(ACCOUNTS, "127.0.0.15") as server:
        yield server


@pytest.fixture(params=["paramiko", "openssh"])
def client(request: pytest.FixtureRequest) -> Client:
    return "openssh" if request.param == "openssh" else "paramiko"


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_hidden", None)
    monkeypatch.setenv("PASSWORD_OF_ONCALL", PASSWORD)
    monkeypatch.setenv("WRONG_PASSWORD", "not this one")


def reach(server: Server, user: str, client: Client, run_as: str | None = None, **more: Any) -> Shell:
    said: dict[str, Any] = {
        "user": user,
        "port": server.port,
        "keys": (str(server.home / ".ssh" / "id_ed25519"),),
        "host_keys": ((server.folder / "host_key.pub").read_text(),),
        "agent": False,
        "client": client,
        **more,
    }
    return shell.connect(server.address, run_as=run_as, settings=SshSettings.model_validate(said))


WAYS = {
    "sudo without a password": ("helper", {}),
    "a password that is not asked for": ("helper", {"sudo_password": "env:PASSWORD_OF_ONCALL"}),
    "sudo with a password": ("oncall", {"sudo_password": "env:PASSWORD_OF_ONCALL"}),
    "su": ("root", {}),
    "nothing": ("service", {}),
}


def _processes() -> str:
    return subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("user", "more"), WAYS.values(), ids=WAYS)
def test_another_user(server: Server, client: Client, user: str, more: dict[str, str]) -> None:
    there = reach(server, user, client, "service", **more)
    assert there.run(["id", "-un"]).stdout == "service\n"
    assert there.run(["printf", "%s|", "it's", "a\nb", "$x"]).stdout == "it's|a\nb|$x|"
    assert there.run(["cat"], input=b"not the password\n" * 3).stdout == "not the password\n" * 3
    result = there.run(["sh", "-c", "echo $SET; pwd; echo said >&2"], environment={"SET": "a b"}, folder="/var")
    assert (result.stdout, result.stderr) == ("a b\n/var\n", "said\n")
    with pytest.raises(CommandError, match="exit code 7: it broke"):
        there.run(["sh", "-c", "echo it broke >&2; exit 7"])
    with pytest.raises(OutcomeUnknownError, match="it was stopped there"):
        there.run(["sh", "-c", f"sleep 8{os.getpid()}1 & sleep 8{os.getpid()}2 | cat"], deadline=1.0)
    until = time.monotonic() + 5  # what was killed is gone when the system comes to it
    while f"sleep 8{os.getpid()}" in (said := _processes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert f"sleep 8{os.getpid()}" not in said


def test_the_password_is_seen_nowhere(server: Server, client: Client) -> None:
    there = reach(server, "oncall", client, "service", sudo_password="env:PASSWORD_OF_ONCALL")
    said = there.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; env"]).stdout
    assert "sudo" in said
    assert "battery" not in said
    assert "battery" not in "".join(path.read_text(errors="replace") for path in server.folder.glob("log"))


def test_a_wrong_password_is_tried_once(server: Server, client: Client) -> None:
    there = reach(server, "oncall", client, "service", sudo_password="env:WRONG_PASSWORD")
    with pytest.raises(CannotError, match="runs no command as service") as refused:
        there.run(["touch", f"{server.folder}/done"], deadline=20)
    assert "3 incorrect" not in refused.value.what
    assert "mend that password" in refused.value.hint
    assert not (server.folder / "done").exists()


@pytest.mark.parametrize(
    ("user", "hint"), [("oncall", "sudo_password: env:NAME"), ("guest", "sudo_password|let sudo there run")]
)
def test_without_the_right_or_the_password(server: Server, client: Client, user: str, hint: str) -> None:
    with pytest.raises(CannotError, match=r"runs no command as service: .*sudo") as refused:
        reach(server, user, client, "service").run(["true"])
    assert any(part in refused.value.hint for part in hint.split("|"))


def test_who_is_in_no_sudoers(server: Server, client: Client) -> None:
    there = reach(server, "guest", client, "service", sudo_password="env:PASSWORD_OF_ONCALL")
    with pytest.raises(CannotError, match="guest is not in the sudoers file") as refused:
        there.run(["true"], deadline=20)
    assert "let sudo there run sh as service" in refused.value.hint


def test_an_account_that_may_not_log_in(server: Server, client: Client) -> None:
    with pytest.raises(CannotError, match="runs no command: its login ended with exit code 1, saying: This account"):
        reach(server, "shut", client).run(["true"])


def test_a_user_who_is_not_there(server: Server, client: Client) -> None:
    with pytest.raises(CannotError, match="unknown user nobody-here"):
        reach(server, "helper", client, "nobody-here").run(["true"])


def test_a_host_without_sudo(client: Client) -> None:
    setup = "touch /run/none && mount --bind /run/none /usr/bin/sudo"  # there, and no program
    with ssh_server.serving_accounts(ACCOUNTS, "127.0.0.15", setup=setup) as server:
        for _ in range(30):  # it may have ended before we look
            with pytest.raises(CannotError, match="sudo") as refused:
                reach(server, "helper", client, "service").run(["true"])
            assert refused.value.safe == "the command was not begun"
        assert reach(server, "root", client, "service").run(["id", "-un"]).stdout == "service\n"


def test_a_login_by_password(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(server.folder))  # no key is there
    there = reach(server, "oncall", client, keys=(), password="env:PASSWORD_OF_ONCALL")
    assert there.run(["id", "-un"]).stdout == "oncall\n"
    with pytest.raises(CannotError, match="refuses us"):
        reach(server, "oncall", client, keys=(), password="env:WRONG_PASSWORD")

"""A real sshd, and a shell of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from salvor import shell
from salvor.shell import Shell

from tests import ssh_server
from tests.ssh_server import Server, connected

needs_sshd = pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user without sudo")


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with ssh_server.serving() as server:
        yield server


@pytest.fixture
def as_its_user(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return server


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


@pytest.fixture
def folder(there: Shell) -> Iterator[str]:
    made = there.run(["mktemp", "-d"]).stdout.strip()
    yield made
    there.run(["rm", "-rf", "--", made])

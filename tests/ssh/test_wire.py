"""A connection by paramiko: who waits on it, and for how long."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest
from salvor import shell
from salvor.deadline import within
from salvor.errors import CannotError
from salvor.ssh.settings import SshSettings
from salvor.ssh.wire import prepare


class _Thinking(paramiko.ServerInterface):  # type: ignore[misc]
    """A server that agrees on keys, and then never says whether it lets us in."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.done.wait(20)
        return int(paramiko.AUTH_FAILED)


def test_a_host_that_never_says_whether_it_lets_us_in(tmp_path: Path) -> None:
    key, ours, server = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate(), _Thinking()
    ours.write_private_key_file(f"{tmp_path}/key")
    settings = SshSettings(
        user="x", keys=(f"{tmp_path}/key",), agent=False, host_keys=(f"{key.get_name()} {key.get_base64()}",)
    )
    with socket.create_server(("127.0.0.9", 0)) as listening:
        settings = settings.model_copy(update={"port": listening.getsockname()[1]})

        def serve() -> None:
            transport = paramiko.Transport(listening.accept()[0])
            transport.add_server_key(key)
            transport.start_server(server=server)

        threading.Thread(target=serve, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(CannotError, match=r"refuses us: Authentication timeout; it was shown \S+/key\."):
            within(8, lambda: shell.connect("127.0.0.9", settings=settings, deadline=1.5))
        server.done.set()
    assert 1 < time.monotonic() - begun < 5


def test_who_waits_for_a_connection_sees_at_once_that_it_is_let_go_of() -> None:
    ours, theirs = (prepare(one) for one in _connected())
    ended = threading.Event()

    def wait() -> None:
        ours.settimeout(10)
        with suppress(OSError):
            assert ours.recv(1) == b""
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.1)
    ours.close()
    assert ended.wait(3)
    theirs.close()


def test_what_came_is_given_piece_by_piece() -> None:
    ours, theirs = (prepare(one) for one in _connected())
    sent = bytes(range(256)) * 1000

    def send() -> None:
        with theirs:
            theirs.sendall(sent)

    threading.Thread(target=send, daemon=True).start()
    taken = b""
    while piece := ours.recv(7 + len(taken) % 5000):
        assert len(piece) <= 7 + len(taken) % 5000
        taken += piece
    assert taken == sent
    ours.close()


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.9", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        return one, listening.accept()[0]

"""What a server means that says it in Korean. An emulation of its first answer: the real one needs that locale."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from salvor.postgres import connection, refusal
from salvor.postgres.connection import Operator

_SSL_REQUEST = 80877103


@contextmanager
def server_that_refuses(*, breaks_tls: object = False, **fields: object) -> Iterator[int]:
    """A port, on which every login is answered by an error with these fields. `breaks_tls`: it offers TLS, and then
    understands none that is asked for, as an old one.
    """
    body = b"".join(name.encode() + str(value).encode() + b"\0" for name, value in fields.items()) + b"\0"

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                length, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
                if code == _SSL_REQUEST and breaks_tls:
                    client.sendall(b"S")
                    continue
                if code == _SSL_REQUEST:
                    client.sendall(b"N")
                    length, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
                client.recv(length - 8, socket.MSG_WAITALL)
                client.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize(
    ("state", "said", "meant"),
    [
        ("28P01", '사용자 "salvor"의 password 인증을 실패했습니다', "FATAL 28P01: password authentication failed"),
        ("53300", "최대 동시 접속자 수를 초과했습니다.", "FATAL 53300: too many clients"),
        ("XX001", "파일을 열 수 없습니다", "FATAL XX001: another refusal"),
    ],
)
def test_a_login_that_is_refused_in_another_language_is_told_in_english_too(state: str, said: str, meant: str) -> None:
    operator = Operator("salvor", "cmd:echo secret-of-ours")
    with (
        server_that_refuses(S="치명적오류", V="FATAL", C=state, M=said) as port,
        pytest.raises(psycopg.OperationalError) as error,
    ):
        connection.connect("127.0.0.1", port, "postgres", operator, deadline=3.0, writes=False)
    assert said in str(error.value) and str(error.value).endswith(f"({meant})")
    assert "secret-of-ours" not in str(error.value)


def test_a_server_with_which_tls_does_not_work_is_asked_without() -> None:
    operator = Operator("salvor", "cmd:echo secret-of-ours")
    with (
        server_that_refuses(breaks_tls=True, S="치명적오류", C="28P01", M="인증을 실패했습니다") as port,
        pytest.raises(psycopg.OperationalError, match="password authentication failed"),
    ):
        connection.connect("127.0.0.1", port, "postgres", operator, deadline=3.0, writes=False)


def test_words_that_only_libpq_can_read_stand() -> None:
    operator = Operator("salvor", "cmd:echo secret-of-ours")
    said = "사용자 인증을 실패했습니다"
    with (
        server_that_refuses(S="치명적오류", C="28P01", M=said, **{"\N{DEGREE SIGN}": "new in that server"}) as port,
        pytest.raises(psycopg.OperationalError) as error,
    ):
        connection.connect("127.0.0.1", port, "postgres", operator, deadline=3.0, writes=False)
    assert said in str(error.value) and "FATAL" not in str(error.value)


def test_a_server_that_says_no_more_holds_nobody_up() -> None:
    refused = psycopg.OperationalError("connection failed: 치명적오류:  인증을 실패했습니다")
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        operator, port = Operator("salvor", "cmd:echo secret-of-ours"), mute.getsockname()[1]
        assert refusal.meaning(refused, "127.0.0.1", port, "postgres", operator, 0.3) == ""
    assert time.monotonic() - begun < 3.0


def test_english_words_are_left_alone() -> None:
    operator = Operator("salvor", "cmd:echo secret-of-ours")
    said = 'password authentication failed for user "salvor"'
    with (
        server_that_refuses(S="FATAL", V="FATAL", C="28P01", M=said) as port,
        pytest.raises(psycopg.OperationalError) as error,
    ):
        connection.connect("127.0.0.1", port, "postgres", operator, deadline=3.0, writes=False)
    assert str(error.value).endswith(said)


def test_who_requires_tls_sends_no_password_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    operator = Operator("salvor", "cmd:echo secret-of-ours")
    refused = psycopg.OperationalError("connection failed: 치명적오류:  인증을 실패했습니다")
    with server_that_refuses(S="치명적오류", C="28P01", M="인증을 실패했습니다") as port:
        assert refusal.meaning(refused, "127.0.0.1", port, "postgres", operator, 3.0) == ""

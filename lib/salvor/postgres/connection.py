"""Connections to a PostgreSQL server, each with a deadline that holds also when the server is frozen."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Self

from salvor import secrets
from salvor.postgres import refusal

if TYPE_CHECKING:
    import psycopg

    from salvor.postgres.server import Server

    Connection = psycopg.Connection[tuple[Any, ...]]

LOCK_MILLISECONDS = 30_000
"""How long a query waits for somebody's lock, however long it may itself take."""

_ANSWERS = {"DateStyle": "ISO", "IntervalStyle": "postgres", "bytea_output": "hex"}
"""How a server writes what psycopg reads, whatever its own settings, its database's or the role's say."""


@dataclass(frozen=True)
class Operator:
    """The role that Salvor connects as (a superuser), and the reference of its password."""

    user: str
    password: str

    def secret(self) -> str:
        """The password itself."""
        return secrets.resolve(self.password)


def connect(address: str, port: int, database: str, operator: Operator, *, deadline: float, writes: bool) -> Connection:
    """An autocommit connection, read-only without `writes`; `deadline` is for each statement, in seconds. Raises
    psycopg.Error. The server's own limits do not work while it is frozen: `cut_after` does.
    """
    import psycopg

    milliseconds = int(deadline * 1000)
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={min(milliseconds, LOCK_MILLISECONDS)}"
    options += "".join(f" -c {name}={value}" for name, value in _ANSWERS.items())
    if not writes:
        options += " -c default_transaction_read_only=on"
    patience = max(2, min(10, round(deadline)))
    try:
        return psycopg.connect(
            host=address,
            port=port,
            dbname=database,
            user=operator.user,
            password=operator.secret(),
            autocommit=True,
            application_name="salvor",
            connect_timeout=patience,
            tcp_user_timeout=milliseconds,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            client_encoding="utf8",  # else a SQL_ASCII database answers in bytes
            options=options,
        )
    except psycopg.OperationalError as error:
        if meant := refusal.meaning(error, address, port, database, operator, patience):
            raise psycopg.OperationalError(f"{error} ({meant})") from error
        raise


def refuses(address: str, port: int) -> bool:
    """Whether the machine says that nobody takes connections there. What does not answer is no refusal."""
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def listens(address: str, port: int) -> bool:
    """Whether somebody takes connections there. What does not answer within a second is taken for nobody."""
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def cut_after(connection: Connection, seconds: float) -> Iterator[None]:
    """Cut the connection's socket `seconds` from now, unless the block has ended; who waits for it gets psycopg.Error.

    A frozen server answers neither a query nor a cancel, so only this end can give up.
    """
    other = socket.socket(fileno=os.dup(connection.fileno()))

    def cut() -> None:
        with suppress(OSError):  # the server closed it first
            other.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        other.close()


class Line:
    """A connection to a server that is kept from one question to the next, and made anew when it broke: a new one costs
    the server more than the answer does. `deadline`: seconds for each question.
    """

    def __init__(self, server: Server, *, deadline: float) -> None:
        self._server = server
        self._deadline = deadline
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def ask(self, statement: LiteralString) -> tuple[Any, ...] | None:
        """The first row of the answer. Raises psycopg.Error; the next question is then put on a new connection."""
        if self._connection is None:
            self._connection = self._server.connect(deadline=self._deadline)
        done = False
        try:
            with cut_after(self._connection, self._deadline):
                row = self._connection.execute(statement).fetchone()
            done = True
            return row
        finally:
            if not done:
                self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

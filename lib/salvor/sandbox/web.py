"""What the sandboxes' applications share: connections to their database, and answers in JSON.

They are ordinary, well-behaved clients: a new connection after a failure, and no wait that is longer than the deadline;
then they say 503.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import tornado.web
from psycopg.rows import dict_row

from salvor import clock
from salvor.errors import CannotError

_DEADLINE = 2.0
_CONNECTIONS = 6

Connection = psycopg.AsyncConnection[dict[str, Any]]


class Database:
    """Connections to whichever server `resolve` leads to, at most `_CONNECTIONS`, opened when they are needed.

    `resolve` gives an address, and for how many seconds that may be believed; `conninfo` is the rest, as libpq has it.
    """

    def __init__(self, resolve: Callable[[], tuple[str, float]], conninfo: Mapping[str, Any]) -> None:
        self._resolve = resolve
        self._conninfo = {**conninfo, "connect_timeout": int(_DEADLINE)}
        self._idle: list[tuple[str, Connection]] = []
        self._turn = asyncio.Semaphore(_CONNECTIONS)
        self._believed_until = 0.0
        self.address = ""

    async def _where(self) -> str:
        """The database's address; asked again when the time to live of the last answer has passed."""
        if clock.monotonic() >= self._believed_until:
            asked = clock.monotonic()
            self.address, time_to_live = await asyncio.to_thread(self._resolve)
            self._believed_until = asked + time_to_live
        return self.address

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, or not at all. Raises as `connection`."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection on which each statement is a transaction of its own.

        Raises CannotError or psycopg.Error; the connection is not used again after either.
        """
        async with self._turn:
            address = await self._where()
            connection = await self._take(address)
            # A frozen server neither answers nor closes, and would hold a cancelled query's client as well; a closed
            # socket ends the wait whatever it was for.
            alarm = asyncio.get_running_loop().call_later(_DEADLINE, _hang_up, connection)
            try:
                yield connection
            except BaseException:
                await connection.close()
                raise
            finally:
                alarm.cancel()
            self._idle.append((address, connection))

    async def _take(self, address: str) -> Connection:
        while self._idle:
            known, connection = self._idle.pop()
            if known == address and not connection.closed:
                return connection
            await connection.close()
        return await psycopg.AsyncConnection.connect(
            **self._conninfo, host=address, row_factory=dict_row, autocommit=True
        )


def _hang_up(connection: Connection) -> None:
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


class Handler(tornado.web.RequestHandler):
    """Answers in JSON: 400 for what makes no sense, 503 when something that it needs does not do its part."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What went wrong, in one line."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, psycopg.errors.UniqueViolation):
            self.set_status(409)
        elif isinstance(
            error, (psycopg.errors.IntegrityError, psycopg.errors.DataError, KeyError, TypeError, ValueError)
        ):
            self.set_status(400)
        elif isinstance(error, (psycopg.Error, CannotError, OSError)):
            self.set_status(503)
        self.finish({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})

    def log_exception(self, *exception: Any) -> None:
        """Nothing: the access log has the status, and an outage would fill the disk with tracebacks."""


async def serve(port: int, handlers: list[Any]) -> None:
    """Serve on a port of 127.0.0.1 for ever; `handlers` as tornado has them."""
    # The access log would grow by 50 lines a second; failures are in the answers.
    settings: dict[str, Any] = {"log_function": lambda handler: None}
    tornado.web.Application(handlers, **settings).listen(port, "127.0.0.1")
    await asyncio.Event().wait()

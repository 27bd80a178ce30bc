"""One connection with a thread of its own: it is given statements and data of COPY, and works them off in order."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from salvor.errors import CannotError
from salvor.postgres.dump_screen import Order
from salvor.postgres.dump_target import told_connection

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection
    from salvor.postgres.dump_target import Connect

ROOM = 16 << 20
"""Bytes that may wait in one session."""
GRACE = 15.0
"""Seconds that the server has to end a statement by itself at its deadline."""

_SETTINGS = {
    "client_connection_check_interval": "5s",  # a backend whose client is gone ends a long CREATE INDEX
    "datestyle": "ISO",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "intervalstyle": "postgres",  # what pg_dump writes; sql_standard reads the sign of '-1 02:00' otherwise
    "lock_timeout": "0",
    "standard_conforming_strings": "on",  # the reader's rules of quoting are the server's
    "synchronous_commit": "off",  # a stage that was cut off is built anew
}


@dataclass(frozen=True)
class Batch:
    """Statements that are carried out one after another, in one transaction if they do not say otherwise."""

    orders: Sequence[Order]

    @property
    def size(self) -> int:
        return sum(len(order.sql) for order in self.orders)


@dataclass(frozen=True)
class Copy:
    """The start of a COPY; data follows. `alone`: nobody else writes to its table until its end."""

    order: Order
    alone: bool


class End:
    """The end of a COPY's data."""


Item = Batch | Copy | End | bytes


class Stopped(Exception):
    """The session was told to stop."""


class Session:
    """See above. `changed` is notified whenever it has done something; `error` holds what went wrong, if anything."""

    def __init__(
        self,
        connect: Connect,
        deadline: float,
        changed: threading.Condition,
        error: Callable[[str, int, str], CannotError],
    ) -> None:
        self.error: BaseException | None = None
        self.pending = 0  # bytes
        self.in_transaction = False
        self._connect = connect
        self._deadline = deadline
        self._changed = changed
        self._make_error = error
        self._items: deque[Item] = deque()
        self._working = False
        self._stopped = False
        self._since: float | None = None
        self._settings: Mapping[str, bytes] = {}
        self._connection: Connection | None = None
        self._copying: Order | None = None
        self._thread = threading.Thread(target=self._run, name="loading a dump", daemon=True)
        self._thread.start()

    # --------------------------------------------------------------------------------------- for the other thread

    @property
    def idle(self) -> bool:
        """Whether it has done all it was given."""
        return not self._items and not self._working

    @property
    def has_room(self) -> bool:
        """Whether more data may be given to it."""
        return self.pending < ROOM

    @property
    def overdue(self) -> bool:
        """Whether its current statement has gone on longer than the server should have allowed."""
        since = self._since
        return since is not None and time.monotonic() - since > self._deadline + GRACE

    def submit(self, orders: Sequence[Order]) -> None:
        """Carry these out."""
        self._put(Batch(orders))

    def copy(self, order: Order, data: bytes, *, alone: bool) -> None:
        """Pass data of a COPY on; the first of it starts the COPY. `alone`: all of its data go to this connection."""
        if self._copying is not order:
            self._copying = order
            self._put(Copy(order, alone))
        self._put(data)

    def end_copy(self) -> None:
        """The COPY has all its data."""
        if self._copying:
            self._copying = None
            self._put(End())

    def _put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self.pending += _size(item)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the connection, whatever it does. Work that was not done is dropped, an open COPY is rolled back."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        connection = self._connection
        if connection and not connection.closed and self._working:
            with suppress(psycopg.Error, OSError):
                connection.cancel_safe(timeout=5)
            with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)  # wakes the thread up, which waits for the server

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout=GRACE)

    # ---------------------------------------------------------------------------------------------- in its thread

    def _run(self) -> None:
        try:
            with told_connection(), self._connect() as connection:
                connection.autocommit = True
                connection.prepare_threshold = None
                self._connection = connection
                self._prepare(connection)
                while True:
                    item = self._next()
                    if isinstance(item, Batch):
                        self._execute(connection, item)
                    elif isinstance(item, Copy):
                        self._copy(connection, item.order, alone=item.alone)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that loads
            self.error = error
        finally:
            with self._changed:
                self._working = False
                self._since = None
                self._changed.notify_all()

    def _prepare(self, connection: Connection) -> None:
        settings = {**_SETTINGS, "statement_timeout": f"{self._deadline * 1000:.0f}"}
        connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)"
            " WHERE current_setting(name, true) IS NOT NULL",  # a setting that this version does not have
            [list(settings), list(settings.values())],
        )

    def _next(self) -> Item:
        with self._changed:
            self._working = False
            self._since = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._items or self._stopped)
            if self._stopped:
                raise Stopped
            self._working = True
            self._since = time.monotonic()
            item = self._items.popleft()
            self.pending -= _size(item)
            return item

    def _execute(self, connection: Connection, batch: Batch) -> None:
        # a pipeline uses the extended protocol: the server refuses two statements where the reader saw one
        sent: list[tuple[Order, psycopg.Cursor[tuple[object, ...]]]] = []
        try:
            with connection.pipeline():
                for order in batch.orders:
                    for statement in (*self._changes(order), order.sql):
                        sent.append((order, connection.execute(statement)))
        except psycopg.Error as error:
            failed = next((order for order, cursor in sent if cursor.statusmessage is None), batch.orders[-1])
            raise self._told(failed, error) from error
        self.in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def _changes(self, order: Order) -> list[bytes]:
        """The statements that bring the session's settings to those of the order."""
        if order.settings is self._settings:
            return []
        changed = [(name, value) for name, value in order.settings.items() if self._settings.get(name) != value]
        self._settings = order.settings
        return [b"SET " + name.encode() + b" = " + value for name, value in changed]

    def _copy(self, connection: Connection, order: Order, *, alone: bool) -> None:
        try:
            for statement in self._changes(order):
                connection.execute(statement)
            with connection.transaction() if alone else nullcontext():
                frozen = alone and _made_anew(connection, order.table)
                with connection.cursor().copy(order.sql + (b" WITH (FREEZE)" if frozen else b"")) as copy:
                    while isinstance(data := self._next(), bytes):
                        copy.write(data)
        except psycopg.Error as error:
            raise self._told(order, error) from error

    def _told(self, order: Order, error: psycopg.Error) -> CannotError:
        if self._stopped:
            raise Stopped from error
        # only the primary message: detail and context hold rows
        message = error.diag.message_primary or str(error).strip().partition("\n")[0]
        return self._make_error(f"{message}: {order.shown}", order.line, "")


def _made_anew(connection: Connection, table: bytes) -> bool:
    """Give an empty table new files in this transaction; whether that could be done.

    What is then loaded in the same transaction can be written frozen, so that no reader writes its pages a second time,
    and with `wal_level = minimal` without WAL (COPY, "FREEZE"; "Disable WAL Archival and Streaming Replication").
    """
    named = b"'" + table.replace(b"'", b"''") + b"'"
    # To empty a foreign table would empty that of the other server; and whoever cannot empty this one, because of a
    # foreign key that a script by hand has made already, loads it as it is.
    is_plain = b"SELECT 1 FROM pg_catalog.pg_class WHERE oid = " + named + b"::regclass AND relkind = 'r'"
    with suppress(psycopg.Error), connection.transaction():
        if not connection.execute(is_plain).fetchone():
            return False
        if connection.execute(b"SELECT 1 FROM ONLY " + table + b" LIMIT 1").fetchone():
            return False
        connection.execute(b"TRUNCATE ONLY " + table)
        return True
    return False


def _size(item: Item) -> int:
    if isinstance(item, Batch):
        return item.size
    return len(item) if isinstance(item, bytes) else 0

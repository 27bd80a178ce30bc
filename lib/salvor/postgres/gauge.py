"""How far a long reading of a database is: told each second, and ended when nobody waits for it any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString, Self

import psycopg

from salvor import clock
from salvor.change import Progress
from salvor.errors import CannotError
from salvor.postgres.connection import Line
from salvor.postgres.server import Server

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

Hear = Callable[[Progress | None], None]
"""Is told how far it is, first without a total, and None when it has ended. What it raises ends the reading."""

_EVERY = 1.0
_ENDING = 5.0

# No view of PostgreSQL says how far a sequential scan is, before version 18 no function how much a session has read.
# Linux does (proc(5)), of what came from memory too; a statement's workers have processes of their own.
_READ: LiteralString = """
    select jsonb_object_agg(session, bytes) from (
        select coalesce(leader_pid, pid) as session,
            sum((regexp_match(pg_read_file('/proc/' || pid || '/io', 0, 4096, true), 'rchar: ([0-9]+)'))[1]::bigint)
                as bytes
        from pg_stat_activity where backend_type in ('client backend', 'parallel worker') group by 1
    ) as sessions
"""


@dataclass
class _UnderWay:
    """What a session reads now: bytes of it, and what the session had read when it was first looked at."""

    connection: Connection
    size: int
    before: int | None = None
    read: int = 0


class Gauge:
    """See above. `label` says what is done; what is read is on `server`. To be used in the thread that Ctrl-C ends."""

    def __init__(self, server: Server, hear: Hear, label: str) -> None:
        self._hear, self._label = hear, label
        self._line = Line(server, deadline=5.0)
        self._total = self._done = 0
        self._under_way: dict[int, _UnderWay] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._telling = threading.Thread(target=self._tell, daemon=True, name="gauge")

    def __enter__(self) -> Self:
        self._hear(Progress(0, None, "bytes", self._label))
        self._telling.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._telling.join()
        self._hear(None)
        if self._error:
            raise self._error

    def expect(self, size: int) -> None:
        """So many bytes more are to be read."""
        with self._lock:
            self._total += size

    def add(self, size: int) -> None:
        """So many bytes were read."""
        with self._lock:
            self._done += size

    def go_on(self) -> None:
        """Raises CannotError when the reading is to end."""
        if self._over.is_set():
            raise CannotError("The reading was stopped.", safe="it only read")

    @contextmanager
    def reads(self, connection: Connection, size: int) -> Iterator[None]:
        """While the block has `connection` read so many bytes. Raises as `go_on`."""
        session = connection.info.backend_pid
        with self._lock:
            self.go_on()
            self._under_way[session] = _UnderWay(connection, size)
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[session]
        self.add(size)

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """For a block within one that waits for its threads: they end when the block does so by an error."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End what is under way, and begin nothing more. Returns when it has ended, or after a few seconds."""
        self._over.set()
        until = clock.monotonic() + _ENDING
        while clock.monotonic() < until:
            with self._lock:
                left = [one.connection for one in self._under_way.values()]
            if not left:
                return
            for connection in left:
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=_ENDING)
            time.sleep(0.05)  # whose statement had not begun yet did not hear it

    def _tell(self) -> None:
        with self._line:
            while not self._over.wait(_EVERY):
                try:
                    self._hear(Progress(self._far(), self._total or None, "bytes", self._label))
                except BaseException as error:  # noqa: BLE001  raised again in the thread that reads
                    self._error = error
                    self.end()

    def _far(self) -> int:
        """Bytes read so far: of what is under way as much as the system says that its session has read since."""
        with suppress(Exception):  # that it cannot be told stops no proof
            row = self._line.ask(_READ)
            read: dict[str, int] = (row and row[0]) or {}
            with self._lock:
                for session, one in self._under_way.items():
                    now = read.get(str(session)) or 0
                    one.before = now if one.before is None else one.before
                    one.read = min(one.size, now - one.before)
        with self._lock:
            return min(self._total, self._done + sum(one.read for one in self._under_way.values()))

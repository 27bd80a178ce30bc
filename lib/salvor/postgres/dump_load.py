"""Loads a dump of any form into an empty database, over several connections where that is quicker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from salvor.change import Progress
from salvor.errors import CannotError
from salvor.postgres.dump import Dump, Form, Script, open_script
from salvor.postgres.dump_reader import MetaCommand, Reader
from salvor.postgres.dump_rules import Lane
from salvor.postgres.dump_screen import Order, Screen
from salvor.postgres.dump_session import Session
from salvor.postgres.dump_target import Target, Terms, refuse_newer
from salvor.streams import Ahead

if TYPE_CHECKING:
    from salvor.postgres.dump_target import Connect

SHARE = 8 << 20
"""Bytes of one table's data that go to one connection before the next takes over."""
LARGE = 1 << 20
"""Bytes of data from which on a table is worth new files."""
BATCH_STATEMENTS, BATCH_BYTES = 200, 1 << 20
PROGRESS_SECONDS = 0.25

Waiting = Generator[Progress, None, None]

_PHASES = {
    Lane.NOW: "statements",
    Lane.COPY: "data",
    Lane.ROWS: "data",
    Lane.BUILD: "indexes",
    Lane.FOREIGN_KEY: "foreign keys",
    Lane.EXTENSION: "superuser",
    Lane.SUPERUSER: "superuser",
}
"""What may go on at the same time. A statement of another phase waits for all before it."""


@dataclass(frozen=True)
class Loaded:
    """What a load has done: bytes of data that went into tables, and what of the dump was left out, with the reason."""

    data: int
    left_out: tuple[str, ...]


def load(
    dump: Dump,
    connect: Connect,
    *,
    deadline: float,
    jobs: int = 4,
    whole_tables: bool = False,
    terms: Terms | None = None,
    administrator: Connect | None = None,
    pg_restore: Sequence[str] = ("pg_restore",),
    scratch: Path | None = None,
    unpacked_limit: int | None = None,
    before_owners: Callable[[], Iterable[Progress]] = tuple,
) -> Generator[Progress, None, Loaded]:
    """Load `dump` into the empty database that `connect` connects to, as a role that owns no more than that.

    `administrator` connects to the same database as a superuser: it creates extensions and publications, gives what
    was created to its owners, and grants privileges. Without it everything stays with the role that loads.
    `deadline`: seconds for any one statement; the COPY of a table is one. `jobs`: connections. `whole_tables`: each
    table's data go to one of them, which costs the server less altogether; else to all in turn, which is quicker where
    there are processors enough. `unpacked_limit`: bytes of script after which it must be a bomb, such as the free space
    of the stage's disk. `before_owners`: what is to be done while all that was loaded is still the loading role's. The
    rest is as for open_script.

    Yields how far it is: in bytes of the dump, then in objects. Closing the generator ends the connections. Memory is
    bounded by `jobs`, not by the dump. Raises CannotError; then the database is half loaded, and good for nothing.
    """
    terms = terms or Terms()
    target = Target.look(connect, terms, has_administrator=administrator is not None)
    refuse_newer(dump.server_major, target.major, str(dump.path))
    with ExitStack() as stack:
        script = stack.enter_context(open_script(dump, pg_restore, scratch))
        work = _Load(
            dump, script, target, connect, administrator, deadline, jobs, whole_tables, unpacked_limit, before_owners
        )
        stack.callback(work.stop)
        yield from work.all()
        return Loaded(work.data, tuple(target.left_out))


class _Load:
    """One load. Its methods that wait are generators, which yield the progress meanwhile."""

    def __init__(
        self,
        dump: Dump,
        script: Script,
        target: Target,
        connect: Connect,
        administrator: Connect | None,
        deadline: float,
        jobs: int,
        whole_tables: bool,
        unpacked_limit: int | None,
        before_owners: Callable[[], Iterable[Progress]],
    ) -> None:
        self.data = 0
        self._dump = dump
        self._script = script
        self._target = target
        self._whole_tables = whole_tables
        self._changed = threading.Condition()
        self._ahead = Ahead(script, deadline)
        self._unpacked, self._limit = 0, unpacked_limit
        self._before_owners = before_owners
        self._reader = Reader(self._chunk, str(dump.path))
        self._screen = Screen(self._reader.error, target.terms.trusted)
        self._sessions = [Session(connect, deadline, self._changed, self._reader.error) for _ in range(jobs)]
        self._first = self._sessions[0]
        self._administrator = (
            Session(administrator, deadline, self._changed, self._reader.error) if administrator else self._first
        )
        self._phase = ""
        self._batch: list[Order] = []
        self._builds: list[Order] = []
        self._followers: list[Order] = []
        self._later: dict[Lane, list[Order]] = {
            lane: []
            for lane in (
                Lane.LATE,
                Lane.PUBLICATION,
                Lane.COMMENT,
                Lane.OWNER,
                Lane.PRIVILEGE,
                Lane.EVENT_TRIGGER,
            )
        }
        self._size_of: dict[str, int] = {}  # bytes of data by table
        self._root: dict[str, str] = {}  # a partition's table
        # pg_restore opens the files of a directory itself: how far it is in them is not known
        self._size = None if dump.form is Form.DIRECTORY else dump.size
        self._progress = Progress(0, self._size, "bytes")
        self._told = 0.0

    def stop(self) -> None:
        """End all threads and connections."""
        sessions = {*self._sessions, self._administrator}
        for session in sessions:
            session.stop()
        for session in sessions:
            session.join()
        self._ahead.close()

    def _chunk(self) -> bytes:
        chunk = self._ahead.chunk()
        self._unpacked += len(chunk)
        if self._limit is not None and self._unpacked > self._limit:
            raise CannotError(
                f"{self._dump.path} unpacks to more than {self._limit} bytes.",
                hint="give the stage more room, or look whether it is a dump at all",
            )
        return chunk

    # ---------------------------------------------------------------------------------------------- the statements

    def all(self) -> Waiting:
        """Carry out the whole dump."""
        for item in self._reader:
            if isinstance(item, MetaCommand):
                self._screen.meta_command(item)
                continue
            order = self._target.fit(self._screen.admit(item), self._reader.error)
            if order:
                yield from self._carry_out(order)
            yield from self._tell_now_and_then()
        yield from self._settle()
        yield from self._before_owners()
        for lane, orders in self._later.items():
            session = self._first if lane is Lane.LATE else self._administrator
            yield from self._in_batches(session, orders, lane.value)

    def _carry_out(self, order: Order) -> Waiting:
        lane = order.lane
        if lane is Lane.SKIP:
            return
        if lane in self._later:
            self._later[lane].append(order)
            return
        if lane is Lane.FOLLOW:
            if self._builds:
                self._followers.append(order)
                return
            lane = Lane.NOW
        if (phase := _PHASES[lane]) != self._phase:
            yield from self._settle()
            self._phase = phase
        if lane is Lane.COPY:
            yield from self._copy(order)
        elif lane in {Lane.BUILD, Lane.FOREIGN_KEY}:
            self._builds.append(order)
        elif phase == "superuser":
            self._administrator.submit([order])
        else:
            yield from self._add_to_batch(order)

    def _add_to_batch(self, order: Order) -> Waiting:
        if order.lane is Lane.NOW and len(order.tables) == 2:
            partition, table = order.tables
            self._root[partition] = table
        self._batch.append(order)
        if len(self._batch) >= BATCH_STATEMENTS or sum(len(each.sql) for each in self._batch) >= BATCH_BYTES:
            yield from self._send_batch()

    def _send_batch(self) -> Waiting:
        if self._batch:
            rows = self._batch[0].lane is Lane.ROWS
            session = (yield from self._least_busy()) if rows else self._first
            yield from self._wait(lambda: session.has_room)
            session.submit(self._batch)
            self._batch = []

    def _settle(self) -> Waiting:
        """Finish everything that was begun."""
        yield from self._send_batch()
        if self._phase == _PHASES[Lane.FOREIGN_KEY]:
            yield from self._add_unchecked()
        yield from self._build()
        yield from self._in_batches(self._first, self._followers, "indexes")
        self._followers = []
        yield from self._wait(lambda: all(session.idle for session in (*self._sessions, self._administrator)))
        if self._first.in_transaction:
            raise self._reader.error("a transaction is begun and not ended: pg_dump does that for large objects only.")

    def _in_batches(self, session: Session, orders: Sequence[Order], label: str) -> Waiting:
        for start in range(0, len(orders), BATCH_STATEMENTS):
            session.submit(orders[start : start + BATCH_STATEMENTS])
            yield from self._wait(lambda: session.idle, Progress(start, len(orders), "objects", label))

    # ------------------------------------------------------------------------------------------------------ the data

    def _copy(self, order: Order) -> Waiting:
        """The data of one table, a share to each connection in turn: one connection's COPY keeps one core busy."""
        (table,) = order.tables
        session, share, whole_lines = None, 0, True
        blocks = self._reader.data()
        first = b""
        while len(first) < LARGE and (block := next(blocks, b"")):
            first += block
        alone = self._whole_tables and len(first) >= LARGE
        for block in chain([first] if first else [], blocks):
            if session is None or (share >= SHARE and whole_lines and not alone):
                session, share = (yield from self._least_busy()), 0
            else:
                yield from self._wait_for_room(session)
            session.copy(order, block, alone=alone)
            share += len(block)
            whole_lines = block.endswith(b"\n")
            self.data += len(block)
            self._size_of[table] = self._size_of.get(table, 0) + len(block)
            done = self._unpacked if self._size is None else self._script.position()
            self._progress = Progress(done, self._size, "bytes", table)
            yield from self._tell_now_and_then()
        for each in self._sessions:
            each.end_copy()

    def _least_busy(self) -> Generator[Progress, None, Session]:
        yield from self._wait(lambda: any(session.has_room for session in self._sessions))
        return min(self._sessions, key=lambda session: (session.pending, not session.idle))

    def _wait_for_room(self, session: Session) -> Waiting:
        yield from self._wait(lambda: session.has_room)

    # ----------------------------------------------------------------------------------------- indexes, constraints

    def _build(self) -> Waiting:
        """Indexes and constraints side by side, those of the largest tables first.

        A constraint locks its tables against every other build (ALTER TABLE: ACCESS EXCLUSIVE or SHARE ROW EXCLUSIVE);
        indexes of one table can be built together (CREATE INDEX: SHARE).
        """
        waiting = sorted(self._builds, key=lambda order: -max(self._size_of.get(table, 0) for table in order.tables))
        total, self._builds = len(waiting), []
        running: dict[Session, Order] = {}
        while True:
            running = {session: order for session, order in running.items() if not session.idle}
            if not waiting and not running:
                return
            for session in self._sessions:
                if session in running:
                    continue
                order = next((order for order in waiting if not self._conflicts(order, running.values())), None)
                if order:
                    waiting.remove(order)
                    running[session] = order
                    session.submit([order])
            done, labels = total - len(waiting) - len(running), {order.tables[0] for order in running.values()}
            progress = Progress(done, total, "objects", ", ".join(sorted(labels)))
            yield from self._wait(lambda: any(session.idle for session in running), progress)  # noqa: B023

    def _add_unchecked(self) -> Waiting:
        """Add the foreign keys, so that only checking them is left to be done.

        Adding one locks both tables against every other (SHARE ROW EXCLUSIVE), and the keys of a database mostly refer
        to a few tables; checking one locks its own table only (VALIDATE CONSTRAINT: SHARE UPDATE EXCLUSIVE).
        """
        partitioned = set(self._root.values())  # a key to one is several: checking it would leave the others unchecked
        builds, unchecked = [], []
        for order in self._builds:
            if both := order.in_two() if partitioned.isdisjoint(order.tables) else None:
                unchecked.append(both[0])
            builds.append(both[1] if both else order)
        yield from self._in_batches(self._first, unchecked, "foreign keys")
        self._builds = builds

    def _conflicts(self, order: Order, running: Iterable[Order]) -> bool:
        return any(
            (order.exclusive or other.exclusive) and self._locks(order) & self._locks(other) for other in running
        )

    def _locks(self, order: Order) -> set[str]:
        tables = set(order.tables)
        while more := {self._root[table] for table in tables if table in self._root} - tables:
            tables |= more
        return tables

    # ----------------------------------------------------------------------------------------------------- waiting

    def _wait(self, ready: Callable[[], bool], progress: Progress | None = None) -> Waiting:
        """Wait until `ready`, which looks at the sessions. Raises what went wrong in any of them."""
        self._progress = progress or self._progress
        while True:
            with self._changed:
                self._changed.wait_for(lambda: ready() or self._failed(), timeout=PROGRESS_SECONDS)
                is_ready = ready()
            if failed := self._failed():
                raise failed
            if is_ready:
                return
            yield from self._tell_now_and_then()

    def _failed(self) -> BaseException | None:
        for session in (*self._sessions, self._administrator):
            if session.error:
                return session.error
            if session.overdue:
                return CannotError("The server did not end a statement at its deadline, nor did it answer.")
        return None

    def _tell_now_and_then(self) -> Waiting:
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            yield self._progress

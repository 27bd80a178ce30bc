"""What can befall the sandbox's database, for real. Each strikes whichever member is the primary at that time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from salvor import clock, sandbox
from salvor.errors import CannotError
from salvor.sandbox import database, folders, harm, processes
from salvor.sandbox.harm import Struck, struck
from salvor.sandbox.layout import Layout

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

__all__ = ["Struck", "names", "strike", "struck", "wake"]

_PAGE = 8192


def names() -> dict[str, str]:
    """Every disaster, and what it does in one line."""
    return harm.words(_DISASTERS)


def strike(name: str) -> datetime:
    """Do the disaster to the sandbox's primary, noted in `disasters.jsonl`. Returns the last moment (UTC) before it.

    Raises UsageError when there is no such disaster, CannotError when there is no sandbox, or no primary to strike.
    """
    harm.refuse_unknown(name, _DISASTERS)
    found = sandbox.find()
    member = database.primary(found)
    if not member:
        raise CannotError(
            "No member of the sandbox's database takes writes, so there is nothing left to break.",
            hint="inv sandbox.status",
        )
    moment = _DISASTERS[name](found, member)
    harm.note(found, Struck(name, moment, member))
    return moment


def wake() -> None:
    """Let the frozen primary's processes go on (SIGCONT), those that are still the same."""
    path = sandbox.find().place / "frozen.json"
    if path.exists():
        frozen = [processes.Process(**process) for process in json.loads(path.read_text(encoding="utf-8"))]
        path.unlink()
        processes.send(frozen, signal.SIGCONT)


def _drop_table(found: Layout, member: str) -> datetime:
    """Somebody drops the table of orders, and with it all that hangs on it."""
    return _execute(found, member, "drop table orders cascade")


def _wrong_update(found: Layout, member: str) -> datetime:
    """Somebody forgets the WHERE: every order costs nothing now, and customers go on ordering."""
    return _execute(found, member, "update orders set amount = 0")


def _kill_primary(found: Layout, member: str) -> datetime:
    """The primary's processes are killed, all of them, at once (SIGKILL)."""
    tree = _tree(found, member)
    moment = clock.now()
    processes.kill(tree)
    return moment


def _freeze_primary(found: Layout, member: str) -> datetime:
    """The primary's processes are frozen (SIGSTOP): it looks down, is not, and may wake up at any time."""
    tree = _tree(found, member)
    moment = clock.now()
    processes.send(tree, signal.SIGSTOP)
    folders.write(found.place / "frozen.json", json.dumps([vars(process) for process in tree]) + "\n")
    return moment


def _lose_datadir(found: Layout, member: str) -> datetime:
    """The primary's data directory is removed under the running server."""
    data = found.data(member)
    moment = clock.now()
    while data.exists():  # the server goes on making files in it
        shutil.rmtree(data, ignore_errors=True)
    return moment


def _corrupt_pages(found: Layout, member: str) -> datetime:
    """The disk returns garbage for some pages of the orders, the newest among them."""
    server = database.server(found, member)
    with server.session("orders", writes=True) as connection:
        (path,) = _one(connection, "select pg_relation_filepath('orders')")
    # What is in shared memory hides what is on the disk, so the server is restarted around it.
    server.stop()
    moment = clock.now()
    with (found.data(member) / path).open("r+b") as file:
        pages = os.fstat(file.fileno()).st_size // _PAGE
        for page in {*range(0, pages, max(1, pages // 10)), pages - 2, pages - 1}:
            file.seek(page * _PAGE + 512)
            file.write(os.urandom(2048))
        os.fsync(file.fileno())
    database.start(found, member)
    return moment


_DISASTERS: dict[str, Callable[[Layout, str], datetime]] = {
    "drop-table": _drop_table,
    "kill-primary": _kill_primary,
    "lose-datadir": _lose_datadir,
    "corrupt-pages": _corrupt_pages,
    "wrong-update": _wrong_update,
    "freeze-primary": _freeze_primary,
}


def _execute(found: Layout, member: str, statement: str) -> datetime:
    """Do it in a transaction of its own, and return the moment before that was committed, by the server's own clock."""
    with database.server(found, member).session("orders", deadline=60, writes=True) as connection:
        with connection.transaction():
            connection.execute(statement)
            (transaction,) = _one(connection, "select pg_current_xact_id()::text")
        (committed,) = _one(connection, "select pg_xact_commit_timestamp(%s::text::xid)", transaction)
    # A recovery to this moment holds every commit up to it, and so not this one.
    return clock.read_time(committed.isoformat()) - timedelta(microseconds=1)


def _one(connection: Connection, question: str, *arguments: object) -> tuple[Any, ...]:
    row = connection.execute(question, arguments).fetchone()
    assert row
    return row


def _tree(found: Layout, member: str) -> list[processes.Process]:
    """The whole tree of a server, the postmaster first, so that it neither restarts nor buries its children."""
    postmasters = database.server(found, member).processes()
    tree = processes.working_in(found.data(member))
    return sorted(tree, key=lambda process: process.pid not in postmasters)

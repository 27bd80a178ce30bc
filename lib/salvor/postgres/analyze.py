"""The planner's statistics of a database that was just loaded: without them its first queries take bad plans."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING

from psycopg import sql

from salvor.change import Progress

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection
    from salvor.postgres.server import Server

_SECONDS = 3600.0
_TOLD_EVERY = 0.25

# ANALYZE of a partitioned table by its name reads its partitions once more; of the whole database it does not.
_PARTITIONED = "select 1 from pg_class where relkind = 'p' limit 1"
_TABLES = """
    select nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind in ('r', 'm') and relpersistence <> 't' order by pg_relation_size(c.oid) desc
"""


def analyze(server: Server, database: str, jobs: int) -> Iterator[Progress]:
    """ANALYZE every table, the largest first, over so many connections. Raises psycopg.Error."""
    yield Progress(0, None, "", "analyzing")
    with ExitStack() as stack:
        first = stack.enter_context(server.connect(database, writes=True, deadline=_SECONDS))
        first.execute("set search_path = pg_catalog")  # the dump may have set another for its database
        if first.execute(_PARTITIONED).fetchone():
            first.execute("analyze")
            return
        waiting = deque(first.execute(_TABLES).fetchall())
        total = len(waiting)
        connections = [first]
        for _ in range(jobs - 1):
            connections.append(stack.enter_context(server.connect(database, writes=True, deadline=_SECONDS)))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                running = {pool.submit(_work_off, connection, waiting) for connection in connections}
                while running:
                    done, running = wait(running, _TOLD_EVERY, FIRST_EXCEPTION)
                    for one in done:
                        one.result()
                    yield Progress(total - len(waiting), total, "objects", "analyzing")
            finally:
                waiting.clear()  # what runs ends with its table


def _work_off(connection: Connection, waiting: deque[tuple[str, str]]) -> None:
    while waiting:
        try:
            schema, name = waiting.popleft()
        except IndexError:
            return  # another one took the last
        connection.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, name)))

"""Whether every table of a staged copy can be read: by pg_amcheck, or page by page. Reads only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from salvor import clock, secrets
from salvor.change import Finding, Level
from salvor.errors import CannotError
from salvor.postgres import asking
from salvor.postgres.connection import LOCK_MILLISECONDS
from salvor.postgres.gauge import Gauge, Hear
from salvor.postgres.look import Look
from salvor.postgres.server import Server

if TYPE_CHECKING:
    import psycopg

_READ_SECONDS = 24 * 3600.0
_FAR = re.compile(r"\([0-9]+%\), +([0-9]+)/([0-9]+) pages")
_PAGE = 8192
"""Bytes, for a progress: those of other servers are rare."""


def of_all(subject: str, server: Server, look: Look, evidence: str, hear: Hear) -> Iterator[Finding]:
    """Every database: by pg_amcheck where its extension is installed; elsewhere every page of every table is read."""
    with server.session() as connection:
        names = [row[0] for row in connection.execute("select datname from pg_database where datallowconn order by 1")]
    # The small ones while a large one is read.
    with ThreadPoolExecutor(2) as pool, Gauge(server, hear, "reading every table") as gauge:
        found = list(pool.map(lambda name: _of_one(subject, server, name, look, evidence, gauge), names))
    yield from found


# Nobody but a transaction manager ends such a one, so who waits for its locks waits for ever. A table that it made is
# not in pg_class yet, and nobody reads that.
_PREPARED: LiteralString = """
    select p.gid, p.prepared, string_agg(distinct c.oid::regclass::text, ', ')
    from pg_prepared_xacts p join pg_locks l on l.virtualtransaction = '-1/' || p.transaction
      join pg_class c on c.oid = l.relation
    where l.mode = 'AccessExclusiveLock' and l.locktype = 'relation'
      and l.database = (select oid from pg_database where datname = current_database())
    group by p.gid, p.prepared order by p.prepared
"""


def _of_one(subject: str, server: Server, database: str, look: Look, evidence: str, gauge: Gauge) -> Finding:
    import psycopg

    try:
        with asking.session(server, database) as connection:
            has_amcheck = connection.execute("select 1 from pg_extension where extname = 'amcheck'").fetchone()
            prepared = connection.execute(_PREPARED).fetchall()
    except psycopg.Error as error:
        detail = secrets.mask(str(error)).strip()
        return Finding(subject, f"integrity of {database}", Level.FAIL, "not readable", "", detail, evidence)
    if prepared:
        locking = "; ".join(
            f"the prepared transaction {name!r}, of {clock.write_time(since)}, locks {tables}"
            for name, since, tables in prepared
        )
        names = ", ".join(f"'{name}'" for name, *_ in prepared)
        detail = (
            f"{locking}, so they cannot be read. HINT: in {database} at {server.address}:{server.port}: "
            f"COMMIT PREPARED or ROLLBACK PREPARED {names}, as the transaction manager has decided; "
            "then the same command again"
        )
        return Finding(subject, f"integrity of {database}", Level.FAIL, "not readable", "", detail, evidence)
    if has_amcheck:
        return amcheck(subject, server, database, evidence, gauge)
    return every_page(subject, server, database, evidence, gauge, look)


def amcheck(subject: str, server: Server, database: str, evidence: str, gauge: Gauge) -> Finding:
    """What pg_amcheck says of a database in which its extension is installed: tables and B-tree indexes."""
    told = (0, 0)

    def hear(said: str) -> None:
        nonlocal told
        gauge.go_on()
        if found := _FAR.findall(said):
            done, pages = map(int, found[-1])
            gauge.add((done - told[0]) * _PAGE)
            gauge.expect((pages - told[1]) * _PAGE)
            told = done, pages

    where = [f"--host={server.address}", f"--port={server.port}", f"--username={server.operator.user}"]
    jobs = f"--jobs={server.shell.cores()}"
    result = server.shell.run(
        [server.program("pg_amcheck"), *where, jobs, f"--database={database}", "--no-password", "--progress"],
        environment={
            "PGPASSWORD": secrets.resolve(server.operator.password),
            "PGOPTIONS": f"-c lock_timeout={LOCK_MILLISECONDS}",
        },
        deadline=_READ_SECONDS,
        check=False,
        hear=hear,
    )
    lines = [line for line in (result.stdout + result.stderr).strip().splitlines() if not _FAR.search(line)]
    return Finding(
        subject,
        f"integrity of {database}",
        Level.FAIL if result.exit_code else Level.PASS,
        figure=f"{len(lines)} complaints" if result.exit_code else "sound",
        detail=secrets.mask("; ".join(lines[:3])) if result.exit_code else "pg_amcheck: tables and B-tree indexes",
        evidence=evidence,
    )


# Every page is read from disk and its checksum compared: through an index only, some would be left out.
_TABLES = """
    select oid::regclass::text, pg_relation_size(oid), relkind = 't' from pg_class
    where relkind in ('r', 'm', 't') and relpersistence <> 't' and pg_relation_size(oid) > 0 order by 2 desc
"""


_COUNTED: LiteralString = "select count(*) from {}"
_TAKEN_APART: tuple[LiteralString, ...] = (
    "select count(record_send(t)) from {} t",
    "select count(t::text) from {} t",
)


def _ask_first(connection: psycopg.Connection[Any], questions: Sequence[LiteralString], table: str) -> None:
    """Put the first of the questions that the types of a table's columns allow, each in a transaction of its own that
    no code of the data can have written to.
    """
    import psycopg

    for question in questions:
        try:
            connection.execute(sql.SQL(f"begin read only; {question}; commit").format(sql.SQL(table)))
            return
        except psycopg.errors.UndefinedFunction:
            if question == questions[-1]:
                raise
            connection.rollback()


def every_page(
    subject: str, server: Server, database: str, evidence: str, gauge: Gauge, look: Look | None = None
) -> Finding:
    """Whether every page of every table of a database can be read. Indexes are not. `look`: one at that server."""
    import psycopg

    check = f"integrity of {database}"
    # Without checksums only taking every row apart can show that a page is damaged. Some types, such as the aclitem of
    # many catalogs, have no binary form; as text it takes longer.
    apart = (_COUNTED,) if (look or server.look()).has_checksums else _TAKEN_APART
    read, size, table = 0, 0, ""
    try:
        with asking.session(server, database, deadline=_READ_SECONDS) as connection:
            for setting in ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
                connection.execute(sql.SQL("set {} = off").format(sql.Identifier(setting)))
            connection.execute("set search_path = pg_catalog")  # a dump may have set another for its database
            connection.execute("set max_parallel_workers_per_gather = 4")
            tables = connection.execute(_TABLES).fetchall()
            gauge.expect(sum(bytes_ for _, bytes_, _ in tables))
            for table, bytes_, is_toast in tables:
                with gauge.reads(connection, bytes_):
                    # What TOAST holds is taken apart with the rows that refer to it.
                    _ask_first(connection, (_COUNTED,) if is_toast else apart, table)
                read, size = read + 1, size + bytes_
    except (psycopg.Error, CannotError) as error:
        detail = secrets.mask(f"{table}: {error}")
        return Finding(subject, check, Level.FAIL, figure="not readable", detail=detail, evidence=evidence)
    detail = (
        f"every page of {read} tables was read ({size / 1e6:.0f} MB); amcheck is not installed, so indexes were not"
    )
    return Finding(subject, check, Level.PASS, figure="readable", detail=detail, evidence=evidence)

"""The rows of every table as a count and a sum of hashes, and how to read them all at one snapshot.

A row is hashed as one value: `hash_record` over its columns would be linear in them, so that exchanging two values
between two rows would go unseen. What has no binary form that survives a dump is hashed as its text under pinned
settings, which is what a dump carries:

- types of users and extensions, and arrays: these hold object ids, and arrays remember a null that is gone;
- reg* types (object ids) and tsquery (its tree is balanced anew when it is read).

Floating-point numbers keep every bit but those of NaN: arithmetic makes negative ones, and a dump's are positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, errors, sql

from salvor.errors import CannotError
from salvor.postgres.gauge import Gauge

Connect = Callable[[str], Connection[Any]]
"""Opens an autocommit session of the operator in the named database."""

_EXACT_IN_BINARY = frozenset((
    *("bool", "bytea", "char", "name", "int8", "int2", "int4", "text", "bpchar", "varchar", "bit", "varbit", "uuid"),
    *("oid", "tid", "xid", "xid8", "cid", "pg_lsn", "txid_snapshot", "pg_snapshot", "refcursor", "numeric", "money"),
    *("json", "jsonb", "jsonpath", "xml", "tsvector", "inet", "cidr", "macaddr", "macaddr8"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
    *("int4multirange", "int8multirange", "nummultirange", "tsmultirange", "tstzmultirange", "datemultirange"),
))  # fmt: skip
_FLOATING = frozenset(("float4", "float8"))

_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "quote_all_identifiers": "off",
    "row_security": "off",  # an error rather than rows left out, should the operator be subject to row security
    "jit": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "60s",
}

OLDEST = 140000  # hash_record_extended came with 14
_PAGE = 8192
_SMALL_PAGES = 1024
_TABLES_A_BATCH = 200


@dataclass(frozen=True)
class Content:
    """Rows and the sum of their hashes. `kind`: `table`, or why a difference may be no damage (see `compare`)."""

    rows: int
    sum: str
    kind: str = "table"


@dataclass(frozen=True)
class _Column:
    name: str
    type: str
    """Of its base type, when it is a domain."""
    schema: str

    def exact(self) -> sql.Composable:
        """SQL for the value in a form that equal values share."""
        column = sql.Identifier(self.name)
        as_itself = sql.SQL("{}::{}").format(column, sql.Identifier("pg_catalog", self.type))
        if self.schema == "pg_catalog" and self.type in _FLOATING:
            return sql.SQL("case when {0} = 'NaN' then 'NaN' else {0} end").format(as_itself)
        if self.schema == "pg_catalog" and self.type in _EXACT_IN_BINARY:
            return as_itself
        # A cast to text is not always the type's own output; this is, whatever its output function takes.
        return sql.SQL("textin(record_out(row({})))").format(column)


@dataclass(frozen=True)
class Relation:
    """A table, a materialised view or a sequence. `label` is its name as SQL writes it; `pages` of 8 kB, estimated."""

    schema: str
    name: str
    label: str
    kind: str
    pages: int
    columns: tuple[_Column, ...]

    def query(self, *, long_rows: bool = False) -> sql.Composed:
        """SQL for the count of its rows and the sum of their hashes; `long_rows`: also for rows of more than 1 GB."""
        digest = sql.SQL("sha256(record_send(row({})))" if long_rows else "{}")
        values = [digest.format(column.exact()) for column in self.columns]
        return sql.SQL(
            "select count(*), coalesce(sum(hash_record_extended(row(record_send(row({}))), 0)), 0)::text from only {}"
        ).format(sql.SQL(", ").join(values), sql.Identifier(self.schema, self.name))


def unreadable(database: str, error: psycopg.Error) -> CannotError:
    """The error for a database that could not be read whole, and why."""
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedColumn)):
        return CannotError(
            f"{database}: a table was dropped or altered while its fingerprint was taken: {error}.",
            hint="run the same command again",
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return CannotError(
            f"{database}: the operator may not read all of it: {error}.", hint="the operator must be a superuser"
        )
    return CannotError(
        f"{database}: its fingerprint could not be taken: {error}.", hint="is the data damaged? pg_amcheck tells"
    )


def begin(connection: Connection[Any], snapshot: str | None = None) -> str:
    """Begin a read-only transaction with pinned output settings, at `snapshot` or at a new one; returns its name."""
    connection.execute("begin isolation level repeatable read read only")
    if snapshot:
        connection.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
    pin(connection)
    if snapshot is None:
        exported = connection.execute("select pg_catalog.pg_export_snapshot()").fetchone()
        assert exported
        snapshot = str(exported[0])
    return snapshot


def pin(connection: Connection[Any]) -> None:
    """Pin the settings that text forms of values follow, until the transaction ends.

    No text is converted: the client's encoding is the server's, and for SQL_ASCII one in which every byte is valid.
    """
    server = connection.info.parameter_status("server_encoding") or "UTF8"
    encoding = {"SQL_ASCII": "LATIN1", "EUC_TW": "UTF8", "MULE_INTERNAL": "UTF8"}.get(server, server)
    for name, value in {**_SETTINGS, "client_encoding": encoding}.items():
        connection.execute("select pg_catalog.set_config(%s, %s, true)", (name, value))


def lock_tables(connection: Connection[Any]) -> None:
    """Keep every table from being altered, truncated or dropped until the transaction ends; reads and writes go on.

    When the server has no room for so many locks (max_locks_per_transaction), none is taken.
    """
    tables = [table for table in relations(connection)[0] if table.kind != "materialized view"]
    try:
        with connection.transaction():
            for start in range(0, len(tables), 500):
                names = [sql.Identifier(one.schema, one.name) for one in tables[start : start + 500]]
                connection.execute(
                    sql.SQL("lock table only {} in access share mode").format(sql.SQL(", only ").join(names))
                )
    except errors.OutOfMemory:
        pass
    except psycopg.Error as error:
        raise unreadable(connection.info.dbname, error) from error


_RELATIONS = """
with recursive base (type, base) as (
    select oid, oid from pg_type where typtype <> 'd'
    union all select d.oid, b.base from pg_type d join base b on d.typbasetype = b.type where d.typtype = 'd'
), columns as (
    select attrelid, array_agg(array[attname, typname, nspname] order by attname collate "C") as columns
    from pg_attribute a join base b on b.type = atttypid join pg_type t on t.oid = b.base
    join pg_namespace n on n.oid = typnamespace
    where attnum > 0 and not attisdropped and attgenerated <> 'v'
    group by attrelid
)
select nspname, relname, format('%I.%I', nspname, relname), relkind, relpersistence, relispopulated, relpages, columns,
    exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'),
    pg_is_in_recovery()
from pg_class c join pg_namespace n on n.oid = relnamespace left join columns on attrelid = c.oid
where relkind in ('r', 'm', 'f', 'S') and relpersistence <> 't' and c.oid >= 16384
    and nspname !~ '^pg_(toast|temp)' and nspname <> 'information_schema'
order by relpages desc, 3
"""


def relations(connection: Connection[Any]) -> tuple[list[Relation], list[Relation], dict[str, str]]:
    """Tables and materialised views, sequences, and what is skipped with the reason; the largest first."""
    found = connection.execute(_RELATIONS).fetchall()
    tables: list[Relation] = []
    sequences: list[Relation] = []
    skipped: dict[str, str] = {}
    for schema, name, label, relkind, persistence, populated, pages, columns, member, recovering in found:
        if relkind == "f":
            skipped[label] = "a foreign table: its rows are on another server"
        elif persistence == "u" and recovering:
            skipped[label] = "an unlogged table: a standby cannot read it"
        elif not populated:
            skipped[label] = "a materialized view that was never filled"
        else:
            kinds = {"m": "materialized view", "S": "sequence"}
            kind = kinds.get(relkind) or (
                "unlogged" if persistence == "u" else "of an extension" if member else "table"
            )
            shaped = tuple(_Column(*column) for column in columns or ())
            (sequences if relkind == "S" else tables).append(Relation(schema, name, label, kind, pages, shaped))
    return tables, sequences, skipped


def batches(relations: Iterable[Relation]) -> Iterator[list[Relation]]:
    """Large tables alone, small ones many together: one round trip and one transaction each, so that locks stay few."""
    batch: list[Relation] = []
    for relation in relations:
        if relation.pages >= _SMALL_PAGES:
            yield [relation]
        else:
            batch.append(relation)
            if len(batch) == _TABLES_A_BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def size(batch: list[Relation]) -> int:
    """How many bytes these have, as the planner estimates them."""
    return sum(relation.pages for relation in batch) * _PAGE


Reading = list[tuple[Relation, Content | tuple[int, bool]]]
"""Each relation with its content, or a sequence's last value and whether it was called."""


def read(connect: Connect, database: str, snapshot: str, batch: list[Relation], gauge: Gauge | None = None) -> Reading:
    """Read some relations in a session of their own at an exported snapshot. Raises psycopg.Error, and CannotError when
    the `gauge` ends it.
    """
    with connect(database) as connection, gauge.reads(connection, size(batch)) if gauge else nullcontext():
        try:
            begin(connection, snapshot)
            return read_together(connection, batch)
        except (errors.ProgramLimitExceeded, errors.InternalError_) as error:
            # A row of more than 1 GB is no single value; which tables have one follows from their content alone.
            if isinstance(error, errors.InternalError_) and "invalid memory alloc request" not in str(error):
                raise
            connection.rollback()
            begin(connection, snapshot)
            return [(relation, _read_one(connection, relation)) for relation in batch]


def read_together(connection: Connection[Any], batch: list[Relation]) -> Reading:
    """Read some relations in one round trip."""
    with connection.pipeline():
        cursors = [(relation, connection.execute(_query(relation))) for relation in batch]
        return [(relation, _content(relation, cursor)) for relation, cursor in cursors]


def _read_one(connection: Connection[Any], relation: Relation) -> Content | tuple[int, bool]:
    try:
        with connection.transaction():
            return _content(relation, connection.execute(_query(relation)))
    except (errors.ProgramLimitExceeded, errors.InternalError_):
        return _content(relation, connection.execute(relation.query(long_rows=True)))


def _query(relation: Relation) -> sql.Composed:
    if relation.kind == "sequence":
        return sql.SQL("select last_value, is_called from {}").format(sql.Identifier(relation.schema, relation.name))
    return relation.query()


def _content(relation: Relation, cursor: psycopg.Cursor[Any]) -> Content | tuple[int, bool]:
    row = cursor.fetchone()
    assert row
    first, second = row
    return (first, second) if relation.kind == "sequence" else Content(first, second, relation.kind)


def large_objects(connection: Connection[Any]) -> Content:
    """What a reader sees of them: a page that was never written and one that was written with zeros are the same."""
    row = connection.execute(
        """with pages as (
            select loid, pageno, length(data) as bytes, rtrim(data, '\\x00') as data from pg_largeobject
        ), sizes as (
            select m.oid, coalesce(max(pageno * 2048::bigint + bytes), 0) as size
            from pg_largeobject_metadata m left join pages on loid = m.oid group by m.oid
        )
        select count(*), coalesce(sum(hash_record_extended(row(record_send(row(oid, size))), 0)), 0)
            + (select coalesce(sum(hash_record_extended(row(record_send(row(loid, pageno, data))), 0)), 0)
                from pages where data <> '')
        from sizes"""
    ).fetchone()
    assert row
    return Content(row[0], str(row[1]), "large objects")

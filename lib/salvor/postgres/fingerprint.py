"""An order-independent fingerprint of what a database holds: every bit of every row, taken at one snapshot.

A table's fingerprint is its row count and the sum of a 64-bit hash of each row's binary form, so neither the order of
rows nor the layout of pages matters, duplicates count, and parallel workers can share the work. It finds damage and
mistakes; it is no defence against somebody who constructs collisions.

A row is hashed as one value: `hash_record` over its columns would be linear in them, so that exchanging two values
between two rows would go unseen. What has no binary form that survives a dump is hashed as its text under pinned
settings, which is what a dump carries:

- types of users and extensions, and arrays: these hold object ids, and arrays remember a null that is gone;
- reg* types (object ids) and tsquery (its tree is balanced anew when it is read).

Floating-point numbers keep every bit but those of NaN: arithmetic makes negative ones, and a dump's are positive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from psycopg import Connection, errors, sql

from salvor.change import Finding, Level, canonical
from salvor.errors import CannotError
from salvor.postgres import structure
from salvor.postgres.structure import Definition

Connect = Callable[[str], Connection[Any]]
"""Opens an autocommit session of the operator in the named database."""

_EXACT_IN_BINARY = frozenset((
    *("bool", "bytea", "char", "name", "int8", "int2", "int4", "text", "oid", "tid", "xid", "xid8", "cid", "json"),
    *("jsonb", "jsonpath", "xml", "bpchar", "varchar", "date", "time", "timetz", "timestamp", "timestamptz", "interval", "bit"),
    *("varbit", "numeric", "money", "uuid", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn", "tsvector", "refcursor"),
    *("txid_snapshot", "pg_snapshot", "int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
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

_OLDEST = 140000  # hash_record_extended came with 14
_SMALL_PAGES = 1024
_TABLES_A_BATCH = 200


@dataclass(frozen=True)
class Content:
    """Rows and the sum of their hashes. `kind`: `table`, or why a difference may be no damage (see `compare`)."""

    rows: int
    sum: str
    kind: str = "table"


@dataclass(frozen=True)
class Fingerprint:
    """What a database held at one moment.

    `sequences`: last value and whether it was called; `skipped`: what was not read, and why; `structure`: see
    `structure.take`.
    """

    server_version: int
    tables: Mapping[str, Content]
    sequences: Mapping[str, tuple[int, bool]]
    large_objects: Content
    structure: Mapping[str, Definition]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One short name of the whole content (16 hex digits): equal for equal contents."""
        whole = {
            key: value for key, value in self.to_json().items() if key not in ("server_version", "structure", "skipped")
        }
        return hashlib.sha256(canonical(whole).encode()).hexdigest()[:16]

    @property
    def rows(self) -> int:
        """The rows of all tables."""
        return sum(content.rows for content in self.tables.values())

    def summary(self) -> dict[str, Any]:
        """A few figures for listings: the whole may be megabytes."""
        return {"digest": self.digest, "tables": len(self.tables), "rows": self.rows}

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        data = asdict(self)
        return data | {"sequences": {name: list(value) for name, value in self.sequences.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Fingerprint:
        """The Fingerprint that `to_json` wrote. Raises KeyError or TypeError for anything else."""
        return Fingerprint(
            server_version=data["server_version"],
            tables={name: Content(**content) for name, content in data["tables"].items()},
            sequences={name: (value[0], value[1]) for name, value in data["sequences"].items()},
            large_objects=Content(**data["large_objects"]),
            structure={name: Definition(**definition) for name, definition in data["structure"].items()},
            skipped=data["skipped"],
        )


@dataclass(frozen=True)
class _Column:
    name: str
    type: str  # of its base type, when it is a domain
    type_schema: str
    output: tuple[str, str]
    send: tuple[str, str]

    def exact(self) -> sql.Composable:
        """SQL for the value in a form that equal values share."""
        column = sql.Identifier(self.name)
        if self.type_schema == "pg_catalog" and self.type in _FLOATING:
            value = sql.SQL("{}::{}").format(column, sql.Identifier("pg_catalog", self.type))
            return sql.SQL("case when {0} = 'NaN' then 'NaN' else {0} end").format(value)
        if self.binary:
            return sql.SQL("{}::{}").format(column, sql.Identifier("pg_catalog", self.type))
        return sql.SQL("textin({}({}))").format(sql.Identifier(*self.output), column)

    @property
    def binary(self) -> bool:
        return self.type_schema == "pg_catalog" and self.type in _EXACT_IN_BINARY

    def digest(self) -> sql.Composable:
        """SQL for a digest of the value alone, for rows that are too long to be one value."""
        send = sql.Identifier(*self.send) if self.binary else sql.Identifier("pg_catalog", "textsend")
        if self.type in _FLOATING:
            return self.exact()
        return sql.SQL("sha256({}({}))").format(send, self.exact())


@dataclass(frozen=True)
class _Relation:
    schema: str
    name: str
    label: str
    kind: str
    pages: int
    columns: tuple[_Column, ...]

    def query(self, *, long_rows: bool = False) -> sql.Composed:
        values = [column.digest() if long_rows else column.exact() for column in self.columns]
        return sql.SQL(
            "select count(*), coalesce(sum(hash_record_extended(row(record_send(row({}))), 0)), 0)::text from only {}"
        ).format(sql.SQL(", ").join(values), sql.Identifier(self.schema, self.name))

    @property
    def lockable(self) -> bool:
        return self.kind != "materialized view"


def take(connect: Connect, database: str, jobs: int = 2, snapshot: str | None = None) -> Fingerprint:
    """The fingerprint of `database`, read by `jobs` sessions at one snapshot: `snapshot`, or one taken now.

    Whoever exported `snapshot` must keep its transaction open meanwhile, and hold locks on the tables (`lock_tables`)
    when somebody may alter or truncate them. Raises CannotError when the database cannot be read whole.
    """
    with connect(database) as leader:
        if snapshot is None:
            snapshot = begin(leader)
            lock_tables(leader)
        else:
            begin(leader, snapshot)
        version = leader.info.server_version
        if version < _OLDEST:
            raise CannotError(
                f"{database}: a fingerprint needs PostgreSQL {_OLDEST // 10000} or newer; this is {version // 10000}.",
                hint="restore it without a fingerprint; the service's own checks remain",
            )
        try:
            relations, sequences, skipped = _relations(leader)
            work = [*_batches(relations), *_batches(sequences)]
            with ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="fingerprint") as pool:
                reading = [pool.submit(_read, connect, database, snapshot, batch) for batch in work]
                definitions = structure.take(leader)
                large_objects = _large_objects(leader)
                results = [row for future in reading for row in future.result()]
        except psycopg.Error as error:
            raise _unreadable(database, error) from error
    return Fingerprint(
        server_version=version,
        tables={relation.label: content for relation, content in results if isinstance(content, Content)},
        sequences={relation.label: content for relation, content in results if not isinstance(content, Content)},
        large_objects=large_objects,
        structure=definitions,
        skipped=skipped,
    )


def _unreadable(database: str, error: psycopg.Error) -> CannotError:
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
    """Begin a read-only transaction with pinned output settings, at `snapshot` or at a new one; returns its name.

    No text is converted: the client's encoding is the server's, and for SQL_ASCII one in which every byte is valid.
    """
    connection.execute("begin isolation level repeatable read read only")
    if snapshot is None:
        snapshot = str(connection.execute("select pg_catalog.pg_export_snapshot()").fetchone()[0])  # type: ignore[index]
    else:
        connection.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
    server = connection.info.parameter_status("server_encoding") or "UTF8"
    encoding = {"SQL_ASCII": "LATIN1", "EUC_TW": "UTF8", "MULE_INTERNAL": "UTF8"}.get(server, server)
    for name, value in {**_SETTINGS, "client_encoding": encoding}.items():
        connection.execute("select pg_catalog.set_config(%s, %s, true)", (name, value))
    return snapshot


def lock_tables(connection: Connection[Any]) -> None:
    """Keep every table from being altered, truncated or dropped until the transaction ends; reads and writes go on.

    When the server has no room for so many locks (max_locks_per_transaction), none is taken.
    """
    relations = [relation for relation in _relations(connection)[0] if relation.lockable]
    try:
        with connection.transaction():
            for start in range(0, len(relations), 500):
                names = [sql.Identifier(one.schema, one.name) for one in relations[start : start + 500]]
                connection.execute(
                    sql.SQL("lock table only {} in access share mode").format(sql.SQL(", only ").join(names))
                )
    except errors.OutOfMemory:
        pass
    except psycopg.Error as error:
        raise _unreadable(connection.info.dbname, error) from error


_RELATIONS = """
with recursive base (type, base) as (
    select oid, oid from pg_type where typtype <> 'd'
    union all select d.oid, b.base from pg_type d join base b on d.typbasetype = b.type where d.typtype = 'd'
), columns as (
    select attrelid, array_agg(array[attname, t.typname, tn.nspname, onn.nspname, o.proname, sn.nspname, s.proname]
        order by attname collate "C") as columns
    from pg_attribute a join base b on b.type = atttypid join pg_type t on t.oid = b.base
    join pg_namespace tn on tn.oid = t.typnamespace
    join pg_proc o on o.oid = t.typoutput join pg_namespace onn on onn.oid = o.pronamespace
    left join pg_proc s on s.oid = t.typsend left join pg_namespace sn on sn.oid = s.pronamespace
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


def _relations(connection: Connection[Any]) -> tuple[list[_Relation], list[_Relation], dict[str, str]]:
    """Tables and materialised views, sequences, and what is skipped with the reason; the largest first."""
    tables: list[_Relation] = []
    sequences: list[_Relation] = []
    skipped: dict[str, str] = {}
    for schema, name, label, relkind, persistence, populated, pages, columns, member, recovering in connection.execute(
        _RELATIONS
    ).fetchall():
        if relkind == "f":
            skipped[label] = "a foreign table: its rows are on another server"
        elif persistence == "u" and recovering:
            skipped[label] = "an unlogged table: a standby cannot read it"
        elif not populated:
            skipped[label] = "a materialized view that was never filled"
        else:
            kind = (
                "materialized view"
                if relkind == "m"
                else "unlogged"
                if persistence == "u"
                else "of an extension"
                if member
                else "table"
            )
            shaped = tuple(_Column(one[0], one[1], one[2], (one[3], one[4]), (one[5], one[6])) for one in columns or ())
            relation = _Relation(schema, name, label, "sequence" if relkind == "S" else kind, pages, shaped)
            (sequences if relkind == "S" else tables).append(relation)
    return tables, sequences, skipped


def _batches(relations: Iterable[_Relation]) -> Iterator[list[_Relation]]:
    """Large tables alone, small ones many together: one round trip and one transaction each, so that locks stay few."""
    batch: list[_Relation] = []
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


def _read(
    connect: Connect, database: str, snapshot: str, batch: list[_Relation]
) -> list[tuple[_Relation, Content | tuple[int, bool]]]:
    with connect(database) as connection:
        try:
            begin(connection, snapshot)
            return _read_together(connection, batch)
        except (errors.ProgramLimitExceeded, errors.InternalError_) as error:
            # A row of more than 1 GB is no single value; which tables have one follows from their content alone.
            if isinstance(error, errors.InternalError_) and "invalid memory alloc request" not in str(error):
                raise
            connection.rollback()
            begin(connection, snapshot)
            return [(relation, _read_one(connection, relation)) for relation in batch]


def _read_together(
    connection: Connection[Any], batch: list[_Relation]
) -> list[tuple[_Relation, Content | tuple[int, bool]]]:
    with connection.pipeline():
        cursors = [(relation, connection.execute(_query(relation))) for relation in batch]
        return [(relation, _content(relation, cursor)) for relation, cursor in cursors]


def _read_one(connection: Connection[Any], relation: _Relation) -> Content | tuple[int, bool]:
    try:
        with connection.transaction():
            return _content(relation, connection.execute(_query(relation)))
    except (errors.ProgramLimitExceeded, errors.InternalError_):
        return _content(relation, connection.execute(relation.query(long_rows=True)))


def _query(relation: _Relation) -> sql.Composed:
    if relation.kind == "sequence":
        return sql.SQL("select last_value, is_called from {}").format(sql.Identifier(relation.schema, relation.name))
    return relation.query()


def _content(relation: _Relation, cursor: psycopg.Cursor[Any]) -> Content | tuple[int, bool]:
    row = cursor.fetchone()
    assert row
    first, second = row
    return (first, second) if relation.kind == "sequence" else Content(first, second, relation.kind)


def _large_objects(connection: Connection[Any]) -> Content:
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


_NAMED = 10


def compare(
    expected: Fingerprint, found: Fingerprint, *, subject: str = "", evidence: str = "", physical: bool = False
) -> list[Finding]:
    """What differs, by name; one passing finding when nothing does.

    Only a warning is: what a dump fills anew (materialised views, tables of extensions); after a `physical` restore,
    unlogged tables, which PostgreSQL empties, and sequences a little ahead (the log records 32 values beforehand).
    """
    damaged: list[str] = []
    doubtful: list[str] = []
    excused = ("unlogged",) if physical else ("materialized view", "of an extension")
    for name in sorted({*expected.tables, *found.tables}):
        before, after = expected.tables.get(name), found.tables.get(name)
        if before == after:
            continue
        said = f"{name}: {_difference(before, after)}"
        kind = (before or after or Content(0, "")).kind
        reason = expected.skipped.get(name) or found.skipped.get(name)
        (doubtful if kind in excused or reason else damaged).append(
            f"{said} ({reason or kind})" if reason or kind != "table" else said
        )
    for name in sorted({*expected.sequences, *found.sequences}):
        value, now = expected.sequences.get(name), found.sequences.get(name)
        if value != now:
            ahead = physical and value is not None and now is not None and now[0] > value[0]
            (doubtful if ahead or name in found.skipped else damaged).append(
                f"sequence {name}: {_value(now)}, expected {_value(value)}"
            )
    if expected.large_objects != found.large_objects:
        damaged.append(f"large objects: {_difference(expected.large_objects, found.large_objects)}")
    for name, how in structure.compare(dict(expected.structure), dict(found.structure)):
        (doubtful if how == "written differently" else damaged).append(f"{name}: {how}")
    doubtful += [f"{name}: not compared, {why}" for name, why in found.skipped.items() if name not in expected.tables]
    figure = f"{found.digest}, {len(found.tables):,} tables, {found.rows:,} rows"
    limit = f"{expected.digest}, {len(expected.tables):,} tables, {expected.rows:,} rows"
    findings = []
    if damaged:
        findings.append(Finding(subject, "content fingerprint", Level.FAIL, figure, limit, _list(damaged), evidence))
    else:
        findings.append(
            Finding(
                subject, "content fingerprint", Level.PASS, figure, limit, "every row as it was backed up", evidence
            )
        )
    if doubtful:
        findings.append(
            Finding(subject, "content that may differ", Level.WARN, f"{len(doubtful)}", "", _list(doubtful), evidence)
        )
    return findings


def _difference(before: Content | None, after: Content | None) -> str:
    if after is None:
        return "missing"
    if before is None:
        return f"not expected, with {after.rows:,} rows"
    if before.rows != after.rows:
        return f"{after.rows:,} rows, expected {before.rows:,}"
    return f"{after.rows:,} rows as expected, with other content"


def _value(value: tuple[int, bool] | None) -> str:
    return "missing" if value is None else f"{value[0]}{'' if value[1] else ' (not yet called)'}"


def _list(items: list[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more:,} more" if more > 0 else "")

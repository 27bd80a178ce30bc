from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, sql
from salvor.change import Level
from salvor.errors import CannotError
from salvor.postgres import fingerprint, rows, structure
from salvor.postgres.fingerprint import Fingerprint

from tests.postgres.conftest import PostgresServer

# A type, a value, and one that is as near to it as can be: another bit, another spelling, another null.
NEIGHBOURS = [
    ("boolean", "true", "false"),
    ("boolean", "false", "null"),
    ("smallint", "-1", "32767"),
    ("integer", "1", "0"),
    ("bigint", "9007199254740993", "9007199254740992"),
    ("oid", "4294967295", "4294967294"),
    ("numeric", "1.0", "1.00"),
    ("numeric", "'NaN'", "'Infinity'"),
    ("numeric", "'1e-1000'", "'0e-1000'"),
    ("real", "0.1", "0.10000001"),
    ("real", "'0'", "'-0'"),
    ("double precision", "'0'", "'-0'"),
    ("double precision", "'NaN'", "'-Infinity'"),
    ("double precision", "0.1", "0.10000000000000002"),
    ("double precision", "5e-324", "0"),
    ("money", "'12.34'", "'12.35'"),
    ("text", "'a'", "'a '"),
    ("text", "''", "null"),
    ("text", "e'\\u00e9'", "e'e\\u0301'"),
    ("varchar(9)", "'a'", "'a '"),
    ("char(9)", "'a'", "'b'"),
    ('"char"', "'a'", "''"),
    ("name", "'a'", "'b'"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("bytea", "'\\x80'", "'\\x81'"),
    ("bit(9)", "b'000000001'", "b'000000000'"),
    ("bit varying", "b'0'", "b'00'"),
    ("date", "'infinity'", "'-infinity'"),
    ("date", "'0044-03-15 BC'", "'0044-03-15'"),
    ("time", "'23:59:60'", "'23:59:59.999999'"),
    ("timetz", "'12:00+00'", "'13:00+01'"),
    ("timestamp", "'2026-11-20 03:12'", "'2026-11-20 03:12:00.000001'"),
    ("timestamptz", "'2026-11-20 03:12+09'", "'2026-11-20 03:12:00.000001+09'"),
    ("timestamptz", "'infinity'", "'-infinity'"),
    ("interval", "'1 month'", "'30 days'"),
    ("interval", "'1 day'", "'24 hours'"),
    ("uuid", "'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'"),
    ("json", "'{\"a\":1}'", "'{\"a\": 1}'"),
    ("json", "'null'", "null"),
    ("jsonb", "'{\"a\":1.0}'", "'{\"a\":1.00}'"),
    ("jsonb", "'\"1\"'", "'1'"),
    ("jsonpath", "'$.a'", "'$.b'"),
    ("xml", "'<a/>'", "'<a></a>'"),
    ("inet", "'10.0.0.1/8'", "'10.0.0.1'"),
    ("inet", "'::'", "'0.0.0.0'"),
    ("cidr", "'10.0.0.0/8'", "'10.0.0.0/9'"),
    ("macaddr", "'08:00:2b:01:02:03'", "'08:00:2b:01:02:02'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'", "'08:00:2b:01:02:03:04:04'"),
    ("point", "'(0,1)'", "'(-0,1)'"),
    ("point", "'(NaN,1)'", "'(1,NaN)'"),
    ("line", "'{1,2,3}'", "'{1,2,3.0000000000000004}'"),
    ("lseg", "'[(0,0),(1,1)]'", "'[(1,1),(0,0)]'"),
    ("box", "'(1,1),(0,0)'", "'(1,2),(0,0)'"),
    ("path", "'((0,0),(1,1))'", "'[(0,0),(1,1)]'"),
    ("polygon", "'((0,0),(1,1),(2,0))'", "'((0,0),(1,1),(2,1))'"),
    ("circle", "'<(0,0),1>'", "'<(0,0),2>'"),
    ("tsvector", "'a:1A'", "'a:1B'"),
    ("tsquery", "'a & b'", "'a <-> b'"),
    ("pg_lsn", "'0/1'", "'1/0'"),
    ("pg_snapshot", "'10:20:10,14'", "'10:20:10,15'"),
    ("txid_snapshot", "'10:20:10,14'", "'10:20:10'"),
    ("xid", "'1'", "'2'"),
    ("xid8", "'1'", "'4294967297'"),
    ("cid", "'1'", "'2'"),
    ("tid", "'(0,1)'", "'(1,0)'"),
    ("refcursor", "'a'", "'b'"),
    ("int4range", "'[1,5)'", "'[1,6)'"),
    ("int8range", "'empty'", "'(,)'"),
    ("numrange", "'[1,2]'", "'[1,2)'"),
    ("tsrange", "'[2026-01-01,infinity]'", "'[2026-01-01,)'"),
    ("tstzrange", "'[2026-01-01 00:00+00,)'", "'[2026-01-01 00:00+01,)'"),
    ("daterange", "'[2026-01-01,2026-01-02)'", "'[2026-01-01,2026-01-03)'"),
    ("int4multirange", "'{[1,2),[4,5)}'", "'{[1,2),[4,6)}'"),
    ("nummultirange", "'{}'", "null"),
    ("regclass", "'kinds.a_table'", "'kinds.other_table'"),
    ("regtype", "'kinds.mood'", "'kinds.pair'"),
    ("regprocedure", "'lower(text)'", "'upper(text)'"),
    ("regrole", "'postgres'", "'pg_monitor'"),
    ("aclitem", "'postgres=r/postgres'", "'postgres=w/postgres'"),
    ("int2vector", "'1 2'", "'1 3'"),
    ("oidvector", "'1 2'", "'1 3'"),
    ("integer[]", "'{1,2}'", "'{1,null}'"),
    ("integer[]", "'{1,2}'", "'[0:1]={1,2}'"),
    ("integer[]", "'{{1},{2}}'", "'{{1,2}}'"),
    ("text[]", "'{null}'", "'{\"null\"}'"),
    ("text[]", "'{\"a,b\"}'", "'{a,b}'"),
    ("double precision[]", "'{0}'", "'{-0}'"),
    ("bytea[]", "array['\\x00'::bytea]", "array['\\x0000'::bytea]"),
    ("timestamptz[]", "'{2026-01-01 00:00+00}'", "'{2026-01-01 00:00:00.000001+00}'"),
    ("kinds.mood", "'sad'", "'glad'"),
    ("kinds.mood[]", "'{sad}'", "'{glad}'"),
    ("kinds.pair", "'(1,a)'", "'(1,b)'"),
    ("kinds.pair", "'(,)'", "null"),
    ("kinds.pair", "'(1,)'", "'(1,\"\")'"),
    ("kinds.pair[]", "array['(1,a)'::kinds.pair]", "array['(2,a)'::kinds.pair]"),
    ("kinds.amount", "1.50", "1.5"),
    ("kinds.amount[]", "'{1.50}'", "'{1.5}'"),
    ("kinds.floatrange", "'[0.1,0.2]'", "'[0.1,0.20000000000000004]'"),
    ("kinds.floatmultirange", "'{[0.1,0.2]}'", "'{[0.1,0.3]}'"),
    ("kinds.moods", "'{sad,glad}'", "'{glad,sad}'"),
]  # fmt: skip

KINDS = """
create schema kinds;
create table kinds.a_table (); create table kinds.other_table ();
create type kinds.mood as enum ('sad', 'glad');
create type kinds.pair as (number int, word text);
create domain kinds.amount as numeric check (value > 0);
create domain kinds.moods as kinds.mood[];
create type kinds.floatrange as range (subtype = float8, multirange_type_name = kinds.floatmultirange);
"""


@pytest.fixture(scope="module")
def server(postgres_server: PostgresServer) -> PostgresServer:
    return postgres_server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    name = f"fingerprint_{uuid.uuid4().hex[:8]}"
    with connect(server, "postgres") as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def connect(server: PostgresServer, database: str) -> Connection[Any]:
    return psycopg.connect(server.database(database), autocommit=True)


def take(server: PostgresServer, database: str, jobs: int = 1) -> Fingerprint:
    return fingerprint.take(lambda name: connect(server, name), database, jobs)


@pytest.fixture
def execute(server: PostgresServer, database: str) -> Iterator[Callable[[str], Any]]:
    with connect(server, database) as connection:
        yield lambda text: connection.execute(text.encode())


def copy(server: PostgresServer, database: str) -> str:
    """The database dumped and loaded again, under object ids of its own."""
    name = f"{database}_copy"
    server.run("createdb", "-T", "template0", name)
    dump = server.data.parent / f"{name}.sql"
    dump.write_bytes(server.run("pg_dump", database))
    server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f", dump)
    return name


def differing(expected: Fingerprint, found: Fingerprint) -> set[str]:
    return {name for name in expected.tables if expected.tables[name] != found.tables[name]}


def long_rows(server: PostgresServer, database: str) -> dict[str, object]:
    """Every table by the queries for rows of more than a gigabyte."""
    with connect(server, database) as connection, connection.transaction():
        rows.pin(connection)
        tables = rows.relations(connection)[0]
        return {table.label: connection.execute(table.query(long_rows=True)).fetchone() for table in tables}


def test_each_single_value_of_each_type_counts(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute(KINDS)
    names = [f"public.t{number}" for number in range(len(NEIGHBOURS))]
    for name, (kind, value, _) in zip(names, NEIGHBOURS, strict=True):
        execute(f"create table {name} (id int, v {kind})")
        execute(f"insert into {name} values (1, null), (2, {value}), (3, {value})")  # noqa: S608
    before, long_before = take(server, database), long_rows(server, database)
    for name, (_, _, neighbour) in zip(names, NEIGHBOURS, strict=True):
        execute(f"update {name} set v = {neighbour} where id = 2")  # noqa: S608
    changed, long_changed = take(server, database), long_rows(server, database)
    for name, (_, value, _) in zip(names, NEIGHBOURS, strict=True):
        execute(f"update {name} set v = {value} where id = 2")  # noqa: S608
    unseen = set(names) - differing(before, changed)
    unseen |= {name for name in names if long_before[name] == long_changed[name]}
    assert not unseen, [NEIGHBOURS[names.index(name)] for name in unseen]
    assert take(server, database).digest == before.digest
    found = take(server, copy(server, database))
    assert differing(before, found) == set()
    assert [finding.level for finding in fingerprint.compare(before, found)] == [Level.PASS]


def test_every_built_in_type_has_a_neighbour(server: PostgresServer) -> None:
    with connect(server, "postgres") as connection:
        known = connection.execute(
            """select oid::regtype::text from pg_type where typtype in ('b', 'r', 'm') and oid < 10000
            and typcategory not in ('A', 'Z') and typname not in ('pg_node_tree', 'gtsvector', 'unknown')"""
        ).fetchall()
    tried = {connect_type.split("(")[0] for connect_type, _, _ in NEIGHBOURS}
    spelled = {
        "character": "char", "character varying": "varchar", "time without time zone": "time",
        "time with time zone": "timetz", "timestamp without time zone": "timestamp",
        "timestamp with time zone": "timestamptz",
    }  # fmt: skip
    # Spelled as their siblings, or not to be put into a table by a user.
    siblings = {"regproc", "regoper", "regoperator", "regcollation", "regconfig", "regdictionary", "regnamespace"}
    siblings |= {"int8multirange", "tsmultirange", "tstzmultirange", "datemultirange", "pg_ddl_command", "cstring"}
    assert {spelled.get(name, name) for (name,) in known} - tried - siblings == set()


def test_what_arithmetic_and_updates_leave_in_a_value_is_as_after_a_dump(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table t (f float8, r real, p point, a int[], q tsquery, d float8[])")
    execute(
        """insert into t select 'inf'::float8 - 'inf'::float8, 'inf'::real - 'inf', point('inf'::float8 - 'inf', 0),
        '{null,1}', 'a & (b & c)', array['inf'::float8 - 'inf']"""
    )
    execute("update t set a[1] = 5")
    before = take(server, database)
    assert fingerprint.compare(before, take(server, copy(server, database)))[0].level is Level.PASS


def test_values_exchanged_between_rows_count(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table t (id int, owner text, price numeric); insert into t values (1, 'a', 5), (2, 'b', 6)")
    before = take(server, database)
    execute("update t set owner = case owner when 'a' then 'b' else 'a' end")
    assert differing(before, take(server, database)) == {"public.t"}


def test_layout_and_order_do_not_count(server: PostgresServer, database: str, execute: Callable[[str], Any]) -> None:
    execute("create table t (gone text, id int primary key, note text)")
    execute("insert into t select repeat('x', 50), g, md5(g::text) from generate_series(1, 5000) g")
    execute("alter table t drop column gone")
    before = take(server, database)
    execute("delete from t where id % 3 = 0")
    execute("insert into t select g, md5(g::text) from generate_series(3, 5000, 3) g order by g desc")
    assert take(server, database) == before
    execute("vacuum full t")
    execute("cluster t using t_pkey")
    execute("set search_path = ''")
    assert take(server, database, jobs=3) == before


def test_duplicates_and_rows_without_columns_count(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table nothing (); insert into nothing default values; create table twice (v int)")
    execute("insert into twice values (7), (7)")
    before = take(server, database)
    assert before.tables["public.nothing"].rows == 1
    execute("insert into nothing default values; insert into twice values (7), (7)")
    assert differing(before, take(server, database)) == {"public.nothing", "public.twice"}


EVERYTHING = """
create extension citext;
create role "the clerk"; create schema "odd ""schema"; create table "odd ""schema"."a'b
c" (n int, "col ""x" citext default 'Abc');
insert into "odd ""schema"."a'b
c" values (1, 'One'), (1, 'one');
create table parted (id int, at date not null, primary key (id, at)) partition by range (at);
create table parted_1 partition of parted for values from ('2026-01-01') to ('2026-07-01');
create table parted_2 partition of parted for values from ('2026-07-01') to ('2027-01-01');
insert into parted select g, '2026-01-01'::date + g from generate_series(1, 300) g;
create table parent (a int); create table child (z int, a int); alter table child inherit parent;
insert into parent values (1); insert into child values (2, 3);
create table status (id int generated always as identity primary key, s varchar(9) check (s in ('new', 'old')),
    twice int generated always as (id * 2) stored, self int references status);
insert into status (s) select 'new' from generate_series(1, 3);
create unlogged table unlogged (v int); insert into unlogged values (1);
create view report as select s, count(*) from status where s in ('new', 'old') group by s;
create materialized view sums as select sum(id) from status;
create materialized view never as select 1 with no data;
create function f(x int) returns int language sql as 'select x + 1';
create function g(x int) returns int language sql begin atomic select x + 1; end;
create function tf() returns trigger language plpgsql as 'begin return new; end';
create trigger t before insert on status for each row execute function tf();
create table ring_a (id int primary key, b int); create table ring_b (id int primary key, a int references ring_a);
alter table ring_a add foreign key (b) references ring_b deferrable initially deferred;
alter table status enable row level security; create policy p on status to "the clerk" using (s = 'new');
grant select (id) on status to "the clerk"; grant usage on schema public to "the clerk";
revoke execute on function f from public; alter default privileges grant select on tables to "the clerk";
create sequence loose start 10 increment -5 minvalue -100 maxvalue 10 cycle; select nextval('loose'), nextval('loose');
create type mood as enum ('b', 'a'); alter type mood add value 'between' before 'a';
create domain d as text not null default 'x';
create aggregate total (int) (sfunc = int4pl, stype = int, initcond = '0');
create operator === (leftarg = int, rightarg = int, function = int4eq);
create collation c2 (provider = libc, locale = 'C'); create statistics st on id, s from status;
create rule r as on delete to report do instead nothing; create index on status (lower(s)) where id > 1;
create publication pub for table status; comment on table status is 'it''s'; comment on column status.s is 'state';
create temporary table temporary (v int); insert into temporary values (1);
select lo_create(4711); select lo_from_bytea(4712, 'large'); select lo_put(4711, 10000, 'far away');
"""


def test_everything_a_database_can_hold_survives_a_dump(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute(EVERYTHING)
    before = take(server, database, jobs=2)
    assert before.tables["public.parted_1"].rows + before.tables["public.parted_2"].rows == 300
    assert before.tables["public.parent"].rows == 1  # its child's rows are counted once
    assert "public.parted" not in before.tables
    assert before.sequences["public.loose"] == (5, True)
    assert before.large_objects.rows == 2
    assert set(before.skipped) == {"public.never"}
    assert not [name for name in before.tables if "temporary" in name]
    assert Fingerprint.from_json(json.loads(json.dumps(before.to_json()))) == before
    found = take(server, copy(server, database))
    assert found.digest == before.digest
    findings = fingerprint.compare(before, found)
    assert [(finding.level, finding.detail) for finding in findings if finding.level is Level.FAIL] == []
    assert "written differently" not in str(findings)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("alter table status add column more int", "table public.status: another definition"),
        ("alter table status drop constraint status_s_check", "constraint public.status.status_s_check: missing"),
        ("create index extra on status (s)", "index public.extra: not expected"),
        (
            "create or replace function f(x int) returns int language sql as 'select x + 2'",
            "function public.f(integer)",
        ),
        ("alter table status disable trigger t", "trigger public.status.t: another definition"),
        ("alter table status disable row level security", "table public.status: another definition"),
        ("alter policy p on status using (s = 'old')", "policy public.status.p: another definition"),
        ("create or replace view report as select s, count(*) from status group by 1", "view public.report"),
        ("alter type mood rename value 'b' to 'c'", "type public.mood: another definition"),
        ("grant update on status to public", "table public.status: another definition"),
        ("comment on table status is 'its'", "comment table public.status: another definition"),
        ("select nextval('loose')", "sequence public.loose: 0, expected 5"),
        ("select lo_put(4711, 3, 'x')", "large objects: 2 rows as expected, with other content"),
        ("select lo_truncate(lo_open(4712, 131072), 9)", "large objects: 2 rows as expected, with other content"),
        ("insert into parted values (999, '2026-12-01')", "public.parted_2: "),
        ("drop table child", "public.child: missing"),
        ("alter table ring_a alter b set default 3", "table public.ring_a: another definition"),
        ("drop extension citext cascade", "extension citext: missing"),
    ],
)
def test_a_change_of_structure_is_named(
    server: PostgresServer, everything: tuple[str, Fingerprint], statement: str, named: str
) -> None:
    name, before = everything
    with connect(server, name) as connection:
        connection.execute("set search_path = public")
        with connection.transaction():  # undone at the end, so that the next one starts from the same
            connection.execute(statement.encode())
            found = _take_inside(connection)
            raise psycopg.Rollback
    failing = [finding for finding in fingerprint.compare(before, found) if finding.level is Level.FAIL]
    assert failing and named in failing[0].detail


def _take_inside(connection: Connection[Any]) -> Fingerprint:
    """The fingerprint as this open transaction sees it, through the same queries."""
    rows.pin(connection)
    tables, sequences, skipped = rows.relations(connection)
    read = rows.read_together(connection, [*tables, *sequences])
    return Fingerprint(
        connection.info.server_version,
        {one.label: value for one, value in read if isinstance(value, rows.Content)},
        {one.label: value for one, value in read if isinstance(value, tuple)},
        rows.large_objects(connection),
        structure.take(connection),
        skipped,
    )


@pytest.fixture(scope="module")
def everything(server: PostgresServer) -> tuple[str, Fingerprint]:
    name = "fingerprint_everything"
    server.run("createdb", name)
    with connect(server, name) as connection:
        connection.execute(EVERYTHING.replace('create role "the clerk";', "").encode())
    return name, take(server, name)


some_rows = st.lists(
    st.tuples(
        st.none() | st.integers(-3, 3),
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3),
        st.none() | st.floats() | st.sampled_from([0.0, -0.0, math.nan]),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=some_rows, other=some_rows, same=st.booleans())
def test_two_tables_agree_exactly_when_they_hold_the_same_rows(
    server: PostgresServer, everything: tuple[str, Fingerprint], one: list[Any], other: list[Any], same: bool
) -> None:
    other = one[::-1] if same else other
    with connect(server, everything[0]) as connection, connection.transaction(force_rollback=True):
        connection.execute("create table one (i int, t text, f float8); create table other (i int, t text, f float8)")
        for table, content in (("one", one), ("other", other)):
            with connection.cursor() as cursor:
                cursor.executemany(f"insert into {table} values (%s, %s, %s)".encode(), content)  # noqa: S608
        found = _take_inside(connection).tables

    def bits(content: list[Any]) -> Counter[str]:
        return Counter(repr(row) for row in content)

    assert (found["public.one"] == found["public.other"]) == (bits(one) == bits(other))


def test_one_character_of_a_hundred_megabytes_counts(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table t (id int, v text); insert into t values (1, repeat('x', 100000000))")
    before = take(server, database)
    execute("update t set v = overlay(v placing 'y' from 99999999)")
    assert differing(before, take(server, database)) == {"public.t"}


def test_many_tables(server: PostgresServer, database: str, execute: Callable[[str], Any]) -> None:
    execute(
        """do $$ begin for i in 1..1000 loop execute format('create table m%s (v int)', i); end loop; end $$;
        insert into m777 values (1)"""
    )
    found = take(server, database, jobs=2)
    assert len(found.tables) == 1000
    assert found.rows == 1


def test_the_snapshot_decides(server: PostgresServer, database: str, execute: Callable[[str], Any]) -> None:
    execute("create table t (v int); insert into t values (1)")
    with connect(server, database) as holder:
        snapshot = rows.begin(holder)
        rows.lock_tables(holder)
        execute("insert into t values (2)")
        found = fingerprint.take(lambda name: connect(server, name), database, 2, snapshot)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute("set lock_timeout = 50; truncate t")
    assert found.tables["public.t"].rows == 1


def test_an_operator_who_may_not_see_every_row_is_refused(
    server: PostgresServer, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table t (v int); alter table t enable row level security; insert into t values (1)")
    execute("do $$ begin create role onlooker login; exception when duplicate_object then null; end $$")
    execute("grant select on t to onlooker; grant select on pg_largeobject to onlooker")
    with pytest.raises(CannotError, match="superuser"):
        fingerprint.take(lambda name: psycopg.connect(server.database(name, "onlooker"), autocommit=True), database)


def test_sql_ascii_keeps_its_bytes(server: PostgresServer) -> None:
    name = f"ascii_{uuid.uuid4().hex[:8]}"
    server.run("createdb", "-T", "template0", "-E", "SQL_ASCII", "--locale=C", name)
    with psycopg.connect(server.database(name), autocommit=True, client_encoding="LATIN1") as connection:
        connection.execute('create table "täble" (v text); insert into "täble" values (\'\xe9\')')
        before = take(server, name)
        connection.execute("update \"täble\" set v = '\xe8'")
        assert len(differing(before, take(server, name))) == 1

"""Dumps in every form that people have, read and loaded by Salvor itself; and what a hostile one is told."""

from __future__ import annotations

import gzip
import io
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from salvor.errors import SalvorError
from salvor.postgres import dump, dump_load
from salvor.postgres.dump_target import Terms

from tests.postgres.conftest import PostgresServer

RICH = Path(__file__).parent / "rich.sql"
MARKER = b"--\n-- PostgreSQL database dump complete\n--\n"


@contextmanager
def database(server: PostgresServer, name: str) -> Iterator[str]:
    with psycopg.connect(server.superuser, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)".encode())
        connection.execute(f"create database {name} template template0".encode())
        yield server.database(name)
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="module")
def rich(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a dump of a rich database in each form, and the roles that it names."""
    folder = tmp_path_factory.mktemp("dumps")
    with psycopg.connect(postgres_server.superuser, autocommit=True) as connection:
        for role in ("rich_owner", "rich_reader", '"rich; ""odd"""'):
            connection.execute(f"drop role if exists {role}".encode())
            connection.execute(f"create role {role}".encode())
    with database(postgres_server, "rich") as place:
        postgres_server.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", place, "-f", RICH)
        for form, name in (("plain", "a.sql"), ("custom", "a.custom"), ("tar", "a.tar"), ("directory", "a.dir")):
            postgres_server.run("pg_dump", f"--format={form}", "-f", folder / name, place)
        plain = (folder / "a.sql").read_bytes()
        with gzip.open(folder / "a.sql.gz", "wb") as packed:
            packed.write(plain)
        subprocess.run(["zstd", "-q", str(folder / "a.sql"), "-o", str(folder / "a.sql.zst")], check=True)
        with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
            archive.add(folder / "a.sql.gz", "backup/database.sql.gz")
            archive.addfile(tarfile.TarInfo("backup/.env"), io.BytesIO())
        yield folder


def load(server: PostgresServer, path: Path, place: str, *, whole_tables: bool = False, jobs: int = 4) -> None:
    """Load as the administrator: what the roles may is tested with the side database."""
    with psycopg.connect(place, autocommit=True) as connection:
        roles = {row[0]: row[0] for row in connection.execute("select rolname from pg_roles")}
    connect = lambda: psycopg.connect(place)  # noqa: E731
    found = dump.examine(path)
    program = (str(server.bin / "pg_restore"),)
    terms = Terms(roles, trusted=True)
    done = dump_load.load(
        found, connect, administrator=lambda: psycopg.connect(place, autocommit=True), deadline=60.0, terms=terms,
        pg_restore=program, whole_tables=whole_tables, jobs=jobs,
    )  # fmt: skip
    for _ in done:
        pass


def content(server: PostgresServer, place: str) -> list[str]:
    """What pg_dump says of a database, without what differs from dump to dump."""
    lines = server.run("pg_dump", place).decode().splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]


def unchecked(place: str) -> list[tuple[str, str]]:
    """The constraints that the server does not take for checked: pg_dump does not show those of partitions."""
    with psycopg.connect(place) as connection:
        return connection.execute(
            "select conrelid::regclass::text, conname from pg_constraint where not convalidated"
        ).fetchall()


@pytest.mark.parametrize("name", ["a.sql", "a.sql.gz", "a.sql.zst", "a.custom", "a.tar", "a.dir", "a.tar.gz"])
def test_every_form_comes_back_as_it_was(postgres_server: PostgresServer, rich: Path, name: str) -> None:
    with database(postgres_server, "came_back") as place:
        load(postgres_server, rich / name, place)
        assert content(postgres_server, place) == content(postgres_server, postgres_server.database("rich"))
        assert unchecked(place) == unchecked(postgres_server.database("rich")) == [("app.refunds", "loose")]


@pytest.mark.parametrize("name", ["a.sql.gz", "a.custom"])
def test_tables_that_are_loaded_whole_come_back_as_they_were(
    postgres_server: PostgresServer, rich: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_load, "LARGE", 1)
    with database(postgres_server, "came_whole") as place:
        load(postgres_server, rich / name, place, whole_tables=True)
        assert content(postgres_server, place) == content(postgres_server, postgres_server.database("rich"))
        assert unchecked(place) == [("app.refunds", "loose")]


BY_HAND = rb'''--
-- PostgreSQL database dump
--
CREATE TABLE large (a int, b text);
CREATE TABLE "Odd ""one""" (a int);
CREATE TABLE referred (a int PRIMARY KEY);
CREATE TABLE refers (a int REFERENCES referred);
CREATE TABLE parts (a int) PARTITION BY RANGE (a);
CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100000);
COPY large (a, b) FROM stdin;
%b\.
COPY "Odd ""one""" FROM stdin;
1
\.
COPY large (a, b) FROM stdin;
-1	second
\.
COPY referred FROM stdin;
7
\.
COPY refers FROM stdin;
7
\.
COPY parts FROM stdin;
8
\.
INSERT INTO large VALUES (-2, 'third');
'''


def test_a_table_that_is_loaded_whole_is_frozen_and_keeps_what_it_had(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scripts that pg_dump did not write, too: two COPY of one table, foreign keys before the data."""
    monkeypatch.setattr(dump_load, "LARGE", 1)
    rows = b"".join(b"%d\tfirst\n" % number for number in range(100_000))
    (tmp_path / "hand.sql").write_bytes(BY_HAND % rows + MARKER)
    with database(postgres_server, "by_hand") as place:
        load(postgres_server, tmp_path / "hand.sql", place, whole_tables=True, jobs=1)
        with psycopg.connect(place) as connection:
            assert connection.execute("select b, count(*) from large group by b order by b").fetchall() == [
                ("first", 100_000),
                ("second", 1),
                ("third", 1),
            ]
            for table, row in (('"Odd ""one"""', 1), ("referred", 7), ("refers", 7), ("parts", 8)):
                assert connection.execute(f"table {table}".encode()).fetchall() == [(row,)]
            connection.execute("create extension pg_visibility")
            frozen = connection.execute("select all_frozen from pg_visibility_map_summary('large')").fetchone()
            assert frozen and frozen[0] > 400


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.9, 0.95])  # the very end of a tar archive is padding
@pytest.mark.parametrize("name", ["a.sql", "a.sql.gz", "a.sql.zst", "a.custom", "a.tar", "a.tar.gz"])
def test_a_truncated_dump_is_never_taken_for_a_whole_one(
    postgres_server: PostgresServer, rich: Path, tmp_path: Path, name: str, part: float
) -> None:
    whole = (rich / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
    with database(postgres_server, "cut_off") as place, pytest.raises(SalvorError):
        load(postgres_server, tmp_path / name, place)


HOSTILE = {
    "a shell": rb"\! touch /tmp/salvor-was-here",
    "a program": b"COPY (SELECT 1) TO PROGRAM 'touch /tmp/salvor-was-here';",
    "a program that is read": b"CREATE TABLE t (a text);\nCOPY t FROM PROGRAM 'touch /tmp/salvor-was-here';",
    "a file of the server": b"CREATE TABLE t (a text);\nCOPY t FROM '/etc/passwd';",
    "another connection": rb"\connect postgres",
    "another file": rb"\i /etc/passwd",
    "a block": b"DO $$ BEGIN CREATE ROLE salvor_was_here; END $$;",
    "a role": b"CREATE ROLE salvor_was_here;",
    "a setting of the server": b"ALTER SYSTEM SET archive_command = 'true';",
    "the database": b"DROP DATABASE postgres;\nCREATE TABLE other (a int);",
    "a language": b"CREATE EXTENSION plperlu;",
    "a library": b"LOAD 'plpgsql';",
    "a function in C": b"CREATE FUNCTION f(text) RETURNS int AS 'libc.so.6', 'system' LANGUAGE c;",
    "a query": b"SELECT pg_read_file('/etc/passwd');",
    "two in one": b"SET lock_timeout = 0; CREATE ROLE salvor_was_here;",
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_a_hostile_statement_is_refused_with_its_line(
    postgres_server: PostgresServer, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "hostile.sql"
    path.write_bytes(
        b"--\n-- PostgreSQL database dump\n--\n\nSET client_encoding = 'UTF8';\n" + HOSTILE[what] + b"\n" + MARKER
    )
    with database(postgres_server, "hostile") as place, pytest.raises(SalvorError) as caught:
        load(postgres_server, path, place)
    assert "hostile.sql" in str(caught.value)
    assert not Path("/tmp/salvor-was-here").exists()
    with psycopg.connect(postgres_server.superuser) as connection:
        assert connection.execute("select 1 from pg_roles where rolname = 'salvor_was_here'").fetchone() is None


def test_a_foreign_key_that_the_rows_violate_is_told(
    postgres_server: PostgresServer, rich: Path, tmp_path: Path
) -> None:
    sound = (rich / "a.sql").read_text()
    damaged = sound.replace(
        "COPY app.right_side (id, other) FROM stdin;\n1\t1", "COPY app.right_side (id, other) FROM stdin;\n1\t7"
    )
    assert damaged != sound
    (tmp_path / "a.sql").write_text(damaged)
    with database(postgres_server, "violated") as place, pytest.raises(SalvorError, match="violates foreign key"):
        load(postgres_server, tmp_path / "a.sql", place)


def test_members_of_an_archive_that_leave_it_are_refused(rich: Path, tmp_path: Path) -> None:
    for name, kind in (
        ("../../etc/cron.d/x", tarfile.REGTYPE),
        ("/etc/x", tarfile.REGTYPE),
        ("x.sql", tarfile.SYMTYPE),
    ):
        path = tmp_path / "archive.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
            archive.add(rich / "a.sql.gz", "database.sql.gz")
        with pytest.raises(SalvorError):
            dump.examine(path)


def test_of_several_dumps_in_an_archive_the_operator_takes_the_one_that_is_meant(rich: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("monday.sql.gz", "tuesday.sql.gz"):
            archive.add(rich / "a.sql.gz", name)
    with pytest.raises(SalvorError, match=r"2 dumps in it: 'monday[.]sql[.]gz', 'tuesday") as caught:
        dump.examine(path)
    subprocess.run(shlex.split(caught.value.hint.partition(": ")[2]), cwd=tmp_path, check=True)
    assert dump.examine(tmp_path / "monday.sql.gz").form is dump.Form.PLAIN


def test_a_database_that_is_not_empty_is_refused(postgres_server: PostgresServer, rich: Path) -> None:
    with database(postgres_server, "not_empty") as place:
        with psycopg.connect(place) as connection:
            connection.execute("create table mine (a int)")
        with pytest.raises(SalvorError):
            load(postgres_server, rich / "a.sql", place)

from __future__ import annotations

import pytest
from salvor.errors import CannotError
from salvor.postgres.dump_reader import MetaCommand, Reader
from salvor.postgres.dump_rules import Lane
from salvor.postgres.dump_screen import Order, Screen, shown
from salvor.postgres.dump_target import with_names

TABLE = "CREATE TABLE public.t (a integer);\n"
OWN = "CREATE DATABASE shop WITH TEMPLATE = template0 ENCODING = 'UTF8';\n"


def screen(text: str, *, trusted: bool = False) -> list[Order]:
    left = [text.encode() + b"\n-- PostgreSQL database dump complete\n"]
    reader = Reader(lambda: left.pop() if left else b"", "x.sql")
    judge = Screen(reader.error, trusted)
    orders = []
    for item in reader:
        if isinstance(item, MetaCommand):
            judge.meta_command(item)
        else:
            orders.append(judge.admit(item))
    return orders


NEVER = {
    "COPY public.t FROM PROGRAM 'touch /tmp/x'": "runs a program on the server",
    "copy/**/public.t to program 'touch /tmp/x'": "runs a program on the server",
    "COPY public.t FROM '/etc/passwd'": "anything but the dump itself",
    "COPY public.t TO '/etc/passwd'": "anything but the dump itself",
    "COPY public.t TO stdout": "anything but the dump itself",
    "COPY (SELECT 1) TO '/x'": "anything but the dump itself",
    "COPY public.t (a) FROM stdin WITH (FORMAT csv)": "anything but the dump itself",
    "DO $$ BEGIN PERFORM 1; END $$": "a block of code",
    "DO LANGUAGE plpython3u 'import os'": "a block of code",
    "ALTER SYSTEM SET archive_command = 'touch /tmp/x'": "server's settings",
    "CREATE ROLE evil SUPERUSER": "about a role",
    "CREATE USER evil": "about a role",
    "CREATE GROUP evil": "about a role",
    "ALTER ROLE postgres PASSWORD 'x'": "about a role",
    'ALTER USER "postgres" SUPERUSER': "about a role",
    "ALTER ROLE postgres IN DATABASE shop SET search_path = x": "not the one that was dumped",
    "DROP ROLE app": "about a role",
    "COMMENT ON ROLE app IS ''": "about a role",
    "GRANT postgres TO evil": "membership of roles",
    "REVOKE app FROM evil": "membership of roles",
    "DROP DATABASE shop": "about a database",
    "DROP DATABASE IF EXISTS shop": "about a database",
    "CREATE DATABASE shop TEMPLATE orders": "about a database",
    "ALTER DATABASE shop SET session_preload_libraries = '/tmp/x.so'": "about a database",
    "ALTER DATABASE shop RENAME TO x": "about a database",
    "GRANT ALL ON DATABASE shop TO evil": "about a database",
    "COMMENT ON DATABASE shop IS ''": "about a database",
    "CREATE TABLESPACE x LOCATION '/tmp'": "tablespace",
    "ALTER TABLESPACE x OWNER TO evil": "tablespace",
    "CREATE SUBSCRIPTION s CONNECTION ('host=x') PUBLICATION p": "pg_dump writes no such",
    "ALTER SUBSCRIPTION s ENABLE": "pg_dump writes no such",
    "LOAD '/tmp/x.so'": "library",
    "SELECT pg_catalog.pg_read_file('/etc/passwd')": "pg_dump writes no such",
    "SELECT public.evil()": "pg_dump writes no such",
    "SELECT pg_catalog.setval('public.s', 1, true), public.evil()": "pg_dump writes no such",
    "SELECT pg_catalog.setval(public.evil(), 1, true)": "pg_dump writes no such",
    "SELECT pg_catalog.setval('public.s', (SELECT 1), true)": "pg_dump writes no such",
    "SELECT public.setval('public.s', 1, true)": "pg_dump writes no such",
    "SELECT pg_catalog.lo_export(1, '/tmp/x')": "pg_dump writes no such",
    "SELECT pg_catalog.lo_import('/etc/passwd')": "pg_dump writes no such",
    "SELECT pg_catalog.set_config('log_statement', 'none', false)": "pg_dump writes no such",
    "SELECT pg_catalog.set_config('search_path', public.evil(), false)": "pg_dump writes no such",
    "SET ROLE postgres": "pg_dump",
    "SET SESSION session_authorization = postgres": "pg_dump",
    "SET session_replication_role = replica": "pg_dump does not set that",
    "SET session_preload_libraries = 'x'": "pg_dump does not set that",
    "SET standard_conforming_strings = 'off'": "pg_dump",
    "SET standard_conforming_strings = 0": "pg_dump does not set that",
    "SET client_encoding = 'SJIS'": "cannot be told from quotes",
    "SET client_encoding = 'UHC'": "cannot be told from quotes",
    "SET client_encoding = 'GB18030'": "cannot be told from quotes",
    "RESET ALL": "pg_dump writes no such",
    "UPDATE pg_catalog.pg_authid SET rolsuper = true": "pg_dump writes no such",
    "DELETE FROM public.t": "pg_dump writes no such",
    "TRUNCATE public.t": "pg_dump writes no such",
    "CALL public.evil()": "pg_dump writes no such",
    "PREPARE x AS SELECT 1": "pg_dump writes no such",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT 1": "pg_dump writes no such",
    "TABLE public.t": "pg_dump writes no such",
    "VACUUM FULL": "pg_dump writes no such",
    "REASSIGN OWNED BY postgres TO evil": "pg_dump writes no such",
    "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z": "pg_dump writes no such",
    "ALTER EXTENSION x ADD FUNCTION f()": "pg_dump writes no such",
    "CREATE EXTENSION x VERSION '1.0'": "pg_dump writes no such",
    "CREATE EXTENSION x CASCADE": "pg_dump writes no such",
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO evil": "pg_dump writes no such",
    "SECURITY LABEL FOR x ON ROLE postgres IS 'y'": "not in the database",
    'U&"COPY" x': "pg_dump writes no such",
}

SUPERUSER = {
    "CREATE FUNCTION public.f() RETURNS integer LANGUAGE c AS '/tmp/x.so', 'f'": "language 'c'",
    "CREATE OR REPLACE FUNCTION f(language text) RETURNS integer AS 'x' LANGUAGE \"plpython3u\"": "'plpython3u'",
    "CREATE PROCEDURE f() LANGUAGE 'plperlu' AS ''": "language 'plperlu'",
    "CREATE FUNCTION f() RETURNS integer LANGUAGE internal AS 'x'": "language 'internal'",
    "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION public.f()": "an event trigger",
    "CREATE OPERATOR CLASS public.o FOR TYPE x USING btree AS STORAGE x": "class of operators",
    "CREATE FOREIGN DATA WRAPPER w HANDLER h": "foreign data wrapper",
    "CREATE LANGUAGE plpython3u": "a language",
    "CREATE OR REPLACE TRUSTED PROCEDURAL LANGUAGE x": "a language",
    "CREATE TYPE public.x": "base type",
    "CREATE TYPE public.x (INPUT = a, OUTPUT = b)": "base type",
    "CREATE TEXT SEARCH TEMPLATE x (LEXIZE = y)": "parser of text search",
    "CREATE ACCESS METHOD x TYPE TABLE HANDLER y": "access method",
    "CREATE TRANSFORM FOR x LANGUAGE y (FROM SQL WITH FUNCTION z(internal))": "transform",
    "GRANT USAGE ON LANGUAGE c TO evil": "beyond the database's objects",
    "GRANT USAGE ON FOREIGN DATA WRAPPER w TO evil": "beyond the database's objects",
    "GRANT SET ON PARAMETER x TO evil": "beyond the database's objects",
}

SYSTEM = {
    "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO evil": "an object of the system",
    'GRANT EXECUTE ON FUNCTION "pg_catalog".pg_read_file(text) TO evil': "an object of the system",
    "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO evil": "has no schema",
    "GRANT ALL ON TABLE information_schema.sql_parts TO evil": "an object of the system",
    "GRANT ALL ON SCHEMA pg_catalog TO evil": "a schema of the system",
    "ALTER FUNCTION pg_catalog.now() OWNER TO evil": "an object of the system",
    "ALTER OPERATOR pg_catalog.= (integer, integer) OWNER TO evil": "an object of the system",
    "ALTER DEFAULT PRIVILEGES FOR ROLE a IN SCHEMA pg_catalog GRANT ALL ON TABLES TO evil": "a schema of the system",
}


@pytest.mark.parametrize(("statement", "reason"), [*NEVER.items(), *SUPERUSER.items(), *SYSTEM.items()])
def test_what_pg_dump_does_not_write_is_refused_by_name_with_its_line(statement: str, reason: str) -> None:
    with pytest.raises(CannotError) as caught:
        screen(f"{TABLE}\n  {statement};\n{TABLE}")
    assert caught.value.what.startswith("x.sql, line 3: refused: ")
    assert reason in caught.value.what
    assert statement[:40].replace("\n", " ") in caught.value.what


@pytest.mark.parametrize("statement", NEVER)
def test_trust_admits_nothing_that_pg_dump_does_not_write(statement: str) -> None:
    with pytest.raises(CannotError, match="refused"):
        screen(f"{TABLE}{statement};\n{TABLE}", trusted=True)


@pytest.mark.parametrize("statement", SUPERUSER)
def test_what_only_a_superuser_may_create_goes_to_the_administrator_when_trusted(statement: str) -> None:
    (order,) = screen(f"{statement};", trusted=True)
    assert order.lane in {Lane.SUPERUSER, Lane.EVENT_TRIGGER, Lane.PRIVILEGE}


@pytest.mark.parametrize("statement", SYSTEM)
def test_a_trusted_dump_may_change_what_is_of_the_system(statement: str) -> None:
    (order,) = screen(f"{statement};", trusted=True)
    assert order.lane in {Lane.OWNER, Lane.PRIVILEGE}


@pytest.mark.parametrize(
    "hidden",
    [
        "GRANT ALL ON FUNCTION public.f(), pg_catalog.pg_read_file(text) TO evil",
        "GRANT ALL ON TABLE public.t, pg_catalog.pg_authid TO evil",
        "GRANT ALL ON ALL TABLES IN SCHEMA pg_catalog TO evil",
        "GRANT ALL ON TABLE public.t TO a GRANTED BY postgres",
        "ALTER TABLE ALL IN TABLESPACE x OWNED BY y SET TABLESPACE z",
        "REVOKE ALL ON SCHEMA public, pg_catalog FROM a",
    ],
)
def test_privileges_name_one_object_each(hidden: str) -> None:
    try:
        (order,) = screen(f"{hidden};")
    except CannotError:
        return
    assert order.lane is Lane.NOW  # then the role that loads has to be allowed it


@pytest.mark.parametrize(
    ("statement", "lane"),
    [
        ("CREATE UNIQUE INDEX \"i;\" ON ONLY public.t USING btree (a)", Lane.BUILD),
        ("ALTER TABLE ONLY public.t ADD CONSTRAINT k PRIMARY KEY (a)", Lane.BUILD),
        ("ALTER TABLE ONLY public.t ADD CONSTRAINT k EXCLUDE USING gist (a WITH &&)", Lane.BUILD),
        ("ALTER TABLE ONLY public.t ADD CONSTRAINT k CHECK ((a > 0)) NOT VALID", Lane.NOW),
        ("ALTER TABLE ONLY t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES b.c(d) ON DELETE CASCADE", Lane.FOREIGN_KEY),
        ("ALTER TABLE public.t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES b.c(d)", Lane.NOW),
        ("ALTER INDEX public.i ATTACH PARTITION public.j", Lane.FOLLOW),
        ("ALTER TABLE ONLY public.t REPLICA IDENTITY FULL", Lane.FOLLOW),
        ("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY", Lane.LATE),
        ("INSERT INTO public.t VALUES (1)", Lane.ROWS),
        ("INSERT INTO public.t DEFAULT VALUES", Lane.ROWS),
        ("SELECT pg_catalog.setval('public.s', -5, false)", Lane.NOW),
        ("SELECT pg_catalog.lowrite(0, '\\x00')", Lane.NOW),
        ("SELECT pg_catalog.lo_open('1', 131072)", Lane.NOW),
        ("REFRESH MATERIALIZED VIEW public.m", Lane.NOW),
        ("ALTER TABLE public.t OWNER TO app", Lane.OWNER),
        ("ALTER FUNCTION public.f(a integer, b numeric(1,2)[]) OWNER TO app", Lane.OWNER),
        ("ALTER OPERATOR public.=== (a, NONE) OWNER TO app", Lane.OWNER),
        ("ALTER LARGE OBJECT 12 OWNER TO app", Lane.OWNER),
        ("ALTER TEXT SEARCH CONFIGURATION public.c OWNER TO app", Lane.OWNER),
        ("GRANT SELECT(a),UPDATE(\"b ON c\") ON TABLE public.t TO app WITH GRANT OPTION", Lane.PRIVILEGE),
        ("REVOKE ALL ON FUNCTION public.f(x text DEFAULT ')') FROM PUBLIC", Lane.PRIVILEGE),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE a IN SCHEMA b GRANT SELECT ON TABLES TO c", Lane.PRIVILEGE),
        ("SET SESSION AUTHORIZATION app", Lane.PRIVILEGE),
        ("RESET SESSION AUTHORIZATION", Lane.PRIVILEGE),
        ("CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public", Lane.EXTENSION),
        ("CREATE PUBLICATION p FOR ALL TABLES", Lane.PUBLICATION),
        ("ALTER PUBLICATION p ADD TABLE ONLY public.t", Lane.PUBLICATION),
        ("ALTER PUBLICATION p OWNER TO app", Lane.OWNER),
        ("CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p WITH (connect = false)", Lane.SUBSCRIPTION),
        ("ALTER SUBSCRIPTION s OWNER TO app", Lane.SKIP),
        ("COMMENT ON SUBSCRIPTION s IS 'x'", Lane.SKIP),
        ("COMMENT ON EXTENSION x IS ''", Lane.COMMENT),
        ("SET statement_timeout = 0", Lane.SKIP),
        ("SELECT * FROM pg_catalog.pg_restore_relation_stats('version', '180000'::integer)", Lane.SKIP),
        ("CREATE FUNCTION f(a text DEFAULT 'LANGUAGE c') RETURNS text LANGUAGE sql AS $$ LANGUAGE c $$", Lane.NOW),
        ("CREATE FUNCTION f() RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT language FROM x; END", Lane.NOW),
    ],
)  # fmt: skip
def test_each_kind_has_its_lane(statement: str, lane: Lane) -> None:
    (order,) = screen(f"{statement};")
    assert order.lane is lane


def test_the_owner_of_a_class_of_operators_is_that_of_a_trusted_dump() -> None:
    statement = "ALTER OPERATOR CLASS public.o USING btree OWNER TO app;"
    (order,) = screen(statement, trusted=True)
    assert order.lane is Lane.OWNER
    with pytest.raises(CannotError, match="a class of operators, which only a superuser may"):
        screen(statement)


def test_copy_is_put_together_anew() -> None:
    (order,) = screen('COPY public."t;" /* x */ (a, "b""c") FROM stdin;\n\\.\n')
    assert order.sql == b'COPY public . "t;" ( a , "b""c" ) FROM stdin'
    assert order.table == b'public . "t;"'
    assert order.tables == ("public.t;",)


def test_names_are_found_where_they_stand() -> None:
    (order,) = screen('ALTER TABLE "S".t OWNER TO "My ""Role""";')
    assert [span.name for span in order.roles] == ['My "Role"']
    assert with_names(order.sql, {order.roles[0]: 'x"y'}) == b'ALTER TABLE "S".t OWNER TO "x""y"'
    (order,) = screen('GRANT ALL ON TABLE public.t TO PUBLIC, "Public", app;')
    assert [span.name for span in order.roles] == ["Public", "app"]
    (order,) = screen("CREATE POLICY p ON public.t FOR SELECT TO a, b USING ((owner = c));")
    assert [span.name for span in order.roles] == ["a", "b"]
    (order,) = screen("ALTER TABLE ONLY a.b ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES c.d(y);")
    assert order.tables == ("a.b", "c.d")


def test_a_foreign_key_is_added_and_checked_apart_unless_the_dump_has_it_unchecked() -> None:
    key, as_it_was = '"k FOREIGN KEY (x) NOT VALID"', "FOREIGN KEY (x) REFERENCES c.d(y) DEFERRABLE INITIALLY DEFERRED"
    (order,) = screen(f"ALTER TABLE ONLY a.b\n    ADD CONSTRAINT {key} {as_it_was};")
    both = order.in_two()
    assert both
    assert [one.sql.decode() for one in both] == [
        f"ALTER TABLE ONLY a.b\n    ADD CONSTRAINT {key} {as_it_was} NOT VALID",
        f"ALTER TABLE ONLY a.b\n    VALIDATE CONSTRAINT {key}",
    ]
    assert [one.tables for one in both] == [("a.b", "c.d"), ("a.b",)]
    (unchecked,) = screen(f"ALTER TABLE ONLY a.b ADD CONSTRAINT k {as_it_was} NOT VALID;")
    assert unchecked.in_two() is None


def test_settings_hold_for_what_follows() -> None:
    first, *_, last = screen(
        "SET check_function_bodies = false;\nSELECT pg_catalog.set_config('search_path', '', false);\n"
        "SET search_path = public, pg_catalog; SET lock_timeout = 0; SET client_encoding = 'UTF8';" + TABLE
    )
    assert first.settings == {"check_function_bodies": b"false"}
    assert last.settings == {
        "check_function_bodies": b"false",
        "search_path": b"public , pg_catalog",
        "client_encoding": b"'UTF8'",
    }


def test_a_dump_made_with_clean_drops_nothing() -> None:
    text = (
        "DROP INDEX public.i; ALTER TABLE ONLY public.t DROP CONSTRAINT k;\n"
        "CREATE OR REPLACE VIEW public.v AS SELECT 1;\n"
        "ALTER TABLE public.t ALTER COLUMN a DROP DEFAULT; SELECT pg_catalog.lo_unlink('1'); DROP TABLE public.t;\n"
    )
    assert {order.lane for order in screen(text)} == {Lane.SKIP}
    for late in ("DROP TABLE public.t", "SELECT pg_catalog.lo_unlink('1')"):
        with pytest.raises(CannotError, match="it drops something"):
            screen(f"{TABLE}{late};")


def test_a_dump_made_with_create_speaks_of_its_own_database() -> None:
    text = OWN + "ALTER DATABASE shop OWNER TO a;\n\\connect shop\nGRANT ALL ON DATABASE shop TO b;" + TABLE
    lanes = [order.lane for order in screen(text + "ALTER DATABASE shop SET timezone TO 'UTC';")]
    assert lanes == [Lane.SKIP, Lane.SKIP, Lane.PRIVILEGE, Lane.NOW, Lane.LATE]
    assert [order.lane for order in screen("DROP DATABASE shop;" + OWN)] == [Lane.SKIP, Lane.SKIP]
    for bad in ("DROP DATABASE other;" + OWN, "DROP DATABASE shop;" + TABLE, OWN + OWN, OWN + "DROP DATABASE shop;"):
        with pytest.raises(CannotError, match="database"):
            screen(bad)


@pytest.mark.parametrize(
    "command", ["shop", '"shop"', "-reuse-previous=on \"dbname='shop'\"", "-reuse-previous=on \"dbname='sh\\\\op'\""]
)
def test_it_connects_to_its_own_database_only(command: str) -> None:
    name = "sh\\op" if "\\" in command else "shop"
    screen(f'CREATE DATABASE "{name}" WITH x = 1;\n\\connect {command}\n')
    for start in ("", 'CREATE DATABASE "other" WITH x = 1;\n'):
        with pytest.raises(CannotError, match="connect"):
            screen(f"{start}\\connect {command}\n")


@pytest.mark.parametrize(
    "command",
    ["\\! touch /tmp/x", "\\restrict", "\\restrict a b", "\\restrict a;\\! x", "\\unrestrict other", "\\i /etc/passwd",
     "\\copy t from program 'x'", "\\o |x", "\\gexec", "\\set x `y`", "\\c postgres", "\\.", "\\", "\\restrict a\\! x"],
)  # fmt: skip
def test_no_other_meta_command_is_obeyed(command: str) -> None:
    with pytest.raises(CannotError, match=r"line 2: .*commands of psql are not obeyed"):
        screen(f"\\restrict abc\n{command}\n")
    screen("\\restrict abc\n\\unrestrict abc\n")


def test_an_extension_comes_before_what_its_script_could_meet() -> None:
    with pytest.raises(CannotError, match="pg_dump creates it before"):
        screen("CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS ''; CREATE EXTENSION x WITH SCHEMA public;")
    screen("CREATE SCHEMA s; CREATE EXTENSION x WITH SCHEMA s; CREATE EXTENSION y;")
    assert [order.lane for order in screen(f"{TABLE}CREATE EXTENSION x;", trusted=True)][-1] is Lane.EXTENSION


def test_what_is_shown_is_safe_for_a_terminal() -> None:
    assert shown(b"CREATE\n  \x1b[31mTABLE \xff" + b"x" * 300) == "CREATE �[31mTABLE �" + "x" * 58 + "..."

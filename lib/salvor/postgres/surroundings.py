"""What belongs to a database and is not in it: owner, encoding, locale, grants, settings; and to its cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from psycopg import sql

from salvor.errors import CannotError

_DATABASE = """
    select jsonb_build_object(
        'owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding),
        'collate', datcollate, 'ctype', datctype, 'provider', to_jsonb(d) ->> 'datlocprovider',
        'icu_locale', coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'),
        'connection_limit', datconnlimit, 'template', datistemplate, 'comment', shobj_description(d.oid, 'pg_database'),
        'tablespace', (select spcname from pg_tablespace t where t.oid = dattablespace),
        'unknown_origin', to_regrole('salvor_reads_' || d.oid) is not null,
        'grants', (
            select jsonb_agg(jsonb_build_array(pg_get_userbyid(nullif(grantee, 0)), privilege_type, is_grantable))
            from aclexplode(coalesce(datacl, acldefault('d', datdba)))
            where grantee = 0 or pg_get_userbyid(grantee) !~ '^salvor_reads_'),
        'settings', (
            select jsonb_agg(jsonb_build_array(pg_get_userbyid(nullif(setrole, 0)), split_part(one, '=', 1),
                substr(one, strpos(one, '=') + 1)))
            from pg_db_role_setting, unnest(setconfig) one where setdatabase = d.oid))
    from pg_database d where datname = %s
"""

# Where the files of a cluster lie differs between machines, and so does what it listens on.
_CLUSTER = """
    select jsonb_build_object(
        'data_checksums', current_setting('data_checksums') = 'on',
        'wal_segment_size', (select setting::bigint from pg_settings where name = 'wal_segment_size'),
        'superuser', (select rolname from pg_roles where oid = 10),
        'settings', (
            select jsonb_object_agg(name, current_setting(name)) from pg_settings
            where source = 'configuration file' and name not in ('data_directory', 'config_file', 'hba_file',
                'ident_file', 'external_pid_file', 'port', 'listen_addresses', 'unix_socket_directories')),
        'hba', pg_read_file(current_setting('hba_file')),
        'ident', pg_read_file(current_setting('ident_file')))
"""


def of_database(connection: psycopg.Connection[Any], database: str) -> dict[str, Any]:
    """What belongs to a database: owner, locale, grants, settings and the like, as plain data. Raises psycopg.Error."""
    row = connection.execute(_DATABASE, (database,)).fetchone()
    found: dict[str, Any] = row[0] if row else {}
    return found


def of_cluster(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """What a new cluster needs to be as this one, and the database that the connection is to. Raises psycopg.Error."""
    row = connection.execute(_CLUSTER).fetchone()
    assert row
    found: dict[str, Any] = row[0]
    return found | {"database": of_database(connection, connection.info.dbname)}


def create_database(connection: psycopg.Connection[Any], name: str, around: Mapping[str, Any]) -> None:
    """Create an empty database with the encoding and locale of `around` (what is missing there: of the cluster)."""
    parts = [sql.SQL("create database {} template template0").format(sql.Identifier(name))]
    if around.get("encoding"):
        parts.append(sql.SQL("encoding {}").format(sql.Literal(around["encoding"])))
        parts.append(sql.SQL("lc_collate {}").format(sql.Literal(around["collate"])))
        parts.append(sql.SQL("lc_ctype {}").format(sql.Literal(around["ctype"])))
    if around.get("provider") == "i":
        parts.append(sql.SQL("locale_provider icu icu_locale {}").format(sql.Literal(around["icu_locale"])))
    spaces = {row[0] for row in connection.execute("select spcname from pg_tablespace").fetchall()}
    if around.get("tablespace") in spaces - {"pg_default"}:
        parts.append(sql.SQL("tablespace {}").format(sql.Identifier(around["tablespace"])))
    try:
        connection.execute(sql.SQL(" ").join(parts))
    except psycopg.errors.WrongObjectType as error:
        raise CannotError(
            f"A database like the old one cannot be created here: {error.diag.message_primary}.",
            safe="what is live is as it was",
            hint="install the locale of the old one on this machine (locale -a), then run the same command again",
        ) from error


def dress_database(connection: psycopg.Connection[Any], name: str, around: Mapping[str, Any]) -> None:
    """Give a database what `create_database` did not: grants, settings, connection limit, whether it is a template, and
    comment. May be repeated.
    """
    roles = {row[0] for row in connection.execute("select rolname from pg_roles").fetchall()}
    database = sql.Identifier(name)
    for role, privilege, grantable in _grants(around) if around.get("grants") is not None else ():
        if role is None or role in roles:
            connection.execute(
                sql.SQL("grant {} on database {} to {}{}").format(
                    sql.SQL(privilege), database, _role(role), sql.SQL(" with grant option" if grantable else "")
                )
            )
    if around.get("grants") is None:
        connection.execute(sql.SQL("grant connect, temporary on database {} to public").format(database))
    for role, setting, value in around.get("settings") or ():
        if setting.startswith("salvor.") or (role is not None and role not in roles):
            continue
        whose = sql.SQL("alter role {} in database {}").format(_role(role), database)
        if role is None:
            whose = sql.SQL("alter database {}").format(database)
        connection.execute(sql.SQL("{} set {} to {}").format(whose, _setting(setting), _value(setting, value)))
    if (limit := around.get("connection_limit", -1)) != -1:
        connection.execute(sql.SQL("alter database {} connection limit {}").format(database, sql.Literal(limit)))
    if around.get("template"):
        connection.execute(sql.SQL("alter database {} is_template true").format(database))
    if around.get("comment"):
        connection.execute(sql.SQL("comment on database {} is {}").format(database, sql.Literal(around["comment"])))


def _grants(around: Mapping[str, Any]) -> Iterator[tuple[str | None, str, bool]]:
    """The grants as they were before a fence took the right to connect away: that is written in its mark."""
    fenced = [value for role, setting, value in around.get("settings") or () if setting == "salvor.fence"]
    yield from around["grants"]
    for text in fenced:
        yield from json.loads(text)


def grant_connect(connection: psycopg.Connection[Any], name: str, role: str | None, *, grantable: bool) -> None:
    """Let a role (None: everybody) connect to a database."""
    option = sql.SQL(" with grant option" if grantable else "")
    statement = sql.SQL("grant connect on database {} to {}{}")
    connection.execute(statement.format(sql.Identifier(name), _role(role), option))


def revoke_connect(connection: psycopg.Connection[Any], name: str, role: str | None) -> None:
    """Take the right to connect to a database from a role (None: everybody)."""
    statement = sql.SQL("revoke connect on database {} from {} cascade")
    connection.execute(statement.format(sql.Identifier(name), _role(role)))


def _role(role: str | None) -> sql.Composable:
    return sql.SQL("public") if role is None else sql.Identifier(role)


_LISTS = ("search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries")


def _setting(name: str) -> sql.Composable:
    return sql.Identifier(*name.split("."))


def _value(name: str, value: str) -> sql.Composable:
    """A list is stored as it is written, quotes and all; anything else as one string (pg_dump knows the same lists)."""
    if name in _LISTS and value:
        return sql.SQL(value)  # the server's own, already quoted
    return sql.Literal(value)

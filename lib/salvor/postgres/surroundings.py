"""What belongs to a database and is not in it: owner, encoding, locale, grants, settings; and to its cluster."""

from __future__ import annotations

from typing import Any

import psycopg

_DATABASE = """
    select jsonb_build_object(
        'owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding),
        'collate', datcollate, 'ctype', datctype, 'provider', to_jsonb(d) ->> 'datlocprovider',
        'icu_locale', coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'),
        'connection_limit', datconnlimit, 'comment', shobj_description(d.oid, 'pg_database'),
        'tablespace', (select spcname from pg_tablespace t where t.oid = dattablespace),
        'grants', (
            select jsonb_agg(jsonb_build_array(pg_get_userbyid(nullif(grantee, 0)), privilege_type, is_grantable))
            from aclexplode(coalesce(datacl, acldefault('d', datdba)))),
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
    """Owner, encoding, locale, grants, settings, comment of a database, as plain data. Raises psycopg.Error."""
    row = connection.execute(_DATABASE, (database,)).fetchone()
    found: dict[str, Any] = row[0] if row else {}
    return found


def of_cluster(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """What a new cluster needs to be as this one, and the database that the connection is to. Raises psycopg.Error."""
    row = connection.execute(_CLUSTER).fetchone()
    assert row
    found: dict[str, Any] = row[0]
    return found | {"database": of_database(connection, connection.info.dbname)}

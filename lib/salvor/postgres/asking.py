"""Who asks a database: the operator; or, where its origin is unknown, a role that may read and do nothing else.

Whoever queries a table runs code of it: a view's functions, and what the planner computes of constraints and indexes.
So a database that was loaded from an untrusted dump has a role of its own, named after its object id, which outlives a
rename and which its owner cannot change: that the role is there says that the origin is unknown. It logs in by itself,
since SET ROLE could be reset, and only into transactions that were begun read only: else it could be made to change its
own password. It is past row security, as the operator is, so that it gets the same answers.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from salvor import secrets
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres import fence
from salvor.postgres.connection import Operator, cut_after
from salvor.postgres.server import Server

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

_HBA = f"# Salvor's readers\n{fence.READERS}"


@dataclass(frozen=True)
class Reader(Operator):
    """Its password follows from the operator's, so that it is stored nowhere."""

    def secret(self) -> str:
        value = hmac.digest(super().secret().encode(), self.user.encode(), "sha256").hex()
        secrets.remember(value)
        return value


# Every name is qualified: the database may have set a search_path with operators of its own.
_READER: LiteralString = """
    select pg_catalog.to_regrole(pg_catalog.concat('salvor_reads_', oid)) from pg_catalog.pg_database
    where datname operator(pg_catalog.=) pg_catalog.current_database()
"""


def connect(server: Server, database: str, *, deadline: float) -> Connection:
    """A read-only connection of whoever asks there; `deadline` is for each statement, in seconds.

    Raises psycopg.Error, and OutcomeUnknownError when the role that asks is not let in any more.

    What is asked in more than one statement is to be asked in transactions that are begun read only.
    """
    connection = server.connect(database, deadline=deadline)
    try:
        with cut_after(connection, deadline):
            row = connection.execute(_READER).fetchone()
    except BaseException:
        connection.close()
        raise
    if row is None or row[0] is None:
        return connection
    connection.close()
    reader = Reader(row[0], server.operator.password)
    known = replace(server, operator=reader, shares_port=False)  # only a superuser is told whose server it is
    try:
        return known.connect(database, deadline=deadline)
    except psycopg.OperationalError as error:
        if "authentication failed" not in str(error):
            raise
        raise OutcomeUnknownError(
            f"{database} is of unknown origin, so {reader.user} asks it, and is not let in: the operator's password "
            "was changed since it was loaded.",
            safe="nothing was changed; this says nothing of the data",
            hint=f"when it is known what {database} holds, let the operator ask it, as a superuser there: "
            f"DROP OWNED BY {reader.user}; DROP ROLE {reader.user}",
        ) from error


def sessions(server: Server) -> Callable[[str], Connection]:
    """What opens such connections to the databases of a server, for a fingerprint."""
    return partial(connect, server, deadline=60.0)


@contextmanager
def session(server: Server, database: str, *, deadline: float = 5.0) -> Iterator[Connection]:
    """As `connect`; cut after `deadline` seconds, also when the server is frozen."""
    with connect(server, database, deadline=deadline) as connection, cut_after(connection, deadline):
        yield connection


def ask(server: Server, database: str, statement: str, *, deadline: float = 30.0) -> Any:
    """The first value that a query returns, in a read-only transaction. Raises CannotError when there is no answer."""
    try:
        with session(server, database, deadline=deadline) as connection:
            connection.execute("begin read only")
            # A pipeline uses the extended protocol, which takes one statement: a second one could end the transaction.
            with connection.pipeline():
                row = connection.execute(statement.encode()).fetchone()
    except psycopg.Error as error:
        said = secrets.mask(str(error)).strip() or type(error).__name__
        raise CannotError(
            f"{server.address}:{server.port} does not answer the query: {said}", hint="inv assess"
        ) from error
    return row[0] if row else None


def never_as_operator(server: Server, database: str) -> None:
    """Have `database` asked by a role of its own from now on: what was loaded into it is of unknown origin. Raises
    CannotError before PostgreSQL 14.
    """
    with server.session(writes=True, deadline=30.0) as connection:
        if connection.info.server_version < 140000:
            raise CannotError(
                f"{database} cannot be asked safely: PostgreSQL knows a role that reads all data since version 14.",
                safe="what is live is as it was",
                hint="when the dump is known to be yours, the same command with --override='trust-dump=REASON'",
            )
        row = connection.execute("select 'salvor_reads_' || oid from pg_database where datname = %s", [database])
        role = sql.Identifier(name := row.fetchall()[0][0])
        if not connection.execute("select to_regrole('salvor_reads')").fetchall()[0][0]:
            connection.execute("create role salvor_reads in role pg_read_all_data")
        secret = Reader(name, server.operator.password).secret().encode()
        verifier = connection.pgconn.encrypt_password(secret, name.encode(), b"scram-sha-256").decode()
        statement = sql.SQL("create role {} login bypassrls in role salvor_reads password {}")
        connection.execute(statement.format(role, sql.Literal(verifier)))
        connection.execute(sql.SQL("grant connect on database {} to {}").format(sql.Identifier(database), role))
    path = fence.file_of(server)  # it may admit the applications' roles only
    text = server.shell.read(path)
    if text is not None and _HBA not in text:
        server.shell.write(path, _HBA + text)
        server.reload()


_GONE = """
    select rolname from pg_roles r
    where rolname ~ '^salvor_reads_' and not exists (select from pg_database where rolname = 'salvor_reads_' || oid)
    or rolname ~ '^salvor_owns_'
        and not exists (select from pg_shdepend where refclassid = 'pg_authid'::regclass and refobjid = r.oid)
"""
_NOBODY_LEFT = """
    select from pg_roles r where rolname = 'salvor_reads'
    and not exists (select from pg_auth_members where roleid = r.oid)
"""


def forget(server: Server, connection: Connection) -> None:
    """Remove the roles that ask databases that are gone, or own nothing any more; with the last, what let them in."""
    for (role,) in connection.execute(_GONE).fetchall():
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
    if connection.execute(_NOBODY_LEFT).fetchall():
        connection.execute("drop role salvor_reads")
        path = fence.file_of(server)
        if _HBA in (text := server.shell.read(path) or ""):
            server.shell.write(path, text.replace(_HBA, ""))
            server.reload()

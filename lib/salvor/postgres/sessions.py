"""Sessions of users that hold a server up: idle in a transaction, or of one role or application. They are ended."""

from __future__ import annotations

from datetime import datetime

import psycopg
from psycopg import sql

from salvor import secrets
from salvor.errors import CannotError, NotConvergedError
from salvor.postgres.server import Server

_DEADLINE = 20.0
_ENDS_WITHIN = 10_000
"""Milliseconds that a session has to end; pg_terminate_backend waits for it (PostgreSQL 14 and newer)."""
_IDLE = "state like 'idle in transaction%%' and state_change <= %(before)s - %(idle)s * '1 s'::interval"
_QUERY = """
select count(*), count(*) filter (where not pg_terminate_backend(pid{wait})) from pg_stat_activity where {which}
"""


def end(server: Server, before: datetime, idle: float | None, role: str | None, application: str | None) -> int:
    """End the sessions of users that were there at the time `before`, and were idle in a transaction for `idle` seconds
    then (None: any), of this role and application (None: any). How many. What they had not committed is gone.

    Raises CannotError, or NotConvergedError when one of them goes on.
    """
    chosen = [sql.SQL("backend_type = 'client backend' and pid <> pg_backend_pid() and backend_start <= %(before)s")]
    if idle is not None:
        chosen.append(sql.SQL(_IDLE))
    if role is not None:
        chosen.append(sql.SQL("usename = %(role)s"))
    if application is not None:
        chosen.append(sql.SQL("application_name = %(application)s"))
    values = {"before": before, "idle": idle, "role": role, "application": application, "wait": _ENDS_WITHIN}
    try:
        with server.session(deadline=_DEADLINE, writes=True) as connection:
            wait = ", %(wait)s" if connection.info.server_version >= 140000 else ""
            query = sql.SQL(_QUERY).format(wait=sql.SQL(wait), which=sql.SQL(" and ").join(chosen))
            row = connection.execute(query, values).fetchone()
    except psycopg.Error as error:
        raise _silent(server, error) from error
    assert row
    if row[1]:
        raise NotConvergedError(
            f"{row[1]} of {row[0]} sessions on {server.address}:{server.port} were told to end and go on.",
            safe="nothing else was changed",
            hint="select pid, state, wait_event from pg_stat_activity there",
        )
    return int(row[0])


def _silent(server: Server, error: psycopg.Error) -> CannotError:
    said = secrets.mask(str(error)).strip() or type(error).__name__
    return CannotError(
        f"{server.address}:{server.port} does not take it: {said}",
        safe="its sessions are as they were",
        hint="inv assess",
    )

"""The stand-in's PostgreSQL: one server, whose WAL goes to an encrypted pgBackRest repository as it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from salvor.postgres.server import Server
from salvor.sandbox import cluster, configuration
from salvor.sandbox.cluster import Role
from salvor.sandbox.o4o.layout import ADDRESS, Layout

NAME = "o4o"
"""The database's name, and its owner's, and that of pgBackRest's stanza."""
_ROLES = (cluster.OPERATOR, Role(NAME, "", "o4o.password"))


def server(sandbox: Layout) -> Server:
    """The server."""
    return cluster.server(sandbox, sandbox.data, ADDRESS)


def configure(sandbox: Layout) -> None:
    """Write the files that name this stand-in's folders and ports."""
    configuration.write_pgbackrest(sandbox, NAME, sandbox.data)
    configuration.write_member(sandbox, NAME, sandbox.data, ADDRESS)


def make(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Make the cluster, its data and its first backups, and leave the server running.

    What a killed call left is thrown away first. Raises CannotError, naming the program that failed.
    """
    cluster.clear(sandbox)
    configure(sandbox)
    found, rows = server(sandbox), Path(__file__).parent / "data.sql"
    cluster.initialise(sandbox, found, roles=_ROLES, database=NAME, owner=NAME, rows=rows)
    start(sandbox)
    cluster.back_up(sandbox, found, stanza=NAME, database=NAME)
    cluster.note_made(sandbox)
    tell("database: 20,000 orders loaded; first backups taken, one full and one dump; its WAL is archived")


def start(sandbox: Layout) -> None:
    """Start the server and wait until it answers."""
    cluster.start(sandbox, server(sandbox), "database")


def start_missing(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Start the server, unless it runs or its data directory is lost."""
    look = server(sandbox).look()
    if look.control is None:
        tell("database: its data directory is lost; inv restore --service=database --platform=o4o brings it back")
    elif not look.processes:
        start(sandbox)
        tell("database: started")


def status(sandbox: Layout) -> tuple[bool, str]:
    """Whether the server answers, and whether the platform's database is in it."""
    import psycopg

    works, detail = cluster.status(server(sandbox))
    if works:
        try:
            server(sandbox).connect(NAME, deadline=3.0).close()
        except psycopg.Error as error:
            return False, str(error).strip().splitlines()[0]
    return works, detail

"""Fills an empty database from a dump, by a role that is made for it and owns nothing else, and is removed afterwards.

A dump is a program: a function, a default or an index expression of it may run while it is loaded. So the session that
loads is logged in as that role (with SET ROLE it could reset itself to a superuser), and only what the load itself has
put together (owners, grants, extensions) is done by the operator.
"""

from __future__ import annotations

import hashlib
import re
import secrets as random
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import CannotError
from salvor.postgres import asking, fence
from salvor.postgres.analyze import analyze
from salvor.postgres.server import Server

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

_STATEMENT_SECONDS = 12 * 3600.0
_FEW = 2
_HBA = re.compile(r"^# Salvor's load\n.*\n.*\n", re.M)


class Roles(dict[str, str | None]):
    """Which role takes the place of one that a dump names: itself where it can, `owner` for one that could leave the
    database, and none for one that is not here (what names it is left out, and said).
    """

    def __init__(self, known: set[str], powerful: set[str], owner: str | None) -> None:
        super().__init__()
        self._known, self._powerful, self._owner = known, powerful, owner

    def get(self, name: str, instead: Any = None) -> Any:
        """The role that takes the place of `name`."""
        if name in self._powerful:
            return self._owner
        return name if name in self._known else None


def load(
    server: Server,
    database: str,
    source: Path,
    *,
    incident: str,
    owner: str,
    trusted: bool,
    origin_known: bool,
    hba: str | None = None,
) -> Generator[Progress, None, tuple[str, ...]]:
    """Load the dump at `source` into the empty `database`, which is `owner`'s afterwards; returns what was left out.

    `trusted`: it is a backup of ours, whose checksums were compared: its superusers may own what they owned. Without
    `origin_known` the operator never asks this database (see `asking`). `hba`: the path of pg_hba.conf, when the
    server's configuration does not name it. Raises CannotError; then the database is half loaded. A killed call leaves
    the role, which the next one removes.
    """
    import psycopg

    from salvor.postgres import dump, dump_load  # a score of modules that no other way back needs
    from salvor.postgres.dump_target import Terms

    role = role_of(incident)
    remove(server, database, incident, hba)
    password = random.token_urlsafe(24)
    secrets.remember(password)
    with server.session(writes=True, deadline=30.0) as connection:
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(
            sql.SQL(
                "create role {} login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password {}"
            ).format(sql.Identifier(role), sql.Literal(verifier))
        )
        _execute(connection, "alter database {} owner to {}", database, role)
        roles = _roles(connection, owner, trusted=trusted)
    if not origin_known:
        asking.never_as_operator(server, database)
    _admit(server, database, role, hba)

    def as_loader() -> Connection:
        return psycopg.connect(
            host=server.address,
            port=server.port,
            dbname=database,
            user=role,
            password=password,
            application_name="salvor",
            connect_timeout=10,
            client_encoding="utf8",
        )

    def as_operator() -> Connection:
        return server.connect(database, writes=True)

    _see_it_gets_in(as_loader)
    # Reading the dump keeps one core busy, and a table's COPY another: measured on two, and with four connections.
    few_cores = server.shell.cores() <= _FEW
    jobs = _FEW if few_cores else 4
    loaded = yield from dump_load.load(
        dump.examine(source),
        as_loader,
        administrator=as_operator,
        deadline=_STATEMENT_SECONDS,
        jobs=jobs,
        whole_tables=few_cores,
        terms=Terms(roles, trusted=trusted),
        pg_restore=(_pg_restore(server),),
        before_owners=lambda: analyze(server, database, jobs),  # it computes what an index holds as the table's owner
    )
    with server.connect(database, writes=True, deadline=600.0) as connection:
        heir = owner if roles.get(owner) else _heir(connection, incident, owner)
        _execute(connection, "reassign owned by {} to {}", role, heir)
        _execute(connection, "alter database {} owner to {}", database, owner)
    remove(server, database, incident, hba)
    instead = () if heir == owner else (f"{owner} as the owner ({heir} is, and {owner} may do what it may)",)
    return (*loaded.left_out, *instead)


def role_of(incident: str) -> str:
    """The name of an incident's role for loading."""
    return _role(incident, "load")


def _role(incident: str, does: str) -> str:
    return f"salvor_{does}_{hashlib.sha256(incident.encode()).hexdigest()[:12]}"


def remove(server: Server, database: str, incident: str, hba: str | None = None) -> None:
    """Remove the role, what it still has in `database`, and its line in pg_hba.conf. Finds its work done."""
    import psycopg

    role = role_of(incident)
    with server.session(writes=True, deadline=60.0) as connection:
        if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [role])
            try:
                with server.connect(database, writes=True, deadline=600.0) as inside:
                    _execute(inside, "drop owned by {}", role)
            except psycopg.OperationalError:
                pass  # there is no such database: then the role has nothing
            _execute(connection, "drop role {}", role)
    path = hba or fence.file_of(server)
    text = server.shell.read(path)
    if text is not None and _HBA.search(text):
        server.shell.write(path, _HBA.sub("", text))
        server.reload()


def _admit(server: Server, database: str, role: str, hba: str | None) -> None:
    """A line on top of pg_hba.conf: the file may admit the applications' roles only."""
    path = hba or fence.file_of(server)
    text = server.shell.read(path)
    if text is not None:
        quoted = '"' + database.replace('"', '""') + '"'
        lines = f"# Salvor's load\nhost {quoted} {role} all scram-sha-256\nlocal {quoted} {role} scram-sha-256\n"
        server.shell.write(path, lines + _HBA.sub("", text))
        server.reload()


def _see_it_gets_in(connect: Any) -> None:
    """Wait until the server has read its pg_hba.conf again."""
    import psycopg

    until = clock.monotonic() + 10.0
    while True:
        try:
            connect().close()
            return
        except psycopg.OperationalError as error:
            if clock.monotonic() > until:
                raise CannotError(
                    f"The role that loads the dump cannot log in: {secrets.mask(str(error)).strip()}",
                    safe="what is live is as it was",
                    hint="see that pg_hba.conf has no errors: select * from pg_hba_file_rules where error is not null",
                ) from error
            time.sleep(0.1)


_POWERFUL = """
    select rolname, rolsuper or rolcreaterole or exists (
        select from unnest(array['pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files']) as power
        where pg_has_role(r.oid, power, 'member'))
    from pg_roles r where rolname !~ '^salvor_(load|reads)_'
"""


def _roles(connection: Connection, owner: str, *, trusted: bool) -> Roles:
    found = connection.execute(_POWERFUL).fetchall()
    powerful = {name for name, power in found if power}
    return Roles({name for name, _ in found}, set() if trusted else powerful, None if owner in powerful else owner)


def _heir(connection: Connection, incident: str, owner: str) -> str:
    """A role to own what an untrusted dump made, where the database's owner could leave the database: PostgreSQL runs
    code of a table with its owner's rights, by itself too (autovacuum). The owner may do with it what it likes.
    """
    heir = _role(incident, "owns")
    _execute(connection, "create role {} nologin role {}", heir, owner)
    return heir


def _pg_restore(server: Server) -> str:
    return server.program("pg_restore") if Path(server.program("pg_restore")).is_file() else "pg_restore"


def _execute(connection: Connection, statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))

"""A PostgreSQL server of a sandbox: made with its data, its first backups taken, started, and looked at."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from salvor import clock
from salvor.change import Reachable
from salvor.errors import CannotError
from salvor.postgres import dumps
from salvor.postgres.connection import Operator
from salvor.postgres.server import Server
from salvor.sandbox import configuration, folders, processes
from salvor.sandbox.folders import Folders

PROGRAMS = "/usr/lib/postgresql/15/bin"
_MADE = "database-is-made"

# For the load only: a crash meanwhile costs nothing, because what is half-made is thrown away.
_WHILE_LOADING = {
    "listen_addresses": "",
    "archive_mode": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_parallel_maintenance_workers": "0",
    "maintenance_work_mem": "128MB",
}


class Role(NamedTuple):
    """A role of the cluster: its name, its attributes, and the name of the secret that is its password."""

    name: str
    attributes: str
    password: str


OPERATOR = Role("salvor", "superuser", "operator.password")


def require(needed: dict[str, str]) -> None:
    """Raise CannotError when one of the programs is not on this machine: each Debian package with a program of it."""
    missing = [package for package, program in needed.items() if not shutil.which(program)]
    if missing:
        raise CannotError(
            f"The sandbox needs what the Debian packages {', '.join(missing)} bring.",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


NEEDED = {"postgresql-15": f"{PROGRAMS}/initdb", "pgbackrest": "pgbackrest"}


def server(sandbox: Folders, data: Path, address: str) -> Server:
    """The server of a data directory, reached by the sandbox's operator."""
    return Server(
        shell=sandbox.shell,
        programs=PROGRAMS,
        data=str(data),
        address=address,
        port=sandbox.database_port,
        operator=Operator(OPERATOR.name, f"file:{sandbox.root}/secrets/{OPERATOR.password}"),
    )


def is_made(sandbox: Folders) -> bool:
    """Whether the cluster and its first backup were finished, whatever became of them since."""
    return (sandbox.root / _MADE).exists()


def note_made(sandbox: Folders) -> None:
    """From now on it is."""
    folders.write(sandbox.root / _MADE, clock.write_time(clock.now()) + "\n")


def clear(sandbox: Folders) -> None:
    """Throw away the cluster in whatever state: its processes, data, backups, and what recoveries staged or kept."""
    processes.kill(processes.working_in(sandbox.root))
    (sandbox.root / _MADE).unlink(missing_ok=True)
    for folder in ("dumps", *sandbox.SERVER_FOLDERS):
        shutil.rmtree(sandbox.root / folder, ignore_errors=True)
    sandbox.make()


def initialise(
    sandbox: Folders, server: Server, *, roles: Sequence[Role], database: str, owner: str, rows: Path
) -> None:
    """Make the cluster of a server that does not run: its roles, and a database with the rows of an SQL file."""
    data, run, program = server.data, sandbox.shell.run, server.program
    user = configuration.owner(sandbox)
    initdb = [program("initdb"), "-D", data, "-U", user, "--data-checksums", "--no-sync", "--no-instructions"]
    initdb += ["--wal-segsize=1"]  # MB: it is archived every few seconds, whole, however little is in it
    run([*initdb, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", "--auth-local=peer"], deadline=60)
    run(["sh", "-c", 'cat >> "$1"', "sh", f"{data}/postgresql.conf"], input=configuration.SETTINGS.encode())
    sandbox.shell.write(f"{data}/pg_hba.conf", configuration.access(sandbox))
    options = " ".join(f"-c {name}={value or chr(39) * 2}" for name, value in _WHILE_LOADING.items())
    pg_ctl = [program("pg_ctl"), "-D", data, "-s", "-w", "-l", f"{data}.log"]
    run([*pg_ctl, "-o", options, "start"], deadline=60)
    made = "".join(
        f"create role {role.name} login {role.attributes} password '{sandbox.secret(role.password)}';\n"
        for role in roles
    )
    folder, port = str(Path(data).parent), str(server.port)
    psql = [program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", folder, "-p", port]
    run([*psql, "postgres"], input=f"{made}create database {database} owner {owner};\n".encode())
    text = rows.read_text(encoding="utf-8")
    run([*psql, database], input=f"set role {owner};\n{text}".encode(), deadline=120)
    run([*pg_ctl, "-m", "fast", "stop"], deadline=60)
    run([program("initdb"), "-D", data, "--sync-only"], deadline=60)  # what was written without fsync


def back_up(sandbox: Folders, server: Server, *, stanza: str, database: str) -> None:
    """The first backups of a server that runs: a full one by pgBackRest, and beside it a dump with its fingerprint."""
    pgbackrest = ["pgbackrest", f"--config={sandbox.root}/pgbackrest.conf", f"--stanza={stanza}"]
    with ThreadPoolExecutor(1) as beside:
        dumped = beside.submit(lambda: list(dumps.take(server, database, str(sandbox.root / "dumps"))))
        sandbox.shell.run([*pgbackrest, "stanza-create"], deadline=30)
        sandbox.shell.run([*pgbackrest, "--type=full", "backup"], deadline=120)
    dumped.result()


def start(sandbox: Folders, server: Server, name: str) -> None:
    """Start a server and wait until it answers. `name` is what it is called in an error."""
    if not processes.working_in(Path(server.data)) and not folders.is_free(server.address, server.port):
        raise folders.port_taken(server.address, server.port, f"the sandbox's {name}", sandbox.command("up"))
    server.start(deadline=30)
    # The checkpointer starts before the server knows that it is a primary, and then sleeps for checkpoint_timeout, 5
    # minutes, without looking at archive_timeout (PostgreSQL 15, CheckpointerMain). A checkpoint wakes it.
    with server.session(deadline=30, writes=True) as connection:
        connection.execute("checkpoint")


def status(server: Server) -> tuple[bool, str]:
    """Whether the server answers, and what it is."""
    import psycopg

    where = f"{server.address}:{server.port}"
    try:
        reachable, detail = server.probe()
    except CannotError as error:  # a half-made sandbox has no password yet
        return False, error.what
    if reachable is not Reachable.UP:
        return False, f"{where}: {detail}"
    try:
        with server.session("postgres", deadline=3) as connection:
            row = connection.execute(
                "select pg_is_in_recovery(), (select count(*) from pg_stat_replication where state = 'streaming'),"
                " exists (select from pg_stat_wal_receiver where status = 'streaming')"
            ).fetchone()
    except psycopg.Error as error:
        return False, f"{where}: {error}"
    assert row
    if row[0]:
        return True, f"{where}: standby, {'streaming' if row[2] else 'not streaming'}"
    return True, f"{where}: primary, {row[1]} standby streaming"

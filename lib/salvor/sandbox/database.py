"""The sandbox's PostgreSQL: a primary and a streaming standby, with a pgBackRest repository that takes their WAL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from salvor import clock
from salvor.change import Reachable
from salvor.errors import CannotError
from salvor.postgres import dumps
from salvor.postgres.server import Look, Operator, Server
from salvor.sandbox import configuration, layout, names, processes
from salvor.sandbox.layout import ADDRESSES, Layout

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


def require() -> None:
    """Raise CannotError when a program that the sandbox needs is not on this machine."""
    needed = {"postgresql-15": f"{PROGRAMS}/initdb", "pgbackrest": "pgbackrest", "knot": names.program()}
    missing = [package for package, program in needed.items() if not shutil.which(program)]
    if missing:
        raise CannotError(
            f"The sandbox needs what the Debian packages {', '.join(missing)} bring.",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def server(sandbox: Layout, member: str) -> Server:
    """The server of a member, `a` or `b`."""
    return Server(
        shell=sandbox.shell,
        programs=PROGRAMS,
        data=str(sandbox.data(member)),
        address=ADDRESSES[member],
        port=sandbox.database_port,
        operator=Operator("salvor", f"file:{sandbox.root}/secrets/operator.password"),
    )


def primary(sandbox: Layout) -> str | None:
    """The member that takes writes now; None when no member that answers does.

    After a failover the old one may run too, fenced, so the one that the name leads to is asked first.
    """
    import psycopg

    try:
        routed, _ = names.resolve(sandbox)
    except CannotError:
        routed = ""
    for member in sorted(ADDRESSES, key=lambda member: ADDRESSES[member] != routed):
        try:
            with server(sandbox, member).session(deadline=3) as connection:
                row = connection.execute("select pg_is_in_recovery()").fetchone()
        except psycopg.Error:
            continue
        if row == (False,):
            return member
    return None


def is_made(sandbox: Layout) -> bool:
    """Whether the cluster and its first backup were finished, whatever became of them since."""
    return (sandbox.root / _MADE).exists()


def make(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Make the cluster, its data, its standby and its first backups, and leave both servers running.

    What a killed call left is thrown away first. Raises CannotError, naming the program that failed.
    """
    clear(sandbox)
    configuration.write(sandbox)
    _initialise(sandbox)
    tell("database: 80,000 orders loaded")
    _copy(sandbox)
    start(sandbox, "a")
    server(sandbox, "b").launch()
    with ThreadPoolExecutor(1) as beside:
        dumped = beside.submit(_dump, sandbox)
        pgbackrest = ["pgbackrest", f"--config={sandbox.root}/pgbackrest.conf", f"--stanza={configuration.STANZA}"]
        sandbox.shell.run([*pgbackrest, "stanza-create"], deadline=30)
        sandbox.shell.run([*pgbackrest, "--type=full", "backup"], deadline=120)
    dumped.result()
    start(sandbox, "b")
    if not processes.until(lambda: streams(sandbox), 15):
        raise CannotError(
            "The sandbox's standby does not follow its primary.",
            hint=f"read its log: tail {sandbox.data('b')}.log; or begin anew: inv sandbox.up --fresh",
        )
    layout.write(sandbox.root / _MADE, clock.write_time(clock.now()) + "\n")
    tell("database: first backups taken, one full and one dump; standby follows")


def clear(sandbox: Layout) -> None:
    """Throw away the cluster in whatever state: its processes, data, backups, and what recoveries staged or kept."""
    processes.kill(processes.working_in(sandbox.root))
    (sandbox.root / _MADE).unlink(missing_ok=True)
    for folder in ("dumps", *layout.SERVER_FOLDERS):
        shutil.rmtree(sandbox.root / folder, ignore_errors=True)
    sandbox.make()


def _initialise(sandbox: Layout) -> None:
    data = str(sandbox.data("a"))
    run = sandbox.shell.run
    owner = configuration.owner(sandbox)
    program = server(sandbox, "a").program
    initdb = [program("initdb"), "-D", data, "-U", owner, "--data-checksums", "--no-sync", "--no-instructions"]
    run([*initdb, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", "--auth-local=peer"], deadline=60)
    run(["sh", "-c", 'cat >> "$1"', "sh", f"{data}/postgresql.conf"], input=configuration.SETTINGS.encode())
    sandbox.shell.write(f"{data}/pg_hba.conf", configuration.access(sandbox))
    options = " ".join(f"-c {name}={value or chr(39) * 2}" for name, value in _WHILE_LOADING.items())
    pg_ctl = [program("pg_ctl"), "-D", data, "-s", "-w", "-l", f"{data}.log"]
    run([*pg_ctl, "-o", options, "start"], deadline=60)
    roles = "".join(
        f"create role {role} login {attributes} password '{sandbox.secret(name)}';\n"
        for role, attributes, name in (
            ("salvor", "superuser", "operator.password"),
            ("replica", "replication", "replica.password"),
            ("shop", "", "shop.password"),
        )
    )
    psql = [
        program("psql"),
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        f"{sandbox.root}/a",
        "-p",
        str(sandbox.database_port),
    ]
    run([*psql, "postgres"], input=f"{roles}create database orders owner shop;\n".encode())
    rows = (Path(__file__).parent / "data.sql").read_text(encoding="utf-8")
    run([*psql, "orders"], input=f"set role shop;\n{rows}".encode(), deadline=120)
    run([*pg_ctl, "-m", "fast", "stop"], deadline=60)
    run([program("initdb"), "-D", data, "--sync-only"], deadline=60)  # what was written without fsync


def _copy(sandbox: Layout) -> None:
    """The standby, as a copy of the stopped primary."""
    source, target = sandbox.data("a"), sandbox.data("b")
    sandbox.shell.run(["cp", "-a", "--reflink=auto", str(source), str(target)], deadline=60)
    sandbox.shell.run(["touch", f"{target}/standby.signal"])


def _dump(sandbox: Layout) -> None:
    """The first dump, with its fingerprint."""
    for _ in dumps.take(server(sandbox, "a"), "orders", str(sandbox.root / "dumps")):
        pass


def start(sandbox: Layout, member: str) -> None:
    """Start one member and wait until it answers."""
    taken = not processes.working_in(sandbox.data(member)) and not layout.is_free(
        ADDRESSES[member], sandbox.database_port
    )
    if taken:
        raise layout.port_taken(ADDRESSES[member], sandbox.database_port, f"the sandbox's database {member}")
    server(sandbox, member).start(deadline=30)
    # The checkpointer starts before the server knows that it is a primary, and then sleeps for checkpoint_timeout, 5
    # minutes, without looking at archive_timeout (PostgreSQL 15, CheckpointerMain). A checkpoint wakes it.
    with server(sandbox, member).session(deadline=30, writes=True) as connection:
        connection.execute("checkpoint")


def start_missing(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Start the members that do not run, except one that a recovery has put out of service."""
    looks = {member: server(sandbox, member).look() for member in ADDRESSES}
    live = _live(sandbox, looks)
    for member, look in looks.items():
        if look.control is None:
            tell(f"database {member}: its data directory is lost; inv restore --service=orders brings it back")
        elif look.processes:
            continue
        elif member == live or look.is_standby:
            start(sandbox, member)
            tell(f"database {member}: started")
        else:
            tell(f"database {member}: left as it is, because the other member is the primary")


def _live(sandbox: Layout, looks: Mapping[str, Look]) -> str | None:
    """The member that is, or was last, the primary: of those that are not standbys, the one on the newest timeline."""
    candidates = [member for member, look in looks.items() if look.control and not look.is_standby]
    return max(candidates, key=lambda member: looks[member].timeline, default=None)


def streams(sandbox: Layout) -> bool:
    """Whether a standby receives the primary's WAL as it is written."""
    return any(
        detail.endswith("1 standby streaming") for _, detail in (status(sandbox, member) for member in ADDRESSES)
    )


def status(sandbox: Layout, member: str) -> tuple[bool, str]:
    """Whether the member answers, and what it is."""
    import psycopg

    found = server(sandbox, member)
    where = f"{found.address}:{found.port}"
    try:
        reachable, detail = found.probe()
    except CannotError as error:  # a half-made sandbox has no password yet
        return False, error.what
    if reachable is not Reachable.UP:
        return False, f"{where}: {detail}"
    try:
        with found.session("postgres", deadline=3) as connection:
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

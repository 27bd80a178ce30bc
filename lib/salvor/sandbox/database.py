"""The sandbox's PostgreSQL: a primary and a streaming standby, with a pgBackRest repository that takes their WAL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from salvor.errors import CannotError
from salvor.postgres.look import Look
from salvor.postgres.server import Server
from salvor.sandbox import cluster, configuration, names, processes
from salvor.sandbox.cluster import PROGRAMS, Role, clear, is_made
from salvor.sandbox.layout import ADDRESSES, Layout

__all__ = ["PROGRAMS", "clear", "is_made"]

_ROLES = (
    cluster.OPERATOR,
    Role("replica", "replication", "replica.password"),
    Role("shop", "", "shop.password"),
)


def require() -> None:
    """Raise CannotError when a program that the sandbox needs is not on this machine."""
    cluster.require({**cluster.NEEDED, "knot": names.program()})


def server(sandbox: Layout, member: str) -> Server:
    """The server of a member, `a` or `b`."""
    return cluster.server(sandbox, sandbox.data(member), ADDRESSES[member])


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


def make(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Make the cluster, its data, its standby and its first backups, and leave both servers running.

    What a killed call left is thrown away first. Raises CannotError, naming the program that failed.
    """
    clear(sandbox)
    configuration.write(sandbox)
    first, rows = server(sandbox, "a"), Path(__file__).parent / "data.sql"
    cluster.initialise(sandbox, first, roles=_ROLES, database="orders", owner="shop", rows=rows)
    tell("database: 80,000 orders loaded")
    _copy(sandbox)
    start(sandbox, "a")
    server(sandbox, "b").launch()
    cluster.back_up(sandbox, first, stanza=configuration.STANZA, database="orders")
    start(sandbox, "b")
    if not processes.until(lambda: streams(sandbox), 15):
        raise CannotError(
            "The sandbox's standby does not follow its primary.",
            hint=f"read its log: tail {sandbox.data('b')}.log; or begin anew: inv sandbox.up --fresh",
        )
    cluster.note_made(sandbox)
    tell("database: first backups taken, one full and one dump; standby follows")


def _copy(sandbox: Layout) -> None:
    """The standby, as a copy of the stopped primary."""
    source, target = sandbox.data("a"), sandbox.data("b")
    sandbox.shell.run(["cp", "-a", "--reflink=auto", str(source), str(target)], deadline=60)
    sandbox.shell.run(["touch", f"{target}/standby.signal"])


def start(sandbox: Layout, member: str) -> None:
    """Start one member and wait until it answers."""
    cluster.start(sandbox, server(sandbox, member), f"database {member}")


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
    return cluster.status(server(sandbox, member))

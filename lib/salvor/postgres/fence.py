"""Fencing: a block on top of pg_hba.conf that lets only the operator in. It survives a restart of the server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.change import ABSENT, Progress, Reachable
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.postgres import refusal
from salvor.postgres.look import FIND_ACCESS
from salvor.postgres.server import WHOLE_MACHINE, Server, pause

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

_BEGIN = "# Salvor's fence"
_END = "# end of Salvor's fence"
_BLOCK = re.compile(
    rf"^{_BEGIN} (?P<word>begun|in force) for (?P<identity>\S+)(?: by (?P<incident>\S+))?\n.*?^{_END}\n", re.M | re.S
)
_PUT_OUT = "# put out by Salvor: "
_ARCHIVE_SECONDS = 20.0
_ROOM_SECONDS = _RELOAD_SECONDS = 5.0
READERS = "local all +salvor_reads scram-sha-256\nhost all +salvor_reads all scram-sha-256\n"
"""Lines that let in whoever asks databases of unknown origin (see `asking`); nobody where there is no such role."""


@dataclass(frozen=True)
class Block:
    """The block in a pg_hba.conf. `in_force`: the server has read it, and then the last other session was gone.
    `incident`: the one that fenced it (empty: not known).
    """

    identity: str
    in_force: bool
    incident: str


def only_the_operator(user: str) -> str:
    """Lines of a pg_hba.conf that let in this role, with its password, who asks in its stead, and nobody else."""
    # Method md5 also does SCRAM where the stored password is SCRAM, so the operator gets in either way. Physical
    # replication is no database, so `all` does not match it, and the rules below decide on it: a standby of a fenced
    # server may still fetch the last WAL, and it cannot write. (Logical replication does match, and is refused.)
    role = '"' + user.replace('"', '""') + '"'
    return f"local all {role} md5\nhost all {role} all md5\n{READERS}local all all reject\nhost all all all reject\n"


def _block(user: str, identity: str, incident: str, *, in_force: bool) -> str:
    by = f" by {incident}" if incident else ""
    return (
        f"{_BEGIN} {'in force' if in_force else 'begun'} for {identity}{by}\n"
        "# Only the operator gets in. To lift it by hand: remove this block, then reload.\n"
        f"{only_the_operator(user)}{_END}\n"
    )


@dataclass(frozen=True)
class _File:
    """The pg_hba.conf that a server uses, or would use when started; a link's target. `text`: None when it is gone."""

    path: str
    mode: int
    text: str | None


_READ = (
    FIND_ACCESS
    + r"""
data=$1 configuration=$2; shift 2
find_access "$@"
path=$(readlink -f -- "$access") || path=$access
echo "$path"
stat -c %a -- "$path" 2>/dev/null && cat -- "$path"
:
"""
)


def _file(server: Server) -> _File:
    argv = ["sh", "-c", _READ, "sh", server.data, server.configuration_file, *server.postgres]
    path, _, rest = server.shell.run(argv, deadline=10.0).stdout.partition("\n")
    mode, has_text, text = rest.partition("\n")
    return _File(path, int(mode or "600", 8), text if has_text else None)


def file_of(server: Server) -> str:
    """The path of the pg_hba.conf that the server uses, or would use when started; a link's target."""
    return _file(server).path


def block_in(access: str | None) -> Block | None:
    """The block in the text of a pg_hba.conf; None when there is none."""
    found = _BLOCK.search(access or "")
    return Block(found["identity"], found["word"] == "in force", found["incident"] or "") if found else None


def _write(server: Server, identity: str, incident: str, *, in_force: bool) -> None:
    file = _file(server)
    if file.text is None:
        raise CannotError(
            f"There is no {file.path} on {server.shell.where}, so PostgreSQL could not even start.",
            hint="look into the data directory; if it is lost, move what is left of it away",
        )
    text = _block(server.operator.user, identity, incident, in_force=in_force) + _BLOCK.sub("", file.text)
    try:
        server.shell.write(file.path, text, mode=file.mode)
    except CommandError as error:
        raise CannotError(
            f"The fence of {server.address}:{server.port} cannot be written: {error.stderr.strip()[-300:]}",
            safe="nothing was promoted",
            hint=f"mend that and run the same command again; or {WHOLE_MACHINE}",
        ) from error


def remove(server: Server) -> None:
    """Take the block out of the server's pg_hba.conf, and have that read again. Does nothing when there is none."""
    take_out(server)
    server.reload()


def take_out(server: Server) -> None:
    """Take the block out of the pg_hba.conf of a server that does not run. Does nothing when there is none."""
    file = _file(server)
    if file.text is not None and _BLOCK.search(file.text):
        server.shell.write(file.path, without(file.text), mode=file.mode)


def without(access: str) -> str:
    """The text of a pg_hba.conf as it was before the fence."""
    return re.sub(f"^{_PUT_OUT}", "", _BLOCK.sub("", access), flags=re.M)


def put_back(server: Server, identity: str, incident: str) -> None:
    """Put the block back for a server that does not run: it is in force from its next start on."""
    _write(server, identity, incident, in_force=True)


def fence(server: Server, identity: str, incident: str) -> Iterator[Progress]:
    """Shut everybody but the operator out: the block, then every session ended and seen gone, or the server dead.

    The order matters: with the block first, whoever restarts a killed server restarts a fenced one. A server that does
    not answer SQL is killed, since nothing else proves that a frozen one never writes again.
    """
    if identity == ABSENT:
        server.kill()
        return
    look = server.look_twice()
    reachable, detail = (Reachable.UNKNOWN, "frozen by a signal") if look.is_frozen else server.probe()
    if refusal.mend(detail) and "pg_hba.conf" not in detail:  # it answers, and may be sound: only our login is not
        raise _not_let_in(server, detail, "nothing was fenced")
    _write(server, identity, incident, in_force=False)
    server.reload(look)
    if "FATAL" in detail:  # maybe by its own rules, which the block stands above now
        reachable, detail = _probe_reloaded(server)
    if refusal.mend(detail):
        safe = "open sessions still work; new ones of the applications are refused once it reads its pg_hba.conf"
        raise _not_let_in(server, detail, safe)
    if refusal.is_full(detail):
        yield Progress(0, None, "", "ending sessions to have one")
        reachable, detail = _make_room(server)
    if reachable is Reachable.UP:
        yield Progress(0, None, "", "ending the sessions")
        _shut_out_the_others(server)
    elif server.processes():
        yield Progress(0, None, "", f"killing it: {detail}")
        server.kill()
    _write(server, identity, incident, in_force=True)
    if reachable is Reachable.UP:
        yield Progress(0, None, "", "handing the last WAL to the archive")
        if trouble := _archive_the_last_wal(server):
            yield Progress(0, None, "", trouble)


def _probe_reloaded(server: Server) -> tuple[Reachable, str]:
    """Ask a server that was told to reload, for a few seconds while it goes on keeping the operator out."""
    begun = clock.monotonic()
    while True:
        reachable, detail = server.probe()
        if not refusal.mend(detail) or clock.monotonic() > begun + _RELOAD_SECONDS:
            return reachable, detail
        pause(begun)


def _not_let_in(server: Server, detail: str, safe: str) -> CannotError:
    return CannotError(
        f"The operator {server.operator.user!r} cannot log in to {server.address}:{server.port}: {detail}.",
        safe=safe,
        hint=f"{refusal.mend(detail)}, then run the same command again",
    )


def _shut_out_the_others(server: Server) -> None:
    """End every other session. Takes the block out again, and raises CannotError, when it keeps the operator out too:
    the rules below it may let that role in without its password.
    """
    import psycopg

    try:
        _end_sessions(server)
        _, detail = server.probe()
    except psycopg.OperationalError as error:
        if "authentication failed" not in str(error):
            raise
        detail = " ".join(str(error).split())
    if "authentication failed" in detail:
        remove(server)
        role = server.operator.user
        raise CannotError(
            f"The fence of {server.address}:{server.port} kept out the operator {role!r} too, as it lets that role in "
            f"by its password alone: {detail}.",
            safe="the fence was taken out again, and users get in as before",
            hint="give the role the password that the inventory has (systems: operator: password), by alter role, or "
            "mend that one; then the same command again",
        )


_TERMINATE_CLIENTS = r"""
for pid; do
    case $(tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null) in
    *walsender*) ;;
    *"[local]"* | *"("[0-9]*")"*) kill -TERM "$pid" ;;
    esac
done
:
"""


def _make_room(server: Server) -> tuple[Reachable, str]:
    """End the sessions of a server that has none left for us, by a signal, and ask it again for a few seconds. Killed,
    it would send its standbys nothing more.
    """
    begun = clock.monotonic()
    while True:
        pids = [str(process.pid) for process in server.all_processes()]
        server.shell.run(["sh", "-c", _TERMINATE_CLIENTS, "sh", *pids], check=False)
        reachable, detail = server.probe()
        if not refusal.is_full(detail) or clock.monotonic() > begun + _ROOM_SECONDS:
            return reachable, detail
        pause(begun)


_OTHERS = """
    select pid from pg_stat_activity
    where pid <> pg_backend_pid() and backend_type in ('client backend', 'parallel worker')
      and usename is distinct from session_user
"""


# Where a line can stand in an included file (PostgreSQL 16), the view says in which.
_WRONG = "select line_number, to_jsonb(r) ->> 'file_name' from pg_hba_file_rules r where error is not null"


def _put_out(server: Server, wrong: Sequence[tuple[int, str | None]]) -> None:
    """Make comments of these lines of its pg_hba.conf, until the block is taken out."""
    file = _file(server)
    lines = (file.text or "").splitlines(keepends=True)
    for number, path in wrong:
        if path in (None, file.path) and number <= len(lines):
            lines[number - 1] = f"{_PUT_OUT}{lines[number - 1]}"
    server.shell.write(file.path, "".join(lines), mode=file.mode)


def _end_sessions(server: Server, *, deadline: float = 15.0) -> None:
    """End every other session, also those that are still logging in under the old rules, and see none left."""
    until = clock.monotonic() + deadline
    with server.session(deadline=deadline + 2, writes=True) as connection:
        if wrong := connection.execute(_WRONG).fetchall():
            _put_out(server, wrong)  # the server keeps its old rules while any line is wrong
            if connection.execute(_WRONG).fetchone():
                server.stop("fast")
                return
        asked_at = connection.execute("select clock_timestamp(), pg_reload_conf()").fetchone()
        while clock.monotonic() < until:
            left = [row[0] for row in connection.execute(_OTHERS)]
            connection.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [left])
            seen = connection.execute("select pg_conf_load_time(), array_agg(pid) from pg_stat_activity").fetchone()
            assert asked_at and seen
            logging_in = _end_logins(server, {int(pid) for pid in seen[1]})
            if seen[0] > asked_at[0] and not left and not logging_in:
                return
            time.sleep(0.1)
    raise OutcomeUnknownError(
        f"Not every session on {server.address}:{server.port} ended within {clock.write_duration(deadline)}.",
        safe="new sessions are refused; nothing was promoted",
        hint="run the same command again",
    )


def _end_logins(server: Server, known: set[int]) -> bool:
    """Whether a process was still logging a client in: it was forked with the old rules, and no view shows it yet."""
    unknown = [str(process.pid) for process in server.all_processes() if process.pid not in known]
    script = r"""
        for pid; do
            case $(tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null) in
            *" authentication"* | *" startup"* | *initializing*) kill -TERM "$pid"; echo "$pid" ;;
            esac
        done"""
    return bool(unknown and server.shell.run(["sh", "-c", script, "sh", *unknown], check=False).stdout)


def _archive_the_last_wal(server: Server) -> str:
    """Hand the WAL that is not archived yet to the archive. Best effort: what is wrong, or nothing."""
    import psycopg

    begun = clock.monotonic()
    try:
        with server.session(deadline=_ARCHIVE_SECONDS + 2, writes=True) as connection:
            if not _value(connection, "select current_setting('archive_mode') <> 'off'"):
                return ""
            # A switch that finds an empty segment gives its start; the segment before is then the last one.
            segment = _value(connection, "select pg_walfile_name(pg_switch_wal() - 1)")
            while clock.monotonic() < begun + _ARCHIVE_SECONDS:
                if _value(connection, "select last_archived_wal from pg_stat_archiver", "") >= segment:
                    return ""
                pause(begun)
            failed = _value(connection, "select last_failed_wal from pg_stat_archiver")
    except psycopg.Error as error:
        return f"the last WAL was not handed to the archive: {str(error).strip()}"
    failure = f" ({failed} failed)" if failed else ""
    return f"the archive does not take the last WAL{failure}; a restore will copy it from pg_wal"


def _value(connection: Connection, statement: str, instead: Any = None) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    return instead if row is None or row[0] is None else row[0]

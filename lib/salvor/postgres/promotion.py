"""A server is promoted: once the old primary is known to write no more, and seen to take writes afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from salvor import clock
from salvor.change import UNSEEN, Progress, Reachable
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres.cluster import View
from salvor.postgres.facts import ask_facts, describe_awaited
from salvor.postgres.server import Server, pause
from salvor.postgres.wal import read_lsn


def require_fence(view: View, identity: str, kept: str, unfenced_because: str) -> None:
    """See that what is replaced cannot write any more. Raises CannotError when that is not known.

    `kept`: it is put away already, by a call that was killed. `unfenced_because`: the operator's reason to go on.
    """
    holder = view.holder_of(identity)
    if (holder is None and kept) or unfenced_because:
        return
    if holder is None and view.primary.identity == UNSEEN:
        holder = view.holder_of(UNSEEN)
    if holder and holder.is_fenced:
        return
    seen = holder.describe() if holder else f"no member is {identity} now"
    raise CannotError(
        f"It is not known that the old primary cannot write any more: {seen}.",
        safe="nothing was promoted",
        hint="inv isolate fences it; where its machine cannot be reached, see to it by hand (power off), then add "
        "--override='promote-without-fence=REASON'",
    )


def promoting(server: Server, launch: Callable[[], object] | None = None) -> Iterator[Progress]:
    """End a server's recovery, which replays first what it has received, and see that it ended. Finds its work done
    when it is no standby. `launch` starts one that does not run, with settings of its own.
    """
    import psycopg

    if server.probe()[0] is not Reachable.UP:
        look = server.look()
        if not look.in_recovery and not look.processes:
            return
        if launch is not None:
            launch()
        server.start(deadline=300.0)
    begun = moved = clock.monotonic()
    try:
        first, end = _end_recovery(server)
        at = first
        while (replayed := _replayed(server)) is not None:
            now = clock.monotonic()
            if replayed != at:
                at, moved = replayed, now
                yield Progress(at - first, max(at, end) - first, "bytes", "replaying what it has received")
            if now > moved + _STUCK or now > begun + _LONGEST:
                raise OutcomeUnknownError(
                    f"{server.data} did not end its recovery within {clock.write_duration(now - begun)}.",
                    safe="nothing was lost",
                    hint="run the same command again",
                )
            pause(begun)
    except psycopg.Error as error:
        raise OutcomeUnknownError(
            f"Whether {server.data} was promoted is not known: {error}.",
            hint="run the same command again: it looks first",
        ) from error


_STUCK = 80.0
"""Seconds for which a server that is promoted may replay nothing."""
_LONGEST = 840.0
"""Seconds that a promotion may take, with what is to be replayed before."""
_RECOVERY = """
    select case when not pg_is_in_recovery() then 'ended' when pg_is_wal_replay_paused() then 'paused' else 'on' end,
        pg_last_wal_replay_lsn()::text, pg_last_wal_receive_lsn()::text
"""


def _end_recovery(server: Server) -> tuple[int, int]:
    """Have the recovery end, if it has not. Up to where the server has replayed and received its WAL (bytes)."""
    with server.session(deadline=30.0, writes=True) as connection:
        row = connection.execute(_RECOVERY).fetchone()
        assert row
        if row[0] == "paused":  # at its target, where pg_promote would be noticed up to a second later
            connection.execute("select pg_wal_replay_resume()")
        elif row[0] == "on":
            connection.execute("select pg_promote(false)")
        replayed, received = (read_lsn(each) if each else 0 for each in row[1:])
        return replayed, received


def _replayed(server: Server) -> int | None:
    """Up to where a server in recovery has replayed its WAL (bytes); None when that has ended."""
    with server.session(deadline=10.0) as connection:
        row = connection.execute("select pg_is_in_recovery(), pg_last_wal_replay_lsn() - '0/0'").fetchone()
    return int(row[1] or 0) if row and row[0] else None


_STOPPED_WITHIN = (10.0, 50.0)
"""Seconds until a server that stops is looked at, and then."""


def stop_or_kill(server: Server) -> None:
    """Stop a fenced server: by a clean shutdown when it answers, else by SIGKILL. One that has written its last
    checkpoint waits for nothing but its archive, which may hang for ever: 10 s at most, its WAL is kept with it.
    """
    if not server.processes():
        return
    if server.probe()[0] is Reachable.UP:
        for seconds in _STOPPED_WITHIN:
            try:
                server.stop("fast", deadline=seconds)
                return
            except OutcomeUnknownError:  # it hangs; it is fenced, so nothing that anybody was told is lost
                if (server.control() or {}).get("Database cluster state", "").startswith("shut down"):
                    break
    server.kill()


def see_it_writes(server: Server) -> None:
    """See that a server takes writes, by a small message in its WAL. Raises CannotError when it does not.

    The trap: its checkpointer, which hands WAL to the archive after archive_timeout, went to sleep while it was in
    recovery, for checkpoint_timeout (CheckpointerMain in checkpointer.c). Reading its settings again wakes it.
    """
    import psycopg

    try:
        with server.session(deadline=10.0, writes=True) as connection:
            connection.execute("select pg_logical_emit_message(true, 'salvor', 'it takes writes')")
            connection.execute("select pg_reload_conf()")
    except psycopg.Error as error:
        waits = _awaited_standby(server)
        waits_no_more = server.by_hand("alter system set synchronous_standby_names = ''", "select pg_reload_conf()")
        raise CannotError(
            f"{server.address}:{server.port} is promoted and does not take writes: {waits or error}.",
            safe="what was live before is kept",
            hint=f"{waits_no_more if waits else 'see its log'}; then the same command again",
        ) from error


def _awaited_standby(server: Server) -> str:
    """For which synchronous standbys its commits wait while they do not follow; empty when that is not so, or not
    known.
    """
    import psycopg

    try:
        standbys = ask_facts(server, "postgres").awaits
    except psycopg.Error:
        return ""
    return describe_awaited(standbys) if standbys else ""

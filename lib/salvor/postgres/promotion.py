"""A server is promoted: once the old primary is known to write no more, and seen to take writes afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.change import UNSEEN, Reachable
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres.cluster import View
from salvor.postgres.facts import ask_facts, describe_awaited
from salvor.postgres.server import Server, pause

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection


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


def promote_server(server: Server, launch: Any = None) -> None:
    """End a server's recovery and see that it ended. Finds its work done when it is no standby."""
    import psycopg

    if server.probe()[0] is not Reachable.UP:
        look = server.look()
        if not look.in_recovery and not look.processes:
            return
        if launch is not None:
            launch()
        server.start(deadline=300.0)
    begun = clock.monotonic()
    try:
        with server.session(deadline=90.0, writes=True) as connection:
            state = connection.execute(_RECOVERY).fetchone()
            if state == ("ended",):
                return
            if state == ("paused",):  # at its target, where pg_promote would be noticed up to a second later
                connection.execute("select pg_wal_replay_resume()")
                done = _has_ended_recovery(connection, begun)
            else:
                done = connection.execute("select pg_promote(true, 80)").fetchone() == (True,)
    except psycopg.Error as error:
        raise OutcomeUnknownError(
            f"Whether {server.data} was promoted is not known: {error}.",
            hint="run the same command again: it looks first",
        ) from error
    if not done:
        raise OutcomeUnknownError(
            f"{server.data} did not end its recovery within 80 s.",
            safe="nothing was lost",
            hint="run the same command again",
        )


_RECOVERY = """
    select case when not pg_is_in_recovery() then 'ended' when pg_is_wal_replay_paused() then 'paused' else 'on' end
"""


def _has_ended_recovery(connection: Connection, begun: float) -> bool:
    """Wait for 80 s at most."""
    while connection.execute("select pg_is_in_recovery()").fetchone() != (False,):
        if clock.monotonic() > begun + 80:
            return False
        pause(begun)
    return True


def stop_or_kill(server: Server) -> None:
    """Stop a fenced server: by a clean shutdown when it answers, else by SIGKILL."""
    if not server.processes():
        return
    if server.probe()[0] is Reachable.UP:
        try:
            server.stop("fast", deadline=60.0)
            return
        except OutcomeUnknownError:
            pass  # it hangs; it is fenced, so nothing that anybody was told is lost
    server.kill()


def see_it_writes(server: Server) -> None:
    """See that a server takes writes, by a small message in its WAL. Raises CannotError when it does not."""
    import psycopg

    try:
        with server.session(deadline=10.0, writes=True) as connection:
            connection.execute("select pg_logical_emit_message(true, 'salvor', 'it takes writes')")
    except psycopg.Error as error:
        waits = _awaited_standby(server)
        raise CannotError(
            f"{server.address}:{server.port} is promoted and does not take writes: {waits or error}.",
            safe="what was live before is kept",
            hint="when it waits for a synchronous standby: alter system set synchronous_standby_names = ''; and reload",
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

"""Failover: promote the standby that is near enough, once the old primary is known to write no more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from salvor import clock
from salvor.change import Progress, Reachable, WayBack
from salvor.errors import OutcomeUnknownError, SalvorError
from salvor.postgres.cluster import Sighting, View
from salvor.postgres.lag import Lag, lag_of
from salvor.postgres.promotion import promoting, require_fence, see_it_writes, stop_or_kill
from salvor.postgres.server import Server
from salvor.postgres.wal import read_lsn
from salvor.wish import PROMOTE_WITHOUT_FENCE, Wish

_CATCH_UP_SECONDS = 20.0
_HANDED_OVER = 16 * 1024 * 1024
"""Bytes of WAL that a primary which is stopped still sends in no time."""


def stage_name(member: str) -> str:
    """The name of a standby as a stage."""
    return f"standby {member}"


def way(view: View, wish: Wish) -> WayBack:
    """Failover to the standby that loses the least, and of several to the one that has the least to replay."""
    primary = view.primary
    standbys = [one for one in view.standbys if one is not primary and not wish.gives_up(one.member.machine)]
    if not standbys:
        which = f" but on {', '.join(wish.given_up)}, which is given up" if wish.given_up else ""
        left = "".join(
            f"; {one.member.name} was left behind on timeline {one.timeline}, and lacks what was written on timeline "
            f"{view.live_timeline}: inv protect rebuilds it, once the primary is back"
            for one in view.left_behind
        )
        return WayBack("failover", False, f"no standby answers{which}" if not left else f"no standby follows{left}")
    try:
        best, lag = _nearest(standbys, primary)
    except SalvorError as error:
        return WayBack("failover", False, f"what the old primary has more than its standbys is not known: {error.what}")
    name, server = best.member.name, best.member.server
    refusal = _refusal(view, best, lag, wish)
    reason = wish.override(PROMOTE_WITHOUT_FENCE)
    return WayBack(
        "failover",
        not refusal,
        refusal or f"standby {name} is there: {lag.why}{_still_to_replay(best)}",
        stage=stage_name(name),
        identity=best.identity,
        address=server.address,
        promote={
            "identity": primary.identity,
            "stage": stage_name(name),
            **({"unfenced_because": reason} if reason else {}),
        },
        promote_no_undo="a promoted standby goes on with a history of its own; the old primary is kept, fenced",
        loses=lag.seconds,
        machine=best.member.machine,
    )


def _nearest(standbys: Sequence[Sighting], primary: Sighting) -> tuple[Sighting, Lag]:
    """The standby to promote, and how far it is behind. Of those that lose nothing, or get the rest from a primary that
    hands over, the one that is ready first; else the one that has received the most.
    """

    def rank(found: tuple[Sighting, Lag]) -> tuple[int, int]:
        one, lag = found
        assert one.facts
        rest = primary.facts.lsn - one.facts.received if primary.facts else 0
        hands_over = bool(primary.facts and one.facts.streams_from and rest < _HANDED_OVER)
        if lag.seconds == 0 or hands_over:
            return 0, one.facts.received - one.facts.lsn
        return 1, -one.facts.received

    return min(((one, lag_of(one, primary)) for one in standbys), key=rank)


def _still_to_replay(standby: Sighting) -> str:
    """What a standby has to replay before it takes writes, where that is to be told."""
    facts = standby.facts
    if not facts or not (facts.is_held_back or facts.received - facts.lsn > _HANDED_OVER):
        return ""
    late = f", as it replays {clock.write_duration(facts.delay)} late on purpose" if facts.delay else ""
    late = ", as somebody paused its replay" if facts.paused else late
    size = f"{(facts.received - facts.lsn) / 1e6:,.1f} MB"
    return f"; it first replays {size} of WAL that it has received{late}. Until then it cannot be asked what is in it"


def _refusal(view: View, best: Sighting, lag: Lag, wish: Wish) -> str:
    primary = view.primary
    if wish.source != "latest" or wish.at or wish.target:
        return "a standby holds the newest state only, and another one was asked for"
    if not wish.live_is_sound:
        return "the standby has the same damage: it replays what the primary wrote"
    if primary.look and primary.look.control and _system_of(primary) != _system_of(best):
        return f"{best.member.name} is a standby of another cluster"
    if lag.seconds is not None and lag.seconds > wish.rpo:
        return (
            f"{best.member.name} is {clock.write_duration(lag.seconds)} behind, more than the service may lose "
            f"({clock.write_duration(wish.rpo)}); {lag.why}"
        )
    return ""


def _system_of(one: Sighting) -> str:
    return one.identity.partition("@")[0]


def promote(view: View, name: str, identity: str, *, unfenced_because: str) -> Iterator[Progress]:
    """Promote the standby `name`, after the old primary's last WAL. Finds its work done when it is a primary.

    Refuses while it is not known that the old primary cannot write.
    """
    standby = view.of(name)
    server = standby.member.server
    if not (standby.facts and not standby.facts.in_recovery):
        kept = ""
        require_fence(view, identity, kept, unfenced_because)
        old = view.holder_of(identity)
        if old and old.look and old.look.processes and not old.is_cut_off:
            yield Progress(0, None, "", "stopping the old primary, which sends its last WAL first")
            stop_or_kill(old.member.server)
            yield from _catch_up(server, old.member.server)
        yield Progress(0, None, "", "promoting")
        _resume(server)
        yield from promoting(server)
    see_it_writes(server)


def _catch_up(standby: Server, old: Server) -> Iterator[Progress]:
    """Wait until the standby has the last record of a clean shutdown. Best effort: a killed server sends nothing."""
    import psycopg

    control = old.control() or {}
    if control.get("Database cluster state") != "shut down":
        return
    end = read_lsn(control["Latest checkpoint location"])
    until = clock.monotonic() + _CATCH_UP_SECONDS
    received = 0
    while clock.monotonic() < until:
        try:
            with standby.session(deadline=5.0) as connection:
                row = connection.execute("select coalesce(pg_last_wal_receive_lsn(), '0/0')::text").fetchone()
        except psycopg.Error:
            row = None
        received = read_lsn(row[0]) if row else 0
        if received > end:
            return
        yield Progress(received, end, "bytes", "receiving the last WAL")
        time.sleep(0.2)


def _resume(server: Server) -> None:
    """Let a replay go on that somebody paused: promoting it while it is paused would leave WAL out."""
    import psycopg

    if server.probe()[0] is not Reachable.UP:
        return
    try:
        with server.session(deadline=10.0, writes=True) as connection:
            if connection.execute("select pg_is_in_recovery()").fetchone() == (False,):
                return
            if connection.execute("select pg_is_wal_replay_paused()").fetchone() == (False,):
                return  # what it has is replayed before its promotion, also where it replays late
            connection.execute("select pg_wal_replay_resume()")
            until = clock.monotonic() + 8
            while clock.monotonic() < until:
                row = connection.execute(
                    "select not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()"
                ).fetchone()
                if not row or row[0] is not False:
                    return
                time.sleep(0.1)
    except psycopg.Error as error:
        raise OutcomeUnknownError(
            f"{server.address}:{server.port} stopped answering before its promotion: {error}.",
            safe="nothing was promoted",
            hint="run the same command again",
        ) from error

"""Failover: promote the standby that is near enough, once the old primary is known to write no more."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from salvor import clock
from salvor.change import Progress, Reachable, WayBack
from salvor.errors import OutcomeUnknownError
from salvor.postgres.cluster import Sighting, View
from salvor.postgres.promotion import promote_server, require_fence, see_it_writes, stop_or_kill
from salvor.postgres.server import Server
from salvor.postgres.wal import name_of, read_lsn, write_lsn
from salvor.wish import PROMOTE_WITHOUT_FENCE, Wish

_CATCH_UP_SECONDS = 20.0


def stage_name(member: str) -> str:
    """The name of a standby as a stage."""
    return f"standby {member}"


@dataclass(frozen=True)
class Lag:
    """How far a standby is behind: seconds of commits that it lacks (None: cannot be told), and why we think so."""

    seconds: float | None
    why: str


def lag_of(standby: Sighting, primary: Sighting) -> Lag:
    """What would be lost by promoting `standby` now."""
    assert standby.facts
    received, fresh = standby.facts.received, standby.facts.fresh
    if primary.facts and not primary.facts.in_recovery:
        missing = primary.facts.lsn - received
        if missing <= 0:
            return Lag(0.0, "it has received everything")
        newest = primary.facts.fresh or primary.facts.now
        seconds = max(0.0, (newest - fresh).total_seconds()) if fresh else None
        return Lag(seconds, f"it is {missing} bytes of WAL behind")
    commits = missing_commits(primary, received)
    if commits is None:
        return Lag(None, "the WAL of the old primary cannot be read, so what it had more is not known")
    count, last = commits
    if not count:
        return Lag(0.0, f"it has every commit that is in the old primary's WAL, up to {write_lsn(received)}")
    seconds = max(0.0, (last - fresh).total_seconds()) if last and fresh else None
    return Lag(seconds, f"the old primary's WAL has {count} commits more")


_COMMIT = re.compile(r"desc: COMMIT(?: PREPARED)? (\S+ \S+) UTC")


def missing_commits(primary: Sighting, lsn: int) -> tuple[int, datetime | None] | None:
    """The commits behind `lsn` in the WAL of a primary that does not answer, or is fenced: how many, and when the last
    was.

    None when its WAL cannot be read there, or begins behind `lsn`. Read by pg_waldump from pg_wal itself: no server
    has to run.
    """
    if not primary.look or primary.is_lost or not primary.timeline or not primary.look.control:
        return None
    server = primary.member.server
    size = int(primary.look.control["Bytes per WAL segment"])
    first, before = (name_of(primary.timeline, place, size) for place in (lsn, max(0, lsn - 1)))
    script = r"""
        command -v -- "$1" >/dev/null && cd -- "$2/pg_wal" && { test -r "$5" || test -r "$6"; } || exit 44
        "$1" --path="$2/pg_wal" --timeline="$3" --start="$4" --rmgr=Transaction 2>/dev/null |
            grep -e 'desc: COMMIT' | sed -n -e '$p' -e '$='
    """
    argv = ["sh", "-c", script, "sh", server.program("pg_waldump"), server.data, str(primary.timeline), write_lsn(lsn)]
    argv += [first, before]
    result = server.shell.run(argv, environment={"TZ": "UTC"}, deadline=20.0, check=False)
    if result.exit_code == 44:
        return None
    lines = result.stdout.splitlines()
    if len(lines) < 2:
        return 0, None
    found = _COMMIT.search(lines[0])
    return int(lines[1]), clock.read_time(found[1].replace(" ", "T") + "+00:00") if found else None


def way(view: View, wish: Wish) -> WayBack:
    """Failover to the standby that has received the most."""
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
    best = max(standbys, key=lambda one: one.facts.received if one.facts else 0)
    name, server = best.member.name, best.member.server
    lag = lag_of(best, primary)
    refusal = _refusal(view, best, lag, wish)
    reason = wish.override(PROMOTE_WITHOUT_FENCE)
    return WayBack(
        "failover",
        not refusal,
        refusal or f"standby {name} is there: {lag.why}",
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
        promote_server(server)
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

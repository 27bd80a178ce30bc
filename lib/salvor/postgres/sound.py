"""What looks broken, and is not, as far as anybody knows: room, a mount or a connection slot is all that it lacks. Any
other state of the data has less.
"""

from __future__ import annotations

from salvor import unmounted
from salvor.change import Reachable
from salvor.errors import CannotError
from salvor.postgres import refusal
from salvor.postgres.cluster import Sighting
from salvor.wish import Wish


def require_more_than_room(name: str, primary: Sighting, wish: Wish) -> None:
    """See that the primary did not just stop on a full disk: then it has lost nothing, and any backup has less. Raises
    CannotError, unless the operator named a backup, a moment, or the ways.
    """
    look = primary.look
    if wish.ways or wish.source != "latest" or wish.at or wish.target or wish.given_up or not wish.live_is_sound:
        return
    if primary.reachable is not Reachable.DOWN or not look or not look.is_without_room:
        return
    server = primary.member.server
    raise CannotError(
        f"{name} is down, and the disk of {server.data}/pg_wal on {server.shell.where} is full: "
        f"{(look.wal_room or 0) / 1e6:.1f} MB are free. Nothing says that its data is damaged.",
        safe="nothing was changed; what was committed is there",
        hint="make room on that disk, but remove nothing in pg_wal by hand, and start the server; then see why WAL "
        "stays there: archive_command, pg_replication_slots. To go back to a backup all the same: "
        "--runbook=from_backup",
    )


def require_its_disk(name: str, primary: Sighting, wish: Wish) -> None:
    """See that the primary's data directory is not only on a disk that is not mounted: any other state has less. Raises
    CannotError, unless the operator named the ways.
    """
    if wish.ways or not primary.look or not primary.look.unmounted:
        return
    server, point = primary.member.server, primary.look.unmounted
    raise CannotError(
        f"{server.data} of {name} is not there, and {unmounted.told(point)}: it may be whole on that disk.",
        safe="nothing was changed",
        hint=unmounted.mend(point, server.shell.where, then=" and start the server"),
    )


def require_started(name: str, primary: Sighting, wish: Wish) -> None:
    """See that the primary does not only replay its WAL still, as after a crash: it loses nothing, and is up before a
    backup is. Raises CannotError, unless the operator named a backup, a moment, or the ways.
    """
    if not _is_to_be_as_it_was(primary, wish) or "starting up" not in primary.detail:
        return
    server, parents = primary.member.server, ",".join(map(str, primary.look.postmasters if primary.look else ()))
    raise CannotError(
        f"{name} runs, and is still starting: {server.data} on {server.shell.where} replays its WAL, as after a crash, "
        "and takes sessions by itself then. Nothing says that its data is damaged.",
        safe="nothing was changed; what was committed is there",
        hint=f"there: ps -o pid,etime,args --ppid {parents} shows the segment at which it is, and its log why, if it "
        "stands still; then inv assess. To go back to a backup all the same: --runbook=from_backup",
    )


def require_a_free_slot(name: str, primary: Sighting, wish: Wish) -> None:
    """See that the primary does not only lack a connection slot: it may be sound, and a copy of it would be taken up
    the same way. Raises CannotError, unless the operator named a backup, a moment, or the ways.
    """
    if not _is_to_be_as_it_was(primary, wish) or not refusal.is_full(primary.detail):
        return
    server, parents = primary.member.server, ",".join(map(str, primary.look.postmasters if primary.look else ()))
    raise CannotError(
        f"{name} runs, and lets nobody in: all connection slots of {server.data} on {server.shell.where} are in use. "
        "Nothing says that its data is damaged.",
        safe="nothing was changed; what was committed is there",
        hint=f"restart the programs that hold them, or there: ps -o pid,lstart,args --ppid {parents} names the "
        "sessions, and kill -TERM PID ends one, as pg_terminate_backend does. To bring up a standby or a backup all "
        "the same: --runbook=failover or --runbook=from_backup",
    )


def _is_to_be_as_it_was(primary: Sighting, wish: Wish) -> bool:
    """Whether its server runs and lets nobody in, and the operator asked for nothing but the service back."""
    asked = wish.ways or wish.source != "latest" or wish.at or wish.target or wish.given_up or not wish.live_is_sound
    return not asked and primary.reachable is Reachable.UNKNOWN and bool(primary.look and primary.look.processes)

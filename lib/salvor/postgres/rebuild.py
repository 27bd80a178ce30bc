"""Redundancy after a recovery: a standby is copied anew from the live primary, beside the old data, and swapped in."""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import psycopg
from psycopg import conninfo

from salvor import clock, leftovers, secrets
from salvor.change import Progress, Reachable
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.postgres import beside, fence
from salvor.postgres.asking import ask
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.facts import ask_facts
from salvor.postgres.look import MARKER
from salvor.postgres.promotion import stop_or_kill
from salvor.postgres.server import Server

_COPY_SECONDS = 24 * 3600.0
_STREAM_SECONDS = 60.0
_RECONNECT_SECONDS = 10.0
_MARK = "rebuilt_in"
"""In the marker of a copy that is whole: the incident that made it. Gone once it streams."""
_COPIED = re.compile(r"(\d+)/(\d+) kB")


def unprotected(look: Callable[[], View], tell: Callable[[str], object]) -> list[Sighting]:
    """The members that are no healthy standby of the live primary, and whose machine answers.

    A standby of the same cluster that answers has a few seconds to connect: after a promotion it tries again from time
    to time. `tell` is told whom this waits for. Raises CannotError when there is no live primary.
    """
    until = clock.monotonic() + _RECONNECT_SECONDS
    told = ""
    while True:
        seen = look()
        primary = seen.primary
        if not primary.is_up or primary.is_fenced:
            raise CannotError(
                f"There is no live primary that could be copied: {primary.describe()}.",
                safe="nothing was changed",
                hint="inv assess",
            )
        following = _following(seen)
        found = [one for one in seen.sightings if one is not primary and one.look and one not in following]
        awaited = ", ".join(one.member.name for one in found if _may_follow(one, primary))
        left = until - clock.monotonic()
        if not awaited or left < 0:
            return found
        if awaited != told:
            tell(f"waiting whether {awaited} comes to follow {primary.member.name} by itself, {left:.0f} s at most")
            told = awaited
        time.sleep(0.5)


def _may_follow(one: Sighting, primary: Sighting) -> bool:
    clusters = {one.system_identifier, primary.system_identifier} - {""}
    return bool(one.facts and one.facts.in_recovery and len(clusters) < 2)


def _following(seen: View) -> list[Sighting]:
    """The members that follow the primary, or one that does: a cascade is as it should be."""
    found: list[Sighting] = []
    ahead = [seen.primary]
    while ahead:
        upstream = ahead.pop()
        more = [one for one in seen.sightings if one not in (seen.primary, *found) and _follows(one, upstream, seen)]
        found += more
        ahead += more
    return found


def _follows(one: Sighting, upstream: Sighting, seen: View) -> bool:
    """Whether it streams from that member, which may have more addresses than the inventory's, as of a network for
    replication alone, but none of another member's.
    """
    if not one.facts or not one.facts.streams_from or not _may_follow(one, upstream):
        return False
    server = upstream.member.server
    others = {each.member.server.address for each in seen.sightings} - {server.address}
    host, _, port = one.facts.streams_from.rpartition(":")
    return port == str(server.port) and host not in others and one.timeline == upstream.timeline


def rebuild(seen: View, member: Member, incident: str) -> Iterator[Progress]:
    """Copy the live primary beside the member's data directory, swap it in, and start it as a streaming standby.

    What was there is kept. Finds its work done when the member follows the primary. Refuses for the primary itself.
    """
    primary = seen.primary
    one = seen.of(member.name)
    if one is primary or not primary.is_up or primary.is_fenced:
        raise CannotError(
            f"{member.name} cannot be rebuilt: the live primary is {primary.describe()}.",
            safe="nothing was changed",
            hint="bring the primary back first: inv restore",
        )
    if _follows(one, primary, seen):
        return
    server = member.server
    look = server.look()
    if look.is_mount_point:
        raise CannotError(
            f"{member.name} cannot be rebuilt: {server.data} is a mount point or a link, so it cannot be renamed.",
            safe="nothing was changed",
            hint="rebuild it by hand (pg_basebackup), or have the data directory be a folder below it",
        )
    _require_hot_standby(member, server if server.configuration else primary.member.server)
    lacked_slot = _make_its_slot(primary.member.server, server)
    if lacked_slot and _may_follow(one, primary) and (yield from _comes_to_follow(one, seen, _RECONNECT_SECONDS)):
        return
    if beside.read_marker(look.marker).get(_MARK) != incident:
        yield from _replace(seen, member, incident)
    fence.remove(server)
    yield Progress(0, None, "", "starting it")
    server.start(deadline=300.0)
    if not (yield from _comes_to_follow(one, seen, _STREAM_SECONDS)):
        raise OutcomeUnknownError(
            f"The standby {server.address}:{server.port} was rebuilt and does not stream after "
            f"{_STREAM_SECONDS:.0f} s.",
            safe="the primary is not affected",
            hint=f"read its log: tail {shlex.quote(server.log)}",
        )
    server.shell.run(["rm", "-f", "--", f"{server.data}/{MARKER}"])


def _require_hot_standby(member: Member, configured: Server) -> None:
    """Raises CannotError when the copy, which has the configuration of `configured`, would answer nobody as a standby:
    whether it follows could not be seen.
    """
    if configured.setting("hot_standby") == "off":
        raise CannotError(
            f"{member.name} cannot be rebuilt: hot_standby is off in {configured.configuration_file} on "
            f"{configured.shell.where}, which the copy has too: nobody could ask it whether it follows, or promote it.",
            safe="nothing was changed",
            hint="set it to on there, or by alter system set hot_standby = on (of a primary it changes nothing), then "
            "inv protect again",
        )


def _replace(seen: View, member: Member, incident: str) -> Iterator[Progress]:
    """Put a copy of the primary in the place of the member's data directory."""
    server, primary = member.server, seen.primary
    copy = replace(server, data=f"{server.data}.rebuilt")
    kept = beside.kept_of(server, incident)
    connection = _connection_to(primary, seen, member)
    if beside.read_marker(copy.look().marker).get(_MARK) != incident:
        # A pg_basebackup that is killed leaves the child that streams WAL: it holds the pipe itself at whose end it
        # would end (StartLogStreamer in pg_basebackup.c), and the primary's session with it.
        leftovers.end(server.shell, copy.data, copy.data)
        server.shell.run(["rm", "-rf", "--", copy.data], deadline=3600.0)
        size = ask(primary.member.server, "postgres", "select sum(pg_database_size(oid))::bigint from pg_database")
        beside.room_for(server, int(size), _spaces(server, primary.member.server))
        yield from _copy(primary.member.server, server, copy, connection, incident)
        _make_a_standby(copy, connection)
        beside.write_marker(copy, {_MARK: incident})
    yield Progress(0, None, "", "stopping what is replaced")
    stop_or_kill(server)
    superseded = f"{kept}-again"
    if server.shell.exists(kept) and server.look().is_standby:  # itself a copy, of this incident too
        beside.put_away(server, superseded)
    beside.remove(server, superseded, tablespaces="own")
    beside.swap(server, comes=copy.data, goes=kept)


def _connection_to(primary: Sighting, seen: View, member: Member) -> dict[str, str]:
    """How a standby on `member` reaches the primary: as it, or another member, was told for replication before."""
    order = [member, *(one.member for one in seen.sightings if one.member is not member and one.look)]
    for one in order:
        known = one.server.setting("primary_conninfo")
        if known:
            told = {name: str(value) for name, value in conninfo.conninfo_to_dict(known).items() if name != "hostaddr"}
            return {**told, "host": primary.member.server.address, "port": str(primary.member.server.port)}
    tell = primary.member.server.by_hand("alter system set primary_conninfo = 'user=ROLE passfile=FILE'")
    raise CannotError(
        f"No member has a primary_conninfo, so it is not known as which role {member.name} may replicate.",
        safe="nothing was changed",
        hint=f"{tell} (FILE: of its password, on the machine of {member.name}); then run the same command again",
    )


def _copy(
    primary: Server, server: Server, copy: Server, connection: dict[str, str], incident: str
) -> Iterator[Progress]:
    """pg_basebackup. A password goes by the environment; its output tells how far it is."""
    public = {name: value for name, value in connection.items() if name not in ("password", "application_name")}
    password = {"PGPASSWORD": connection["password"]} if "password" in connection else {}
    argv = [server.program("pg_basebackup"), "-D", copy.data, "-d", conninfo.make_conninfo(**public)]
    argv += ["-X", "stream", "-c", "fast", "--progress", "--no-password", *_tablespaces(primary, server, incident)]
    argv += _wal(server, incident)
    script = 'exec "$@" 2>&1'
    told: list[str] = []
    try:
        for line in server.shell.stream(
            ["sh", "-c", script, "sh", *argv], deadline=_COPY_SECONDS, environment=password
        ):
            if found := list(_COPIED.finditer(line)):
                done, total = int(found[-1][1]), int(found[-1][2])
                yield Progress(done * 1024, max(done, total) * 1024, "bytes", f"copying to {copy.data}")
            else:
                told = [*told[-2:], line.strip()]
    except CommandError as error:
        raise CannotError(
            f"The primary cannot be copied to {copy.data}: {secrets.mask('; '.join(told)) or error.what}",
            safe="what was there is as it was",
            hint="mend that, then inv protect again",
        ) from error


def _wal(server: Server, incident: str) -> list[str]:
    """Where the copy's WAL goes when the old copy's pg_wal is a link to another disk: beside that, if it can be."""
    script = r"""
        [ -L "$1/pg_wal" ] || exit 0
        place_beside "$(readlink -m -- "$1/pg_wal")" "$2"
        if [ "$1/pg_wal" -ef "$place" ]; then place=$place-again; fi
        rm -rf -- "$place" && mkdir -m 700 -- "$place" && echo "$place"
    """
    argv = ["sh", "-c", beside.PLACE + script, "sh", server.data, beside.check_incident(incident)]
    place = server.shell.run(argv, check=False).stdout.strip()
    return [f"--waldir={place}"] if place else []


_SPACES = r"""
data=$1
shift
while [ $# -gt 0 ]; do
    readlink -- "$data/pg_tblspc/$1" || echo "$2"
    shift 2
done
"""


def _spaces(server: Server, primary: Server) -> list[str]:
    """Where the old copy has the primary's tablespaces, or the primary does: what is there tells what the copy needs
    beside it.
    """
    argv = ["sh", "-c", _SPACES, "sh", server.data, *itertools.chain(*_tablespaces_of(primary))]
    return server.shell.run(argv).stdout.splitlines()


def _tablespaces_of(primary: Server) -> list[tuple[str, str]]:
    """The object id and the path of each tablespace that is not in the data directory."""
    question = (
        "select oid::text, pg_tablespace_location(oid) from pg_tablespace where pg_tablespace_location(oid) ~ '^/'"
    )
    with primary.session() as connection:
        return connection.execute(question).fetchall()


_PLACES = r"""
data=$1 incident=$2
shift 2
while [ $# -gt 0 ]; do
    link=$data/pg_tblspc/$1
    place_beside "$(readlink -- "$link" || echo "$2")" "$incident"
    if [ "$link" -ef "$place" ]; then place=$place-again; fi
    rm -rf -- "$place" && mkdir -p -m 700 -- "$place" && echo "$place" || exit
    shift 2
done
"""


def _tablespaces(primary: Server, server: Server, incident: str) -> list[str]:
    """Mappings of the primary's tablespaces to places beside those of the old copy: that one is kept, and two servers
    on one machine cannot share any.
    """
    found = _tablespaces_of(primary)
    argv = ["sh", "-c", beside.PLACE + _PLACES, "sh", server.data, beside.check_incident(incident)]
    places = server.shell.run([*argv, *itertools.chain(*found)], deadline=3600.0).stdout.splitlines()
    return [f"--tablespace-mapping={path}={place}" for (_, path), place in zip(found, places, strict=True)]


def _make_a_standby(copy: Server, connection: dict[str, str]) -> None:
    """Have it follow the primary when it starts: in its own configuration if that says so already."""
    copy.shell.run(["touch", f"{copy.data}/standby.signal"])
    told = conninfo.conninfo_to_dict(copy.setting("primary_conninfo") or "")
    if (told.get("host"), str(told.get("port"))) != (connection["host"], connection["port"]):
        path = f"{copy.data}/postgresql.auto.conf"
        lines = [line for line in (copy.shell.read(path) or "").splitlines() if not line.startswith("primary_conninfo")]
        value = conninfo.make_conninfo(**connection).replace("'", "''")
        copy.shell.write(path, "\n".join([*lines, f"primary_conninfo = '{value}'"]) + "\n")


def _make_its_slot(primary: Server, standby: Server) -> bool:
    """Make the replication slot that the standby is told to use, where the primary lacks it: a promoted server has none
    of the old one's, and neither has a backup. Whether it did.
    """
    name = standby.setting("primary_slot_name")
    if not name:
        return False
    with primary.session(deadline=10.0, writes=True) as connection:
        made = connection.execute(
            "select pg_create_physical_replication_slot(%s) "
            "where not exists (select from pg_replication_slots where slot_name = %s)",
            [name, name],
        ).fetchone()
    return made is not None


def _comes_to_follow(one: Sighting, seen: View, seconds: float) -> Generator[Progress, None, bool]:
    """Wait until the member follows the primary, for so many seconds at most. Raises CannotError when it ended."""
    server = one.member.server
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        yield Progress(0, None, "", f"waiting until it follows the primary, {seconds:.0f} s at most")
        try:
            # Its control file, as looked at before, may be of another cluster.
            now = replace(one, look=None, facts=ask_facts(server, "postgres"))
            if _follows(now, seen.primary, seen):
                return True
        except psycopg.Error:
            if server.probe()[0] is Reachable.DOWN:
                raise server.ended() from None
        time.sleep(0.2)
    return False

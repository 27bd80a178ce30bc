"""What stands beside a data directory: stages and kept copies, all on one file system, so that a swap is a rename."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from salvor.errors import MAKE_ROOM, CannotError, NoRoomError, UsageError
from salvor.postgres.look import MARKER
from salvor.postgres.server import Server

_ROOM_SECONDS = 60.0
_INCIDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def check_incident(incident: str) -> str:
    """The incident's id, if it may be part of a path. Raises UsageError."""
    if not _INCIDENT.fullmatch(incident):
        raise UsageError(f"--incident: {incident!r} cannot be part of a folder's name.")
    return incident


def stage_of(server: Server, incident: str, port: int) -> Server:
    """The server that is staged beside `server` for an incident, on its side port. It is never a service manager's."""
    data = f"{server.data}.salvor-{check_incident(incident)}"
    return replace(server, data=data, port=port, start_command=None, stop_command=None, shares_port=True)


def kept_of(server: Server, incident: str) -> str:
    """The path that the data directory gets when it makes way for an incident's stage."""
    return f"{server.data}.kept-{check_incident(incident)}"


def require_idle(server: Server, path: str) -> None:
    """See that nobody has a server run in a directory beside, to read what was kept: docs/kept.md says how. Raises
    CannotError.
    """
    there = replace(server, data=path)
    if there.processes():
        argv = [server.program("pg_ctl"), "-D", path, "-m", "fast", "stop"]
        raise CannotError(
            f"A server runs in {path} on {server.shell.where}; it was left as it is.",
            safe="nothing was changed",
            hint=f"{server.shell.by_hand(argv)}; then the same command again",
        )


# Where its parent folder takes no more, or is of another disk, the copy goes into the folder itself: PostgreSQL leaves
# alone there what is not called as its own files are.
PLACE = r"""
place_beside() { # sets place to that of the copy of the folder $1 in the stage of incident $2
    place=${1%.salvor-*}
    case $place in
    */) ;;
    *) if [ -d "$place" ] && { mountpoint -q -- "$place" || ! [ -w "${place%/*}/" ]; }; then place=$place/; fi ;;
    esac
    place=$place.salvor-$2
}
"""


def places_of(server: Server, tablespaces: Mapping[str, str], incident: str) -> dict[str, str]:
    """The path that the copy of each tablespace (object id to path) gets in an incident's stage, made here: the live
    cluster still uses its own.
    """
    script = f'{PLACE}incident=$1; shift; for path; do place_beside "$path" "$incident"; echo "$place"; done'
    argv = ["sh", "-c", script, "sh", check_incident(incident), *tablespaces.values()]
    places = server.shell.run(argv).stdout.splitlines() if tablespaces else []
    if places:
        server.shell.run(["mkdir", "-p", "-m", "700", "--", *places])
    return dict(zip(tablespaces, places, strict=True))


@dataclass(frozen=True)
class Beside:
    """A directory beside a data directory: of which `incident`, and its kind, `salvor` (a stage) or `kept`."""

    path: str
    identity: str
    kind: str
    incident: str


_LIST = r"""
for path in "$1".kept-* "$1".salvor-*; do
    [ -d "$path" ] || continue
    id=$("$2/pg_controldata" -D "$path" 2>/dev/null | sed -n 's/^Database system identifier: *//p')
    echo "${id:-unreadable}@$(stat -c %d:%i -- "$path") $path"
done
"""


def listing(server: Server) -> list[Beside]:
    """What stands beside the data directory, of every incident."""
    listed = server.shell.run(["sh", "-c", _LIST, "sh", server.data, server.programs], deadline=10.0).stdout
    found = []
    for line in listed.splitlines():
        identity, _, path = line.partition(" ")
        kind, _, incident = path.removeprefix(f"{server.data}.").partition("-")
        if _INCIDENT.fullmatch(incident):
            found.append(Beside(path, identity, kind, incident))
    return found


def read_marker(text: str | None) -> dict[str, Any]:
    """What a data directory that Salvor built says of itself; empty for another one, or when it cannot be read."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def marker_of(server: Server) -> dict[str, Any]:
    """What a data directory says of itself, read now."""
    return read_marker(server.shell.read(f"{server.data}/{MARKER}"))


def write_marker(server: Server, marker: Mapping[str, Any]) -> None:
    """Write it, atomically: a half-built stage is never mistaken for a whole one."""
    server.shell.write(f"{server.data}/{MARKER}", json.dumps(marker, indent=1, sort_keys=True) + "\n")


# Each rename is atomic, and what is between them is seen for what it is: no data directory, and both others there.
# An empty directory in the way is one that a service manager made, or what is left of a lost one.
_SWAP = r"""
set -eu
data=$1 from=$2 to=$3
[ -d "$from" ] || exit 0
if [ -e "$data" ] && [ -e "$to" ]; then
    rmdir -- "$data" 2>/dev/null || { echo "$data and $to are both there" >&2; exit 45; }
fi
if [ -e "$data" ]; then mv -T -- "$data" "$to"; fi
mv -T -- "$from" "$data"
sync -- "$(dirname -- "$data")"
"""


def swap(server: Server, comes: str, goes: str) -> None:
    """Rename the data directory to `goes`, and `comes` to the data directory. Goes on where a killed call stopped."""
    server.shell.run(["sh", "-c", _SWAP, "sh", server.data, comes, goes])


def put_away(server: Server, goes: str) -> None:
    """Rename the data directory to `goes`, when nothing takes its place: there was none before."""
    script = '[ ! -e "$1" ] || mv -T -- "$1" "$2"'
    server.shell.run(["sh", "-c", script, "sh", server.data, goes])


_REMOVE = r"""
set -eu
path=$1 marker=$2 which=$3 live=$4
[ -d "$path" ] || exit 0
is_used() { # by what is live: somebody may have led its links there by hand
    for one in "$live/pg_wal" "$live"/pg_tblspc/*; do [ ! "$one" -ef "$1" ] || return 0; done
    return 1
}
# first what says that it is whole, so that a killed call leaves nothing that looks whole
rm -f -- "$path/$marker"
for link in "$path/pg_wal" "$path"/pg_tblspc/*; do
    [ -L "$link" ] || continue
    place=$(readlink -m -- "$link")
    case $place in
    *.salvor-*) ;;
    *) [ "$which" = all ] || continue ;;
    esac
    if is_used "$place"; then continue; fi
    case $link in
    */pg_wal) rm -rf -- "$place"/0000* "$place"/archive_status "$place"/summaries "$place"/xlogtemp.* ;;
    *) rm -rf -- "$place"/PG_[0-9]* ;;
    esac
    rmdir -- "$place" 2>/dev/null || :
done
rm -rf -- "$path" "$path.log"
case $path in *.kept-*) rm -f -- "${path%.kept-*}.salvor-${path##*.kept-}.log" ;; esac # of the stage that replaced it
"""


def remove(server: Server, path: str, *, tablespaces: str) -> None:
    """Remove a directory beside the data directory, with the tablespaces and the pg_wal elsewhere that belong to it.

    `tablespaces` is `all`, or `own`: only those that Salvor placed. What is live uses stays.
    """
    if not path.startswith((f"{server.data}.salvor-", f"{server.data}.kept-")):
        raise CannotError(
            f"{path} is not beside {server.data}; it was not removed.", hint=f"look: ls -l {shlex.quote(path)}"
        )
    server.shell.run(["sh", "-c", _REMOVE, "sh", path, MARKER, tablespaces, server.data], deadline=3600.0)


_ROOM = (
    PLACE
    + r"""
folder=$(dirname -- "$1") incident=x
[ -w "$folder" ] || exit 44
free() { echo "$(stat -L -c %d -- "$1") $(df -k --output=avail -- "$1" | tail -n 1) ${2:-0} $1"; }
free "$folder"
shift
for path; do
    [ -d "$path" ] || continue
    place_beside "$path" "$incident"
    free "${place%/*}/" "$(du -s -k -- "$path" 2>/dev/null | cut -f 1)"
done
"""
)


def room_for(server: Server, size: int, tablespaces: Collection[str] = ()) -> None:
    """See that a copy of `size` bytes can stand beside the data directory, what it has in `tablespaces` (their paths)
    beside those. Raises NoRoomError with the figures.
    """
    result = server.shell.run(["sh", "-c", _ROOM, "sh", server.data, *tablespaces], deadline=_ROOM_SECONDS, check=False)
    if result.exit_code == 44:
        raise CannotError(
            f"{server.shell.user or 'Who we are'} may not write beside {server.data} on {server.shell.where}, where "
            "the stage must stand.",
            safe="nothing was changed",
            hint=f"chown or chmod the folder that {server.data} is in",
        )
    if result.exit_code:
        raise server.shell.failed(["df"], result.exit_code, result.stderr)
    disks = [line.split(None, 3) for line in result.stdout.splitlines()]
    here = disks[0][0]
    needs = {here: size}
    for disk, _, used, _ in disks[1:]:
        if disk != here:  # what is used there now tells how much of the copy goes there
            needs[disk] = needs.get(disk, 0) + int(used) * 1024
            needs[here] -= int(used) * 1024
    for disk, free, _, folder in reversed(disks):
        needed, left = needs[disk], int(free) * 1024
        if left < needed:
            raise NoRoomError(
                f"The stage needs {-(-needed // 10**6):,} MB beside {server.data if disk == here else folder} on "
                f"{server.shell.where}, where {left // 10**6:,} MB are free.",
                safe="nothing was changed",
                hint=MAKE_ROOM,
            )

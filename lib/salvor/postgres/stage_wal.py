"""The pg_wal of a stage: on the disk where the live one is, and with the WAL that only the damaged server has."""

from __future__ import annotations

from salvor import secrets
from salvor.errors import MAKE_ROOM, CannotError
from salvor.postgres.beside import PLACE
from salvor.postgres.server import Server

WAL_WAS_AT = "wal_was_at"
"""In the marker of a stage: pg_wal was a link to there, and is a folder in the stage."""

# PostgreSQL's manual, "Recovering Using a Continuous Archive Backup", steps 2 and 6: recovery takes what the archive
# has from there, and the rest from pg_wal, up to the last whole record of the last, partial segment.
# Old segments that PostgreSQL renamed for later use look like unarchived ones, and may be gigabytes. A segment's first
# page says where it belongs (xlp_pageaddr in xlog_internal.h): theirs say elsewhere.
# pg_wal is often a link to a disk of its own, and pgBackRest restores a link as a folder.
_LEAD = (
    PLACE
    + r"""
lead() { # has the stage's pg_wal beside $1 when $2 bytes are free there, else it stays, and `apart $1` is said
    place_beside "$1" "$incident"
    if ! [ "$live" -ef "$place" ] && rm -rf -- "$place" && mkdir -m 700 -- "$place" 2>/dev/null &&
        [ "$(($(df -k --output=avail -- "$place" | tail -n 1) * 1024))" -ge "$2" ]
    then
        find "$stage/" -mindepth 1 -maxdepth 1 -exec mv -t "$place" -- {} + && rmdir -- "$stage" &&
            ln -s -- "$place" "$stage" || exit 45
    else
        rmdir -- "$place" 2>/dev/null
        echo "apart $1"
    fi
}
"""
)
_SALVAGE = (
    _LEAD
    + r"""
words() { echo $#; }
live=$1/pg_wal stage=$2/pg_wal target=$3 incident=$4
segments= copied= addresses= size=0
if cd -- "$live" 2>/dev/null; then
    for name in *; do
        [ -f "$name" ] && ! [ -e "archive_status/$name.done" ] || continue
        case $name in
        *.history) copied="$copied $name" ;;
        *[!0-9A-F]*) ;;
        ????????????????????????) segments="$segments $name" ;;
        esac
    done
fi
if [ "$segments" ]; then
    addresses=$(head -q -c 16 -- $segments 2>/dev/null | od -A n -v -t x8 | while read -r _ one; do echo "$one"; done)
    size=$(stat -c %s -- $segments | sort -n | tail -n 1)
fi
[ "$(words $addresses)" = "$(words $segments)" ] || addresses=  # one is cut short: no address is known
set -- $addresses
for name in $segments; do
    address=$((0x${1:-0})) log=${name#????????}
    start=$((0x${log%????????} * 4294967296 + 0x${log#????????} * size))
    if [ $# = 0 ] || [ "$address" = "$start" ]; then copied="$copied $name"; fi
    [ $# = 0 ] || shift
done

if [ -L "$live" ]; then target=$(readlink -m -- "$live"); elif [ -e "$live" ]; then target=; fi
[ -z "$target" ] || lead "$target" $((($(words $copied) + 4) * size))

for name in $copied; do
    if cp -p --reflink=auto -- "$name" "$stage/$name.new" && mv -- "$stage/$name.new" "$stage/$name"; then continue; fi
    rm -f -- "$stage/$name.new"
    if cat -- "$name" > /dev/null 2>&1; then echo "full $name"; else echo "unreadable $name"; fi
done
sync -- "$stage/" "$stage"/*
"""
)
_FOLLOW = (
    _LEAD
    + r"""
live=$1/pg_wal stage=$2/pg_wal incident=$3
[ ! -L "$live" ] || [ -L "$stage" ] ||
    lead "$(readlink -m -- "$live")" $(($(du -s -k -- "$stage" | cut -f 1) * 1024 + 4 * $4))
:
"""
)
_COPY_SECONDS = 24 * 3600.0


def salvage(live: Server, stage: Server, incident: str, linked: str, *, needs_all: bool) -> str:
    """Have the stage's pg_wal on the disk where the live one is, and copy there the WAL that the archive does not have,
    from the damaged server's pg_wal, as far as that can be read. `linked`: where pg_wal was a link to when the backup
    was taken (empty: nowhere), for when nothing is left of the live one.

    Gives where pg_wal was a link to, when it could not be on that disk. Raises CannotError when there is no room for
    it; and with `needs_all` when something of it cannot be read.
    """
    argv = ["sh", "-c", _SALVAGE, "sh", live.data, stage.data, linked, incident]
    result = live.shell.run(argv, deadline=_COPY_SECONDS)
    told: dict[str, list[str]] = {"apart": [], "full": [], "unreadable": []}
    for line in result.stdout.splitlines():
        word, _, rest = line.partition(" ")
        told[word].append(rest)
    said = secrets.mask(" / ".join(result.stderr.strip().splitlines()[-2:]))
    if told["full"]:
        raise CannotError(
            f"{len(told['full'])} segments of WAL that only {live.data}/pg_wal has cannot be copied to "
            f"{stage.data}/pg_wal on {live.shell.where}: {said}",
            safe="what is live is as it was, and its WAL is whole",
            hint=f"{MAKE_ROOM}; then the same command again",
        )
    if told["unreadable"] and needs_all:
        raise CannotError(
            f"WAL that only {live.data}/pg_wal has cannot be read on {live.shell.where}: "
            f"{', '.join(told['unreadable'][:3])}: {said}",
            safe="what is live is as it was",
            hint="mend the disk, then the same command again; or accept the loss of what is in it: "
            "--override='accept-missing-wal=REASON'",
        )
    return "".join(told["apart"])


def follow(live: Server, stage: Server, incident: str, segment: int) -> str:
    """Have the pg_wal of a stage that does not run on the disk where the live one is, when that is a link; `segment` is
    the size of one, in bytes. Gives where to, when it could not be there.
    """
    argv = ["sh", "-c", _FOLLOW, "sh", live.data, stage.data, incident, str(segment)]
    return live.shell.run(argv, deadline=_COPY_SECONDS).stdout.strip().removeprefix("apart ")

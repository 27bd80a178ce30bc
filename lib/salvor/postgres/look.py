"""What the machine of a server shows of it, in one call: its data directory, its control file, its processes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from salvor import unmounted
from salvor.change import ABSENT

MARKER = "salvor.json"
"""Stands in a data directory that Salvor built: which incident, from which backup, and how far it is."""


class Process(NamedTuple):
    """A postgres process: its parent, and its state in the words of proc(5): `T` is frozen by a signal."""

    pid: int
    parent: int
    state: str


def first(processes: Sequence[Process]) -> list[Process]:
    """Those that no other one of them started."""
    pids = {process.pid for process in processes}
    return [process for process in processes if process.parent not in pids]


@dataclass(frozen=True)
class Look:
    """What can be seen of a server from its machine, without asking the server."""

    directory: str | None
    """`device:inode` of the data directory; None when it is gone."""
    empty: bool
    is_mount_point: bool
    control: Mapping[str, str] | None
    """What pg_controldata says, by its own labels; None when it cannot be read."""
    is_standby: bool
    """There is a standby.signal: it would start as a standby."""
    in_recovery: bool
    """There is a standby.signal or a recovery.signal."""
    newest_history: int
    """The newest timeline that has a history file in pg_wal; 0 when none has."""
    marker: str | None
    """The text of `salvor.json`."""
    access: str | None
    """The text of the pg_hba.conf that it uses, or would use when started; None when that cannot be read."""
    processes: tuple[Process, ...]
    wal_room: int | None = None
    """Bytes free on the disk of its pg_wal; None when it runs, or that cannot be told."""
    port: int | None = None
    """Where it takes connections, by its postmaster.pid; None when it takes none."""
    is_on_loopback_alone: bool = False
    """Whether nobody but its own machine reaches that port, by the addresses that it listens on."""
    lacks: tuple[str, ...] = ()
    """Of postgresql.conf and the server's program, the paths at which there is nothing."""
    unmounted: str = ""
    """Where the data directory is gone or empty, a mount point of /etc/fstab at or above it that waits for its disk: it
    may be whole there."""

    @property
    def identity(self) -> str:
        """`<system identifier>@<device>:<inode>`; `absent` when the directory is gone or empty."""
        if self.directory is None or self.empty:
            return ABSENT
        control = self.control or {}
        return f"{control.get('Database system identifier', 'unreadable')}@{self.directory}"

    @property
    def postmasters(self) -> list[int]:
        """Those of its processes that no other one of them started."""
        return [process.pid for process in first(self.processes)]

    @property
    def is_frozen(self) -> bool:
        """Whether its postmaster is stopped by a signal: nobody who asks it now gets an answer."""
        return "T" in {process.state for process in first(self.processes)}

    @property
    def has_checksums(self) -> bool:
        """Whether every page bears a checksum, which is compared when it is read."""
        return (self.control or {}).get("Data page checksum version", "0") != "0"

    @property
    def is_without_room(self) -> bool:
        """Whether it does not run, and the disk of its pg_wal has no room for one more segment: a server stops then."""
        segment = int((self.control or {}).get("Bytes per WAL segment", 0))
        return self.wal_room is not None and self.wal_room < segment

    @property
    def timeline(self) -> int:
        """The timeline that it is on, or was when it ended; 0 when that cannot be read.

        The control file learns of a promotion with the next checkpoint only, which may be minutes later: until then
        the history file tells. In recovery the minimum recovery point may be on a newer timeline than the checkpoint.
        """
        control = self.control or {}
        names = ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline")
        known = [int(control.get(name, "0")) for name in names]
        return max(*known, 0 if self.in_recovery or not self.control else self.newest_history)


# Only the server's own program can say where its pg_hba.conf is when any line could set that, and it takes as long as
# the rest of a look. Without such a line it stands in the folder that -D names (SelectConfigFiles in guc.c).
FIND_ACCESS = r"""
find_access() { # sets access to the path of its pg_hba.conf, from $data, $configuration, and its command as arguments
    access=
    if grep -q -s -i -E '^[[:space:]]*(hba_file|include)' -- "$configuration" "$data/postgresql.auto.conf"; then
        access=$("$@" -C hba_file 2>/dev/null)
    fi
    access=${access:-$data/pg_hba.conf}
}
"""

# Few forks however many processes run: a shell reads one byte at a time, so others narrow down what it loops over.
_PROCESSES = r"""
lost() { # those of the processes whose folder was renamed, or removed, maybe with the one above it: names still say it
    folders= commands= real=$data
    for process; do folders="$folders $process/cwd" commands="$commands $process/cmdline"; done
    if cd -P -- "$data"; then real=$PWD; fi
    ls -ld $folders | grep -F -e " -> $real" -e " -> $data" | while read -r line; do
        process=${line%%/cwd -> *}
        case ${line#*/cwd -> } in
        "$real" | "$real (deleted)" | "$data" | "$data (deleted)") echo "/proc/${process##*/}" ;;
        esac
    done
    grep -l -s -F -e "$data" $commands | while read -r line; do
        case "|$(tr '\0' '|' < "$line")" in
        *"|-C|"*) ;; # no server: it prints a setting and ends
        *"|-D|$data|"*) echo "${line%/cmdline}" ;;
        esac
    done
}
{
    its= others=
    for process in $(grep -l -s -x -e postgres -e postmaster /proc/[0-9]*/comm); do
        process=${process%/comm}
        if [ "$process/cwd" -ef "$data" ]; then its="$its $process/stat"; else others="$others $process"; fi
    done
    [ -z "$others" ] || for process in $(lost $others); do its="$its $process/stat"; done
    echo "-- processes"
    [ -z "$its" ] || cat $its
} 2>/dev/null
"""

LOOK_AT_PROCESSES = f"data=$1\n{_PROCESSES}:\n"
"""What a look shows of the processes, for whoever asks for nothing else: half the work."""

# One call for everything: one round trip on another host.
LOOK = (
    FIND_ACCESS
    + unmounted.UNMOUNTED
    + r"""
data=$1 programs=$2 marker=$3 configuration=$4
shift 4
there=$data
while [ -n "$there" ] && ! [ -d "$there" ]; do there=${there%/*}; done
[ -x "${there:-/}" ] && { [ "$there" != "$data" ] || [ -r "$data" ]; } || {
    echo "$(id -un) may not look into ${there:-/}; run_as: names whose servers they are" >&2
    exit 1
}
find_access "$@"
if [ -d "$data" ]; then
    set -- $(stat -L -c %d:%i -- "$data" "$data/..")
    echo "directory $1"
    [ "${1%:*}" = "${2%:*}" ] && ! [ -L "$data" ] || echo mount
    [ -e "$data/PG_VERSION" ] || [ -n "$(ls -A -- "$data" 2>/dev/null)" ] || echo empty
    ! [ -e "$data/standby.signal" ] || echo standby
    ! [ -e "$data/standby.signal" ] && ! [ -e "$data/recovery.signal" ] || echo recovery
    history=
    for file in "$data"/pg_wal/????????.history; do
        name=${file##*/} name=${name%.history}
        case $name in *[!0-9A-F]*) ;; *) history=$name ;; esac
    done
    echo "history $history"
    # postmaster.pid has the port in line 4, and in line 8 whether connections are taken (pidfile.h).
    { read -r pid; for _ in 2 3; do read -r _; done; read -r port; for _ in 5 6 7; do read -r _; done
        read -r state; } 2>/dev/null < "$data/postmaster.pid"
    case $state in
    ready* | standby*)
        echo "port $port"
        # Its listening sockets, see proc(5), in hexadecimal: 0A is LISTEN, 7F the first byte of 127.0.0.1.
        listens=": [0-9A-F]+:$(printf %04X "$port") 0+:0000 0A"
        sockets=$(grep -h -s -E "$listens" "/proc/$pid/net/tcp" "/proc/$pid/net/tcp6")
        [ -z "$sockets" ] || echo "$sockets" | grep -q -v -E ": ([0-9A-F]{6}7F|0{24}01000000):" || echo loopback
        ;;
    esac
    for path in "$configuration" "$programs/postgres"; do [ -e "$path" ] || echo "lacks $path"; done
fi
[ -e "$data/PG_VERSION" ] || unmounted "$(readlink -m -- "$data")" | sed 's/^/unmounted /'
"""
    + _PROCESSES
    + r"""
if [ -d "$data" ]; then
    [ -n "$its" ] || { echo "-- room" && df -k --output=avail -- "$data/pg_wal/." 2>/dev/null | tail -n 1; }
    echo "-- control"
    "$programs/pg_controldata" -D "$data" 2>/dev/null
    echo "-- marker"
    [ ! -e "$data/$marker" ] || cat -- "$data/$marker" 2>/dev/null
    [ ! -e "$access" ] || { echo "-- access" && cat -- "$access" 2>/dev/null; }
fi
:
"""
)

_STAT = re.compile(r"(?P<pid>\d+) \((?:postgres|postmaster)\) (?P<state>\S) (?P<parent>\d+) ")
"""The beginning of /proc/PID/stat, see proc(5)."""


def read_look(text: str) -> Look:
    """What `LOOK` printed."""
    text, has_access, access = text.partition("-- access\n")
    seen, _, rest = text.partition("-- processes\n")
    running, _, rest = rest.partition("-- control\n")
    running, _, room = running.partition("-- room\n")
    control_text, _, marker = rest.partition("-- marker\n")
    lines = [line.split(" ") for line in seen.splitlines()]
    words = {line[0] for line in lines}
    control = {}
    for line in control_text.splitlines():
        label, colon, value = line.partition(":")
        if colon:
            control[label] = value.strip()
    return Look(
        directory=next((line[1] for line in lines if line[0] == "directory"), None),
        empty="empty" in words,
        is_mount_point="mount" in words,
        control=control if "Database system identifier" in control else None,
        is_standby="standby" in words,
        in_recovery="recovery" in words,
        newest_history=next((int(line[1] or "0", 16) for line in lines if line[0] == "history"), 0),
        marker=marker or None,
        access=access if has_access else None,
        processes=read_processes(running),
        wal_room=int(room) * 1024 if room.strip().isdigit() else None,
        port=next((int(line[1]) for line in lines if line[0] == "port" and line[1].isdigit()), None),
        is_on_loopback_alone="loopback" in words,
        lacks=tuple(" ".join(line[1:]) for line in lines if line[0] == "lacks"),
        unmounted=next((" ".join(line[1:]) for line in lines if line[0] == "unmounted"), ""),
    )


def read_processes(text: str) -> tuple[Process, ...]:
    """What `LOOK_AT_PROCESSES` printed."""
    # Found in two ways, a process may be read twice: running once, and asleep once.
    found = {
        int(one["pid"]): Process(int(one["pid"]), int(one["parent"]), one["state"])
        for one in map(_STAT.match, text.splitlines())
        if one
    }
    return tuple(found[pid] for pid in sorted(found))

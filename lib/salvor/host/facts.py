"""What a machine says of itself, in one command: POSIX sh, and nothing that busybox or an old system lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from salvor import clock
from salvor.errors import CannotError
from salvor.host import PATH, fence, managers, services
from salvor.host.services import Service
from salvor.shell import Result, Shell

_TIME = "date -u '+time %s'"
_MACHINE = r"""
for file in /etc/machine-id /var/lib/dbus/machine-id /sys/class/net/e*/address; do
    id=$(cat "$file" 2>/dev/null)
    case $id in '' | uninitialized) id=$(uname -n) ;; *) break ;; esac
done
echo "machine $id"
"""
_FACTS = r"""
read -r id < /proc/sys/kernel/random/boot_id && echo "boot $id"
read -r up _ < /proc/uptime && echo "up $up"
read -r load _ < /proc/loadavg && echo "load $load"
echo "processors $(grep -c '^processor' /proc/cpuinfo)"
grep -E '^(MemTotal|MemAvailable|MemFree|Buffers|Cached):' /proc/meminfo | sed 's/^/memory /'
echo "system $(uname -sr)"
[ ! -d /run/systemd/system ] || systemctl list-units --state=failed --no-legend --plain 2>/dev/null | sed 's/^/failed /'
"""
_DISKS = r"""
seen=' '
set --
# A disk that is far away could keep df waiting for ever, and those in memory, or made to be full, do not fill.
while read -r device point type options _; do
    case $point in /proc/* | /sys/* | /dev/* | /run/*) continue ;; esac
    case $type in squashfs | iso9660 | udf | erofs | cramfs | rootfs) continue ;; esac
    case $type:$device:$point in zfs:* | *:/dev/*:* | *:*:/) ;; *) continue ;; esac
    case $seen in *" $device "*) continue ;; esac
    seen="$seen$device "
    case ,$options, in *,ro,*) echo "readonly $point" ;; esac
    set -- "$@" "$(printf '%b' "$point")"
done < /proc/mounts
df -P -k -- "$@" 2>/dev/null | sed 's/^/blocks /'
df -P -i -- "$@" 2>/dev/null | sed 's/^/inodes /'
"""
_TABLE = re.compile(r".*?\s(\d+)\s+(\d+)\s+(-?\d+)\s+(?:\d+%|-)\s+(/.*)")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_RESOLUTION = 1.0


@dataclass(frozen=True)
class Disk:
    """A file system of the machine's own. Sizes in bytes; `free` is what others than root can use; inodes are None
    where it has no fixed number of them.
    """

    path: str
    size: int
    used: int
    free: int
    inodes: int | None = None
    inodes_free: int | None = None
    read_only: bool = False

    @property
    def full(self) -> float:
        """The share of the room that is taken: 0 to 1."""
        return 1 - max(0, self.free) / max(1, self.used + max(0, self.free))

    @property
    def inodes_full(self) -> float:
        """The share of the inodes that is taken: 0 to 1."""
        return 1 - self.inodes_free / self.inodes if self.inodes and self.inodes_free is not None else 0.0


@dataclass(frozen=True)
class Facts:
    """What a machine said. `machine` is which one it is, `boot` which of its boots; seconds, bytes; `load` is that of
    one minute. `clock_offset` is how far its clock is ahead of ours, give or take `clock_error`.
    """

    machine: str
    boot: str
    up: float
    load: float
    processors: int
    memory: int
    memory_free: int
    system: str
    clock_offset: float
    clock_error: float
    disks: tuple[Disk, ...]
    failed_units: tuple[str, ...]
    services: tuple[Service, ...]
    fence: fence.Seen


def ask(shell: Shell, names: Iterable[str] = (), *, deadline: float = 20.0) -> Facts:
    """The facts, with the state of the services of these names. One round trip, and nothing is written there.

    Raises CannotError when it cannot be asked, OutcomeUnknownError when it does not answer within `deadline` seconds.
    """
    parts = (PATH, _TIME, _MACHINE, _FACTS, fence.LOOK, managers.LOOK, 'for name; do look "$name"; done', _DISKS)
    script = "\n".join(parts)
    begun, before = clock.now(), clock.monotonic()
    said = shell.run(["sh", "-c", script, "sh", *names], deadline=deadline, check=False)
    seconds = clock.monotonic() - before
    lines = _lines(said.stdout)
    try:
        # It was asked for the time first of all: sooner than the middle of the exchange, if the rest takes long.
        theirs = float(lines["time"][0]) + _RESOLUTION / 2
        return _facts(lines, theirs - begun.timestamp() - seconds / 2, (seconds + _RESOLUTION) / 2)
    except (LookupError, ValueError) as error:
        raise _too_little(shell, said) from error


def who(shell: Shell, *, deadline: float) -> tuple[str, fence.Seen]:
    """Which machine it is, and its fence: no disk but that of the system is looked at. Raises as `ask`."""
    said = shell.run(["sh", "-c", f"{PATH}{_MACHINE}{fence.LOOK}"], deadline=deadline, check=False)
    lines = _lines(said.stdout)
    if "machine" not in lines:
        raise _too_little(shell, said)
    return lines["machine"][0], fence.read(lines)


def _lines(said: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        key, _, rest = line.partition(" ")
        found.setdefault(key, []).append(rest.strip())
    return found


def _too_little(shell: Shell, said: Result) -> CannotError:
    return CannotError(
        f"{shell.where} says too little of itself: {said.stderr.strip()[-300:] or 'is /proc mounted there?'}",
        safe="nothing was changed",
        hint=f"look there by hand, on {shell.where}: cat /proc/loadavg; df -P",
    )


def _facts(lines: Mapping[str, list[str]], offset: float, error: float) -> Facts:
    memory = {words[0].rstrip(":"): int(words[1]) * 1024 for words in map(str.split, lines["memory"])}
    spare = sum(memory.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))  # as kernels before 3.14 say it
    return Facts(
        machine=lines["machine"][0],
        boot=lines["boot"][0],
        up=float(lines["up"][0]),
        load=float(lines["load"][0]),
        processors=max(1, int(lines["processors"][0])),
        memory=memory["MemTotal"],
        memory_free=memory.get("MemAvailable", spare),
        system=lines["system"][0],
        clock_offset=offset,
        clock_error=error,
        disks=_disks(lines),
        failed_units=tuple(one.split()[0] for one in lines.get("failed", []) if one),
        services=services.read(lines),
        fence=fence.read(lines),
    )


def _disks(lines: Mapping[str, list[str]]) -> tuple[Disk, ...]:
    inodes = {match[4]: match for match in map(_TABLE.fullmatch, lines.get("inodes", [])) if match}
    read_only = {_ESCAPED.sub(lambda match: chr(int(match[1], 8)), one) for one in lines.get("readonly", [])}
    found = []
    for match in filter(None, map(_TABLE.fullmatch, lines.get("blocks", []))):
        path, count = match[4], inodes.get(match[4])
        has_inodes = count is not None and int(count[1]) > 0
        found.append(
            Disk(
                path=path,
                size=int(match[1]) * 1024,
                used=int(match[2]) * 1024,
                free=int(match[3]) * 1024,
                inodes=int(count[1]) if count and has_inodes else None,
                inodes_free=int(count[3]) if count and has_inodes else None,
                read_only=path in read_only,
            )
        )
    return tuple(found)

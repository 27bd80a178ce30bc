"""One look at a place where a tree lives: what is live, what stands beside it, the fence, the room that is left."""

from __future__ import annotations

import json
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salvor import unmounted
from salvor.change import ABSENT
from salvor.errors import MAKE_ROOM, CannotError
from salvor.shell import Shell

INCIDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_LOOKING = 8.0
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Thing:
    """What a path leads to. `mode` as stat(2) says it, `size` and `changed` (mtime, seconds) for a single file."""

    identity: str
    mode: int
    size: int
    changed: float

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Beside:
    """What an incident has beside the tree."""

    incident: str
    path: str
    staged: Thing | None
    kept: Thing | None
    building: bool
    marker: Mapping[str, Any]

    @property
    def tree(self) -> str:
        """The identity of the tree that this incident made; empty when it made none whole."""
        return str(self.marker.get("tree", ""))

    @property
    def whole(self) -> bool:
        """Whether the staged tree is the one that the marker calls whole."""
        return self.staged is not None and self.staged.identity == self.tree


@dataclass(frozen=True)
class Look:
    """One look at the place. `path` is the real one, links followed. `free` bytes and `free_files`; None: no limit.

    `mounts` are the mount points at or below the tree; `unmounted` is the one at or above it that the host's fstab
    names and where nothing is mounted now; `locked` is the tree or the folder that it is in, where chattr made it
    immutable (+i) or only to be added to (+a), and not even root may rename; `can_write` is whether names beside it can
    be made and renamed; `exchange` is what can swap two of them at once.
    """

    path: str
    live: Thing | None
    beside: tuple[Beside, ...]
    fence: Mapping[str, Any]
    mounts: tuple[str, ...]
    unmounted: str
    locked: tuple[str, ...]
    free: int
    free_files: int | None
    can_write: bool
    exchange: str
    hostname: str
    is_root: bool

    @property
    def identity(self) -> str:
        return self.live.identity if self.live else ABSENT

    @property
    def is_fenced(self) -> bool:
        return self.live is not None and self.fence.get("identity") == self.live.identity

    @property
    def origin(self) -> str | None:
        """The incident whose stage is live."""
        return next((one.incident for one in self.beside if self.live and one.tree == self.live.identity), None)


_LOOK = (
    unmounted.UNMOUNTED
    + r"""
f=$(printf '\037')
say() { printf '%s\n' "$1"; }  # echo would take a backslash in a name for more than it is
one() { stat -c "%d:%i:%.9W$f%f$f%s$f%.6Y" -- "$1" 2>/dev/null || :; }
real=$(readlink -m -- "$1") || exit 3
say "path$f$real"
if [ -e "$real" ] || [ -L "$real" ]; then say "live$f$(one "$real")"; fi
for box in "$real".salvor-*; do
    [ -d "$box" ] && ! [ -L "$box" ] || continue
    say "beside$f$box"
    say "staged$f$(one "$box/staged")"
    say "kept$f$(one "$box/kept")"
    [ -e "$box/building" ] && say building
    if [ -r "$box/salvor.json" ]; then say "marker$f$(cat -- "$box/salvor.json")"; fi
done
if [ -r "$real.salvor-fence.json" ]; then say "fence$f$(cat -- "$real.salvor-fence.json")"; fi
unmounted "$real" | sed "s/^/unmounted$f/"
cut -d ' ' -f 5 /proc/self/mountinfo | sed "s/^/mount$f/"
above=$(dirname -- "$real")
until [ -d "$above" ]; do above=$(dirname -- "$above"); done
[ -w "$above" ] && say writes
for each in "$real" "$above"; do
    case $(lsattr -d -- "$each" 2>/dev/null | cut -d ' ' -f 1) in *[ai]*) say "locked$f$each" ;; esac
done
say "room$f$(stat -f -c "%a$f%S$f%c$f%d" -- "$above")"
for tool in perl python3; do command -v "$tool" >/dev/null && say "exchange$f$tool" && break; done
say "host$f$(uname -n)"
say "user$f$(id -u)"
"""
)


def look_at(shell: Shell, path: str) -> Look:
    """Look once. Raises CannotError, or OutcomeUnknownError, when the host cannot be asked."""
    return _read(shell.run(["sh", "-c", _LOOK, "sh", path], deadline=_LOOKING).stdout)


def room_for(look: Look, where: str, size: int | None, files: int | None) -> None:
    """See that a copy fits beside the tree. Raises CannotError with the figures."""
    needed = (size or 0) + 4096 * (files or 0)
    folder = look.path.rpartition("/")[0] or "/"
    too_small = ""
    if needed > look.free:
        too_small = f"{-(-needed // 10**6):,} MB, where {look.free // 10**6:,} MB are free"
    elif look.free_files is not None and (files or 0) > look.free_files:
        too_small = f"{files} files, where there is room for {look.free_files}"
    if too_small:
        raise CannotError(
            f"The stage needs {too_small}, in {folder} on {where}.",
            safe="nothing was changed",
            hint=f"{MAKE_ROOM}; on {where}: df -h -- {shlex.quote(folder)}",
        )


def identity_of(text: str) -> str:
    """`device:inode:birth`, without the birth where the file system notes none: inodes are used again at once."""
    device, inode, birth = text.split(":")
    return f"{device}:{inode}" if float(birth.replace("-", "0")) == 0 else f"{device}:{inode}:{birth}"


def _thing(words: list[str]) -> Thing | None:
    if len(words) != 4:
        return None
    return Thing(identity_of(words[0]), int(words[1], 16), int(words[2]), float(words[3]))


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(said: str) -> Look:
    found: dict[str, Any] = {"exchange": "", "fence": {}, "live": None}
    boxes: list[dict[str, Any]] = []
    mounts, locked = [], []
    can_write = False
    for line in said.splitlines():
        word, *rest = line.split(_SEPARATOR)
        match word:
            case "beside":
                boxes.append({"path": rest[0], "marker": {}, "building": False, "staged": None, "kept": None})
            case "staged" | "kept":
                boxes[-1][word] = _thing(rest)
            case "building":
                boxes[-1]["building"] = True
            case "marker":
                boxes[-1]["marker"] = _json(rest[0])
            case "mount":
                mounts.append(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), rest[0]))
            case "locked":
                locked.append(rest[0])
            case "live":
                found["live"] = _thing(rest)
            case "fence":
                found["fence"] = _json(rest[0])
            case "writes":
                can_write = True
            case "room":
                found["room"] = rest
            case _:
                found[word] = rest[0]
    path = str(found["path"])
    beside = [
        Beside(incident=incident, **box)
        for box in boxes
        if INCIDENT.fullmatch(incident := box["path"].removeprefix(f"{path}.salvor-"))
    ]
    blocks, block, all_files, free_files = map(int, found["room"])
    return Look(
        path=path,
        live=found["live"],
        beside=tuple(beside),
        fence=found["fence"],
        mounts=tuple(one for one in mounts if one == path or one.startswith(f"{path}/")),
        unmounted=str(found.get("unmounted", "")),
        locked=tuple(locked),
        free=blocks * block,
        free_files=free_files if all_files else None,
        can_write=can_write,
        exchange=str(found["exchange"]),
        hostname=str(found["host"]),
        is_root=found["user"] == "0",
    )

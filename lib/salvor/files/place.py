"""Where a tree lives: what is live there, what stands beside it, the fence, and the swap.

Beside `PATH`, on the same file system, so that the swap is a rename: the folder `PATH.salvor-INCIDENT` (mode 700) with
`building` (half made), `staged`, `kept` and `salvor.json`, the marker that names the staged tree by its identity. So
whatever bears that identity is this incident's, wherever a rename has put it.
"""

from __future__ import annotations

import json
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from salvor.errors import CannotError, UsageError
from salvor.shell import Shell

ABSENT = "absent"
MARKER = "salvor.json"
_INCIDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
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

    `mounts` are the mount points at or below the tree; `exchange` is what can swap two names at once there.
    """

    path: str
    live: Thing | None
    beside: tuple[Beside, ...]
    fence: Mapping[str, Any]
    mounts: tuple[str, ...]
    free: int
    free_files: int | None
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


_LOOK = r"""
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
cut -d ' ' -f 5 /proc/self/mountinfo | sed "s/^/mount$f/"
above=$(dirname -- "$real")
until [ -d "$above" ]; do above=$(dirname -- "$above"); done
say "room$f$(stat -f -c "%a$f%S$f%c$f%d" -- "$above")"
for tool in perl python3; do command -v "$tool" >/dev/null && say "exchange$f$tool" && break; done
say "host$f$(uname -n)"
say "user$f$(id -u)"
"""

# A folder that its owner may not enter can only be emptied by root; anybody else gives themselves the right first.
_REMOVE = r"""
remove() {
    [ "$(id -u)" = 0 ] || chmod -R -f u+rwx -- "$@" 2>/dev/null || :
    rm -rf -- "$@"
}
"""

# renameat2(2) by its number: glibc has a function for it since 2.28 only, and mv --exchange is younger still. Flag 1 is
# RENAME_NOREPLACE, 2 is RENAME_EXCHANGE. Exit code 95: this kernel or file system cannot; then two renames do it.
_EXCHANGE = r"""
numbers='x86_64 316 aarch64 276 riscv64 276 ppc64le 357 s390x 347 armv7l 382 i686 353'
number=
set -- "$1" "$2" "$3" $numbers
flag=$1 from=$2 to=$3
shift 3
while [ $# -gt 1 ]; do [ "$1" = "$(uname -m)" ] && number=$2; shift 2; done
[ "$number" ] || exit 95
if command -v perl >/dev/null; then
    exec perl -e '
        my ($number, $flag, $from, $to) = @ARGV;
        exit 0 if syscall($number + 0, -100, $from, -100, $to, $flag + 0) == 0;
        exit 95 if $!{EINVAL} || $!{ENOSYS} || $!{EOPNOTSUPP};
        print STDERR "$from and $to cannot change places: $!\n"; exit 1' "$number" "$flag" "$from" "$to"
elif command -v python3 >/dev/null; then
    exec python3 -c '
import ctypes, errno, os, sys
number, flag, (origin, to) = int(sys.argv[1]), int(sys.argv[2]), map(os.fsencode, sys.argv[3:])
if ctypes.CDLL(None, use_errno=True).syscall(number, -100, origin, -100, to, flag):
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        sys.exit(95)
    sys.exit(f"{sys.argv[3]} and {sys.argv[4]} cannot change places: {os.strerror(code)}")' \
        "$number" "$flag" "$from" "$to"
fi
exit 95
"""


def check_incident(incident: str) -> str:
    """The incident's id, if it may be part of a path. Raises UsageError."""
    if not _INCIDENT.fullmatch(incident):
        raise UsageError(f"--incident: {incident!r} cannot be part of a folder's name.")
    return incident


@dataclass(frozen=True)
class Place:
    """A path on a host, and the incident that works there."""

    shell: Shell
    path: str
    incident: str

    def look(self) -> Look:
        """Look once. Raises CannotError, or OutcomeUnknownError, when the host cannot be asked."""
        said = self.shell.run(["sh", "-c", _LOOK, "sh", self.path], deadline=_LOOKING).stdout
        return _read(said)

    @cached_property
    def real(self) -> str:
        """The path with its links followed."""
        return self.look().path

    @property
    def box(self) -> str:
        """This incident's folder beside the tree."""
        return f"{self.real}.salvor-{check_incident(self.incident)}"

    @property
    def staged(self) -> str:
        return f"{self.box}/staged"

    @property
    def kept(self) -> str:
        return f"{self.box}/kept"

    @property
    def building(self) -> str:
        """Where a stage is built; what stands there is never whole."""
        return f"{self.box}/building"

    def mine(self, look: Look) -> Beside | None:
        """What this incident has beside the tree."""
        return next((one for one in look.beside if one.incident == self.incident), None)

    # --- stage ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See that the incident's folder is there, with an empty folder to build in."""
        script = r"""
            set -eu
            umask 077
            rm -f -- "$1/salvor.json"
            remove "$1/staged" "$1/building"
            mkdir -p -- "$(dirname -- "$1")"
            mkdir -p -m 700 -- "$1" "$1/building"
        """
        self._run(script, self.box, deadline=3600.0)

    def write_marker(self, marker: Mapping[str, Any]) -> None:
        """Write it, atomically, and flushed to disk."""
        self.shell.write(f"{self.box}/{MARKER}", json.dumps(dict(marker), sort_keys=True) + "\n")

    def identity_of(self, path: str) -> str:
        """The identity of what stands at `path`; empty when nothing does."""
        result = self.shell.run(["stat", "-c", "%d:%i:%.9W", "--", path], check=False)
        return _identity(result.stdout.strip()) if result.exit_code == 0 else ""

    def finish(self, built: str, marker: Mapping[str, Any]) -> None:
        """Call the tree at `built` (in `building`) whole: flush all of it to disk, note its identity, and put it where
        a staged one stands.
        """
        script = 'sync -f -- "$1" && stat -c "%d:%i:%.9W" -- "$1" && date +%s.%N'
        identity, sealed = self._run(script, built, deadline=3600.0).split()
        self.write_marker({**marker, "tree": _identity(identity), "sealed": float(sealed), "built": built})
        self.place_built(built)

    def place_built(self, built: str) -> None:
        """Put a whole tree from `building` where a staged one stands; what else was built there is removed."""
        script = 'set -eu; [ ! -e "$1" ] && [ ! -L "$1" ] || mv -T -- "$1" "$2"; remove "$3"; sync -- "$4"'
        self._run(script, built, self.staged, self.building, self.box, deadline=600.0)

    def drop(self) -> None:
        """Remove what is staged or half built, what says that it is whole first."""
        script = r"""
            set -eu
            [ -d "$1" ] || exit 0
            [ -e "$1/kept" ] || [ -L "$1/kept" ] || rm -f -- "$1/salvor.json"
            remove "$1/staged" "$1/building"
            rmdir -- "$1" 2>/dev/null || :
        """
        self._run(script, self.box, deadline=3600.0)

    # --- swap ----------------------------------------------------------------------------------------------------

    def swap(self, comes: str, goes: str, *, replaces: bool) -> None:
        """Put what is at `comes` at the live path, in one rename, and what was live at `goes`.

        `replaces`: something is live. Where names cannot be exchanged it takes two renames, and a call that was killed
        between them is gone on with by the next one.
        """
        if replaces and self._rename(2, comes, self.real):
            self._move(comes, goes)
        else:
            if replaces:
                self._move(self.real, goes)
            if not self._rename(1, comes, self.real):
                self._move(comes, self.real)
        self._flush()

    def put_away(self, goes: str) -> None:
        """Take what is live away, and put nothing in its place: there was nothing before."""
        self._move(self.real, goes)
        self._flush()

    def _rename(self, flag: int, one: str, other: str) -> bool:
        result = self.shell.run(["sh", "-c", _EXCHANGE, "sh", str(flag), one, other], check=False)
        if result.exit_code not in (0, 95):
            raise CannotError(
                f"{self.real} on {self.shell.where} could not be swapped: {result.stderr.strip()}.",
                safe="what is live is as it was",
                hint="see who may write to its folder, then run the same command again",
            )
        return result.exit_code == 0

    def _move(self, one: str, other: str) -> None:
        # never into a folder that stands there, and never over anything
        script = 'if [ -e "$2" ] || [ -L "$2" ]; then echo "$2 is in the way" >&2; exit 1; fi; mv -T -- "$1" "$2"'
        self._run(script, one, other)

    def move_to_kept(self) -> None:
        """Call what a swap took out of its place `kept`: a call was killed after the swap."""
        self._move(self.staged, self.kept)
        self._flush()

    def move_to_staged(self) -> None:
        """Call what a swap back took out of its place `staged` again: a call was killed after the swap."""
        self._move(self.kept, self.staged)
        self._flush()

    def _flush(self) -> None:
        self._run('sync -- "$1" "$(dirname -- "$2")"', self.box, self.real)

    def discard(self) -> None:
        """Remove what was kept, and the incident's folder with it."""
        script = r"""
            set -eu
            [ -d "$1" ] || exit 0
            remove "$1/kept"
            [ -e "$1/staged" ] || [ -L "$1/staged" ] || rm -rf -- "$1"
        """
        self._run(script, self.box, deadline=6 * 3600.0)

    # --- fence ---------------------------------------------------------------------------------------------------

    @property
    def _fence(self) -> str:
        return f"{self.real}.salvor-fence.json"

    def fence(self, thing: Thing) -> None:
        """Let nobody in but root. What its mode was is written down first.

        The owner keeps the right to write to a folder, which lets nobody in without the right to pass, and without
        which its owner could not rename it to another folder.
        """
        record = {"identity": thing.identity, "mode": stat.S_IMODE(thing.mode)}
        self.shell.write(self._fence, json.dumps(record, sort_keys=True) + "\n")
        self._run('chmod -- "$2" "$1"', self.real, "u=w,go=" if thing.is_folder else "a=")

    def unfence(self, fence: Mapping[str, Any], look: Look) -> None:
        """Give what was fenced its mode again, wherever it stands, and forget the fence."""
        identity, places = str(fence.get("identity", "")), {self.real: look.live}
        for one in look.beside:
            places |= {f"{one.path}/staged": one.staged, f"{one.path}/kept": one.kept}
        for path, thing in places.items():
            if thing and thing.identity == identity:
                # five digits: with fewer, chmod leaves a folder's set-group-ID bit alone
                self._run('chmod -- "$2" "$1"', path, f"{int(fence['mode']):05o}")
        self.forget_fence()

    def forget_fence(self) -> None:
        """Forget the fence of what is removed."""
        self._run('rm -f -- "$1"', self._fence)

    def _run(self, script: str, *words: str, deadline: float = 30.0) -> str:
        return self.shell.run(["sh", "-c", _REMOVE + script, "sh", *words], deadline=deadline).stdout


def room_for(look: Look, where: str, size: int | None, files: int | None) -> None:
    """See that a copy fits beside the tree. Raises CannotError with the figures."""
    needed = (size or 0) + 4096 * (files or 0)
    folder = look.path.rpartition("/")[0] or "/"
    too_small = ""
    if needed > look.free:
        too_small = f"{needed / 1e9:.2f} GB, where {look.free / 1e9:.2f} GB are free"
    elif look.free_files is not None and (files or 0) > look.free_files:
        too_small = f"{files} files, where there is room for {look.free_files}"
    if too_small:
        raise CannotError(
            f"The stage needs {too_small}, in {folder} on {where}.",
            safe="nothing was changed",
            hint="make room there: inv discard removes what earlier incidents kept; "
            f"on {where}: df -h -- {shlex.quote(folder)}",
        )


def _identity(text: str) -> str:
    """`device:inode:birth`, without the birth where the file system notes none: inodes are used again at once."""
    device, inode, birth = text.split(":")
    return f"{device}:{inode}" if float(birth.replace("-", "0")) == 0 else f"{device}:{inode}:{birth}"


def _thing(words: list[str]) -> Thing | None:
    if len(words) != 4:
        return None
    return Thing(_identity(words[0]), int(words[1], 16), int(words[2]), float(words[3]))


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(said: str) -> Look:
    found: dict[str, Any] = {"exchange": "", "fence": {}, "live": None}
    boxes: list[dict[str, Any]] = []
    mounts = []
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
            case "live":
                found["live"] = _thing(rest)
            case "fence":
                found["fence"] = _json(rest[0])
            case "room":
                found["room"] = rest
            case _:
                found[word] = rest[0]
    path = str(found["path"])
    beside = [
        Beside(incident=incident, **box)
        for box in boxes
        if _INCIDENT.fullmatch(incident := box["path"].removeprefix(f"{path}.salvor-"))
    ]
    blocks, block, all_files, free_files = map(int, found["room"])
    return Look(
        path=path,
        live=found["live"],
        beside=tuple(beside),
        fence=found["fence"],
        mounts=tuple(one for one in mounts if one == path or one.startswith(f"{path}/")),
        free=blocks * block,
        free_files=free_files if all_files else None,
        exchange=str(found["exchange"]),
        hostname=str(found["host"]),
        is_root=found["user"] == "0",
    )

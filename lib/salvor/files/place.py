"""Where a tree lives, and what is done there: the stage, the swap, the fence.

Beside `PATH`, on the same file system, so that the swap is a rename: the folder `PATH.salvor-INCIDENT` (mode 700) with
`building` (half made), `staged`, `kept` and `salvor.json`, the marker that names the staged tree by its identity. So
whatever bears that identity is this incident's, wherever a rename has put it.
"""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from salvor.errors import CannotError, CommandError, UsageError
from salvor.files.look import INCIDENT, Beside, Look, Thing, identity_of, look_at
from salvor.shell import Shell

MARKER = "salvor.json"


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
    if not INCIDENT.fullmatch(incident):
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
        return look_at(self.shell, self.path)

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
            (umask 022; mkdir -p -- "$(dirname -- "$1")")  # or those who use the tree could not reach it
            mkdir -p -m 700 -- "$1" "$1/building"
        """
        self._run(script, self.box, deadline=3600.0)

    def write_marker(self, marker: Mapping[str, Any]) -> None:
        """Write it, atomically, and flushed to disk."""
        self.shell.write(f"{self.box}/{MARKER}", json.dumps(dict(marker), sort_keys=True) + "\n")

    def identity_of(self, path: str) -> str:
        """The identity of what stands at `path`; empty when nothing does."""
        result = self.shell.run(["stat", "-c", "%d:%i:%.9W", "--", path], check=False)
        return identity_of(result.stdout.strip()) if result.exit_code == 0 else ""

    def finish(self, built: str, marker: Mapping[str, Any]) -> None:
        """Call the tree at `built` (in `building`) whole: flush all of it to disk, note its identity, and put it where
        a staged one stands.
        """
        script = 'sync -f -- "$1" && stat -c "%d:%i:%.9W" -- "$1" && date +%s.%N'
        identity, sealed = self._run(script, built, deadline=3600.0).split()
        self.write_marker({**marker, "tree": identity_of(identity), "sealed": float(sealed), "built": built})
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
        """Remove what was kept, and the incident's folder with it. Raises CannotError when some of it stays."""
        script = r"""
            set -eu
            [ -d "$1" ] || exit 0
            remove "$1/kept"
            rm -rf -- "$1"
        """
        try:
            self._run(script, self.box, deadline=6 * 3600.0)
        except CommandError as error:
            why = (error.stderr.strip().splitlines() or ["rm did not say why"])[-1]
            box = shlex.quote(self.box)
            raise CannotError(
                f"Not all that {self.box} on {self.shell.where} keeps could be removed: {why}.",
                safe="what is live; of what was kept, some is gone",
                hint=f"where chattr locked it (+i, +a), on {self.shell.where}: chattr -R -f -ia {box}; "
                "then the same command again",
            ) from error

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
        try:
            self._run('chmod -- "$2" "$1"', self.real, "u=w,go=" if thing.is_folder else "a=")
        except CommandError as error:
            self.forget_fence()
            raise CannotError(
                f"{self.real} on {self.shell.where} could not be closed to others: {error.stderr.strip()}.",
                safe="what is live is as it was",
                hint=f"only its owner and root may (run_as), and nobody where chattr locked it: on {self.shell.where}: "
                f"lsattr -d {shlex.quote(self.real)}",
            ) from error

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

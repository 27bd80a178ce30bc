"""Unpacks one member of an archive, here or on a host: what was vetted goes on as a tar stream of our own.

The archive is read here, once; `tar -x` at the other end, which is all that a host needs, sees nothing but names and
types that were looked at, in a folder that is ours alone.
"""

from __future__ import annotations

import hashlib
import queue
import tarfile
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from salvor import clock
from salvor.archive.members import ENCODING, ERRORS, Members
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import Archive, opened, stem_of
from salvor.archive.vetting import Entry, Terms, Vetting
from salvor.change import Progress
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.shell import Result, Shell

HERE = "this machine"
_TURN = threading.Lock()
"""Those who unpack on this machine do so in turn: four at once in one Python took six times as long as one."""
_DAY = 24 * 3600.0
_STALLED = 300.0
"""Seconds after which a `tar` that takes nothing more is given up."""
_ENDING = 10.0
_SAFE = "what is live is as it was"
_PIECE = 256 * 1024
_PROGRESS_SECONDS = 0.25


@dataclass(frozen=True)
class Extracted:
    """What was unpacked: every entry by its path, how many bytes of content, and what the archive was packed with."""

    entries: dict[str, Entry]
    size: int
    how: str
    owners: bool
    """Whether its owners were given back; else all belongs to who unpacked."""


def extract(
    archive: Archive,
    settings: ArchivesSettings | None,
    member: str,
    there: Shell,
    into: str,
    *,
    tree: str = "tree",
    home: str = "",
    trusted: bool = False,
    host: Shell | None = None,
    in_turn: bool = True,
) -> Generator[Progress, None, Extracted]:
    """Unpack `member` as `INTO/TREE`, a folder or a file, by `tar -x` on `there`. `into` is an empty folder of ours;
    the archive lies on `host`, when that is another machine. `in_turn`: after those who unpack on this machine now.

    Modes, times (seconds) and links are as in the archive; owners too, by name and else by number, where root unpacks.
    Files get no set-user-ID and set-group-ID bits. Yields how many of the archive's bytes were read. It cannot be gone
    on with: after an error, empty `into`. Nothing is flushed to disk yet. Raises CannotError; nothing outside of `into`
    is touched.
    """
    label = f"unpacking {member} from {archive.name}"
    turn = _TURN if in_turn and there.where == HERE else threading.Lock()
    while not turn.acquire(timeout=_PROGRESS_SECONDS):
        yield Progress(0, archive.size, "bytes", f"{label}: waiting for its turn")
    try:
        return (yield from _extract(archive, settings, member, there, into, tree, home, trusted, host or there, label))
    finally:
        turn.release()


def _extract(
    archive: Archive,
    settings: ArchivesSettings | None,
    member: str,
    there: Shell,
    into: str,
    tree: str,
    home: str,
    trusted: bool,
    host: Shell,
    label: str,
) -> Generator[Progress, None, Extracted]:
    place = _look(there, into)
    terms = Terms(place.free, place.users, place.groups, home, trusted)
    yield Progress(0, archive.size, "bytes", label)
    with opened(archive, settings, host) as source, _feeding(there, into, place.argv) as tar:
        vetting = Vetting(archive.location, stem_of(archive.name) or archive.name, member, terms)
        members = Members(source.chunk, archive.location)
        told = clock.monotonic()
        for info in members:
            entry = vetting.take(info, source.position())
            for piece in _pieces(entry, info, vetting, members, tree) if entry else ():
                tar.put(piece)
                if clock.monotonic() - told > _PROGRESS_SECONDS:
                    told = clock.monotonic()
                    yield Progress(source.position(), archive.size, "bytes", label)
            if entry is None and clock.monotonic() - told > _PROGRESS_SECONDS:
                told = clock.monotonic()
                yield Progress(source.position(), archive.size, "bytes", label)
        vetting.finish()
        tar.put(bytes(2 * tarfile.BLOCKSIZE))
        tar.finish()
        return Extracted(vetting.entries, vetting.unpacked, source.how, place.is_root)


def _pieces(
    entry: Entry, info: tarfile.TarInfo, vetting: Vetting, members: Members, tree: str
) -> Iterator[bytes | memoryview]:
    """A vetted member as plain tar writes it, with the folders above it that the archive does not name."""
    for missing in vetting.parents(entry.path):
        yield _header(vetting.make(missing, entry), tree)
    yield _header(entry, tree)
    if entry.kind == "f" and entry.same_as is None:
        digest = hashlib.sha256()
        for piece in members.content(info):
            digest.update(piece)
            yield piece
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
        vetting.note(entry.path, digest.digest())


def _header(entry: Entry, tree: str) -> bytes:
    """Its header. Who `www-data` is was asked before: numbers only."""
    info = tarfile.TarInfo(f"{tree}/{entry.path}" if entry.path else tree)
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
    if entry.same_as is not None:
        info.type, info.linkname = tarfile.LNKTYPE, f"{tree}/{entry.same_as}" if entry.same_as else tree
    elif entry.kind == "d":
        info.type = tarfile.DIRTYPE
    elif entry.kind == "l":
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    else:
        info.size = entry.size
    return info.tobuf(tarfile.GNU_FORMAT, ENCODING, ERRORS)


# --- the other end -----------------------------------------------------------------------------------------------

_LOOK = r"""
set -eu
cd -- "$1"
[ -z "$(ls -A)" ] || { echo "$1 is not empty" >&2; exit 1; }
df -P -k . | tail -n 1
id -u
tar --version 2>/dev/null | head -n 1 || :
echo users; getent passwd 2>/dev/null || cat /etc/passwd
echo groups; getent group 2>/dev/null || cat /etc/group
"""


@dataclass(frozen=True)
class _Place:
    """What there is where the tree is unpacked: bytes, who unpacks, which tar, numbers by name."""

    free: int
    is_root: bool
    is_gnu: bool
    users: dict[str, int]
    groups: dict[str, int]

    @property
    def argv(self) -> list[str]:
        # GNU tar gives a folder its time and mode as soon as a member outside of it comes, and others may follow.
        return ["tar", "-x", "-p", *([] if self.is_root else ["-o"]), "-f", "-"] + (
            ["--delay-directory-restore"] if self.is_gnu else []
        )


def _look(there: Shell, into: str) -> _Place:
    said = there.run(["sh", "-c", _LOOK, "sh", into]).stdout
    first, _, rest = said.partition("\nusers\n")
    users, _, groups = rest.partition("\ngroups\n")
    room, uid, *tar = first.splitlines()
    return _Place(
        free=int(room.split()[-3]) * 1024,
        is_root=uid == "0",
        is_gnu="GNU tar" in "".join(tar),
        users=_numbers(users),
        groups=_numbers(groups),
    )


def _numbers(listed: str) -> dict[str, int]:
    fields = [line.split(":") for line in listed.splitlines()]
    return {field[0]: int(field[2]) for field in fields if len(field) > 2 and field[2].isdigit()}


class _Tar:
    """A `tar -x` that runs, and is given its input piece by piece."""

    def __init__(self, there: Shell, into: str, argv: list[str]) -> None:
        self._there, self._into = there, into
        self._batch = bytearray()
        self._pieces: queue.Queue[bytes] = queue.Queue(8)
        self._ended: Future[Result] = Future()
        command = ["sh", "-c", 'cd -- "$1" && shift && exec "$@"', "sh", into, *argv]
        threading.Thread(target=self._run, args=(command,), name="unpacking", daemon=True).start()

    def _run(self, command: list[str]) -> None:
        try:
            self._ended.set_result(self._there.run(command, input=self._input(), deadline=_DAY, check=False))
        except BaseException as error:  # noqa: BLE001  raised again in the thread that feeds it
            self._ended.set_exception(error)

    def _input(self) -> Iterator[bytes]:
        while piece := self._pieces.get():
            yield piece

    def put(self, piece: bytes | memoryview) -> None:
        """Give it more. Raises CannotError when it ended, or takes nothing."""
        self._batch += piece
        if len(self._batch) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        piece, self._batch = bytes(self._batch), bytearray()
        if piece:
            self._give(piece)

    def _give(self, piece: bytes) -> None:
        until = clock.monotonic() + _STALLED
        while True:
            if self._ended.done():
                self._see_how()
                raise CannotError(f"tar on {self._there.where} ended before all was unpacked.", safe=_SAFE)
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=0.5)
                return
            if clock.monotonic() > until:
                raise OutcomeUnknownError(
                    f"tar on {self._there.where} took nothing for {_STALLED:.0f} s: the disk of {self._into} hangs, or "
                    "the connection.",
                    safe=_SAFE,
                    hint="see to it, then run the same command again",
                )

    def finish(self) -> None:
        """That was all: wait until it is unpacked."""
        self._flush()
        self._give(b"")
        self._see_how()

    def _see_how(self) -> None:
        result = self._ended.result(timeout=_DAY)
        if result.exit_code:
            said = "; ".join(result.stderr.strip().splitlines()[:3]) or f"exit code {result.exit_code}"
            raise CannotError(
                f"It cannot be unpacked in {self._into} on {self._there.where}: {said}.",
                safe=_SAFE,
                hint=f"on {self._there.where}: df -h {self._into}; then run the same command again",
            )

    def abandon(self) -> None:
        """Let it end, whatever it says of an input that breaks off; one that hangs is left to itself."""
        until = clock.monotonic() + _ENDING
        while not self._ended.done() and clock.monotonic() < until:
            with suppress(queue.Full):
                self._pieces.put(b"", timeout=0.2)
                break
        with suppress(Exception):
            self._ended.result(timeout=_ENDING)


@contextmanager
def _feeding(there: Shell, into: str, argv: list[str]) -> Iterator[_Tar]:
    tar = _Tar(there, into, argv)
    try:
        yield tar
    finally:
        tar.abandon()

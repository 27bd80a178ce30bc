"""One member of an archive on its way out: vetted, and given to a `tar` of its own as a tar stream of our own.

That `tar`, at the other end, sees nothing but names and types that were looked at, in a folder that is ours alone.
"""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from salvor.archive import untar
from salvor.archive.members import ENCODING, ERRORS
from salvor.archive.source import Archive
from salvor.archive.vetting import Entry, Names, Terms, Vetting
from salvor.change import Progress
from salvor.shell import Shell

_PROGRESS_SECONDS = 0.25
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Extracted:
    """What was unpacked: every entry by its path, how many bytes of content, what the archive was packed with, and what
    tells that from another one of its name.
    """

    entries: dict[str, Entry]
    size: int
    how: str
    identity: str
    owners: bool
    """Whether its owners were given back; else all belongs to who unpacked."""


@dataclass(frozen=True)
class Company:
    """Who takes from the archive (a name that nobody else has), and who else is about to: the reading waits for them.

    `names` is asked again and again: whoever has ended meanwhile is not in it any more.
    """

    name: str = ""
    names: Callable[[], Collection[str]] = tuple


class Taking:
    """What one system takes out of an archive, which a reading goes through for all that take from it.

    The reading calls `begin`, then `take`, `content` and `note` for each member, and `close` at the end, or `fail`.
    The system waits until it is `out`, or `whole`, and must `leave` in the end.
    """

    def __init__(
        self,
        archive: Archive,
        member: str,
        there: Shell,
        into: str,
        *,
        tree: str,
        home: str,
        trusted: bool,
        company: Company,
    ) -> None:
        """Look at the place to unpack in. Raises CannotError."""
        self.member, self.company = member, company
        self.gone = False
        self._label, self._size = f"unpacking {member} from {archive.name}", archive.size
        self._position: Callable[[], int] = lambda: 0
        self._waiting: Callable[[], str] = str
        self._there, self._into, self._tree = there, into, tree
        self._place = untar.look(there, into)
        self._terms = Terms(self._place.free, self._place.users, self._place.groups, home, trusted)
        self._lock = threading.Lock()
        self._tar: untar.Tar | None = None
        self._given: Future[None] = Future()
        self._ended: Future[tuple[str, str]] = Future()

    # --- the reading's side --------------------------------------------------------------------------------------

    def begin(self, names: Names, position: Callable[[], int], waiting: Callable[[], str]) -> None:
        """A reading is to serve it; `position` says how many of the archive's bytes were read, and `waiting` in words
        that it waits for more of them.
        """
        self._vetting = Vetting(names, self.member, self._terms)
        self._position, self._waiting = position, waiting
        with self._lock:
            if not self.gone:
                self._tar = untar.Tar(self._there, self._into, self._place.argv)

    def take(self, info: tarfile.TarInfo, name: str) -> Entry | None:
        """Take a member if it is ours; None when it is not. A regular file's `content` is to come, then its `note`.

        Raises CannotError.
        """
        entry = self._vetting.take(info, name)
        if entry:
            for missing in self._vetting.parents(entry.path):
                self._put(_header(self._vetting.make(missing, entry), self._tree))
            self._put(_header(entry, self._tree))
        return entry

    def content(self, info: tarfile.TarInfo, piece: memoryview) -> None:
        """Take a piece of a regular file. Raises CannotError, also when tar ended, or takes nothing."""
        self._vetting.weigh(info, len(piece), self._position())
        self._put(piece)

    def _put(self, piece: bytes | memoryview) -> None:
        if self._tar is None:
            raise EOFError("nobody takes it any more")
        self._tar.put(piece)

    def note(self, entry: Entry, sha256: bytes) -> None:
        """A regular file is over; of a member that is a single file, that is all there is to unpack."""
        self._put(bytes(-entry.size % tarfile.BLOCKSIZE))
        self._vetting.note(entry.path, sha256)
        if not entry.path:
            self._give_rest()

    def close(self, how: str, identity: str) -> None:
        """The archive is over, and whole, and was this one. Raises CannotError when the member was not in it, or is not
        to be had.
        """
        self._vetting.finish()
        if not self._given.done():
            self._give_rest()
        self._ended.set_result((how, identity))

    def _give_rest(self) -> None:
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        if self._tar:
            self._tar.close()
        self._given.set_result(None)

    def fail(self, error: BaseException) -> None:
        """It ends with this error."""
        if not self._given.done():
            self._given.set_exception(error)
        self._ended.set_exception(error)

    # --- the system's side ---------------------------------------------------------------------------------------

    def out(self) -> Generator[Progress, None, None]:
        """Wait until all of the member is unpacked; of a single file that may be long before the archive is read to its
        end, and known to be whole. Yields how many of the archive's bytes were read. Raises CannotError.
        """
        if not self._given.done():
            yield Progress(0, self._size, "bytes", self._label)
        yield from self._wait(self._given)
        assert self._tar
        yield from self._wait(self._tar.ended)
        self._tar.see_how()

    def whole(self) -> Generator[Progress, None, Extracted]:
        """Wait until it is unpacked, and known to be what the archive holds. Yields and raises as `out` does."""
        yield from self.out()
        how, identity = yield from self._wait(self._ended)
        return Extracted(self._vetting.entries, self._vetting.unpacked, how, identity, self._place.is_root)

    def _wait(self, future: Future[_Answer]) -> Generator[Progress, None, _Answer]:
        while not wait([future], _PROGRESS_SECONDS).done:
            label = f"{self._label}{self._waiting()}" if self._tar else f"{self._label}: waiting for its turn"
            yield Progress(self._position(), self._size, "bytes", label)
        return future.result()

    def leave(self) -> None:
        """Take nothing more: afterwards nothing is written there. Whoever takes something else goes on."""
        with self._lock:
            self.gone = True
        if self._tar:
            self._tar.abandon()


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

"""The bytes of an archive wherever it is (here, on the system's host, in S3), decrypted and unpacked as a stream."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import cast

from salvor import secrets
from salvor.archive import cipher
from salvor.archive.members import is_archive
from salvor.archive.settings import ArchivesSettings
from salvor.bucket import Object
from salvor.errors import CannotError
from salvor.shell import Shell
from salvor.streams import CHUNK, GZIP, ZSTANDARD, Ahead, Peeked, Readable, told, unpacked

SILENCE = 120.0
"""Seconds after which a source that gives nothing more is given up."""
_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar")
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Archive:
    """One archive. `location` is an absolute path or `s3://BUCKET/KEY`; `there`: the path is on the system's own host.

    `taken` is the moment that its name says (None: none), `size` in bytes as it lies there.
    """

    location: str
    there: bool
    taken: datetime | None
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.location).name


def stem_of(name: str) -> str | None:
    """An archive's name without what says how it is packed; None when that says that it is no archive."""
    plain = name.removesuffix(".enc")
    return next((plain.removesuffix(suffix) for suffix in _SUFFIXES if plain.endswith(suffix)), None)


class Unpacked:
    """What an archive unpacks to, read ahead in a thread; `position` tells how many of its own bytes were read.

    `how` says what it is packed with, for people.
    """

    def __init__(self, ahead: Ahead, position: Callable[[], int], how: str, name: str) -> None:
        self.position = position
        self.how = how
        self._ahead = ahead
        self._name = name

    def chunk(self) -> bytes:
        """The next bytes; none at the end. Raises CannotError when it is cut off, damaged or silent."""
        with told(self._name):
            return self._ahead.chunk()


@contextmanager
def opened(archive: Archive, settings: ArchivesSettings | None, there: Shell) -> Iterator[Unpacked]:
    """The archive's tar stream, read once from its start. Raises CannotError when it is none, or not for our key."""
    name = archive.location
    with ExitStack() as stack:
        with told(name):
            # Whatever it is read from, a disk that hangs too: the one thread waits, the other one looks at the clock.
            raw = Ahead(stack.enter_context(_raw(archive, there)), SILENCE, name=name)
            stack.callback(raw.close)
            counted = _Counted(raw)
            plain, how = _plain(Peeked(counted), settings, name)
        ahead = Ahead(plain, 2 * SILENCE, name=name)
        stack.callback(ahead.close)
        yield Unpacked(ahead, lambda: counted.position, how, name)


def _plain(packed: Peeked, settings: ArchivesSettings | None, name: str) -> tuple[Peeked, str]:
    """The tar stream, and what it was packed with."""
    if not packed.head:
        raise CannotError(f"{name} is empty.", hint="take another copy of it, or an older backup")
    how = ""
    if cipher.is_encrypted(packed.head):
        clear = _decrypted(packed, settings, name)
        how = f"encrypted with openssl enc -aes-256-cbc {clear.options}"
        packed = Peeked(clear)
    plain = unpacked(packed)
    if not is_archive(plain.head):
        what = "it" if plain is packed and not how else "what it unpacks to"
        raise CannotError(
            f"{name} is no tar archive: {what} starts with {plain.head[:16]!r}.",
            hint="name the archive itself: --from=/backup/NAME_YYYYMMDD_HHMMSS.tar.gz",
        )
    return plain, how


def _decrypted(packed: Peeked, settings: ArchivesSettings | None, name: str) -> cipher.Decrypted:
    if settings is None or settings.password is None:
        raise CannotError(
            f"{name} is encrypted, and the inventory names no password for it.",
            safe="what is live is as it was",
            hint="add archives: {password: file:/path/of/a/secret}",
        )
    return cipher.Decrypted(packed, secrets.resolve(settings.password), _makes_sense, name, settings.iterations)


def _makes_sense(head: bytes) -> bool:
    """Whether these first bytes are of an archive, packed or not: what another key makes of them never is."""
    if head.startswith(GZIP):
        try:
            start = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            return False
        return len(start) < 512 or is_archive(start)
    return head.startswith(ZSTANDARD) or is_archive(head)


class _Counted:
    """Counts what is read of a stream."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self.position = 0

    def read(self, size: int, /) -> bytes:
        piece = self._ahead.read(size)
        self.position += len(piece)
        return piece


@contextmanager
def _raw(archive: Archive, there: Shell) -> Iterator[Readable]:
    if archive.location.startswith("s3://"):
        with closing(Object(archive.location)) as found:
            yield found
    elif archive.there:
        pieces = there.pieces(["cat", "--", archive.location], deadline=_DAY, idle=SILENCE)
        try:
            yield _Pieces(pieces)
        finally:
            with suppress(ValueError):  # it waits for the host still, in its thread: its silence ends it
                cast("Generator[bytes, None, None]", pieces).close()
    else:
        with Path(archive.location).open("rb", buffering=0) as file:
            yield file


class _Pieces:
    """Pieces that come as they come, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int, /) -> bytes:
        """The next pieces together, `size` bytes or a little more than that; none at the end."""
        found: list[bytes] = []
        while sum(map(len, found)) < min(size, CHUNK) and (piece := next(self._pieces, b"")):
            found.append(piece)
        return b"".join(found)

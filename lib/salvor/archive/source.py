"""The bytes of an archive wherever it is (here, on the system's host, in S3), decrypted and unpacked as a stream."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Generator, Hashable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import cast

from salvor import clock, secrets
from salvor.archive import cipher
from salvor.archive.members import is_archive
from salvor.archive.settings import ArchivesSettings
from salvor.bucket import Object
from salvor.errors import CannotError, UsageError
from salvor.shell import Shell
from salvor.streams import CHUNK, GZIP, ZSTANDARD, Ahead, Peeked, Readable, read_fully, told, unpacked

SILENCE = 120.0
"""Seconds after which a source that gives nothing more is given up."""
SUM = ".sha256"
"""What the name of the file beside an archive adds, which holds its checksum."""
_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar")
_DAY = 24 * 3600.0
_asking = threading.Lock()
_looks: dict[Hashable, Future[None]] = {}
"""Of archives whose first bytes were looked at, or are."""


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
    """What an archive unpacks to, read ahead in a thread. `how` says how it was encrypted, for people, and `identity`
    tells it from another archive of its name.
    """

    def __init__(self, ahead: Ahead, raw: _Counted, how: str, identity: str, name: str, expected: str | None) -> None:
        self.how, self.identity = how, identity
        self.waiting = raw.waiting
        self._ahead, self._raw, self._name, self._expected = ahead, raw, name, expected

    def position(self) -> int:
        """Bytes of the archive itself that were read."""
        return self._raw.position

    def chunk(self) -> bytes:
        """The next bytes; none at the end. Raises CannotError when it is cut off, damaged, silent, or at its end
        another one than the checksum beside it is of.
        """
        with told(self._name):
            chunk = self._ahead.chunk()
        if not chunk and self._expected and self._raw.digest() != self._expected:
            raise CannotError(
                f"{self._name} is not what was written: the checksum in {self._name}{SUM} is another one.",
                safe="what is live is as it was",
                hint="take another copy of it, or an older backup; or mend the checksum beside it",
            )
        return chunk


def refuse_unreadable(archive: Archive, settings: ArchivesSettings | None, there: Shell) -> None:
    """Raise CannotError now rather than when what is live is fenced already: when its first bytes are of no archive, or
    were encrypted with another password. For all who ask it is looked at once, and when it was sound never again.
    """
    key = (archive, there.where if archive.there else "", settings and (settings.password, settings.iterations))
    with _asking:
        first = key not in _looks
        look = _looks.setdefault(key, Future())
    if first:
        try:
            with opened(archive, settings, there, ahead=1):
                look.set_result(None)
        except BaseException as error:  # noqa: BLE001  raised below, for all who wait for it
            del _looks[key]
            look.set_exception(error)
    look.result()


@contextmanager
def opened(archive: Archive, settings: ArchivesSettings | None, there: Shell, *, ahead: int = 8) -> Iterator[Unpacked]:
    """The archive's tar stream, read once from its start, `ahead` pieces of a megabyte before they are asked for.

    Raises CannotError when it is none, or not for our key.
    """
    name = archive.location
    with ExitStack() as stack:
        with told(name):
            # Whatever it is read from, a disk that hangs too: the one thread waits, the other one looks at the clock.
            stream, identity = stack.enter_context(_raw(archive, there))
            raw = Ahead(stream, SILENCE, ahead, name)
            stack.callback(raw.close)
            expected = _sum_beside(archive, there)
            counted = _Counted(raw, summed=expected is not None)
            plain, how = _plain(Peeked(counted), settings, name)
        tar = Ahead(plain, 2 * SILENCE, ahead, name)
        stack.callback(tar.close)
        yield Unpacked(tar, counted, how, identity, name, expected)


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
        unsalted = "; one of openssl enc -nosalt is restored when openssl enc -d has decrypted it by hand"
        raise CannotError(
            f"{name} is no tar archive: {what} starts with {plain.head[:16]!r}.",
            hint="name the archive itself: --from=/backup/NAME_YYYYMMDD_HHMMSS.tar.gz"
            + (unsalted if name.endswith(".enc") and not how else ""),
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
    """Counts what is read of a stream, and sums it up."""

    def __init__(self, ahead: Ahead, *, summed: bool) -> None:
        self._ahead = ahead
        self.waiting = ahead.waiting
        self._sum = hashlib.sha256() if summed else None
        self.position = 0

    def read(self, size: int, /) -> bytes:
        piece = self._ahead.read(size)
        self.position += len(piece)
        if self._sum:
            self._sum.update(piece)
        return piece

    def digest(self) -> str:
        return self._sum.hexdigest() if self._sum else ""


def _sum_beside(archive: Archive, there: Shell) -> str | None:
    """The SHA-256 in the file beside it, as sha256sum(1) writes it; None when there is none."""
    path = f"{archive.location}{SUM}"
    try:
        if path.startswith("s3://"):
            with closing(Object(path)) as found:
                text = read_fully(found, 4096).decode(errors="replace")
        elif archive.there:
            found_text = there.read(path)
            if found_text is None:
                return None
            text = found_text
        else:
            text = Path(path).read_text(errors="replace")
    except (FileNotFoundError, UsageError):
        return None
    found_sum = re.match(r"\\?([0-9a-f]{64})\b", text)
    if not found_sum:
        raise CannotError(f"{path} holds no SHA-256.", hint=f"write it anew: sha256sum {archive.name}, or remove it")
    return found_sum[1]


@contextmanager
def _raw(archive: Archive, there: Shell) -> Iterator[tuple[Readable, str]]:
    """Its bytes, and its identity: in S3 by its ETag, else by its size and when it was changed last."""
    if archive.location.startswith("s3://"):
        with closing(Object(archive.location)) as found:
            yield found, found.identity
    elif archive.there:
        size, changed = there.run(["stat", "-L", "-c", "%s %Y", "--", archive.location]).stdout.split()
        pieces = there.pieces(["cat", "--", archive.location], deadline=_DAY, idle=SILENCE)
        try:
            yield _Pieces(pieces), _identity(int(size), float(changed))
        finally:
            with suppress(ValueError):  # it waits for the host still, in its thread: its silence ends it
                cast("Generator[bytes, None, None]", pieces).close()
    else:
        with Path(archive.location).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            yield file, _identity(status.st_size, status.st_mtime)


def _identity(size: int, changed: float) -> str:
    return f"{size:,} bytes of {clock.write_time(datetime.fromtimestamp(changed, UTC))}"


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

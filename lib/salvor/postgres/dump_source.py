"""The bytes of a dump wherever they are: a file, compressed or not, or one member of a tar archive. Always a stream."""

from __future__ import annotations

import gzip
import queue
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from salvor.errors import CannotError, UsageError

CHUNK = 1 << 20
HEAD = 1 << 16
"""Bytes that are looked at to tell what something is."""

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UNREADABLE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, OSError)
"""What the decoders raise for a stream that is cut off or damaged."""


class Readable(Protocol):
    """As much of a binary file as is needed here."""

    def read(self, size: int, /) -> bytes: ...


class Peeked:
    """A stream whose first bytes (`head`, at most HEAD) are known before they are read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.head = read_fully(stream, HEAD)
        self._unread = self.head

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        if not self._unread:
            return self._stream.read(size)
        first, self._unread = self._unread[:size], self._unread[size:]
        return first


def read_fully(stream: Readable, size: int) -> bytes:
    """`size` bytes, fewer only at the end."""
    pieces = []
    while size > 0 and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Zstandard:
    """Decompresses a stream. Its errors are among UNREADABLE, and the library is loaded when it is needed.

    A stream that is cut off between two blocks just ends here: each form of dump notices that itself.
    """

    def __init__(self, stream: Readable) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)  # type: ignore[arg-type]

    def read(self, size: int) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise OSError(f"damaged zstd data: {error}") from error


def unpacked(peeked: Peeked) -> Peeked:
    """The stream, decompressed when it is gzip or zstd; no read gives more than it asked for, not even of a bomb."""
    if peeked.head.startswith(GZIP):
        return Peeked(gzip.GzipFile(fileobj=peeked, mode="rb"))  # type: ignore[call-overload]  # it only reads
    if peeked.head.startswith(ZSTANDARD):
        return Peeked(_Zstandard(peeked))
    return peeked


def is_tar(head: bytes) -> bool:
    """Whether it starts as a POSIX or GNU tar archive does."""
    return head[257:262] == b"ustar"


def open_tar(stream: Readable) -> tarfile.TarFile:
    """A tar archive that is read as a stream: the content of a member is read before the next member is asked for."""
    return tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK)  # type: ignore[call-overload,no-any-return]


def member_name(info: tarfile.TarInfo) -> str:
    """The name of a member as people write it: `./a/b` is `a/b`."""
    return str(PurePosixPath(info.name))


def refuse_unsafe(path: Path, info: tarfile.TarInfo) -> None:
    """Raises CannotError for a member that could lead out of the archive, or that is not a file or a folder."""
    name = PurePosixPath(info.name)
    if name.is_absolute():
        wrong = "has an absolute path"
    elif ".." in name.parts:
        wrong = "climbs out of the archive with '..'"
    elif info.islnk() or info.issym():
        wrong = "is a link"
    elif not (info.isreg() or info.isdir()):
        wrong = "is a device or another special file"
    else:
        return
    raise CannotError(
        f"{path}: the archive's member {info.name!r} {wrong}.",
        hint="name the member that is the dump (member=...), so that nothing else is looked at; or unpack it yourself",
    )


class Source:
    """The unpacked bytes of a dump, read once from start to end, and how far that is in the file itself."""

    def __init__(self, path: Path, stream: Peeked, position: Callable[[], int], *, compressed: bool) -> None:
        self.path = path
        self.head = stream.head
        self.position = position
        self.compressed = compressed
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. Raises CannotError when the file is cut off or damaged."""
        with told(self.path):
            return self._stream.read(size)


def printable(text: str) -> str:
    """Text of a dump, safe for a terminal: control characters replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say what a decoder's error means for the dump at `path`."""
    try:
        yield
    except UNREADABLE as error:
        cut_off = isinstance(error, EOFError) or "unexpected end" in str(error)
        what = "ends too early: it is truncated" if cut_off else f"cannot be read: {error}"
        raise CannotError(f"{path} {what}.", hint="take another copy of it, or an older backup") from error


@contextmanager
def open_source(path: Path, member: str = "") -> Iterator[Source]:
    """The unpacked bytes of the file, or of a `member` of the tar archive it is. Raises CannotError, UsageError."""
    with ExitStack() as stack:
        with told(path):
            file = stack.enter_context(path.open("rb", buffering=0))
            packed = Peeked(file)
            stream = unpacked(packed)
            compressed = stream is not packed
            if member:
                stream = _member(path, stack.enter_context(open_tar(stream)), member)
        yield Source(path, stream, file.tell, compressed=compressed)


def _member(path: Path, archive: tarfile.TarFile, member: str) -> Peeked:
    for info in archive:
        if member_name(info) == str(PurePosixPath(member)):
            refuse_unsafe(path, info)
            if content := archive.extractfile(info):
                return unpacked(Peeked(content))
    raise UsageError(f"{path} has no file {member!r} in it.", hint=f"list what it has: tar -tf {path}")


class Ahead:
    """Reads a stream in a thread of its own, some chunks ahead, so that unpacking runs beside everything else."""

    def __init__(self, stream: Readable, deadline: float, chunks: int = 8) -> None:
        self._stream = stream
        self._deadline = deadline
        self._ready: queue.Queue[bytes | BaseException] = queue.Queue(chunks)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reading a dump", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (chunk := self._stream.read(CHUNK)) and self._put(chunk):
                pass
            self._put(b"")
        except BaseException as error:  # noqa: BLE001  # raised again where the stream is read
            self._put(error)

    def _put(self, item: bytes | BaseException) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._ready.put(item, timeout=0.2)
                return True
        return False

    def chunk(self) -> bytes:
        """The next bytes; none at the end. Raises what reading raised, or CannotError when nothing came in time."""
        try:
            item = self._ready.get(timeout=self._deadline)
        except queue.Empty:
            raise CannotError(f"Nothing could be read from the dump for {self._deadline:.0f} s.") from None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop reading; the thread ends with its current read."""
        self._closed.set()
        self._thread.join(timeout=5)

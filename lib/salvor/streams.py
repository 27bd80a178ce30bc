"""Bytes that are read once from start to end: looked at before they are read, decompressed, read ahead in a thread."""

from __future__ import annotations

import queue
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from salvor import clock
from salvor.errors import CannotError

CHUNK = 1 << 20
HEAD = 1 << 16
"""Bytes that are looked at to tell what something is."""
_PACKED = 1 << 18

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UNREADABLE = (EOFError, zlib.error, tarfile.TarError, OSError)
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


class _Gzip:
    """Decompresses gzip, of one part or of several in a row, and compares their checksums.

    By ISA-L: zlib takes three times as long. Its errors are among UNREADABLE.
    """

    def __init__(self, stream: Readable) -> None:
        from isal import isal_zlib

        self._isal = isal_zlib
        self._error: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub says: an instance
        self._stream = stream
        self._part = isal_zlib.decompressobj(wbits=31)
        self._packed = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._part.eof:
                self._packed = self._part.unused_data.lstrip(b"\0")  # tape drives fill the last block with zeros
                while not self._packed and (more := self._stream.read(_PACKED)):
                    self._packed = more.lstrip(b"\0")
                if not self._packed:
                    return b""
                self._part = self._isal.decompressobj(wbits=31)
            self._packed = self._packed or self._stream.read(_PACKED)
            over = not self._packed
            try:
                piece = self._part.decompress(self._packed, size)
            except self._error as error:
                raise OSError(f"damaged gzip data: {error}") from error
            self._packed = self._part.unconsumed_tail
            if piece:
                return piece
            if over and not self._part.eof:
                raise EOFError("unexpected end of the compressed data")


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
        return Peeked(_Gzip(peeked))
    if peeked.head.startswith(ZSTANDARD):
        return Peeked(_Zstandard(peeked))
    return peeked


CUT_OFF = (
    "if it is being written still: the same command again when it is whole; else take another copy of it, or an older "
    "backup"
)


@contextmanager
def told(name: object) -> Iterator[None]:
    """Say what a decoder's error means for the file or address `name`."""
    try:
        yield
    except UNREADABLE as error:
        cut_off = isinstance(error, EOFError) or "unexpected end" in str(error)
        what = "ends too early: it is truncated" if cut_off else f"cannot be read: {error}"
        hint = CUT_OFF if cut_off else "take another copy of it, or an older backup"
        raise CannotError(f"{name} {what}.", safe="what is live is as it was", hint=hint) from error


_SHORT = 5.0


def waiting(seconds: float, patience: float) -> str:
    """What the progress of a source adds that has given nothing for so many seconds; empty when that is not long."""
    if seconds < _SHORT:
        return ""
    return f": waiting for more for {clock.write_duration(seconds)}, {clock.write_duration(patience)} at most"


def silent(name: str, patience: float) -> CannotError:
    """The error that a source gave nothing for so many seconds."""
    return CannotError(
        f"Nothing could be read from {name} for {patience:.0f} s.",
        hint="see whether its disk, host or bucket answers, then run the same command again",
    )


class Ahead:
    """Reads a stream in a thread of its own, some chunks ahead, so that unpacking runs beside everything else.

    `name` is what is read, in the error that nothing came for `deadline` seconds.
    """

    def __init__(self, stream: Readable, deadline: float, chunks: int = 8, name: str = "the dump") -> None:
        self._stream = stream
        self._deadline = deadline
        self._name = name
        self._ready: queue.Queue[bytes | BaseException] = queue.Queue(chunks)
        self._unread = b""
        self._ended: bytes | BaseException | None = None
        self._hangs = False
        self._closed = threading.Event()
        self._asked_at = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"reading {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (chunk := self._stream.read(CHUNK)) and self._put(chunk):
                self._asked_at = clock.monotonic()
            self._put(b"")
        except BaseException as error:  # noqa: BLE001  # raised again where the stream is read
            self._put(error)

    def _put(self, item: bytes | BaseException) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._ready.put(item, timeout=0.2)
                return True
        return False

    def waiting(self) -> str:
        """See the function `waiting`; empty as long as there is something that was read and not taken."""
        return waiting(clock.monotonic() - self._asked_at, self._deadline) if self._ready.empty() else ""

    def chunk(self) -> bytes:
        """The next bytes; none at the end. Raises what reading raised, or CannotError when nothing came in time."""
        try:
            item = self._ready.get(timeout=self._deadline) if self._ended is None else self._ended
        except queue.Empty:
            self._hangs = True
            raise silent(self._name, self._deadline) from None
        if not item or isinstance(item, BaseException):
            self._ended = item
        if isinstance(item, BaseException):
            raise item
        return item

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. Raises as `chunk` does; it is one or the other."""
        self._unread = self._unread or self.chunk()
        first, self._unread = self._unread[:size], self._unread[size:]
        return first

    def close(self) -> None:
        """Stop reading; the thread ends with its current read, which is not waited for when it hangs."""
        self._closed.set()
        if not self._hangs:
            self._thread.join(timeout=5)

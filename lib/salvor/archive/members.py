"""A tar archive as a stream of members, read strictly: what is damaged or cut off is an error, never the end.

Headers are parsed by the standard library. Its own iteration is not used: in the midst of an archive it takes a damaged
header, and the end of the data, for the end of the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import IO, cast

from salvor.errors import CannotError
from salvor.streams import CHUNK, CUT_OFF

ENCODING, ERRORS = "utf-8", "surrogateescape"
"""How the bytes of names become text and bytes again: any bytes survive."""
_HEADERS = 4 << 20
"""Bytes that the headers of one member may have."""
_ZEROS = bytes(CHUNK)
_MALFORMED = (ValueError, OverflowError, IndexError, KeyError, RecursionError)


def normal(name: str) -> str:
    """A member's path as people write it: `./a//b/` is `a/b`; the root is empty.

    Raises ValueError with what is wrong when it could lead out of the folder that it is unpacked in.
    """
    if name.startswith("/"):
        raise ValueError("has an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("climbs out of the archive with '..'")
    if "\0" in name:
        raise ValueError("has a zero byte in its name")
    return "/".join(parts)


class _Stream:
    """The unpacked bytes: headers are read whole, content in pieces."""

    def __init__(self, chunk: Callable[[], bytes]) -> None:
        self._chunk = chunk
        self._rest = memoryview(b"")
        self._at = 0
        self.headers = 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """For headers: `size` bytes, fewer only at the end."""
        self.headers += size
        if self.headers > _HEADERS:
            raise tarfile.HeaderError("its headers are too long")
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """`size` bytes in pieces, fewer only at the end."""
        while size > 0:
            if not self._rest:
                self._rest = memoryview(self._chunk())
                if not self._rest:
                    return
            piece, self._rest = self._rest[:size], self._rest[size:]
            self._at += len(piece)
            size -= len(piece)
            yield piece


class _Parser(tarfile.TarFile):
    """What the parsing of headers needs of a TarFile, and nothing of its iteration."""

    def __init__(self, stream: _Stream) -> None:
        super().__init__(fileobj=cast("IO[bytes]", stream), mode="r", encoding=ENCODING, errors=ERRORS)

    def next(self) -> tarfile.TarInfo | None:
        return None


class Members:
    """The members of a tar archive in their order. `content` of one must be read, if at all, before the next."""

    def __init__(self, chunk: Callable[[], bytes], name: str) -> None:
        """`chunk` gives the next unpacked bytes, none at the end; `name` is the archive's, for errors."""
        self._stream = _Stream(chunk)
        self._parser = _Parser(self._stream)
        self._name = name
        self._next = 0  # where the next header begins

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Every member. Raises CannotError when the archive is damaged or cut off."""
        while True:
            for _ in self._stream.pieces(self._next - self._stream.tell()):
                pass  # what was not read of the one before; where it ends too early, no header follows
            self._stream.headers = 0
            try:
                info = tarfile.TarInfo.fromtarfile(self._parser)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
                break
            except (tarfile.HeaderError, *_MALFORMED) as error:
                raise self._damaged(str(error)) from error
            self._next = self._parser.offset
            if not _is_possible(info, self._next - self._stream.tell()):
                raise self._damaged("impossible sizes")
            yield info
        for piece in self._stream.pieces(1 << 62):
            if piece.tobytes().strip(b"\0"):
                raise self._damaged("something follows its end")

    def content(self, info: tarfile.TarInfo) -> Iterator[memoryview]:
        """The bytes of a regular file, `info.size` of them; what was left out of a sparse one are zeros again."""
        done = 0
        for offset, size in [*_segments(info), (info.size, 0)]:
            while done < offset:
                piece = memoryview(_ZEROS)[: offset - done]
                done += len(piece)
                yield piece
            for piece in self._stream.pieces(size):
                done += len(piece)
                yield piece
            if done < offset + size:
                raise self._cut_off()

    def _cut_off(self) -> CannotError:
        return CannotError(
            f"{self._name} ends too early: it is truncated.",
            safe="what is live is as it was",
            hint=CUT_OFF,
        )

    def _damaged(self, why: str) -> CannotError:
        if why in ("empty header", "truncated header"):
            return self._cut_off()
        return CannotError(
            f"{self._name} is damaged {self._stream.tell():,} bytes into what it unpacks to: {why}.",
            safe="what is live is as it was",
            hint="take another copy of it, or an older backup",
        )


def _segments(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Where in a file its data is, offset and size: the whole of it, or the parts of a sparse one."""
    sparse = cast("list[tuple[int, int]] | None", info.sparse)  # typeshed says bytes
    if sparse is None:
        return [(0, info.size)]
    return [part for part in sparse if part[1]]  # GNU's old form is filled up with empty ones


def _is_possible(info: tarfile.TarInfo, stored: int) -> bool:
    """Whether the sizes make sense; `stored` is how many bytes follow in the archive, up to the next header."""
    if info.size < 0 or stored < 0 or (info.isreg() and sum(size for _, size in _segments(info)) > stored):
        return False
    end = 0
    for offset, size in _segments(info):
        if offset < end or size < 0:
            return False
        end = offset + size
    return end <= info.size


def is_archive(head: bytes) -> bool:
    """Whether it starts as a tar archive does, of any age; also one with nothing in it."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], ENCODING, ERRORS)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True
    except tarfile.HeaderError:
        return False
    return True

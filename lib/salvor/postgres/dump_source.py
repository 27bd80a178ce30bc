"""The bytes of a dump wherever they are: a file, compressed or not, or one member of a tar archive. Always a stream."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from salvor.errors import CannotError, UsageError
from salvor.streams import CHUNK, Peeked, Readable, told, unpacked


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

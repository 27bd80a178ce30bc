"""Writes an archive: beside its final name, read back, and only then under it. It is a plain tar.gz, for any tool."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from salvor import bucket, durable, secrets, shell
from salvor.archive.cipher import encrypted
from salvor.archive.members import ENCODING, ERRORS, Members
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import SUM, Archive, opened
from salvor.change import Progress
from salvor.errors import CannotError, UsageError

Parts = Mapping[str, Callable[[], Iterator[bytes]]]
"""For each member how its content is given: as a tar stream with one file or folder on top, whatever its name is."""
_PARTIAL = ".new"
_BLOCK = 4 << 20
_LEVEL = 1  # takes half of the time of gzip's default (6) for a few per cent more bytes
_TOLD = 32 << 20


def write(settings: ArchivesSettings, name: str, parts: Parts, scratch: Path) -> Generator[Progress, None, Archive]:
    """Write the archive `name` with these members into the folder of the settings, mode 600, its checksum beside it.

    Nothing bears its name before every file in it was read back from there and compared. A folder in S3 gets what was
    written to `scratch`. Raises CannotError; what a killed call left is removed by the next one.
    """
    in_bucket = settings.folder.startswith("s3://")
    folder = scratch if in_bucket else Path(settings.folder)
    if in_bucket:
        durable.make_folder(folder)
    elif not folder.is_dir():
        raise CannotError(
            f"There is no folder {folder} on this machine to write archives into.",
            hint=f"where archives are to lie: install -d -m 700 {folder}",
        )
    if (folder / name).exists():
        raise UsageError(f"There is an archive {folder / name} already.", safe="it was not touched")
    try:
        with _begun(folder, name) as (beside, file):
            written = _Written(file)
            yield from _pack(parts, written, settings)
            os.fsync(file.fileno())
            yield from _read_back(beside, settings, written)
            digest = written.sum.hexdigest()
            durable.replace(folder / f"{name}{SUM}", f"{digest}  {name}\n".encode())
            if in_bucket:
                yield Progress(0, written.size, "bytes", f"uploading to {settings.folder}")
                _upload(beside, folder / f"{name}{SUM}", f"{settings.folder}/{name}")
                beside.unlink()
                (folder / f"{name}{SUM}").unlink()
            else:
                beside.rename(folder / name)
                durable.flush_folder(folder)
    except OSError as error:
        raise CannotError(
            f"The archive {folder / name} cannot be written: {error.strerror or error}.",
            safe="the archives that are there stay",
            hint=f"df -h {folder}; ls -ld {folder}",
        ) from error
    return Archive(f"{settings.folder}/{name}", False, None, written.size)


@contextmanager
def _begun(folder: Path, name: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file beside, locked for as long as it is written; what killed calls left is not locked, and removed."""
    for left in folder.glob(f".*{_PARTIAL}"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    path = folder / f".{name}{_PARTIAL}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield path, file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


class _Written:
    """What was written: the file, its checksum, and the checksum of each file in it by its name in the archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sum = hashlib.sha256()
        self.size = 0
        self.files: dict[str, bytes] = {}

    def put(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.sum.update(piece)
        self.size += len(piece)


def _pack(parts: Parts, written: _Written, settings: ArchivesSettings) -> Iterator[Progress]:
    packed = _compressed(_joined(parts, written))
    pieces = encrypted(packed, secrets.resolve(settings.password)) if settings.password else packed
    told = 0
    for piece in pieces:
        written.put(piece)
        if written.size - told >= _TOLD:
            told = written.size
            yield Progress(written.size, None, "bytes", "packing")


def _joined(parts: Parts, written: _Written) -> Iterator[bytes]:
    """One tar stream of all parts, each below its member's name."""
    for member, content in parts.items():
        stream = content()
        members = Members(lambda stream=stream: next(stream, b""), member)  # type: ignore[misc]
        top = None
        for info in members:
            parts_of_name = PurePosixPath(info.name).parts
            top = parts_of_name[:1] if top is None else top
            if parts_of_name[:1] != top:
                raise CannotError(f"{member}: {info.name!r} is not below {top[0]!r}.", safe="no archive was written")
            info.name = "/".join([member, *parts_of_name[1:]])
            if info.islnk():
                info.linkname = "/".join([member, *PurePosixPath(info.linkname).parts[1:]])
            if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
                continue  # a pipe or a device: programs make them anew, and no restore takes one
            info.type = tarfile.REGTYPE if info.isreg() else info.type  # its holes are zeros now
            info.pax_headers = {}
            yield info.tobuf(tarfile.GNU_FORMAT, ENCODING, ERRORS)
            if info.isreg():
                digest = hashlib.sha256()
                for piece in members.content(info):
                    digest.update(piece)
                    yield bytes(piece)
                yield bytes(-info.size % tarfile.BLOCKSIZE)
                written.files[info.name] = digest.digest()
        if top is None:
            raise CannotError(f"{member}: there is nothing to pack.", safe="no archive was written")
    yield bytes(2 * tarfile.BLOCKSIZE)


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """gzip, in parts that are compressed side by side: every gzip reads several in a row as one."""

    def compress(block: bytes) -> bytes:
        return zlib.compress(block, _LEVEL, wbits=31)

    with ThreadPoolExecutor(2, thread_name_prefix="compressing") as pool:
        waiting: deque[Future[bytes]] = deque()
        for block in _blocks(pieces):
            waiting.append(pool.submit(compress, block))
            if len(waiting) > 3:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _read_back(path: Path, settings: ArchivesSettings, written: _Written) -> Iterator[Progress]:
    """Compare every file in it with what went in. Raises CannotError."""
    left = dict(written.files)
    archive = Archive(str(path), False, None, written.size)
    told = 0
    with opened(archive, settings, shell.local()) as source:
        members = Members(source.chunk, archive.location)
        for info in members:
            if not info.isreg():
                continue
            digest = hashlib.sha256()
            for piece in members.content(info):
                digest.update(piece)
            if left.pop(info.name, b"") != digest.digest():
                raise _another(path, info.name)
            if source.position() - told >= _TOLD:
                told = source.position()
                yield Progress(told, written.size, "bytes", "reading it back")
    if left:
        raise _another(path, next(iter(left)))


def _another(path: Path, name: str) -> CannotError:
    return CannotError(
        f"{name!r} in {path} is not what was written to it.",
        safe="the archives that are there stay",
        hint=f"look at the disk of {path.parent}: dmesg",
    )


def _upload(path: Path, sum_path: Path, uri: str) -> None:
    name, key = bucket.split(uri)
    with bucket.moving(uri, safe="the archives that are there stay") as s3:
        s3.upload_file(str(sum_path), name, f"{key}{SUM}")
        s3.upload_file(str(path), name, key)

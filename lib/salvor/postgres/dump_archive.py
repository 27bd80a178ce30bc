"""Dumps that only pg_restore can read (custom, tar, directory): what their header says, and their script as a stream.

pg_restore is never connected to a database. It only writes the script (`-f -`), which then passes the same screen as a
plain dump: an archive's table of contents may hold any SQL (`COPY ... FROM PROGRAM`) in any of its fields.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from salvor.errors import CannotError
from salvor.postgres.dump_source import member_name, open_source, open_tar, refuse_unsafe
from salvor.shell import plain_environment
from salvor.streams import CHUNK, Readable, told

MAGIC = b"PGDMP"
CONTENTS = "toc.dat"

_ENCODING = re.compile(rb"SET client_encoding = '([^']+)'")
_LARGE_OBJECT = re.compile(rb"\d+ blob_\d+\.dat")


@dataclass(frozen=True)
class Header:
    """What stands at the start of every archive that pg_dump writes."""

    database: str
    server_version: str
    pg_dump_version: str


class _Fields:
    """The archive's own encoding of integers and strings (src/bin/pg_dump/pg_backup_archiver.c: ReadInt, ReadStr)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.integer_size = 4

    def bytes(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise EOFError
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        return self.bytes(1)[0]

    def integer(self) -> int:
        negative = self.byte()
        value = int.from_bytes(self.bytes(self.integer_size), "little")
        return -value if negative else value

    def string(self) -> str | None:
        size = self.integer()
        return None if size < 0 else self.bytes(size).decode(errors="replace")


def _read_header(fields: _Fields) -> tuple[tuple[int, int], Header]:
    if fields.bytes(len(MAGIC)) != MAGIC:
        raise CannotError("This is not an archive of pg_dump.")
    version = fields.byte(), fields.byte()
    fields.byte()  # revision
    if version < (1, 12):
        raise CannotError(
            f"It has archive version {version[0]}.{version[1]}, from a pg_dump older than 9.1.",
            hint="restore it with the PostgreSQL it came from, and dump it again",
        )
    fields.integer_size = fields.byte()
    fields.bytes(2)  # size of offsets, format
    fields.byte() if version >= (1, 15) else fields.integer()  # compression
    for _ in range(7):
        fields.integer()  # the time it was made, in the local time of nobody knows where
    database, server, pg_dump = fields.string(), fields.string(), fields.string()
    return version, Header(database or "", server or "", pg_dump or "")


def read_header(head: bytes) -> Header:
    """The header of an archive from its first bytes. Raises CannotError when it is cut off, or too old."""
    try:
        return _read_header(_Fields(head))[1]
    except EOFError as error:
        raise CannotError("The archive ends within its header: it is truncated.") from error


def encoding_of(head: bytes) -> str:
    """The encoding that the archive or script sets near its start; empty when it does not."""
    found = _ENCODING.search(head)
    return found[1].decode(errors="replace") if found else ""


def data_files(contents: bytes) -> list[str]:
    """The names of the data files that `toc.dat` of a directory archive refers to, in the order they are restored.

    Fields by src/bin/pg_dump/pg_backup_archiver.c (ReadToc). Raises CannotError when it is cut off.
    """
    fields = _Fields(contents)
    try:
        version, _ = _read_header(fields)
        names = [_data_file(fields, version) for _ in range(fields.integer())]
    except EOFError as error:
        raise CannotError(f"{CONTENTS} ends too early: it is truncated.") from error
    return [name for name in names if name]


def _data_file(fields: _Fields, version: tuple[int, int]) -> str | None:
    fields.integer(), fields.integer()  # id, whether it has data
    for _ in range(4):
        fields.string()  # catalogue, object, tag, description
    fields.integer()  # section
    for _ in range(5 if version < (1, 14) else 6):
        fields.string()  # definition, drop and copy statements, schema, tablespace, access method
    if version >= (1, 16):
        fields.integer()  # kind of relation
    fields.string(), fields.string()  # owner, with oids
    while fields.string() is not None:
        pass  # dependencies
    return fields.string()


def check_directory(path: Path) -> int:
    """Look at a directory archive before pg_restore does: it opens every file that the archive's contents name.

    Return the size of its files in bytes. Raises CannotError when a name leads out of the directory, a file is missing
    or is not a regular file.
    """
    with told(path):
        names = set(data_files((path / CONTENTS).read_bytes()))
        for name in [name for name in names if name.endswith(".toc")]:
            lines = _plain_file(path, name).read_bytes().splitlines()
            if strange := [line for line in lines if not _LARGE_OBJECT.fullmatch(line)]:
                raise CannotError(f"{path / name} names {strange[0]!r}, which is not how pg_dump names a large object.")
            names.update(line.split(b" ")[1].decode() for line in lines)
        return sum(_plain_file(path, name).lstat().st_size for name in {*names, CONTENTS})


def _plain_file(directory: Path, name: str) -> Path:
    if PurePosixPath(name).name != name or name in {".", ".."}:
        raise CannotError(f"{directory / CONTENTS} refers to {name!r}, which leads out of the dump's directory.")
    for path in (directory / name, directory / f"{name}.gz", directory / f"{name}.lz4", directory / f"{name}.zst"):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CannotError(f"{path} is not a regular file, as a dump's data is.")
        if path.exists():
            return path
    raise CannotError(
        f"{directory / name} is missing: the dump is not complete.",
        hint="take another copy of it, or an older backup",
    )


def unpack_directory(path: Path, member: str, target: Path) -> None:
    """Write the files of a directory archive, which is in a tar archive below `member`, to the empty `target`."""
    with open_source(path) as source, told(path), open_tar(source) as archive:
        for info in archive:
            place = PurePosixPath(member_name(info))
            if place.parent != PurePosixPath(member) or info.isdir():
                continue
            refuse_unsafe(path, info)
            content = archive.extractfile(info)
            assert content
            with (target / place.name).open("xb") as file:
                while piece := content.read(CHUNK):
                    file.write(piece)


class Script:
    """The script that pg_restore writes, read once; `position` tells how many bytes of the archive it was fed."""

    def __init__(self, process: subprocess.Popen[bytes], feeding: _Feeding | None, path: Path) -> None:
        assert process.stdout
        self.position: Callable[[], int] = feeding.position if feeding else lambda: 0
        self._feeding = feeding
        self._process = process
        self._output = process.stdout
        self._path = path
        self._errors = _Tail(process.stderr)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. Raises CannotError when pg_restore failed."""
        chunk = self._output.read(size)
        if not chunk:
            if self._feeding:
                self._feeding.finish()
            if (code := self._process.wait(timeout=60)) != 0:
                raise CannotError(
                    f"pg_restore cannot read {self._path} (exit code {code}): {self._errors.text()}",
                    hint="take another copy of it, an older backup, or a pg_restore as new as the pg_dump that made it",
                )
        return chunk


class _Feeding:
    """Passes the archive's bytes to pg_restore's standard input in a thread."""

    def __init__(self, stream: Readable, position: Callable[[], int], pipe: IO[bytes]) -> None:
        self.position = position
        self._stream = stream
        self._pipe = pipe
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feeding pg_restore", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            # pg_restore closes its end when it has all it wants, or has failed: its exit code tells which
            with suppress(BrokenPipeError), self._pipe:
                while chunk := self._stream.read(CHUNK):
                    self._pipe.write(chunk)
        except BaseException as error:  # noqa: BLE001  # raised again by finish()
            self._error = error

    def finish(self) -> None:
        self._thread.join(timeout=60)
        if self._error:
            raise self._error


class _Tail:
    """The last lines of a process's standard error, which is read all along so that it never blocks."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe
        self._pipe = pipe
        self._tail = b""
        self._thread = threading.Thread(target=self._run, name="errors of pg_restore", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._pipe:
            self._tail = (self._tail + line)[-2000:]

    def text(self) -> str:
        self._thread.join(timeout=5)
        return self._tail.decode(errors="replace").strip().replace("\n", "; ")


@contextmanager
def decode(pg_restore: Sequence[str], form: str, archive: Path, member: str = "") -> Iterator[Script]:
    """The script of an archive. `pg_restore` is its argv prefix; `form` is custom, tar or directory.

    Custom and tar archives are fed as a stream, so that they may be compressed, or within another archive.
    """
    argv = [*pg_restore, "--file=-", f"--format={form}"]
    if form == "directory":
        with _running([*argv, str(archive)], subprocess.DEVNULL) as process:
            yield Script(process, None, archive)
        return
    with open_source(archive, member) as source, _running(argv, subprocess.PIPE) as process:
        assert process.stdin
        yield Script(process, _Feeding(source, source.position, process.stdin), archive)


@contextmanager
def _running(argv: Sequence[str], stdin: int) -> Iterator[subprocess.Popen[bytes]]:
    try:
        # a session of its own, so that all of it can be ended when pg_restore runs below another program
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=plain_environment(),
        )
    except OSError as error:
        raise CannotError(f"{argv[0]} cannot be started: {error}.", hint="apt install postgresql-client") from error
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

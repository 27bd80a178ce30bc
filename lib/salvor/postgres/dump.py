"""Logical dumps of PostgreSQL in any form people have: recognise one by its content, describe it, read its script."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Protocol

from salvor.errors import CannotError, UsageError
from salvor.postgres import dump_archive
from salvor.postgres.dump_source import is_tar, member_name, open_source, open_tar, printable, refuse_unsafe
from salvor.streams import HEAD, UNREADABLE, Peeked, Readable, read_fully, told, unpacked

_PLAIN = re.compile(rb"^-- PostgreSQL database (cluster )?dump\r?$", re.MULTILINE)
_COMPLETE = re.compile(rb"^-- PostgreSQL database dump complete\r?$", re.MULTILINE)
_SERVER_VERSION = re.compile(rb"^-- Dumped from database version (.+?)\r?$", re.MULTILINE)
_PG_DUMP_VERSION = re.compile(rb"^-- Dumped by pg_dump version (.+?)\r?$", re.MULTILINE)
_CONNECT = re.compile(rb"^\\connect (?:-reuse-previous=on \"dbname='(.+)'\"|\"(.+)\"|(\w+))\r?$", re.MULTILINE)


class Form(Enum):
    """The forms that pg_dump writes."""

    PLAIN = "plain"
    CUSTOM = "custom"
    TAR = "tar"
    DIRECTORY = "directory"


@dataclass(frozen=True)
class Dump:
    """One dump that was recognised, and what it says of itself; an empty text means that it does not say."""

    path: Path
    member: str
    """The file or folder in the archive `path` that is the dump; empty when all of `path` is it."""
    form: Form
    server_version: str
    """Of the server it was made from, as it was written: `15.18 (Debian 15.18-0+deb12u1)`."""
    pg_dump_version: str
    database: str
    encoding: str
    size: int
    """Bytes on disk, compressed or not; of an archive with other files, all of it."""

    @property
    def server_major(self) -> int | None:
        """The major version of the server it was made from: 15, or 9 for 9.6."""
        found = re.match(r"\d+", self.server_version)
        return int(found[0]) if found else None


class Script(Protocol):
    """The SQL script of a dump as a stream; `position` tells how many of the dump's bytes were read for it."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def position(self) -> int:
        """Bytes, of `Dump.size`."""


@contextmanager
def open_script(dump: Dump, pg_restore: Sequence[str], scratch: Path | None) -> Iterator[Script]:
    """The script of a dump in any form.

    `pg_restore` is the argv prefix of that program, which may run it as another user. `scratch` is where a directory
    archive that is within a tar archive is unpacked for as long as it is read (None: where temporary files are); every
    other form is a stream all along. Raises CannotError.
    """
    if dump.form is Form.PLAIN:
        with open_source(dump.path, dump.member) as source:
            yield source
    elif dump.form is Form.DIRECTORY and not dump.path.is_dir():
        with tempfile.TemporaryDirectory(prefix="salvor-dump-", dir=scratch) as name:
            folder = Path(name)
            dump_archive.unpack_directory(dump.path, dump.member, folder)
            dump_archive.check_directory(folder)
            with dump_archive.decode(pg_restore, "directory", folder) as script:
                yield script
    else:
        with dump_archive.decode(pg_restore, dump.form.value, dump.path, dump.member) as script:
            yield script


def examine(path: Path) -> Dump:
    """Recognise the dump at `path` (a file or a directory) by its content.

    An archive with other files is read through once, to know that it has one dump only. Raises UsageError when there is
    nothing at `path`, or several dumps; CannotError when it is empty, truncated, unsafe, or not a dump of one database
    that pg_dump wrote.
    """
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}." if not path.exists() else f"{path} is not a file or a folder.")
    with open_source(path) as source, told(path):
        if not source.head:
            raise CannotError(f"{path} is empty.", hint="take another copy of it, or an older backup")
        found = _in_archive(path, source) if is_tar(source.head) else _Found("", _form(source.head), source.head)
    dump = _describe(path, found)
    if dump.form is Form.PLAIN and not found.name and not source.compressed:
        _refuse_truncated(path)
    return dump


@dataclass(frozen=True)
class _Found:
    """A dump in an archive: where, its form (None: not a dump), and its first bytes."""

    name: str
    form: Form | None
    head: bytes


def _form(head: bytes) -> Form | None:
    if head.startswith(dump_archive.MAGIC):
        return Form.CUSTOM
    if is_tar(head) and head.startswith(dump_archive.CONTENTS.encode() + b"\0"):
        return Form.TAR
    return Form.PLAIN if _PLAIN.search(head) else None


def _in_archive(path: Path, stream: Readable) -> _Found:
    """The one dump in a tar archive."""
    candidates: list[_Found] = []
    names: set[str] = set()
    with open_tar(stream) as archive:
        for info in archive:
            name = member_name(info)
            refuse_unsafe(path, info)
            names.add(name)
            content = archive.extractfile(info)
            head = _head(content) if content else b""
            if form := _form(head):
                candidates.append(_Found(name, form, head))
    candidates = _joined(candidates, names)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CannotError(
            f"{path} is an archive, but none of its {len(names)} members is a dump of PostgreSQL.",
            hint=f"tar -tf {path}",
        )
    listed = ", ".join(repr(candidate.name) for candidate in candidates)
    raise UsageError(
        f"{path} has {len(candidates)} dumps in it: {listed}.",
        hint="take out the one that is meant, and restore from that: "
        + shlex.join(["tar", "-xf", str(path), candidates[0].name]),
    )


def _head(content: Readable) -> bytes:
    try:
        return unpacked(Peeked(content)).head
    except UNREADABLE:
        return b""  # it looks compressed and is not: no dump


def _joined(candidates: list[_Found], names: set[str]) -> list[_Found]:
    """Take the files of a directory archive as one dump, and all of pg_dump's own tar archive as one too."""
    joined = []
    for found in candidates:
        place = PurePosixPath(found.name)
        if place.name != dump_archive.CONTENTS or found.form is not Form.CUSTOM:
            joined.append(found)
        elif "restore.sql" in names and found.name == dump_archive.CONTENTS:
            return [_Found("", Form.TAR, found.head)]
        else:
            joined.append(_Found(str(place.parent), Form.DIRECTORY, found.head))
    folders = [PurePosixPath(found.name) for found in joined if found.form is Form.DIRECTORY]
    return [
        found for found in joined if found.form is Form.DIRECTORY or PurePosixPath(found.name).parent not in folders
    ]


def _directory(path: Path) -> Dump:
    contents = path / dump_archive.CONTENTS
    if not contents.is_file() or contents.is_symlink():
        raise CannotError(
            f"{path} is a folder without a file {dump_archive.CONTENTS}: not a dump of PostgreSQL.",
            hint="name the dump itself, not the folder it is in",
        )
    size = dump_archive.check_directory(path)
    with contents.open("rb") as file:
        head = read_fully(file, HEAD)
    return _describe(path, _Found("", Form.DIRECTORY, head), size)


def _describe(path: Path, found: _Found, size: int | None = None) -> Dump:
    head = found.head
    where = f"{path}: {found.name}" if found.name else str(path)
    if found.form is None:
        raise CannotError(
            f"{where} is not a dump of PostgreSQL in a form that is known: it starts with {head[:24]!r}.",
            hint="plain (.sql), custom, directory and tar dumps of pg_dump, also in gzip, zstd and tar, can be read",
        )
    size = path.stat().st_size if size is None else size
    if found.form is Form.PLAIN:
        kind = _PLAIN.search(head)
        if kind and kind[1]:
            raise CannotError(
                f"{where} is a dump of a whole cluster (pg_dumpall), which also creates roles and databases.",
                hint="cut the part of the one database out of it, from '-- PostgreSQL database dump' to "
                "'-- PostgreSQL database dump complete'",
            )
        connect = _CONNECT.search(head)
        database = next((name for name in connect.groups() if name), b"") if connect else b""
        server, program = (_first(pattern, head) for pattern in (_SERVER_VERSION, _PG_DUMP_VERSION))
        return Dump(
            path, found.name, found.form, server, program, _text(database), dump_archive.encoding_of(head), size
        )
    if found.form is Form.TAR and found.name:
        head = head[512:]  # the contents are the first file of pg_dump's own tar archive
    try:
        header = dump_archive.read_header(head)
    except CannotError as error:
        raise CannotError(f"{where}: {error.what}", hint=error.hint) from error
    return Dump(
        path,
        found.name,
        found.form,
        printable(header.server_version),
        printable(header.pg_dump_version),
        header.database,
        dump_archive.encoding_of(head),
        size,
    )


def _first(pattern: re.Pattern[bytes], head: bytes) -> str:
    found = pattern.search(head)
    return _text(found[1]) if found else ""


def _text(text: bytes) -> str:
    return printable(text.decode(errors="replace"))


def _refuse_truncated(path: Path) -> None:
    """A plain file says at its end that it is complete: look there before anything is loaded."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if not _COMPLETE.search(file.read()):
            raise CannotError(
                f"{path} does not end with '-- PostgreSQL database dump complete': it is truncated.",
                hint="take another copy of it, or an older backup",
            )

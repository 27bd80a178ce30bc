"""What a tree on a host consists of, in one pass of find(1): names as bytes, because file names need not be UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from salvor.errors import CannotError
from salvor.shell import Shell

_READING = 6 * 3600.0


class Entry(NamedTuple):
    """One entry of a tree. `path` is relative (empty: the root), `kind` is find's letter (f, d, l, p, s, b, c).

    `mode` holds the twelve bits of permissions, `modified` and `changed` are mtime and ctime in nanoseconds, `links`
    is how many names it has, `node` its device and inode, `target` where a link leads.
    """

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    modified: int
    changed: int
    links: int
    node: str
    target: bytes


_FORMAT = r"%P\0%y\0%m\0%U\0%G\0%s\0%T@\0%C@\0%n\0%D:%i\0%l\0"
_FIELDS = len(Entry._fields)


@dataclass(frozen=True)
class Count:
    """What a tree amounts to: bytes, with each hard linked file once; entries; whether any file has holes."""

    size: int
    entries: int
    sparse: bool


def take(shell: Shell, path: str) -> Iterator[Entry]:
    """Every entry of the tree at `path` (or the one of a single file), in no order. Raises CannotError."""
    rest = b""
    for piece in shell.pieces(["find", path, "-printf", _FORMAT], deadline=_READING):
        *fields, rest = (rest + piece).split(b"\0")
        if over := len(fields) % _FIELDS:
            rest = b"\0".join([*fields[-over:], rest])
            del fields[-over:]
        yield from _entries(fields)
    if rest:
        raise CannotError(f"find on {shell.where} stopped in the middle of {path}.", hint="run the same command again")


def _entries(fields: list[bytes]) -> Iterator[Entry]:
    """Column by column: entry by entry, a million of them would take three times as long."""
    path, kind, mode, uid, gid, size, modified, changed, links, node, target = (
        fields[first::_FIELDS] for first in range(_FIELDS)
    )
    columns = (
        path,
        map(bytes.decode, kind),
        map(_octal, mode),
        map(int, uid),
        map(int, gid),
        map(int, size),
        map(_nanoseconds, modified),
        map(_nanoseconds, changed),
        map(int, links),
        map(bytes.decode, node),
        target,
    )
    return map(Entry._make, zip(*columns, strict=True))


@lru_cache(maxsize=4096)
def _octal(mode: bytes) -> int:
    return int(mode, 8)


def _nanoseconds(text: bytes) -> int:
    """find writes ten digits after the point; they count forward before 1970 too: a quarter second earlier is -1.75."""
    whole, _, digits = text.partition(b".")
    return int(whole) * 10**9 + int(digits[:9])


_COUNT = r"""
find "$1" -printf '%y %s %b %n %D:%i\n' | awk '
    { entries++ }
    $1 == "f" && ($4 == 1 || !seen[$5]++) { size += $2; if ($2 > 1048576 && $3 * 512 < $2) sparse = 1 }
    END { printf "%.0f %d %d\n", size, entries, sparse }'
"""


def count(shell: Shell, path: str) -> Count:
    """Count the tree at `path` on its host. Raises CannotError."""
    size, entries, sparse = shell.run(["sh", "-c", _COUNT, "sh", path], deadline=_READING).stdout.split()
    return Count(int(size), int(entries), sparse == "1")

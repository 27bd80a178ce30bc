"""What a tree on a host consists of, in one pass of find(1): names as bytes, because file names need not be UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from salvor.errors import CannotError
from salvor.shell import Shell

_READING = 6 * 3600.0
_FORMAT = r"%y/%m/%U/%G/%s/%T@/%C@/%n/%D:%i/%P\0%l\0"


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
        if len(fields) % 2:
            rest = fields.pop() + b"\0" + rest
        for said, target in zip(fields[::2], fields[1::2], strict=True):
            yield _entry(said, target)
    if rest:
        raise CannotError(f"find on {shell.where} stopped in the middle of {path}.", hint="run the same command again")


def _entry(said: bytes, target: bytes) -> Entry:
    kind, mode, uid, gid, size, modified, changed, links, node, path = said.split(b"/", 9)
    return Entry(
        path=path,
        kind=kind.decode(),
        mode=int(mode, 8),
        uid=int(uid),
        gid=int(gid),
        size=int(size),
        modified=_nanoseconds(modified),
        changed=_nanoseconds(changed),
        links=int(links),
        node=node.decode(),
        target=target,
    )


def _nanoseconds(text: bytes) -> int:
    """find writes ten digits after the point; before 1970 the whole is negative, the digits too."""
    whole, _, digits = text.partition(b".")
    nanoseconds = int(digits[:9].ljust(9, b"0"))
    return int(whole) * 10**9 + (-nanoseconds if whole.startswith(b"-") else nanoseconds)


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

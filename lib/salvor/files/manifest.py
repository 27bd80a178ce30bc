"""What a snapshot holds of a tree, as restic lists it: what a restored tree is compared with."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from salvor.errors import CannotError, SalvorError
from salvor.files.restic import Repository
from salvor.files.watching import once_more

_KINDS = {"file": "f", "dir": "d", "symlink": "l", "fifo": "p", "dev": "b", "chardev": "c"}
_GO_BITS = {1 << 23: 0o4000, 1 << 22: 0o2000, 1 << 20: 0o1000}  # Go's ModeSetuid, ModeSetgid, ModeSticky
_ANY_BIT = sum(_GO_BITS)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
_KEPT = 2
"""Of the newest backup, with which the live tree is compared, and of the one that is restored."""


class Node(NamedTuple):
    """One entry of a tree as it should be. `modified` in nanoseconds; `size` of a file."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    modified: int


Nodes = dict[str, list[Node]]
"""Entries by their path below the tree (empty: the root), each byte that is no UTF-8 as U+FFFD."""


class Manifest:
    """What one snapshot holds at and below `path`. Each question is put to restic once, for all who ask: each start of
    it takes half a second, and what an id names never changes. All of them raise CannotError.
    """

    def __init__(self, repository: Repository, snapshot: str, path: str) -> None:
        self.repository, self.snapshot, self.path = repository, snapshot, path
        self._asking = threading.RLock()
        self._nodes: Nodes | None = None
        self._links: list[str] | None = None
        self._once: int | None = None

    @property
    def nodes(self) -> Nodes:
        """Every entry but sockets. Whoever takes some away makes a copy first."""
        with self._asking:
            if self._nodes is None:
                self._nodes = once_more(lambda: _nodes(self.repository, self.snapshot, self.path))
            return self._nodes

    @property
    def links(self) -> list[str]:
        """Where symbolic links lead, as `Repository.links` says it."""
        with self._asking:
            if self._links is None:
                self._links = once_more(lambda: self.repository.links(self.snapshot, self.path))
            return self._links

    @property
    def once(self) -> int:
        """Bytes of all that the snapshot holds, each hard linked file once."""
        with self._asking:
            if self._once is None:
                self._once = once_more(lambda: self.repository.restored_size(self.snapshot))[0]
            return self._once

    def size(self) -> int:
        """Bytes of all files by their names: a hard linked one counts with each."""
        return sum(node.size for each in self.nodes.values() for node in each if node.kind == "f")

    def has_links(self) -> bool:
        return any(node.kind == "l" for each in self.nodes.values() for node in each)

    def ask_ahead(self, *, alone: bool, size: int | None) -> None:
        """Ask in the background what a proof will ask: of a snapshot that holds nothing else (`alone`), and is said to
        be of that `size` with each hard link once. What gets no answer is asked again by who needs it.
        """

        def ask() -> None:
            with suppress(SalvorError):
                if self.has_links():
                    _ = self.links
                if alone and self.size() != size:
                    _ = self.once

        threading.Thread(target=ask, name=f"listing {self.snapshot[:8]}", daemon=True).start()


class Manifests:
    """The manifests that were asked for last."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], Manifest] = {}
        self._lock = threading.Lock()

    def of(self, repository: Repository, snapshot: str, path: str) -> Manifest:
        """What a snapshot holds at and below `path`. Asks nothing yet."""
        key = repository.name, snapshot, path
        with self._lock:
            found = self._known.pop(key, None) or Manifest(repository, snapshot, path)
            self._known = {**dict([*self._known.items()][1 - _KEPT :]), key: found}
            return found


def _nodes(repository: Repository, snapshot: str, path: str) -> Nodes:
    found: Nodes = {}
    below = f"{path}/"
    for said in repository.listing(snapshot):
        name = said["path"]
        if name.startswith(below):
            inner = name[len(below) :]
        elif name == path:
            inner = ""
        else:
            continue
        kind = _KINDS.get(said["type"])
        if kind is None:
            continue
        mode = said.get("mode", 0)
        bits = sum(bit for go, bit in _GO_BITS.items() if mode & go) if mode & _ANY_BIT else 0
        node = Node(
            kind,
            mode & 0o777 | bits,
            said.get("uid", 0),
            said.get("gid", 0),
            said.get("size", 0),
            _nanoseconds(said["mtime"]),
        )
        if inner in found:
            found[inner].append(node)
        else:
            found[inner] = [node]
    return found


def _nanoseconds(text: str) -> int:
    """RFC 3339 with up to nine digits and an offset. Raises CannotError for what is none."""
    found = _TIME.fullmatch(text)
    if not found:
        raise CannotError(f"restic gave {text!r} as a time.")
    whole, digits, offset = found.groups()
    return _seconds(whole + offset) * 10**9 + int((digits or "0").ljust(9, "0"))


@lru_cache(maxsize=1024)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())

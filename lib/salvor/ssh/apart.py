"""A connection each for commands that run at the same time, on hosts that cannot have two on one.

Dropbear 2022.82 to 2024.85 closes a channel on which nothing runs yet whenever a process of the connection ends, and
then ends the connection, with all that runs on it: https://github.com/mkj/dropbear/pull/326.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from salvor.ssh.remote import Link, Pipe

_DROPBEAR = re.compile(r"\bdropbear_(\d+)\.(\d+)")


def is_needed(version: str) -> bool:
    """Whether a server that says that it is of `version` is one of those."""
    match = _DROPBEAR.search(version)
    return match is not None and (2022, 82) <= (int(match[1]), int(match[2])) < (2024, 86)


class Apart(Link):
    """Links to one host, `first` and those that `another` gives: each for one command at a time."""

    def __init__(self, first: Link, another: Callable[[], Link]) -> None:
        self.login, self.remarks = first.login, first.remarks
        self._another = another
        self._last: dict[Link, Pipe | None] = {first: None}  # what ran on each
        self._turn = threading.Lock()

    @property
    def alive(self) -> bool:
        return any(link.alive for link in list(self._last))

    def begin(self, line: str) -> Pipe:
        with self._turn:
            link = self._free()
            pipe = self._last[link] = link.begin(line)
            return pipe

    def _free(self) -> Link:
        for link in [link for link in self._last if not link.alive]:
            self._last.pop(link)
            link.close()
        for link, last in self._last.items():
            if last is None or last.is_over():
                return link
        link = self._another()
        self._last[link] = None
        return link

    def sftp(self) -> Any:
        with self._turn:
            return self._free().sftp()

    def close(self) -> None:
        for link in list(self._last):
            link.close()

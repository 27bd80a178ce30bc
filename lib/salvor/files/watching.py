"""A restore by restic, heard while it goes on: how far it is, when its disk is full, when its repository is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import MAKE_ROOM, CannotError
from salvor.files.said import LOST, MISSING, MissingError, Snapshot, status_of

if TYPE_CHECKING:
    from salvor.files.restic import Repository

Read = TypeVar("Read")
PATIENCE = 60.0
"""Seconds of nothing but errors until a repository that was lost midway is given up."""
SILENCE = 600.0
"""Seconds in which nothing arrives."""


class DiskFullError(CannotError):
    """There is no room for what is restored."""


def see_whether_all_is_there(repository: Repository, said: str) -> None:
    """Raises MissingError when restic says that a piece is missing: it would look for it for a quarter of an hour."""
    if found := re.search(f".*(?:{MISSING.pattern}).*", said, MISSING.flags):
        raise MissingError(
            f"Damaged: the {repository.title} lacks a piece that it should hold: {secrets.mask(found[0])[:300]}",
            safe="what is live is as it was",
            hint="restic check says how much of it is lost",
        )


def once_more(read: Callable[[], Read]) -> Read:
    """What `read` reads; read anew, by the new index, where a piece was missing that a prune may have moved."""
    try:
        return read()
    except MissingError:
        pass
    return read()


class Watch:
    """Hears what restic says while it restores."""

    def __init__(self, repository: Repository, snapshot: Snapshot, target: str) -> None:
        self.label = f"{snapshot.short} from {repository.name}"
        self.said: list[str] = []
        self.verified = -1
        self._repository, self._total, self._target = repository, snapshot.size, target
        self._used_first = self._done = -1
        self._trouble = self._heard = clock.monotonic()
        self._in_trouble = self._reads_back = False

    def hear(self, line: str) -> Progress | None:
        """What a line says of the progress. Raises DiskFullError, MissingError, and CannotError when the repository is
        lost, or a path too long.
        """
        if status := status_of(line):  # restic 0.16 and newer
            if status["message_type"] in ("error", "exit_error"):
                self._complain(json.dumps(status.get("error") or status.get("message")))
                return None
            return self._moved(int(status.get("bytes_restored", 0)), status.get("total_bytes"))
        if line.startswith("salvor-disk "):
            total, free, block = map(int, line.split()[1:])
            used = (total - free) * block
            self._used_first = used if self._used_first < 0 else self._used_first
            return None if self._reads_back else self._moved(max(0, used - self._used_first), self._total)
        if done := re.match(r"finished verifying (\d+) files", line):
            self.verified = int(done[1])
        elif line.startswith(("restoring ", "verifying ")):
            self._reads_back = line.startswith("verifying ")
            return Progress(0, None, "", f"{line.partition(' ')[0]} {self.label}")
        elif line.strip():
            self._complain(line)
        return None

    def _moved(self, done: int, total: int | None) -> Progress:
        if done > self._done:
            self._done, self._heard, self._in_trouble = done, clock.monotonic(), False
        elif clock.monotonic() - self._heard > SILENCE:
            raise self._repository.lost(f"nothing came for {clock.write_duration(SILENCE)}")
        return Progress(min(done, total) if total else done, total, "bytes", self.label)

    def _complain(self, line: str) -> None:
        self.said = [*self.said[-20:], line]
        if "no space left on device" in line or "disk quota exceeded" in line:  # restic itself would try every file
            raise _full(self._target, self._repository.shell.where, by_quota="quota" in line)
        if "file name too long" in line:
            raise CannotError(
                f"A path of {self.label} is too long below {self._target} on {self._repository.shell.where}; "
                "restic restore --target a short folder, such as /r, brings it back by hand.",
                safe="what is live is as it was",
            )
        see_whether_all_is_there(self._repository, line)
        if LOST.search(line):
            if not self._in_trouble:
                self._in_trouble, self._trouble = True, clock.monotonic()
            if clock.monotonic() - self._trouble > PATIENCE:
                raise self._repository.lost(line)


def _full(target: str, where: str, *, by_quota: bool) -> DiskFullError:
    what = f"A quota for {target} on {where} is used up" if by_quota else f"The disk of {target} on {where} is full"
    look = "its quota, whatever df says" if by_quota else "df -h, df -i"
    return DiskFullError(
        f"{what}.",
        safe="what is live is as it was",
        hint=f"{MAKE_ROOM}; on {where}: {look}; then run the same command again",
    )

"""The file of a journal: how many of its lines are on disk, and what becomes of those that a disk does not take."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from salvor import durable

_held: dict[Path, tuple[int, bytes]] = {}
"""What this process could not write to a journal, by its path: it follows the so many bytes that are there."""
_kept: dict[Path, Path] = {}
"""The temporary file that holds the same."""


def held_back() -> set[Path]:
    """The folders of the incidents of which this process holds lines that it could not write."""
    return {path.parent for path in list(_held)}


def held_of(path: Path) -> tuple[int, bytes]:
    """What this process holds of the journal at `path`: lines that follow the so many bytes which are there."""
    return _held.get(path, (0, b""))


class OnDisk:
    """The file of a journal, and which of `lines`, to which others are added, are in it. `tell` is called once when the
    disk takes none of them any more.
    """

    def __init__(self, file: durable.GrowingFile, lines: Sequence[bytes], tell: Callable[[str], None]) -> None:
        self._file = file
        self._lines = lines
        self._tell = tell
        self._written = (0, 0)  # how many lines and bytes are in the file for certain
        self._is_failing = False
        self._mend = ""

    @property
    def pending(self) -> int:
        """How many lines are held in memory because they could not be written."""
        return len(self._lines) - self._counted()[0]

    def take_up(self, size: int) -> bytes:
        """The lines that this process held of a file of so many bytes; none when somebody has added them meanwhile."""
        follows, held = _held.pop(self._file.path, (0, b""))
        if size == follows + len(held):
            self._forget_kept()
        if not held or follows != size:
            return b""
        self._is_failing = True
        return held

    def cut(self, size: int) -> None:
        """Let the next `write` cut off everything after `size` bytes first."""
        self._file.cut(size)

    def write(self) -> None:
        """Bring to disk what is not there yet. Never raises for a disk: the lines are then held, and tried again."""
        if self._file.is_gone():
            self._tell(f"The journal {self._file.path} was removed while in use; it is written again from memory.")
            self._file.close()
            self._file = durable.GrowingFile(self._file.path)
        held = self.pending
        try:
            self._file.append(self._waiting())
        except OSError as error:
            self._mend = durable.mend(error, self._incidents)
            if not self._is_failing:
                self._is_failing = True
                self._tell(
                    f"The journal {self._file.path} cannot be written: {error.strerror or error}.\n"
                    "Safe now: the recovery goes on, and its lines are held in memory until they can be written.\n"
                    f"HINT: in another terminal, {self._mend}"
                )
            return
        if self._is_failing:
            self._is_failing = False
            self._forget_kept()
            self._tell(f"The journal is written again: the {held} lines that were held in memory are on disk.")

    def close(self) -> None:
        """Release the file, after a last try. What it does not take is put where temporary files go, and is held for
        whoever opens the journal next in this process.
        """
        if self.pending:
            self.write()
        if self.pending:
            self._keep_elsewhere()
        self._file.close()

    @property
    def _incidents(self) -> Path:
        return self._file.path.parent.parent

    def _counted(self) -> tuple[int, int]:
        """How many lines, and their bytes, the file holds: it follows from its size, so that the two never disagree."""
        count, size = self._written if self._written[1] <= self._file.size else (0, 0)
        while count < len(self._lines) and size + len(self._lines[count]) < self._file.size:
            size += len(self._lines[count]) + 1
            count += 1
        self._written = count, size
        return self._written

    def _waiting(self) -> bytes:
        count, size = self._counted()
        return b"".join(line + b"\n" for line in self._lines[count:])[self._file.size - size :]

    def _keep_elsewhere(self) -> None:
        path = self._file.path
        _held[path] = self._file.size, self._waiting()
        count = f"The last {self.pending} lines of the journal {path} could not be written"
        try:
            descriptor, name = tempfile.mkstemp(prefix=f"salvor-{path.parent.name}-", suffix=".jsonl")
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._waiting())
        except OSError as error:
            self._tell(
                f"{count}, here or in a temporary file ({error.strerror}): they are lost when this command ends."
            )
            return
        self._forget_kept()
        _kept[path] = Path(name)
        journal, kept, folder = (shlex.quote(str(each)) for each in (path, name, path.parent))
        size = self._file.size
        self._tell(
            f"{count}.\nSafe now: they are in {name}\n"
            f"HINT: {self._mend}; then before any other command on this incident: "
            f"test -f {kept} && mkdir -pm 700 {folder} && touch {journal} "
            # What follows is a part of the same, or it came since and would be cut off.
            f"&& cmp -n $(($(wc -c <{journal}) - {size})) {journal} {kept} {size} 0 "
            f"&& truncate -s {size} {journal} && cat {kept} >> {journal}"
        )

    def _forget_kept(self) -> None:
        """Remove the temporary file, and with it the danger that an old hint puts less in the place of the journal."""
        if kept := _kept.pop(self._file.path, None):
            with suppress(OSError):
                kept.unlink()

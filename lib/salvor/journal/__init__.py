"""The record of one incident: JSON lines, each on disk before the act goes on, each with the hash of the one before it.

`INCIDENT/journal.jsonl` is the only source of every report. Recovery never waits for it: what cannot be written is held
in memory, said once, and written as soon as it can be. How to check it without this code: docs/evidence.md.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from salvor import clock, durable, secrets
from salvor.errors import CannotError, HeldError
from salvor.journal.line import START, digest, encode, parse, plain, split
from salvor.journal.mirror import ASIDE, Mirror, bring, put_aside
from salvor.journal.on_disk import OnDisk, held_of

FILE = "journal.jsonl"
_OURS = ("n", "at", "by", "kind", "previous")
_CLOSE_DEADLINE = 5.0
_LOST_SHOWN = 4096
_LONGEST_OPENING = 1024 * 1024


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def incidents(folder: Path) -> Iterator[Path]:
    """The folders below `folder` that hold a journal, newest first by their names; none when `folder` is not there.

    Raises CannotError when it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotError(
            f"The incidents in {folder} cannot be read: {error.strerror}.", hint=f"ls -ld {shlex.quote(str(folder))}"
        ) from error
    for name in sorted(names, reverse=True):
        if os.path.isfile(f"{folder}/{name}/{FILE}"):  # noqa: PTH113  of thousands: it is four times as quick
            yield folder / name


def first_line(folder: Path) -> dict[str, Any]:
    """The line that opened the incident in `folder`, without reading the others; empty when it cannot be told.

    Raises CannotError when the journal cannot be read.
    """
    try:
        with (folder / FILE).open("rb") as file:
            return parse(file.readline(_LONGEST_OPENING)) or {}
    except OSError as error:
        raise _unreadable(folder, error) from error


class Journal:
    """One incident's lines. `create` and `open` give one to append to, `read` one to look at."""

    def __init__(
        self,
        folder: Path,
        *,
        by: str,
        tell: Callable[[str], None],
        mirror: str | None = None,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder.absolute()
        self.lines: list[dict[str, Any]] = []
        """All lines in their order, those that are still held in memory included."""
        self.torn = 0
        """Bytes at the end that a crash left of a line."""
        self.damaged: list[int] = []
        """Numbers of lines that are no JSON object, or of no kind; they are not in `lines`. `check` says more."""
        self._by = by
        self._say = tell
        self._raw: list[bytes] = []
        self._file: OnDisk | None = None
        self._closed = False
        self._still_ours = still_ours
        self._is_theirs = False
        self._mirror = Mirror(mirror, folder.name, self._raw, self._inform) if mirror else None
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        by: str,
        mirror: str | None = None,
        tell: Callable[[str], None] = _tell,
        still_ours: Callable[[], None] = lambda: None,
        **opened: Any,
    ) -> Journal:
        """Begin the journal of the incident that `folder` is named after, with its `opened` line.

        `mirror` is a folder, `file:///folder` or `s3://bucket/prefix`. `tell` is called at once, and once, with what a
        person must know about the journal itself. A full or read-only disk is told and not raised. `still_ours` raises
        HeldError when another machine took the incident over: it is asked before each line.
        Raises CannotError when that incident has a journal, UsageError for a mirror that cannot be.
        """
        if os.path.lexists(folder / FILE):
            raise CannotError(
                f"Incident {folder.name} has a journal already: {folder / FILE}.",
                safe="it was not touched",
                hint=f"inv incident.show --incident={folder.name}",
            )
        journal = cls(folder, by=by, tell=tell, mirror=mirror, still_ours=still_ours)
        journal._file = OnDisk(durable.GrowingFile(journal.folder / FILE), journal._raw, journal._inform)
        if held := journal._file.take_up(0):
            journal._take(held)
        else:
            journal.append("opened", **opened)
        return journal

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        by: str,
        mirror: str | None = None,
        tell: Callable[[str], None] = _tell,
        still_ours: Callable[[], None] = lambda: None,
    ) -> Journal:
        """The journal of an incident, to append to, with what another machine wrote of it to the mirror since. What a
        crash left of its last line is cut off, told and journalled. `still_ours` is as for `create`.

        Raises CannotError when there is none or it cannot be read, HeldError when another process appends to it.
        """
        journal = cls(folder, by=by, tell=tell, mirror=mirror, still_ours=still_ours)
        apart = bring(journal.folder / FILE, mirror, journal._inform) if mirror else ""
        try:
            file, content = durable.GrowingFile.open(journal.folder / FILE)
        except BlockingIOError as error:
            raise HeldError(
                f"Another process writes the journal of incident {folder.name} now.",
                safe="nothing was changed",
                hint=f"lslocks shows which; then: inv incident.show --incident={folder.name}",
            ) from error
        except OSError as error:
            raise _unreadable(folder, error) from error
        journal._file = OnDisk(file, journal._raw, journal._inform)
        held = journal._file.take_up(len(content))
        journal._take(content + held)
        if journal._mirror:
            journal._mirror.offer(len(journal._raw) - journal.pending)
        if journal.damaged:
            journal._inform(
                f"The journal of incident {folder.name} is damaged: it cannot be read in {_numbers(journal.damaged)}.\n"
                f"HINT: inv incident.check --incident={folder.name}"
            )
        if not held and (journal.torn or journal.pending):
            journal._repair(content)
        if apart:
            journal.append("repaired", lost_bytes=0, text=apart, lost="")
        return journal

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """The journal of an incident, to look at, with what this process holds of it because it could not be written:
        nothing is written, and what a crash left at its end is only counted.

        Raises CannotError when there is none or it cannot be read.
        """
        journal = cls(folder, by="", tell=_tell)
        size, lines = held_of(journal.folder / FILE)
        try:
            content = durable.read(journal.folder / FILE)
        except OSError as error:
            if not lines or size:
                raise _unreadable(folder, error) from error
            content = b""
        journal._take(content + lines if size == len(content) else content)
        return journal

    @property
    def pending(self) -> int:
        """How many lines are held in memory because they could not be written."""
        return self._file.pending if self._file else 0

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The lines of these kinds, in their order."""
        return [line for line in self.lines if line.get("kind") in kinds]

    def append(self, kind: str, **data: Any) -> dict[str, Any]:
        """Add a line, masked, and return it once it is on disk. Any thread may call this.

        Never raises for a disk: the line is then held, which is told once, and every later append tries again.
        Raises HeldError when another machine took the incident over (the line is then put beside the journal, which is
        theirs), ValueError for a journal that was only `read` and for a name in `data` that every line has already.
        """
        if self._file is None:
            raise ValueError("this journal was opened by read(); open() gives one to append to")
        if taken := [name for name in _OURS if name in data]:
            raise ValueError(f"every line of a journal has {', '.join(taken)} of its own")
        masked = secrets.mask_data(plain({"by": self._by, "kind": kind, **data}))
        try:
            self._still_ours()
        except HeldError:
            self._put_aside({"at": clock.write_time(clock.now()), **masked})
            raise
        with self._lock:
            line = {
                "n": len(self._raw) + 1,
                "at": clock.write_time(clock.now()),
                **masked,
                "previous": digest(self._raw[-1]) if self._raw else START,
            }
            self._raw.append(encode(line))
            self.lines.append(line)
            self._file.write()
            if self._mirror:
                self._mirror.offer(len(self._raw))
        return line

    def close(self, deadline: float = _CLOSE_DEADLINE) -> None:
        """Release the file, after a last try to write what is held, and at most `deadline` seconds for the mirror.

        Lines that still cannot be written are put where temporary files go, and the command that adds them is told.
        """
        if self._file is None or self._closed:
            return
        self._closed = True
        with self._lock:
            self._file.close()
        if self._mirror:
            self._mirror.close(deadline)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, content: bytes) -> None:
        lines, rest = split(content)
        if parse(rest) is not None:  # whole, but for its newline
            lines.append(rest)
            rest = b""
        for number, raw in enumerate(lines, 1):
            line = parse(raw)
            if line is None or not isinstance(line.get("kind"), str):
                self.damaged.append(number)
            else:
                self.lines.append(line)
        self._raw += lines
        self.torn = len(rest)

    def _repair(self, content: bytes) -> None:
        assert self._file
        whole = len(content) - self.torn
        self._file.cut(whole)
        text = "A crash cut off the last line's newline; nothing is lost."
        if self.torn:
            text = f"A crash left {self.torn} bytes of a line that was never finished; they were cut off."
        self._inform(f"The journal of incident {self.folder.name} is repaired. {text}")
        lost = content[whole:][:_LOST_SHOWN].decode("utf-8", "backslashreplace")
        self.append("repaired", lost_bytes=self.torn, text=text, lost=lost)

    def _put_aside(self, line: dict[str, Any]) -> None:
        with self._lock:
            try:
                put_aside(self.folder, [encode(line)])
            except OSError as error:
                self._inform(f"{self.folder / ASIDE} cannot be written: {error.strerror}. What it lacks: {line}")
                return
            if not self._is_theirs:
                self._is_theirs = True
                self._inform(f"What this process still says of it is in {self.folder / ASIDE}, not in the journal.")

    def _inform(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone does not stop a recovery
            self._say(secrets.mask(text))


def _unreadable(folder: Path, error: OSError) -> CannotError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return CannotError(f"There is no incident {folder.name} in {folder.parent}.", hint="inv incidents")
    return CannotError(
        f"The journal {folder / FILE} cannot be read: {error.strerror}.", hint=f"ls -l {shlex.quote(str(folder))}"
    )


def _numbers(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:10]))
    return f"line{'s' if len(lines) > 1 else ''} {shown}{', ...' if len(lines) > 10 else ''}"

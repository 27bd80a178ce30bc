"""A second place for every line of the journal, best effort: written as they come, and read by who takes over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from salvor import durable
from salvor.deadline import within
from salvor.journal.line import digest, split
from salvor.journal.mirror_store import lines, name_of, numbered, store
from salvor.plain import amount

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
READ_DEADLINE = 60.0
"""Seconds for all lines of a journal: a bucket gives them one by one."""
_NAMES_DEADLINE = 5.0  # seconds: a recovery waits for it before it begins
ASIDE = "journal.aside.jsonl"
"""Beside a journal: what this machine wrote of the incident that does not belong to what others went on with."""


def bring(journal: Path, location: str, tell: Callable[[str], None]) -> str:
    """Let the file `journal`, INCIDENT/journal.jsonl, hold what another machine wrote of the incident since.

    Call it with the service's lock and lease. Where the mirror goes on without our last lines (they never reached it,
    or two wrote at once), what it has counts if it is as much, and ours are put aside: what the journal is to say of
    that is returned, else nothing. What cannot be had is told: the recovery goes on by what it sees.
    """
    folder = journal.parent
    try:
        ours, rest = split(durable.read(journal)) if journal.exists() else ([], b"")
        there = {
            found for name in within(_NAMES_DEADLINE, store(location, folder.name).names) if (found := numbered(name))
        }
        newest = max((number for number, _ in there), default=0)
        if newest <= len(ours) and all((number, digest(ours[number - 1])) in there for number, _ in there):
            return ""
        theirs = within(READ_DEADLINE, lambda: lines(location, folder.name))
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
        if len(theirs) == common:
            return ""
        if len(theirs) < len(ours):
            tell(
                f"The mirror {location} holds other lines of {folder.name} than the journal here, which has more.\n"
                f"Safe now: both are kept, and the one here counts. HINT: inv incident.check --incident={folder.name}"
            )
            return ""
        apart = ours[common:]
        if rest and (apart or not theirs[common].startswith(rest)):
            apart.append(rest)
        if apart:
            put_aside(folder, apart)
        durable.make_folder(folder)
        durable.replace(journal, b"".join(line + b"\n" for line in theirs))
        tell(f"{amount(len(theirs) - common, 'line')} of the journal came from {location}.")
    except OSError as error:
        tell(f"The mirror {location} does not say whether another machine went on with {folder.name}: {error}")
        return ""
    if not apart:
        return ""
    text = f"The mirror's journal goes on without {amount(len(apart), 'line')} of this machine, kept in {ASIDE}."
    tell(f"The journal of {folder.name} is repaired. {text}")
    return text


def put_aside(folder: Path, lines: Sequence[bytes]) -> None:
    """Add lines to what is beside the journal in `folder`. Raises OSError."""
    path = folder / ASIDE
    before = durable.read(path) if path.exists() else b""
    durable.replace(path, before + b"".join(line + b"\n" for line in lines))


class Mirror:
    """Sends lines to a store from a thread of its own, in order; never waits for it, never raises.

    Its queue is the journal's own list of `lines`, so it needs no memory of its own and drops nothing: what could not
    be sent is tried again, and what an earlier process left is found by its name and sent first.
    """

    def __init__(self, location: str, incident: str, lines: Sequence[bytes], tell: Callable[[str], None]) -> None:
        self.location = location
        self._store = store(location, incident)
        self._lines = lines
        self._tell = tell
        self._offered = 0
        self._sent = 0
        self._closing = False
        self._failing = False
        self._woken = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def lacks(self) -> int:
        """How many lines are not in the mirror yet."""
        return self._offered - self._sent

    def offer(self, count: int) -> None:
        """Let the first `count` lines be sent: those on disk, or held in memory because the disk takes none."""
        with self._woken:
            self._offered = count
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal mirror", daemon=True)
                self._thread.start()
            self._woken.notify()

    def close(self, deadline: float) -> None:
        """Wait at most `deadline` seconds for the lines that are not sent, with a last try, and say what is missing."""
        with self._woken:
            self._closing = True
            self._woken.notify()
        if self._thread:
            self._thread.join(deadline)
        if self.lacks:
            self._tell(
                f"The journal's mirror {self.location} lacks the last {self.lacks} lines.\n"
                "Safe now: they are in the journal, and the next command on this incident sends them."
            )

    def _run(self) -> None:
        there: set[str] | None = None
        wait = _FIRST_WAIT
        while self._await_line():
            line = self._lines[self._sent]
            name = name_of(self._sent + 1, line)
            try:
                if there is None:
                    there = self._store.names()
                if name not in there:
                    self._store.put(name, line + b"\n")
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._tell(
                        f"The journal's mirror {self.location} cannot be written: {error}.\n"
                        "Safe now: the journal itself is written, and the recovery goes on; the mirror is tried again."
                    )
                if not self._pause(wait):
                    return
                wait = min(wait * 2, _LONGEST_WAIT)
                continue
            self._sent += 1
            wait = _FIRST_WAIT
            if self._failing:
                self._failing = False
                self._tell(f"The journal's mirror {self.location} is written again.")

    def _await_line(self) -> bool:
        with self._woken:
            self._woken.wait_for(lambda: self._closing or self.lacks > 0)
        return self.lacks > 0

    def _pause(self, seconds: float) -> bool:
        """Wait after a failure; False when there is no time for another try."""
        with self._woken:
            if self._closing:
                return False
            self._woken.wait_for(lambda: self._closing, seconds)  # not for a line: it would ask once for every one
            return True

"""When cron's schedules ran last, and the run of one that is due."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from salvor import clock, durable
from salvor.errors import CannotError, UsageError
from salvor.schedule.entry import Caller, line
from salvor.schedule.settings import Schedule

_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Stamp:
    """When a schedule was begun last, or installed; when that run ended, and with which exit code. `runs`: it was begun
    and has not ended.
    """

    begun: datetime | None = None
    ended: datetime | None = None
    code: int | None = None
    runs: bool = False

    def text(self) -> str:
        """What `read` reads."""
        times = {name: clock.write_time(one) for name in ("begun", "ended") if (one := getattr(self, name))}
        code = {} if self.code is None else {"code": self.code}
        return json.dumps({**times, **code, **({"runs": True} if self.runs else {})}) + "\n"

    @property
    def last(self) -> datetime | None:
        """When it ran last; None when it never did."""
        return self.begun if self.runs else self.ended

    @property
    def result(self) -> str:
        """How that ended, in words; empty when it never ran."""
        if self.runs:
            return "has not ended"
        return "" if self.code is None else "success" if self.code == 0 else f"exit code {self.code}"


def read(text: str | None) -> Stamp:
    """The stamp that `text` is; an empty one for what is none: then it counts from now on."""
    try:
        said = json.loads(text or "{}")
        times = {name: clock.read_time(said[name]) for name in ("begun", "ended") if name in said}
        return Stamp(**times, code=said.get("code"), runs=bool(said.get("runs")))
    except (ValueError, TypeError, AttributeError, UsageError):
        return Stamp()


def run_if_due(caller: Caller, name: str, schedule: Schedule) -> int | None:
    """Run the schedule if it was due since it ran last, once however often it was missed. Returns its exit code; None
    when it was not due, or still runs. Raises CannotError when its begin cannot be noted: it would run again and again;
    and when its end cannot be, after it ran.
    """
    path = Path(caller.stamp(name))
    try:
        durable.make_folder(path.parent)
        with os.fdopen(os.open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return _run_if_due(caller, path, name, schedule)
    except OSError as error:
        raise CannotError(
            f"When {name} ran cannot be noted: {error}.", safe="it was not run", hint=durable.mend(error, path.parent)
        ) from error


def _run_if_due(caller: Caller, path: Path, name: str, schedule: Schedule) -> int | None:
    begun = clock.now()
    last = read(path.read_text(encoding="utf-8", errors="replace") if path.exists() else None).begun
    if last is None or last > begun:  # not installed by us, or the clock was wrong: it counts from now on
        durable.replace(path, Stamp(begun).text().encode())
        return None
    if schedule.calendar.last(begun) <= last:
        return None
    durable.replace(path, Stamp(begun, runs=True).text().encode())  # one that fails is not tried all day
    words = schedule.words(caller.platform)
    by = {**caller.own(name), **os.environ}
    try:
        code = subprocess.run(caller.argv(*words), cwd=caller.folder, env=by, timeout=_DAY, check=False).returncode
    except subprocess.TimeoutExpired as error:
        _note_end(path, begun, words, -signal.SIGKILL)
        raise CannotError(
            f"{line(words)} did not end within a day; it was ended.",
            safe="what it had done stays",
            hint="inv incidents",
        ) from error
    _note_end(path, begun, words, code)
    return code


def _note_end(path: Path, begun: datetime, words: Sequence[str], code: int) -> None:
    try:
        durable.replace(path, Stamp(begun, clock.now(), code).text().encode())
    except OSError as error:
        raise CannotError(
            f"{line(words)} was run and ended with exit code {code}; that cannot be noted: {error}.",
            safe="it is not run again before it is due again",
            hint=durable.mend(error, path.parent),
        ) from error

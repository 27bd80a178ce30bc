"""When cron's schedules ran last, and the run of one that is due."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from salvor import clock, durable
from salvor.errors import CannotError, UsageError
from salvor.schedule.entry import Caller, line
from salvor.schedule.settings import Schedule

_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Stamp:
    """When a schedule was begun last, or installed; when that run ended, and with which exit code."""

    begun: datetime | None = None
    ended: datetime | None = None
    code: int | None = None

    def text(self) -> str:
        """What `read` reads."""
        times = {name: clock.write_time(one) for name in ("begun", "ended") if (one := getattr(self, name))}
        return json.dumps({**times, **({} if self.code is None else {"code": self.code})}) + "\n"


def read(text: str | None) -> Stamp:
    """The stamp that `text` is; an empty one for what is none: then it counts from now on."""
    try:
        said = json.loads(text or "{}")
        times = {name: clock.read_time(said[name]) for name in ("begun", "ended") if name in said}
        return Stamp(**times, code=said.get("code"))
    except (ValueError, TypeError, AttributeError, UsageError):
        return Stamp()


def run_if_due(caller: Caller, name: str, schedule: Schedule) -> int | None:
    """Run the schedule if it was due since it ran last, once however often it was missed. Returns its exit code; None
    when it was not due, or still runs. Raises CannotError when nothing can be noted: it would run again and again.
    """
    path = Path(caller.stamp(name))
    try:
        durable.make_folder(path.parent)
        with path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return _run_if_due(caller, path, name, schedule)
    except OSError as error:
        raise CannotError(
            f"When {name} ran cannot be noted: {error}.", safe="it was not run", hint=f"ls -ld {path.parent}"
        ) from error


def _run_if_due(caller: Caller, path: Path, name: str, schedule: Schedule) -> int | None:
    begun = clock.now()
    before = read(path.read_text(encoding="utf-8", errors="replace") if path.exists() else None)
    last = before.begun
    if last is None or last > begun:  # not installed by us, or the clock was wrong: it counts from now on
        durable.replace(path, Stamp(begun).text().encode())
        return None
    if schedule.calendar.last(begun) <= last:
        return None
    durable.replace(path, replace(before, begun=begun).text().encode())  # one that fails is not tried all day
    words = schedule.words(caller.platform)
    by = {**caller.own(name), **os.environ}
    try:
        done = subprocess.run(caller.argv(*words), cwd=caller.folder, env=by, timeout=_DAY, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotError(
            f"{line(words)} did not end within a day; it was ended.",
            safe="what it had done stays",
            hint="inv incidents",
        ) from error
    durable.replace(path, Stamp(begun, clock.now(), done.returncode).text().encode())
    return done.returncode

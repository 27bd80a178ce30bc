"""When the outage began that a command for a whole platform works on, noted beside the incidents until it is over: a
call that was killed between two of its services leaves no incident under way that would tell.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from salvor import clock, durable
from salvor.errors import UsageError
from salvor.journal.folders import incidents_folder

_SAME_COMMAND = timedelta(hours=1)
"""Who takes up what was cut off does so soon; what breaks later is another outage."""


def _note(platform: str) -> Path:
    return incidents_folder() / f".outage-{platform}"


def begun_at(platform: str) -> datetime | None:
    """When the outage was detected that the last command of the platform was cut off in, or did not end; None when
    there is none, or that was too long ago to be the same one.
    """
    with suppress(OSError, ValueError, UsageError):
        detected, worked = map(clock.read_time, durable.read(_note(platform)).decode().split())
        if abs(clock.now() - worked) <= _SAME_COMMAND:
            return detected
    return None


def goes_on(platform: str, detected: datetime) -> None:
    """Note that the outage which was detected then is being worked on. That it cannot be noted holds nobody up."""
    with suppress(OSError):
        text = f"{clock.write_time(detected)} {clock.write_time(clock.now())}\n"
        durable.replace(_note(platform), text.encode())


def is_over(platform: str) -> None:
    """Forget the outage: all services are back."""
    with suppress(OSError):
        _note(platform).unlink(missing_ok=True)

"""The one clock: UTC with an offset. Tests set it with `use`."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from salvor.errors import UsageError

CLOCKS_DIFFER = timedelta(minutes=5)
"""How far the clocks of two machines may be apart, and nothing is wrong."""


def _system_clock() -> datetime:
    return datetime.now(UTC)


_source: Callable[[], datetime] = _system_clock


def now() -> datetime:
    """The time now, UTC, with its offset."""
    return _source()


def monotonic() -> float:
    """Seconds that only go forward, for durations and deadlines; a stepped wall clock does not disturb them."""
    return time.monotonic()


@contextmanager
def use(source: Callable[[], datetime]) -> Iterator[None]:
    """Let `now()` answer from `source` inside the block; for tests."""
    global _source
    before, _source = _source, source
    try:
        yield
    finally:
        _source = before


def write_time(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: `2026-11-20T03:12:00.000000+00:00`. Raises ValueError for a time without an
    offset: what it means would depend on the machine.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no offset")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def read_time(text: str, *, argument: str = "time") -> datetime:
    """ISO 8601 with an offset (`2026-11-20T03:12+09:00`, or ending in `Z`) to UTC. Raises UsageError, naming
    `argument`.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            raise UsageError(
                f"{argument}: {text!r} has no offset, so it could be any of 24 hours.",
                hint=f"add one, for example {argument}={moment.isoformat()}+00:00 for UTC",
            )
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # overflow: the first or the last day of the calendar, moved out of it
        why = f" ({error})" if "isoformat" not in str(error) else ""  # what says no more than that
        raise UsageError(
            f"{argument}: {text!r} is not a time{why}.",
            hint=f"write it as ISO 8601 with an offset, for example {argument}={now():%Y-%m-%dT%H:%M:%S}+00:00",
        ) from error


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_FOREVER = 1000 * 365.25 * 86400.0


def read_duration(text: str | float) -> float:
    """A number of seconds, or `15m`, `1h30m`, `2 d`, to seconds. Raises ValueError with what is wrong."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text) if abs(text) < _FOREVER else math.inf
    else:
        stripped = str(text).strip()
        parts = _DURATION.findall(stripped)
        if not parts or "".join(_DURATION.sub("", stripped).split()):
            raise ValueError(f"{text!r} is not a duration; write for example 30s, 15m, 1h30m or 7d")
        seconds = sum(float(figure) * _SECONDS[unit] for figure, unit in parts)
    if not 0 <= seconds < _FOREVER:
        raise ValueError(f"{text!r} cannot be a duration; write for example 30s, 15m, 1h30m or 7d")
    return seconds


def write_duration(seconds: float | None) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{write_duration(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def age(moment: datetime) -> timedelta:
    """How long ago `moment` was."""
    return now() - moment


def is_to_come(moment: datetime) -> bool:
    """Whether a moment of the past, by another machine's clock, is yet to come: it was wrong then, or ours is now."""
    return moment > now() + CLOCKS_DIFFER

"""What nobody waits for can wait: a schedule whose service somebody else works on begins when they are done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from salvor import clock
from salvor.errors import HeldError, UsageError

WAIT = "SALVOR_WAIT"
_Result = TypeVar("_Result")
_PAUSES = (1.0, 60.0)
"""Seconds until the second try, and at most between two."""


def patiently(call: Callable[[], _Result], tell: Callable[[str], object]) -> _Result:
    """What `call` returns. While another operator holds what it needs, it is called again, for as long as SALVOR_WAIT
    says (not set: once); `tell` is told whom it waits for. Raises what `call` raises.
    """
    pause, longest = _PAUSES
    until, told = time.monotonic() + _wait(), ""
    while True:
        try:
            return call()
        except HeldError as error:
            if time.monotonic() + pause > until:
                raise
            if error.what != told:
                tell(f"{error.what} This waits for it.")
            told = error.what
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _wait() -> float:
    said = os.environ.get(WAIT, "0s")
    try:
        return clock.read_duration(said)
    except ValueError as error:
        raise UsageError(f"{WAIT}: {error}.", safe="nothing was changed", hint=f"unset {WAIT}") from error

"""Waiting for what comes about elsewhere: in another thread, process or server."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(happens: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait until it happens, for so many seconds at most; whether it did."""
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.03)
    return True


def within(seconds: float, work: Callable[[], object]) -> object:
    """What `work` returns or raises, which it must do in `seconds`."""
    begun = time.monotonic()
    try:
        return work()
    finally:
        assert time.monotonic() - begun < seconds

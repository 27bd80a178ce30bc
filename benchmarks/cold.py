"""Every run that is compared begins alike: nothing left to write, and in cold memory.

A virtual machine gives memory that is free for two seconds back to its host (free page reporting, mm/page_reporting.c).
To use it again took ten times the system time here: 0.6 s for 300 MB instead of 0.07. So whoever begins right after the
last run was cleared away works in its warm memory, and whoever begins two seconds later does not.
"""

from __future__ import annotations

import os
import time

_GIVEN_BACK = 6.0
"""Seconds: it goes in several turns, two seconds apart."""


def settle() -> None:
    """Wait until the last run has no part in the next one."""
    os.sync()
    time.sleep(_GIVEN_BACK)

"""The platforms that have a stand-in of their own, to be broken and brought back, and the packages that make them."""

from __future__ import annotations

import importlib
from types import ModuleType

from salvor.errors import UsageError

PACKAGES = {"sandbox": "salvor.sandbox", "o4o": "salvor.sandbox.o4o"}
"""Each has `up`, `status`, `down` and `find`, and the rooms `disasters` and `survivors`."""


def package(platform: str, room: str = "") -> ModuleType:
    """The package of a platform's stand-in, or one of its rooms. Raises UsageError when it has none."""
    if platform not in PACKAGES:
        raise UsageError(
            f"--platform: {platform!r} has no stand-in to be broken.", hint=f"those that have: {', '.join(PACKAGES)}"
        )
    return importlib.import_module(f"{PACKAGES[platform]}.{room}".rstrip("."))

"""The platforms that have a stand-in of their own, to be broken and brought back, and the packages that make them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from salvor.errors import UsageError

PACKAGES = {"sandbox": "salvor.sandbox", "o4o": "salvor.sandbox.o4o"}
"""Each has `up`, `status`, `down` and `find`, and the rooms `disasters` and `survivors`."""


def package(platform: str, room: str = "") -> ModuleType:
    """The package of a platform's stand-in, or one of its rooms; without a name of the platform that SALVOR_PLATFORM
    means, else of the sandbox. Raises UsageError when it has none.
    """
    platform = platform or os.environ.get("SALVOR_PLATFORM") or "sandbox"
    if platform not in PACKAGES:
        raise UsageError(
            f"--platform: {platform!r} has no stand-in to be broken.", hint=f"those that have: {', '.join(PACKAGES)}"
        )
    return importlib.import_module(f"{PACKAGES[platform]}.{room}".rstrip("."))

"""What must outlive the watcher and is in no journal yet: small files in `incidents/.watch/PLATFORM/`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salvor import durable
from salvor.journal.folders import incidents_folder


class Kept:
    """One file of plain data. A disk that takes nothing is told once, and hinders nothing: it is then in memory."""

    def __init__(self, platform: str, name: str, tell: Callable[[str], None]) -> None:
        self.path: Path = incidents_folder() / ".watch" / platform / f"{name}.json"
        self.is_known = False
        """Whether what was kept could be read."""
        self._tell = tell
        self._failing = False

    def read(self) -> dict[str, Any]:
        """What was kept; nothing when there is none, or it cannot be read."""
        try:
            found = json.loads(durable.read(self.path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._tell(f"{self.path} cannot be read, and is begun anew: {getattr(error, 'strerror', '') or error}")
            return {}
        self.is_known = isinstance(found, dict)
        return found if self.is_known else {}

    def write(self, data: dict[str, Any]) -> None:
        """Replace it, flushed to disk."""
        try:
            durable.make_folder(self.path.parent)
            durable.replace(self.path, json.dumps(data).encode() + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._tell(f"{self.path} cannot be written: {error.strerror}. A new watcher would begin to wait anew.")

"""What came after an incident and changed the same service: the incident is not taken back from under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salvor import journal
from salvor.errors import CannotError
from salvor.journal import Journal, brief

_BESIDE = ("backup", "retention")
"""The steps of maintenance that leave what is live as it is."""


def changed_since(incident: str, service: str, platform: str, folder: Path) -> Path | None:
    """The newest incident that changed the service after this one did, and was not taken back; None when none did.

    `folder` holds all incidents.
    """
    for later in journal.incidents(folder):
        if later.name <= incident:
            break
        if brief.service_of(later.name) != service:
            continue  # there may be thousands
        lines = _lines(later)
        same = lines and (lines[0].get("service"), lines[0].get("platform")) == (service, platform)
        same = same and lines[0].get("purpose") != "watch"  # it restarts and clears, and builds on nothing
        acted = any(line.get("kind") == "intent" and line.get("step") not in _BESIDE for line in lines)
        if same and acted and not any(line.get("kind") == "undone" for line in lines):
            return later
    return None


def _lines(folder: Path) -> list[dict[str, Any]]:
    try:
        return Journal.read(folder).lines
    except CannotError:  # nobody can tell of what it is: it holds nobody up
        return []

"""What else became of a service: what came after an incident and changed it, and drills that were never ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salvor import journal
from salvor.errors import CannotError
from salvor.journal import Journal, brief, lock

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


def drills_left(service: str, platform: str, folder: Path) -> Iterator[str]:
    """The drills of the service that did not come to their end, and at which nobody works now."""
    holder = lock.holder(service, folder) or {}
    for drill in journal.incidents(folder):
        if brief.service_of(drill.name) != service or brief.is_over(drill) or holder.get("incident") == drill.name:
            continue
        try:
            opened = journal.first_line(drill)
        except CannotError:
            continue
        if (opened.get("purpose"), opened.get("platform"), opened.get("service")) == ("drill", platform, service):
            yield drill.name


def _lines(folder: Path) -> list[dict[str, Any]]:
    try:
        return Journal.read(folder).lines
    except CannotError:  # nobody can tell of what it is: it holds nobody up
        return []

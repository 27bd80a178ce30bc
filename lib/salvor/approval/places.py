"""Where approvals lie: in the incident's folder, for who works on this machine; and in the mirror, for who does not.

Never in the journal, which the first operator's command holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from salvor.approval.paper import NAME
from salvor.journal.mirror_store import Store, store

FOLDER = "approvals"
_MOST = 1000


@dataclass(frozen=True)
class Place:
    """One of them: `is_far` when it may not answer."""

    name: str
    store: Store
    is_far: bool

    def names(self) -> list[str]:
        """The approvals that are there, at most 1,000. Raises OSError."""
        return sorted(name for name in self.store.names() if NAME.fullmatch(name))[:_MOST]


def here(folder: Path) -> Place:
    """The place in an incident's folder."""
    return Place(str(folder / FOLDER), store(str(folder), FOLDER), is_far=False)


def mirrored(incident: str) -> Place | None:
    """The place in the mirror; None without one."""
    location = os.environ.get("SALVOR_MIRROR")
    return Place(location, store(location, f".approvals/{incident}"), is_far=True) if location else None


def all_of(folder: Path) -> Iterator[Place]:
    """The places for the incident in `folder`."""
    yield here(folder)
    if there := mirrored(folder.name):
        yield there

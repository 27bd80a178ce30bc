"""What a pgBackRest repository tells of one backup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Stored:
    """One backup in the repository. `size` is bytes of the database, `stored` bytes in the repository; `needs` are the
    backups that hold files of it.
    """

    label: str
    kind: str
    stopped: datetime
    timeline: int
    stop_lsn: int
    size: int
    stored: int
    broken: bool
    repository: int
    system_identifier: str
    version: str
    annotations: Mapping[str, str]
    needs: tuple[str, ...] = ()
    wal: tuple[str, str] = ("", "")
    """The first and the last WAL segment that make it consistent."""

    @property
    def consistent_from(self) -> datetime:
        """The earliest time that it can be recovered to. pgBackRest notes whole seconds, rounded down."""
        return self.stopped + timedelta(seconds=1)


@dataclass(frozen=True)
class Elsewhere:
    """What a backup holds that was not in the data directory: tablespaces (object id to path), and links in it (path
    within it to where it led).
    """

    tablespaces: Mapping[str, str]
    links: Mapping[str, str]

"""The archive of a cluster's WAL in a pgBackRest repository: which segments and timelines it holds, and its gaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from salvor.postgres.server import Server
from salvor.postgres.wal import Lineage, end_of, timeline_of, unbroken_since

LISTING_SECONDS = 600.0


@dataclass(frozen=True)
class WalArchive:
    """The WAL of one version of the cluster, at `path` in the first repository (empty: there is none yet). `run` gives
    what a pgBackRest command for that repository prints.
    """

    path: str
    run: Callable[..., str]

    def reaches(self, timeline: int, segment_size: int) -> int:
        """An LSN in the newest segment of a timeline's WAL in the archive, which a replay gets past; 0 when nothing of
        it is there. The segment's end it may not reach: the last record often goes on in the next segment.
        `segment_size` in bytes: initdb chose it (16 MB if not told, 64 MB at Amazon's), and the names do not tell it.
        """
        folders = [name for name in self._list(self.path) if re.fullmatch(rf"{timeline:08X}[0-9A-F]{{8}}", name)]
        segments = self._segments(max(folders)) if folders else {}
        return end_of(max(segments), segment_size) - segment_size + 1 if segments else 0

    @cached_property
    def newest(self) -> datetime | None:
        """When the newest WAL segment was archived (UTC); None when there is none."""
        folders = [name for name in self._list(self.path) if re.fullmatch(r"[0-9A-F]{16}", name)]
        segments = self._segments(max(folders)) if folders else {}
        return max(segments.values(), default=None)

    def _segments(self, folder: str) -> dict[str, datetime]:
        listed = self._list(f"{self.path}/{folder}")
        return {name[:24]: time for name, time in listed.items() if time and re.match(r"[0-9A-F]{24}-", name)}

    def _list(self, path: str) -> dict[str, datetime | None]:
        """The files (with their times) and folders in a path of the first repository."""
        if not path:
            return {}
        # repo-ls knows no --stanza where it gets a path, and takes the passphrase of the stanza from its files.
        listed = json.loads(self.run("--output=json", "repo-ls", path))
        return {
            name: datetime.fromtimestamp(one["time"], UTC) if "time" in one else None
            for name, one in listed.items()
            if name != "."
        }

    @cached_property
    def segments(self) -> frozenset[str]:
        """The WAL segments that are there, by their names of 24 hex digits."""
        return self.list_segments(LISTING_SECONDS)

    def list_segments(self, deadline: float) -> frozenset[str]:
        """As `segments`, within so many seconds. Raises OutcomeUnknownError when they are over."""
        if not self.path:
            return frozenset()
        said = self.run("--recurse", "repo-ls", self.path, deadline=deadline)
        return frozenset(re.findall(r"(?:^|/)([0-9A-F]{24})-", said, re.MULTILINE))

    def time_of(self, segment: str) -> datetime | None:
        """When a WAL segment was archived (UTC); None when it is not there."""
        return self._segments(segment[:16]).get(segment)

    def gap(self, timeline: int) -> str:
        """Where the newest gap in a timeline's WAL is, in words."""
        behind = self.unbroken.get(timeline)
        if not behind:
            return f"it holds nothing of timeline {timeline}"
        before = max((one for one in self.segments if timeline_of(one) == timeline and one < behind), default="")
        return f"{before} is followed by {behind}" if before else f"it begins with {behind}"

    @cached_property
    def unbroken(self) -> dict[int, str]:
        """Of each timeline the first segment of the run without a gap that ends with its newest one."""
        return unbroken_since(self.segments)

    @cached_property
    def timelines(self) -> dict[int, datetime]:
        """When the history of each timeline but the first was archived (UTC), which is when it went live."""
        files = self._list(self.path)
        return {int(name[:8], 16): time for name, time in files.items() if name.endswith(".history") and time}

    def lineage(self, current: int | None, server: Server) -> Lineage:
        """The timelines that lead to `current` (None: to the newest in the archive).

        A history that is not archived is read from the pg_wal of `server`.
        """
        files, times = self._list(self.path), self.timelines
        newest = max([timeline_of(name) for name in files if re.fullmatch(r"[0-9A-F]{16}", name)] + [*times, 1])
        wanted = current or newest
        if wanted in times:
            history = self.run("repo-get", f"{self.path}/{wanted:08X}.history")
        else:
            history = server.shell.read(f"{server.data}/pg_wal/{wanted:08X}.history") or ""
        return Lineage.of(wanted, history, times)

"""The archive of a cluster's WAL in pgBackRest's repositories: which segments and timelines it holds, and its gaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from salvor.errors import CommandError
from salvor.postgres.server import Server
from salvor.postgres.wal import Lineage, end_of, timeline_of, unbroken_since

LISTING_SECONDS = 600.0
_MISSING = 1
"""How repo-get ends then."""


@dataclass(frozen=True)
class WalArchive:
    """The WAL of one version of the cluster, at `paths` by the number of each repository that can be read (empty: there
    is none yet). A restore takes a segment from whichever has it. `run` gives what a pgBackRest command prints.
    """

    paths: Mapping[int, str]
    run: Callable[..., str]

    def reaches(self, timeline: int, segment_size: int) -> int:
        """An LSN in the newest segment of a timeline's WAL in the archive, which a replay gets past; 0 when nothing of
        it is there. The segment's end it may not reach: the last record often goes on in the next segment.
        `segment_size` in bytes: initdb chose it (16 MB if not told, 64 MB at Amazon's), and the names do not tell it.
        """
        folders = [name for name in self._list() if re.fullmatch(rf"{timeline:08X}[0-9A-F]{{8}}", name)]
        segments = self._segments(max(folders)) if folders else {}
        return end_of(max(segments), segment_size) - segment_size + 1 if segments else 0

    @cached_property
    def newest(self) -> datetime | None:
        """When the newest WAL segment was archived (UTC); None when there is none."""
        folders = [name for name in self._list() if re.fullmatch(r"[0-9A-F]{16}", name)]
        segments = self._segments(max(folders)) if folders else {}
        return max(segments.values(), default=None)

    def _segments(self, folder: str) -> dict[str, datetime]:
        listed = self._list(f"/{folder}")
        return {name[:24]: time for name, time in listed.items() if time and re.match(r"[0-9A-F]{24}-", name)}

    def _list(self, folder: str = "") -> dict[str, datetime | None]:
        """The files (with the time since when any repository has them) and folders there."""
        found: dict[str, datetime | None] = {}
        for number in self.paths:
            # repo-ls knows no --stanza where it gets a path, and takes the passphrase of the stanza from its files.
            arguments = ("--output=json", f"--repo={number}", "repo-ls", f"{self.paths[number]}{folder}")
            for name, one in json.loads(self.run(*arguments)).items():
                if name == ".":
                    continue
                time = datetime.fromtimestamp(one["time"], UTC) if "time" in one else None
                earlier = found.get(name)
                found[name] = min(time, earlier) if time and earlier else time or earlier
        return found

    def _get(self, number: int, name: str) -> str:
        """The text of a file in one repository; empty when that does not have it."""
        try:
            return self.run("--ignore-missing", f"--repo={number}", "repo-get", f"{self.paths[number]}/{name}")
        except CommandError as error:
            if error.exit_code_of_command != _MISSING:
                raise
            return ""

    @cached_property
    def segments(self) -> frozenset[str]:
        """The WAL segments that are there, by their names of 24 hex digits."""
        return self.list_segments(LISTING_SECONDS)

    def list_segments(self, deadline: float) -> frozenset[str]:
        """As `segments`, within so many seconds. Raises CannotError when they are over."""
        said = [
            self.run("--recurse", f"--repo={number}", "repo-ls", path, deadline=deadline / len(self.paths))
            for number, path in self.paths.items()
        ]
        return frozenset(re.findall(r"(?:^|/)([0-9A-F]{24})-", "\n".join(said), re.MULTILINE))

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
        return _begun(self._list())

    def lineage(self, current: int | None, server: Server) -> Lineage:
        """The timelines that lead to `current` (None: to the newest in the archive).

        A history that is not archived is read from the pg_wal of `server`. Its file there also tells when a timeline
        went live where the archive took the history late, as after a failover to a server whose archiver failed.
        """
        files = self._list()
        times = _begun(files)
        newest = max([timeline_of(name) for name in files if re.fullmatch(r"[0-9A-F]{16}", name)] + [*times, 1])
        wanted = current or newest
        name = f"{wanted:08X}.history"
        if wanted in times:
            asked = (self._get(number, name) for number in self.paths)
            history = next(filter(None, asked), "")
        else:
            history = server.shell.read(f"{server.data}/pg_wal/{name}") or ""
        written = _written(server) if history else {}
        return Lineage.of(wanted, history, {one: min(time, written.get(one, time)) for one, time in times.items()})


def _written(server: Server) -> dict[int, datetime]:
    """When the history of each timeline in a server's pg_wal was written (UTC): it is the first thing of a timeline."""
    script = 'cd -- "$1/pg_wal" 2>/dev/null && stat -c "%Y %n" -- *.history 2>/dev/null'
    listed = server.shell.run(["sh", "-c", script, "sh", server.data], check=False).stdout
    found = re.findall(r"^(\d+) ([0-9A-F]{8})\.history$", listed, re.MULTILINE)
    return {int(name, 16): datetime.fromtimestamp(int(seconds), UTC) for seconds, name in found}


def _begun(files: Mapping[str, datetime | None]) -> dict[int, datetime]:
    return {int(name[:8], 16): time for name, time in files.items() if name.endswith(".history") and time}

"""What every kind of system has in common that archives of a whole platform can hold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from salvor import scratch
from salvor.archive.settings import ArchivesSettings
from salvor.archive.taking import Company
from salvor.archive.write import Parts, write
from salvor.change import Progress
from salvor.errors import UsageError
from salvor.roles import Restorable
from salvor.system import verb

_DAY = 24 * 3600.0


class Archived(Restorable):
    """A system that can be a member of an archive. Its settings have `archives`."""

    @abstractmethod
    def pack(self, scratch: Path) -> Iterator[bytes]:
        """What of it belongs into an archive, as a tar stream with one file or folder on top. `scratch` is an empty
        folder of ours. Raises CannotError.
        """

    def company(self, source: str) -> Company:
        """Who stages from the archive `source` now, this system among them: one reading serves all of them."""

        def names() -> list[str]:
            changes = [one for one in self.context.under_way() if one.arguments.get("source") == source]
            return [f"{self.context.incident}/{one.system}" for one in changes if one.verb == "stage"]

        return Company(f"{self.context.incident}/{self.name}", names)

    @verb(deadline=_DAY)
    def write_archive(self, name: str, systems: list[str]) -> Iterator[Progress]:
        """Write an archive of these systems, among them this one, into the folder that its settings name."""
        settings = self.settings.archives
        assert isinstance(settings, ArchivesSettings)
        with scratch.folder("packing", self.context.folder.parent) as packing:
            yield from write(settings, name, self._parts(systems, packing), packing)

    def _parts(self, systems: list[str], packing: Path) -> Parts:
        parts = {}
        for one in map(self.context.system_of, systems):
            settings = one.settings.archives if isinstance(one, Archived) else None
            if settings is None or not isinstance(one, Archived):
                raise UsageError(f"{one.name} is in no archive: its settings have no archives.")
            parts[settings.member] = partial(one.pack, packing / one.name)
        return parts

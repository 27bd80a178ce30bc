"""Whether the repositories of a tree would give it back: what `restic check` says, and for those on a disk their room
and permissions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from salvor.archive import audit as archives
from salvor.backups import audit
from salvor.backups.audit import Audited
from salvor.change import Finding, Level
from salvor.errors import CannotError
from salvor.files.said import DamagedError

if TYPE_CHECKING:
    from salvor.systems.files import Files


def look(system: Files, *, deep: bool) -> Iterator[Audited]:
    """What is wrong with each repository, and with the archives. `deep` reads every byte of them."""
    for repository in system.repositories:
        try:
            repository.check(deep=deep)
        except DamagedError as error:
            yield audit.integrity(system.name, [error.what], f"repository {repository.name}")
        except CannotError as error:
            yield Finding(system.name, audit.INTEGRITY, Level.UNKNOWN, detail=error.what)
        else:
            how = "restic check --read-data" if deep else "restic check"
            yield audit.integrity(system.name, [], f"repository {repository.name}", how=how)
        if repository.location.startswith("/"):
            yield from audit.place(system.shell, system.name, repository.name, repository.location)
    if system.settings.archives:
        yield from archives.look(system.settings.archives, system.shell, system.name, deep=deep)

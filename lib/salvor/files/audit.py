"""Whether the repositories of a tree would give it back: what `restic check` says, and for those on a disk their room
and permissions.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from salvor.archive import audit as archives
from salvor.backups import audit
from salvor.backups.audit import Audited
from salvor.change import Finding, Level
from salvor.errors import CannotError
from salvor.files.restic import Repository
from salvor.files.said import DamagedError

if TYPE_CHECKING:
    from salvor.systems.files import Files


def look(system: Files, *, deep: bool) -> Iterator[Audited]:
    """What is wrong with each repository, and with the archives. `deep` reads every byte of them."""
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="audit") as pool:
        yield from pool.map(partial(_check, system.name, deep), system.repositories)
    for repository in system.repositories:
        if repository.location.startswith("/"):
            yield from audit.place(system.shell, system.name, repository.name, repository.location)
    if system.settings.archives:
        yield from archives.look(system.settings.archives, system.shell, system.name, deep=deep)


def _check(system: str, deep: bool, repository: Repository) -> Finding:
    """What restic says of one repository."""
    try:
        repository.check(deep=deep)
    except DamagedError as error:
        figure = f"repository {repository.name} is damaged"
        return Finding(system, audit.INTEGRITY, Level.FAIL, figure, detail=error.what)
    except CannotError as error:
        return Finding(system, audit.INTEGRITY, Level.UNKNOWN, f"repository {repository.name}", detail=error.what)
    how = "restic check --read-data" if deep else "restic check"
    return audit.integrity(system, [], f"repository {repository.name}", how=how)

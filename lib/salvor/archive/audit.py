"""What is wrong with the archives of a platform, and the removal of those that no policy keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from salvor import bucket, shell
from salvor.archive import listing
from salvor.archive.members import Members
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import SUM, Archive, opened, stem_of
from salvor.archive.vetting import Names
from salvor.backups import audit, removal
from salvor.backups.audit import Audited
from salvor.change import Progress
from salvor.errors import CannotError
from salvor.shell import Shell


def look(settings: ArchivesSettings, there: Shell, system: str, *, deep: bool) -> Iterator[Audited]:
    """Their integrity, room and permissions. `deep` decrypts and unpacks all of them, and keeps nothing.

    Raises CannotError when the folder cannot be read.
    """
    found = listing.archives(settings.folder, there)
    problems = [f"{one.name} is empty" for one in found if not one.size]
    if deep:
        problems += [said for one in found if one.size and (said := _damage(one, settings, there))]
    count = f"{len(found)} archive{'s' if len(found) != 1 else ''}"
    yield audit.integrity(system, problems, count, how="unpacked" if deep else "")
    if not settings.folder.startswith("s3://"):
        here = Path(settings.folder).is_dir()
        yield from audit.place(shell.local() if here else there, system, settings.folder, settings.folder)


def _damage(archive: Archive, settings: ArchivesSettings, there: Shell) -> str:
    """Why an archive cannot give the system back: it cannot be read to its end, or lacks it; empty when it can."""
    names, has_it = Names(archive.location, stem_of(archive.name) or archive.name), False
    try:
        with opened(archive, settings, there) as unpacked:
            for info in Members(unpacked.chunk, archive.name):
                has_it |= names.within(names.take(info), settings.member) is not None
            while unpacked.chunk():
                pass
        if not has_it:
            raise names.without(settings.member)
    except CannotError as error:
        return error.what
    return ""


def remove(settings: ArchivesSettings, there: Shell, names: Sequence[str]) -> Iterator[Progress]:
    """Remove archives by their names, each with the checksum beside it. Raises CannotError."""
    doomed = {one.name: one for one in listing.archives(settings.folder, there) if one.name in names}
    yield from removal.each(list(doomed), lambda name: _remove(doomed[name], there))


def _remove(archive: Archive, there: Shell) -> None:
    """Where a bucket keeps versions, the very versions go, so that the room is free."""
    if archive.location.startswith("s3://"):
        name, key = bucket.split(archive.location)
        with bucket.asking(archive.location, safe="the archives that the policy keeps") as s3:
            for each, version in bucket.versions(s3, name, key):
                if each in (key, f"{key}{SUM}"):
                    s3.delete_object(Bucket=name, Key=each, VersionId=version)
    else:
        where = there if archive.there else shell.local()
        where.run(["rm", "-f", "--", archive.location, f"{archive.location}{SUM}"])

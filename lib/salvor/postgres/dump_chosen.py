"""The dump that a restore reads, of its own or in an archive of the whole platform: chosen, found again, brought."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from salvor import durable, shell
from salvor.archive import listing
from salvor.archive.extract import extract
from salvor.archive.source import refuse_unreadable, stem_of
from salvor.archive.vetting import TRUST_ARCHIVE
from salvor.change import Backup, Progress
from salvor.errors import CannotError, SalvorError
from salvor.postgres import dump_find, dumps
from salvor.postgres.dump_find import Source
from salvor.shell import Shell
from salvor.streams import CHUNK
from salvor.system import Wish

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres

_WHOLE = re.compile(r"\d{8}_\d{6}|\.enc$|\.(tar\.|t)(gz|zst)$")


def backups(system: Postgres) -> list[Backup]:
    """The archives that the dump is in, newest first. Raises CannotError when they cannot be read."""
    settings = system.settings.archives
    return listing.backups(settings, host(system), system=system.name, way="logical") if settings else []


def find(system: Postgres, wish: Wish) -> Source:
    """The dump that the wish means: one of its own or one in an archive; of two, the newer one.

    Raises UsageError, CannotError.
    """
    found: list[Source] = []
    refused: list[SalvorError] = []
    looks: list[Callable[[], Source | None]] = [
        lambda: _in_archive(system, wish),
        lambda: dump_find.find(system.settings.dumps, system.settings.database, wish),
    ]
    for look in looks:
        try:
            one = look()
        except SalvorError as error:
            refused.append(error)
            continue
        found += [one] if one else []
        if one and wish.source != "latest":
            return one
    if not found:
        raise refused[0]
    return max(found, key=lambda one: one.taken or datetime.min.replace(tzinfo=UTC))


def source(system: Postgres, name: str, within: str) -> Source:
    """The dump of that name, or the one `within` the archive of that name. Raises UsageError, CannotError."""
    if not within:
        return dump_find.source(system.settings.dumps, name)
    found = listing.locate(name, host(system))
    return Source(found.location, None, found.taken, None, member=within)


def bring(system: Postgres, source: Source, scratch: Path, *, trusted: bool) -> Generator[Progress, None, Path]:
    """Bring it to this machine, below `scratch` unless it is here; a second call finds it. Returns its path.

    `trusted` lets an archive have what is refused otherwise. Raises CannotError.
    """
    if source.member:
        return (yield from _take_out(system, source, scratch, trusted=trusted))
    return (yield from dump_find.bring(system.settings.dumps, source, scratch))


def _in_archive(system: Postgres, wish: Wish) -> Source | None:
    """The dump in the archive that the wish means; None when it means none."""
    settings, named = system.settings.archives, listing.is_named(wish.source)
    if settings is None or (named and not _is_archive(wish.source)):
        return None
    if not named and wish.source != "latest" and stem_of(wish.source) is None:
        return None
    found = listing.find(settings, host(system), wish)
    refuse_unreadable(found, settings, host(system))
    return Source(found.location, None, found.taken, None, member=settings.member)


def trust(wish: Wish) -> dict[str, str]:
    """The argument that lets an archive have what is refused otherwise, with the reason."""
    overrides = wish.overrides or {}
    return {"archive_trusted_because": overrides[TRUST_ARCHIVE]} if TRUST_ARCHIVE in overrides else {}


def _take_out(system: Postgres, source: Source, scratch: Path, *, trusted: bool) -> Generator[Progress, None, Path]:
    """Take the dump out of its archive, which is read to its end first: only then is it known that it is whole."""
    place = _taken_out(system, scratch)
    building = place.with_name(f".{place.name}.new")
    path = place / f"{hashlib.sha256(source.name.encode()).hexdigest()[:12]}-{PurePosixPath(source.member).name}"
    if not path.exists():
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(building, ignore_errors=True)
        durable.make_folder(building)
        there = host(system)
        archive = listing.locate(source.name, there)
        yield from extract(
            archive, system.settings.archives, source.member, shell.local(), str(building),
            tree=path.name, trusted=trusted, host=there, in_turn=False,  # to load it takes longest, and comes after it
        )  # fmt: skip
        building.rename(place)
    return path


def pack(system: Postgres, scratch: Path) -> Iterator[bytes]:
    """A dump of the live primary, in the form that the member's name says, as a tar stream. It is of one moment."""
    settings, primary = system.settings.archives, system.site.view().primary
    assert settings
    if not primary.is_up or primary.is_fenced:
        raise CannotError(f"{system.name}: no live primary to dump: {primary.describe()}.", hint="inv assess")
    name = PurePosixPath(settings.member).name
    form = ["--format=plain", *(["--compress=1"] if name.endswith(".gz") else [])]
    path = scratch / name
    shutil.rmtree(scratch, ignore_errors=True)
    durable.make_folder(scratch)
    try:
        dumps.to_file(
            primary.member.server, system.settings.database, path, form if ".sql" in name else ["--format=custom"]
        )
        with path.open("rb") as file:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = path.stat().st_size, int(path.stat().st_mtime), 0o600
            yield info.tobuf(tarfile.GNU_FORMAT)
            while piece := file.read(CHUNK):
                yield piece
            yield bytes(-info.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def forget(system: Postgres, scratch: Path) -> None:
    """Remove what was taken out of an archive: it is loaded, or not wanted any more."""
    place = _taken_out(system, scratch)
    for folder in (place, place.with_name(f".{place.name}.new")):
        shutil.rmtree(folder, ignore_errors=True)


def _taken_out(system: Postgres, scratch: Path) -> Path:
    """The systems of an incident share its folder."""
    return scratch / f"archived-{system.name}"


def _is_archive(name: str) -> bool:
    """Whether a file is an archive by its name; what has no date in it and no compression may be pg_dump's own tar."""
    last = name.rpartition("/")[2]
    return stem_of(last) is not None and _WHOLE.search(last) is not None


def host(system: Postgres) -> Shell:
    """The machine where archives lie that are not here: a member's."""
    return shell.on_demand(f"the host of {system.name}", lambda: system.site.reachable_member().server.shell)

"""The dump that a restore reads, of its own or in an archive of the whole platform: chosen, found again, brought."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from salvor import durable, shell
from salvor.archive import listing
from salvor.archive.extract import taking_out
from salvor.archive.source import refuse_unreadable, stem_of
from salvor.archive.taking import Taking
from salvor.archive.vetting import TRUST_ARCHIVE
from salvor.change import READ_FROM, Backup, Finding, Level, Progress
from salvor.errors import CannotError, SalvorError
from salvor.postgres import dump_find, dumps
from salvor.postgres.dump_find import Source
from salvor.shell import Shell
from salvor.streams import CHUNK
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres

_ARCHIVED = re.compile(r"\d{8}_\d{6}|\.enc$|\.(tar\.|t)(gz|zst)$")
_WHOLE = "whole"
"""The file beside a dump that was taken out of an archive, when all of that was read and sound: it says which one."""


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
    return dump_find.newest(found)


def source(system: Postgres, name: str, within: str) -> Source:
    """The dump of that name, or the one `within` the archive of that name. Raises UsageError, CannotError."""
    if not within:
        return dump_find.source(system.settings.dumps, name)
    found = listing.locate(name, host(system))
    return Source(found.location, None, found.taken, None, member=within)


@dataclass(frozen=True)
class Coming:
    """A dump on its way to this machine: it can be loaded when it is `out`, and what was loaded counts when it is known
    to be `whole`. `path` is where it comes to; `archive` is the address of the one that it is in, or was; `taking` is
    None when it is there already.
    """

    path: Path
    archive: str = ""
    taking: Taking | None = None

    def out(self) -> Iterator[Progress]:
        """Wait until it is there. Raises CannotError."""
        if self.taking:
            yield from self.taking.out()

    def whole(self, system: str) -> Iterator[Progress | Finding]:
        """Wait until all of the archive was read, and found to be sound, and say which one it was. Raises
        CannotError.
        """
        said = self.path.with_name(_WHOLE)
        if self.taking:
            extracted = yield from self.taking.whole()
            durable.replace(said, extracted.identity.encode())
        if self.archive:
            yield Finding(system, READ_FROM, Level.PASS, said.read_text(), detail=self.archive)


@contextmanager
def coming(system: Postgres, source: Source, scratch: Path, *, trusted: bool) -> Iterator[Coming]:
    """The dump in an archive, unpacked below `scratch`, where a second call finds it if it is known to be whole.

    `trusted` lets an archive have what is refused otherwise. Raises CannotError.
    """
    place = _taken_out(scratch)
    path = place / f"{hashlib.sha256(source.name.encode()).hexdigest()[:12]}-{PurePosixPath(source.member).name}"
    if path.exists() and path.with_name(_WHOLE).exists():
        yield Coming(path, source.name)
        return
    shutil.rmtree(place, ignore_errors=True)
    durable.make_folder(place)
    there = host(system)
    try:
        with taking_out(
            listing.locate(source.name, there), system.settings.archives, source.member, shell.local(), str(place),
            tree=path.name, trusted=trusted, host=there, company=system.company(source.name),
        ) as taking:  # fmt: skip
            yield Coming(path, source.name, taking)
    finally:
        if not path.with_name(_WHOLE).exists():
            shutil.rmtree(place, ignore_errors=True)


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


def _taken_out(scratch: Path) -> Path:
    return scratch / "archived"


def _is_archive(name: str) -> bool:
    """Whether a file is an archive by its name; what has no date in it and no compression may be pg_dump's own tar."""
    last = name.rpartition("/")[2]
    return stem_of(last) is not None and _ARCHIVED.search(last) is not None


def host(system: Postgres) -> Shell:
    """The machine where archives lie that are not here: a member's."""
    return shell.OnDemand(f"the host of {system.name}", lambda: system.site.reachable_member().server.shell)

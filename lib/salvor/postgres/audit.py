"""What is wrong with the repositories of a cluster's backups, and with the WAL that goes there. Reads only."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from salvor import clock, secrets, shell
from salvor.archive import audit as archives
from salvor.backups import audit
from salvor.backups.audit import WAL, Audited
from salvor.change import Finding, Level
from salvor.plain import amount
from salvor.postgres import dump_chosen
from salvor.postgres.backrest import NAME, Repository
from salvor.postgres.cluster import Sighting
from salvor.postgres.dump_store import open_store
from salvor.postgres.stored import Stored

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres

_SEGMENT = re.compile(r"[0-9A-F]{24}")
_WAITING = 10
"""So many WAL segments that wait to be archived are more than a burst."""
_ARCHIVER = """
select current_setting('archive_mode'), current_setting('archive_command'), last_archived_wal, last_archived_time,
    last_failed_wal, last_failed_time,
    (select count(*) from pg_ls_archive_statusdir() where name like '%.ready')
from pg_stat_archiver
"""


def look(system: Postgres, *, deep: bool) -> Iterator[Audited]:
    """The dumps, the pgBackRest repositories and the archiver. `deep` reads every byte of them."""
    looks = []
    if system.settings.dumps:
        looks.append(_of_dumps(system.name, system.settings.dumps, deep))
    if settings := system.settings.archives:
        looks.append(archives.look(settings, dump_chosen.host(system), system.name, deep=deep))
    if system.settings.pgbackrest:
        looks.append(_of_pgbackrest(system, deep))
    yield from audit.each(system.name, looks)


def _of_pgbackrest(system: Postgres, deep: bool) -> Iterator[Audited]:
    primary = system.site.view().primary
    said = _ask_archiver(primary)  # before the archive is listed, or it would be ahead of it
    repository = system.site.repository(system.site.reachable_member())
    yield from _of_repository(system.name, repository, deep)
    yield from _lacking(system.name, repository, primary.system_identifier)
    yield _of_wal(system.name, said, repository)
    yield from _places(system.name, repository)


def _of_dumps(name: str, place: str, deep: bool) -> Iterator[Audited]:
    store = open_store(place)
    manifests = store.manifests()
    problems = [said for manifest in manifests if (said := store.damaged(manifest, deep=deep))]
    yield audit.integrity(name, problems, amount(len(manifests), "dump"), how="checksums" if deep else "sizes")
    if not place.startswith("s3://"):
        yield from audit.place(shell.local(), name, place, str(Path(place).expanduser()))


def _of_repository(name: str, repository: Repository, deep: bool) -> Iterator[Finding]:
    problems = [_lacks(one, taken, repository) for one, taken in repository.incomplete()]
    segments = repository.archive.segments
    for one in repository.stored:
        if repository.is_of(one.system_identifier) and (lost := sorted(set(one.wal) - segments)):
            problems.append(f"{one.label} lacks the WAL {lost[0]}, without which it is not consistent")
    problems += repository.verify() if deep else []
    yield audit.integrity(
        name, problems, amount(len(repository.stored), "backup"), how="pgbackrest verify" if deep else ""
    )


def _lacking(name: str, repository: Repository, system_identifier: str) -> Iterator[Finding]:
    """Each repository without a backup of that cluster (empty: of any), or of which that is not known."""
    for number, mended_by in repository.lacking(system_identifier).items():
        figure = f"no backup of this cluster in {NAME} {number}"
        yield Finding(name, audit.INTEGRITY, Level.FAIL, figure, detail=mended_by)
    for number, why in repository.unread.items():
        yield Finding(name, audit.INTEGRITY, Level.UNKNOWN, f"{NAME} {number} cannot be read", detail=why)


def _gap(name: str, repository: Repository) -> Finding | None:
    """Whether WAL is missing behind the newest backup, or between the newest full one and that."""
    mine = [one for one in repository.stored if repository.is_of(one.system_identifier) and not one.broken]
    full = next((one for one in mine if one.kind == "full"), None)
    if not full or repository.leads_on(full):
        return None
    figure = f"a gap in the archive: {repository.archive.gap(full.timeline)}"
    first = next((one for one in reversed(mine) if one.stopped > full.stopped and repository.leads_on(one)), None)
    if first:
        detail = f"what was between {full.label} and {first.label} cannot be reached; all later moments can"
        return Finding(name, WAL, Level.WARN, figure, detail=detail)
    detail = (
        f"nothing past it can be reached from {mine[0].label}; a new backup, --kind=incr is enough, makes a new begin"
    )
    return Finding(name, WAL, Level.FAIL, figure, detail=detail)


def _lacks(one: Stored, taken: int, repository: Repository) -> str:
    """What a backup lacks of what was written, and which others cannot be restored without it either."""
    figure = f"lacks {one.stored - taken} of {one.stored} bytes" if taken else "is not there any more"
    built_on = ", ".join(each.label for each in repository.stored if one.label in each.needs)
    return f"{one.label} {figure}" + (f"; {built_on} are built on it" if built_on else "")


def _places(name: str, repository: Repository) -> Iterator[Audited]:
    """Where pgBackRest's repositories lie on this machine, by its configuration."""
    settings = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True, delimiters=("=",))
    settings.read_string(repository.shell.read(repository.config) or "")
    said = {**_section(settings, "global"), **_section(settings, repository.stanza)}
    for number in repository.numbers:
        prefix = f"repo{number}-"
        if said.get(f"{prefix}type", "posix") == "posix" and f"{prefix}host" not in said:
            path = said.get(f"{prefix}path", "/var/lib/pgbackrest")
            # pgBackRest makes files 640 and folders 750: for the group that the server is in.
            yield from audit.place(repository.shell, name, f"{NAME} {number}", path, open_to="007")


def _section(settings: configparser.ConfigParser, name: str) -> dict[str, str]:
    return {key: value or "" for key, value in settings.items(name)} if settings.has_section(name) else {}


@dataclass(frozen=True)
class _Archiver:
    """What the archiver of the live primary says; `waiting` is how many segments it has still to archive."""

    mode: str
    command: str
    archived: str | None
    archived_at: datetime | None
    failed: str | None
    failed_at: datetime | None
    waiting: int


def _ask_archiver(primary: Sighting) -> _Archiver | str:
    """What the archiver says, or why it cannot be asked."""
    if not primary.is_up:
        return primary.describe()
    try:
        with primary.member.server.session(deadline=10.0) as connection:
            row = connection.execute(_ARCHIVER).fetchone()
    except psycopg.Error as error:
        return secrets.mask(str(error)).strip()
    assert row
    return _Archiver(*row)


def _of_wal(name: str, said: _Archiver | str, repository: Repository) -> Finding:
    """Whether the live primary's WAL arrives in the repository, without a gap since the newest full backup."""
    if isinstance(said, str):
        return Finding(name, WAL, Level.UNKNOWN, "the archiver cannot be asked", detail=said)
    if said.mode == "off" or not said.command.strip():
        return Finding(name, WAL, Level.FAIL, "nothing is archived", detail=f"archive_mode is {said.mode}")
    if said.failed_at and (said.archived_at is None or said.failed_at > said.archived_at):
        age = clock.write_duration(clock.age(said.archived_at).total_seconds()) if said.archived_at else "its begin"
        return Finding(name, WAL, Level.FAIL, f"the archiver fails since {age}", detail=f"{said.failed} was refused")
    if _SEGMENT.fullmatch(said.archived or "") and said.archived not in repository.archive.segments:
        detail = f"{said.archived} was archived, says the server; is its archive_command pgBackRest's?"
        return Finding(name, WAL, Level.FAIL, "it does not arrive in the repository", detail=detail)
    if gap := _gap(name, repository):
        return gap
    level = Level.WARN if said.waiting >= _WAITING else Level.PASS
    detail = f"the newest one that was archived is {said.archived}" if said.archived else ""
    return Finding(name, WAL, level, f"{said.waiting} segments wait", str(_WAITING), detail=detail)

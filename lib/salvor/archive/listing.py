"""Which archives there are, and the one that the operator means: here, on the system's own host, or in S3."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from salvor import bucket, clock
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import Archive, stem_of
from salvor.change import Backup
from salvor.errors import CannotError, UsageError
from salvor.shell import Shell
from salvor.wish import Wish

_DATED = re.compile(r"(\d{8})_(\d{6})")
# A name with a line break in it is none that a backup gives.
_LIST = r"""
[ -d "$1" ] || exit 44
cd -- "$1" && for name in *.tar *.tar.* *.tgz *.tgz.*; do
    case $name in *"
"*) continue ;; esac
    [ -f "$name" ] && echo "$(stat -L -c %s -- "$name") $name"
done
exit 0
"""
_WHEN = 'for time in "$@"; do date -d "$time" +%s || exit 1; done'


def backups(settings: ArchivesSettings, there: Shell, *, system: str, way: str) -> list[Backup]:
    """The archives of the folder, newest first. Raises CannotError when it cannot be read; one that is not there yet
    holds none.
    """
    found = [one for one in archives(settings.folder, there) if one.taken]
    held = _holds(settings.folder, found)
    return [
        Backup(
            id=one.name,
            system=system,
            way=way,
            kind="archive",
            taken=one.taken,
            size=one.size,
            location=one.location,
            usable=one.size > 0,
            detail=f"{settings.member} in it; time by the clock of {_clock(one, there)}" if one.size else "it is empty",
            repository=settings.folder,
            hold=held.get(one.location, ""),
        )
        for one in found
        if one.taken
    ]


def _holds(folder: str, found: Sequence[Archive]) -> dict[str, str]:
    """Of archives in S3, those that it refuses to remove, by their locations, and why."""
    if not folder.startswith("s3://"):
        return {}
    keys = {bucket.split(one.location)[1]: one.location for one in found}
    return {keys[key]: why for key, why in bucket.holds(folder, list(keys)).items()}


def archives(folder: str, there: Shell) -> list[Archive]:
    """The archives in a folder or below a prefix, newest first: what has a date and a time in its name, and is a tar.

    The time is by the clock of the machine where the archive lies; for S3, which has none, by that of this machine.
    """
    if folder.startswith("s3://"):
        return _dated(_in_bucket(folder), there)
    path = Path(folder)
    try:
        if path.is_dir():
            files = [(one.name, one.stat().st_size) for one in path.iterdir() if one.is_file()]
            return _dated([Archive(f"{folder}/{name}", False, None, size) for name, size in files], there)
    except OSError as error:
        raise CannotError(
            f"The archives in {folder} cannot be read: {error.strerror}.", hint=f"ls -l {folder}"
        ) from error
    result = there.run(["sh", "-c", _LIST, "sh", folder], check=False)
    if result.exit_code not in (0, 44):
        raise there.failed(["ls", folder], result.exit_code, result.stderr)
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    return _dated([Archive(f"{folder}/{name}", True, None, int(size)) for size, _, name in lines], there)


def _in_bucket(folder: str) -> list[Archive]:
    found = []
    name, prefix = bucket.split(f"{folder}/")
    with bucket.asking(folder) as s3:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix, Delimiter="/"):
            found += [(entry["Key"], entry["Size"]) for entry in page.get("Contents", [])]
    return [Archive(f"s3://{name}/{key}", False, None, size) for key, size in found]


def _dated(found: Iterable[Archive], there: Shell) -> list[Archive]:
    known = {one: said for one in found if (said := _said(one.name))}
    moments = _moments(list(known.values()), there if any(one.there for one in known) else None)
    dated = [Archive(one.location, one.there, taken, one.size) for one, taken in zip(known, moments, strict=True)]
    return sorted(dated, key=lambda one: (one.taken, one.name), reverse=True)


def _said(name: str) -> str:
    """The date and time in an archive's name, as a person would write it; empty when it has none or is no archive."""
    stem = stem_of(name)
    found = _DATED.search(stem) if stem and not name.startswith(".") else None
    try:
        return (
            time.strftime("%Y-%m-%d %H:%M:%S", time.strptime("".join(found.groups()), "%Y%m%d%H%M%S")) if found else ""
        )
    except ValueError:
        return ""


def _moments(said: Sequence[str], there: Shell | None) -> list[datetime]:
    """Those times by the clock of a machine (None: this one)."""
    if there is None:
        seconds = [time.mktime(time.strptime(one, "%Y-%m-%d %H:%M:%S")) for one in said]
    else:
        seconds = list(map(float, there.run(["sh", "-c", _WHEN, "sh", *said]).stdout.split())) if said else []
    return [datetime.fromtimestamp(one, UTC) for one in seconds]


def _clock(archive: Archive, there: Shell) -> str:
    return there.where if archive.there else "this machine"


# --- the one that is meant ---------------------------------------------------------------------------------------


def is_named(source: str) -> bool:
    """Whether `--from` names a file or an object rather than a backup's id."""
    return source.startswith(("s3://", "file://", "/", "./", "../", "~"))


def find(settings: ArchivesSettings | None, there: Shell, wish: Wish) -> Archive:
    """The archive that the wish means: its path or address, its name in the folder, or `latest`: the newest one, not
    later than `wish.at`, and before the damage.

    Reads only. Raises UsageError when there is no such thing, CannotError when it cannot be looked at.
    """
    if wish.target:
        raise UsageError(
            f"--target: an archive holds one moment only, so it cannot reach {wish.target}.", hint="use --at"
        )
    if is_named(wish.source):
        return locate(wish.source, there)
    if settings is None:
        raise UsageError("the inventory names no archives", hint="add archives: {folder: ..., member: ...}")
    found = archives(settings.folder, there)
    if wish.source != "latest":
        one = next((each for each in found if wish.source in (each.name, stem_of(each.name))), None)
        if one is None:
            raise UsageError(f"--from: there is no archive {wish.source!r} in {settings.folder}.", hint="inv backups")
        return one
    usable = [each for each in found if each.size and each.taken]
    if wish.at:
        usable = [each for each in usable if each.taken and each.taken <= wish.at]
    elif wish.damaged_at:
        usable = [each for each in usable if each.taken and each.taken < wish.damaged_at]
    if not usable:
        until = wish.at or wish.damaged_at
        before = f" of before {clock.write_time(until)}" if found and until else ""
        raise UsageError(
            f"--from: there is no archive{before} in {settings.folder}.",
            hint="name one: --from=/path/of/NAME_YYYYMMDD_HHMMSS.tar.gz",
        )
    return next((each for each in usable if each.taken and not clock.is_to_come(each.taken)), usable[0])


def locate(location: str, there: Shell) -> Archive:
    """The archive at a path (of this machine or, when it is not here, of the system's host) or an `s3://` address.

    Raises UsageError when there is nothing, CannotError when that cannot be told.
    """
    if location.startswith("s3://"):
        return _with_date(Archive(location, False, None, bucket.head(location)["ContentLength"]), there)
    path = (
        Path(unquote(urlsplit(location).path) if location.startswith("file://") else location).expanduser().absolute()
    )
    try:
        if path.is_file():
            return _with_date(Archive(str(path), False, None, path.stat().st_size), there)
    except OSError as error:
        raise CannotError(f"{path} cannot be read: {error.strerror}.", hint=f"ls -l {path}") from error
    said = there.run(["sh", "-c", '[ ! -f "$1" ] || stat -L -c %s -- "$1"', "sh", str(path)]).stdout.strip()
    if not said:
        raise UsageError(
            f"--from: there is no file {path}, here or on {there.where}.", hint="inv backups lists what there is"
        )
    return _with_date(Archive(str(path), True, None, int(said)), there)


def _with_date(archive: Archive, there: Shell) -> Archive:
    return next(iter(_dated([archive], there)), archive)

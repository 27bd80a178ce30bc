"""The dump that the operator means: a backup of ours or anybody's file, here or in a bucket; and bringing it here."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from salvor import bucket, clock, durable
from salvor.change import Progress
from salvor.errors import CannotError, UsageError
from salvor.postgres import dump_manifest, dumps
from salvor.postgres.dump_archive import CONTENTS
from salvor.postgres.dump_store import open_store
from salvor.postgres.fingerprint import Fingerprint
from salvor.wish import Wish

_JOURNAL = 16 * 10**6
"""Bytes that stay free beside what is downloaded: the incident's journal and record are on the same disk."""


@dataclass(frozen=True)
class Source:
    """What a logical restore reads. `name` is what the plan shows and `open_source` takes: an id, a path or an address.

    `manifest` is that of a backup of ours, None for a dump that somebody else made; `taken` is None when nobody knows.
    `member` is the dump's path in the archive of a whole platform that `name` is; empty: `name` is the dump.
    """

    name: str
    manifest: Mapping[str, Any] | None
    taken: datetime | None
    size: int | None
    member: str = ""


def find(place: str, database: str, wish: Wish) -> Source:
    """The dump that the wish means: an id, `latest`, the newest before `wish.at`, a path, `file://` or `s3://`.

    Reads only. Raises UsageError when there is no such thing, CannotError when it cannot be looked at.
    """
    if wish.target:
        raise UsageError(f"--target: a dump holds one moment only, so it cannot reach {wish.target}.", hint="use --at")
    named = wish.source
    if named.startswith(("s3://", "file://", "/", "./", "../", "~")):
        return source(place, named)
    manifests = open_store(place).manifests() if place else []
    if named == "latest":
        usable = [one for one in manifests if one["database"] == database]
        usable = [one for one in usable if wish.at is None or clock.read_time(one["taken"]) <= wish.at]
        if not usable:
            before = f" before {clock.write_time(wish.at)}" if wish.at else ""
            raise UsageError(
                f"--from: there is no dump of {database}{before} in {place or 'the inventory (dumps: is not set)'}.",
                hint="name one: --from=/path/of/dump.sql.gz",
            )
        return newest(map(_of_manifest, usable))
    return source(place, named)


def newest(found: Iterable[Source]) -> Source:
    """The newest of these; one that is yet to come, by a clock that was wrong, only when there is no other."""

    def age(one: Source) -> tuple[bool, datetime, str]:
        taken = one.taken or datetime.min.replace(tzinfo=UTC)
        return not clock.is_to_come(taken), taken, one.name

    return max(found, key=age)


def source(place: str, name: str) -> Source:
    """The source of that name. Raises UsageError when there is none."""
    if name.startswith("s3://"):
        return _in_bucket(name)
    if place and (manifest := open_store(place).manifest(name)):
        return _of_manifest(manifest)
    path = Path(unquote(urlsplit(name).path) if name.startswith("file://") else name).expanduser()
    try:
        if (path / dump_manifest.MANIFEST).is_file():
            manifest = dump_manifest.read_manifest((path / dump_manifest.MANIFEST).read_bytes())
            if manifest:
                return replace(_of_manifest(manifest), name=str(path.resolve()))
        if path.is_dir() and not (path / CONTENTS).exists():
            raise UsageError(
                f"--from: {path} is a folder without a file {CONTENTS}: not a dump of PostgreSQL.",
                hint="name the dump itself, not the folder it is in",
            )
        if path.exists():
            size = dumps.size_of(path) if path.is_dir() else path.stat().st_size
            return Source(str(path.resolve()), None, None, size)
    except OSError as error:
        raise CannotError(f"{path} cannot be read: {error.strerror}.", hint=f"ls -l {path}") from error
    raise UsageError(f"--from: there is no backup and no file {name!r}.", hint="inv backups lists what there is")


def _of_manifest(manifest: Mapping[str, Any]) -> Source:
    return Source(manifest["id"], manifest, clock.read_time(manifest["taken"]), manifest["size"])


def _in_bucket(uri: str) -> Source:
    parent, _, last = uri.rstrip("/").rpartition("/")
    if parent != "s3:/" and (manifest := open_store(parent).manifest(last)):
        return replace(_of_manifest(manifest), name=uri.rstrip("/"))
    key = bucket.split(uri)[1]
    if not key or key.endswith("/"):
        raise UsageError(f"--from: {uri} is no dump.", hint="name an object, or the folder of a backup")
    return Source(uri, None, None, bucket.head(uri)["ContentLength"])


def bring(place: str, source: Source, scratch: Path) -> Generator[Progress, None, Path]:
    """Bring the dump to this machine, and compare a backup of ours with its checksums. Returns its path.

    Downloads go to `scratch`; a second call finds them there. Raises CannotError.
    """
    remote = source.name.startswith("s3://")
    see_room(place, source, scratch)
    if source.manifest is None:
        if not remote:
            return Path(source.name)
        name, key = bucket.split(source.name)
        path = scratch / dump_manifest.safe_name(key.rpartition("/")[2])
        durable.make_folder(scratch)
        if not path.is_file() or path.stat().st_size != source.size:
            with bucket.moving(source.name) as s3:
                yield from bucket.download(s3, name, key, path, total=source.size, label=f"downloading {source.name}")
        return path
    if source.name.startswith("/") or remote:
        place = source.name.rpartition("/")[0]
    store = open_store(place)
    yield from store.fetch(source.manifest, scratch)
    folder = store.folder_of(source.manifest, scratch)
    yield from dump_manifest.check(folder, source.manifest)
    return folder / "dump"


def see_room(place: str, source: Source, scratch: Path) -> None:
    """See that a dump in a bucket fits into `scratch` on this machine. Raises CannotError with the figures."""
    in_bucket = source.name.startswith("s3://") or (source.manifest and place.startswith("s3://"))
    if not in_bucket or source.member:
        return
    there = sum(one.stat().st_size for one in scratch.rglob("*") if one.is_file())
    disk = next(folder for folder in scratch.absolute().parents if folder.is_dir())
    needed, free = (source.size or 0) - there, shutil.disk_usage(disk).free
    if needed + _JOURNAL > free:
        raise CannotError(
            f"{source.name} is downloaded to {disk} on this machine, which needs {-(-needed // 10**6):,} MB, and "
            f"{_JOURNAL // 10**6} MB for the journal, where {free // 10**6:,} MB are free.",
            safe="what is live is as it was",
            hint=f"make room there: df -h {shlex.quote(str(disk))}; then the same command again",
        )


def forget(scratch: Path) -> None:
    """Remove the dump that was brought to `scratch` and is loaded. What was stored beside it stays, to prove the load
    by.
    """
    for one in scratch.glob("*"):
        if (one / "dump").is_dir():
            shutil.rmtree(one / "dump", ignore_errors=True)
        elif one.is_dir():
            shutil.rmtree(one, ignore_errors=True)
        else:
            one.unlink()


def read_beside(dump: Path, name: str) -> Any:
    """What was stored beside a dump of ours (`cluster.json`, `fingerprint.json`); None when it is not there."""
    try:
        return json.loads((dump.parent / name).read_bytes())
    except (OSError, ValueError):
        return None


def fingerprint_of(dump: Path) -> Fingerprint | None:
    """The fingerprint that was stored beside a dump of ours; None when there is none."""
    data = read_beside(dump, "fingerprint.json")
    return Fingerprint.from_json(data) if data else None

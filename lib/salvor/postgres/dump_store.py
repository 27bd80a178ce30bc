"""Where dump backups are kept: a folder, or `s3://bucket/prefix`. A backup is there from the moment its manifest is.

<place>/<id>/manifest.json       what it is, with the size and SHA-256 of every other file; written last
<place>/<id>/dump/               what pg_dump wrote, directory format
<place>/<id>/globals.sql         roles with their password verifiers, their settings, tablespaces
<place>/<id>/cluster.json        what a new cluster for it needs: encoding, locale, settings, pg_hba.conf
<place>/<id>/fingerprint.json    what its content was
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from salvor import clock, durable, scratch
from salvor.bucket import asking, download, hold, moving, split, versions
from salvor.change import Backup, Progress
from salvor.errors import CannotError, RefusedError
from salvor.postgres.dump_manifest import MANIFEST, read_manifest, safe_name, sum_of, write_manifest

_PARTIAL = ".partial-"
_ABANDONED = timedelta(days=2)
"""After so long an upload without a manifest is what a killed run left."""


class Store(ABC):
    """One place that holds dump backups."""

    def __init__(self, place: str) -> None:
        self.place = place

    @abstractmethod
    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of every whole backup, in no order. Raises CannotError when the place cannot be read."""

    @abstractmethod
    def begin(self, identifier: str) -> Path:
        """A new, empty folder (mode 700) to build the backup in, after what killed runs left was removed."""

    @abstractmethod
    def finish(self, folder: Path, manifest: Mapping[str, Any]) -> Iterator[Progress]:
        """Keep what is in `folder` as a whole backup."""

    @abstractmethod
    def give_up(self, folder: Path) -> None:
        """Remove a backup that failed."""

    @abstractmethod
    def fetch(self, manifest: Mapping[str, Any], scratch: Path) -> Iterator[Progress]:
        """Bring its files to `folder_of(manifest, scratch)`."""

    @abstractmethod
    def folder_of(self, manifest: Mapping[str, Any], scratch: Path) -> Path:
        """The folder where its files are on this machine once they are fetched."""

    @abstractmethod
    def damaged(self, manifest: Mapping[str, Any], *, deep: bool) -> str:
        """What is wrong with a backup's files, by their sizes, or by their checksums too (`deep`); empty: nothing.

        Raises CannotError when the place cannot be read.
        """

    @abstractmethod
    def remove(self, identifier: str) -> None:
        """Remove a backup for good: first it is no backup any more, then its files go. One that is not there needs
        nothing; what a killed call left is removed by the next backup.
        """

    def manifest(self, identifier: str) -> dict[str, Any] | None:
        """The manifest of one backup; None when there is none of that id."""
        return next((one for one in self.manifests() if one["id"] == identifier), None)

    def backups(self, system: str) -> list[Backup]:
        """Its whole backups, newest first, in the name of `system`. Raises CannotError when it cannot be read."""
        return sorted(
            (self._backup(system, manifest) for manifest in self.manifests()),
            key=lambda backup: (backup.taken, backup.id),
            reverse=True,
        )

    def _backup(self, system: str, manifest: Mapping[str, Any]) -> Backup:
        return Backup(
            id=manifest["id"],
            system=system,
            way="logical",
            kind="dump",
            taken=clock.read_time(manifest["taken"]),
            size=manifest["size"],
            location=f"{self.place}/{manifest['id']}",
            fingerprint=manifest["fingerprint"],
            detail=f"database {manifest['database']} of PostgreSQL {manifest['server_version']}",
            repository=self.place,
            hold=manifest.get("hold", ""),
        )


def open_store(place: str) -> Store:
    """The store at a folder's path or at `s3://bucket/prefix`. Touches nothing."""
    return Bucket(place) if place.startswith("s3://") else Folder(place)


class Folder(Store):
    """A folder on this machine."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.root = Path(place).expanduser()

    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of every whole backup. A folder that is not there yet holds none."""
        found = []
        try:
            for path in self.root.glob(f"*/{MANIFEST}"):
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    manifest = read_manifest(path.read_bytes())
                    if manifest and manifest["id"] == path.parent.name and not path.parent.name.startswith("."):
                        found.append(manifest)
        except OSError as error:
            raise CannotError(
                f"The dumps in {self.place} cannot be read: {error.strerror}.", hint=f"ls -ld {self.place}"
            ) from error
        return found

    def begin(self, identifier: str) -> Path:
        """See `Store.begin`. Another run's folder is left alone while that run lives: it holds a lock on it."""
        durable.make_folder(self.root)
        for left in self.root.glob(f"{_PARTIAL}*"):
            with _locked(left) as is_ours:
                if is_ours:
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{identifier}-", dir=self.root))
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return folder

    def finish(self, folder: Path, manifest: Mapping[str, Any]) -> Iterator[Progress]:
        """Flush every file, write the manifest, and give the folder its name."""
        for path in sorted(folder.rglob("*"), reverse=True):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        durable.replace(folder / MANIFEST, write_manifest(manifest))
        folder.rename(self.root / manifest["id"])
        durable.flush_folder(self.root)
        os.close(self._lock)
        yield Progress(manifest["size"], manifest["size"], "bytes", "kept")

    def give_up(self, folder: Path) -> None:
        """Remove the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        os.close(self._lock)

    def damaged(self, manifest: Mapping[str, Any], *, deep: bool) -> str:
        """See `Store.damaged`."""
        folder = self.root / safe_name(str(manifest["id"]))
        for name, expected in manifest["files"].items():
            path = folder / safe_name(name)
            try:
                size = path.stat().st_size
                if size != expected["size"]:
                    return f"{path} has {size} bytes, not {expected['size']}"
                if deep and sum_of(path) != expected["sha256"]:
                    return f"{path} is not what was written"
            except OSError as error:
                return f"{path}: {error.strerror}"
        return ""

    def remove(self, identifier: str) -> None:
        """See `Store.remove`: it gets the name of one that is not whole."""
        folder = self.root / safe_name(identifier)
        going = self.root / f"{_PARTIAL}{identifier}-removed"
        try:
            if folder.exists():
                folder.rename(going)
            if going.exists():
                shutil.rmtree(going)
        except OSError as error:
            raise RefusedError(
                f"The backup {identifier} cannot be removed: {error.strerror}.",
                safe="what the policy keeps",
                hint=f"ls -la {self.place}",
            ) from error

    def fetch(self, manifest: Mapping[str, Any], scratch: Path) -> Iterator[Progress]:
        """Nothing: it is on this machine."""
        yield from ()

    def folder_of(self, manifest: Mapping[str, Any], scratch: Path) -> Path:
        """Where it is kept."""
        return self.root / str(manifest["id"])


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether nobody works in `folder`; then nobody can begin to while the block runs."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


class Bucket(Store):
    """A prefix in an S3 bucket. The endpoint and credentials are boto3's own (AWS_ENDPOINT_URL, AWS_PROFILE, ...)."""

    def __init__(self, place: str) -> None:
        super().__init__(place.rstrip("/"))
        self.bucket, self.prefix = split(f"{self.place}/")
        self._temporary = ExitStack()

    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of every whole backup."""
        found = []
        with asking(self.place) as s3:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix, Delimiter="/")
            for page in pages:
                for folder in page.get("CommonPrefixes", []):
                    with suppress(s3.exceptions.NoSuchKey):  # it is being uploaded, or was given up
                        answer = s3.get_object(Bucket=self.bucket, Key=f"{folder['Prefix']}{MANIFEST}")
                        manifest = read_manifest(answer["Body"].read())
                        if manifest and f"{self.prefix}{manifest['id']}/" == folder["Prefix"]:
                            found.append({**manifest, "hold": hold(answer)})
        return found

    def begin(self, identifier: str) -> Path:
        """See `Store.begin`: a temporary folder here, since pg_dump writes its directory format to a disk only."""
        with asking(self.place) as s3:
            objects: dict[str, list[Any]] = {}
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
                for entry in page.get("Contents", []):
                    objects.setdefault(entry["Key"].removeprefix(self.prefix).partition("/")[0], []).append(entry)
            for name, entries in objects.items():
                keys = {entry["Key"] for entry in entries}
                is_ours = f"{self.prefix}{name}/cluster.json" in keys
                old = max(entry["LastModified"] for entry in entries) < clock.now() - _ABANDONED
                if is_ours and old and f"{self.prefix}{name}/{MANIFEST}" not in keys:
                    with suppress(CannotError):  # a lock, or no right to remove, is no reason to go without a backup
                        self.remove(name)
        return self._temporary.enter_context(scratch.folder("dump"))

    def finish(self, folder: Path, manifest: Mapping[str, Any]) -> Iterator[Progress]:
        """Upload every file, cluster.json first (it marks the prefix as ours), and the manifest last."""
        done = 0
        with moving(self.place, safe="the backups that are there") as s3:
            for name in sorted(manifest["files"], key=lambda name: (name != "cluster.json", name)):
                s3.upload_file(str(folder / name), self.bucket, f"{self.prefix}{manifest['id']}/{name}")
                done += manifest["files"][name]["size"]
                yield Progress(done, manifest["size"], "bytes", f"uploading to {self.place}")
            key = f"{self.prefix}{manifest['id']}/{MANIFEST}"
            s3.put_object(Bucket=self.bucket, Key=key, Body=write_manifest(manifest))
        self._temporary.close()

    def give_up(self, folder: Path) -> None:
        """Remove the temporary folder; what was uploaded without a manifest is removed by a later run."""
        self._temporary.close()

    def damaged(self, manifest: Mapping[str, Any], *, deep: bool) -> str:
        """See `Store.damaged`. Deep: every byte is read from the bucket, none is kept."""
        prefix = f"{self.prefix}{safe_name(str(manifest['id']))}/"
        with moving(self.place) if deep else asking(self.place) as s3:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            sizes = {one["Key"].removeprefix(prefix): one["Size"] for page in pages for one in page.get("Contents", [])}
            for name, expected in manifest["files"].items():
                if sizes.get(name) != expected["size"]:
                    return f"{self.place}/{manifest['id']}/{name} has {sizes.get(name)} bytes, not {expected['size']}"
                if deep:
                    body = s3.get_object(Bucket=self.bucket, Key=f"{prefix}{name}")["Body"]
                    read = hashlib.sha256()
                    for piece in body.iter_chunks(1024 * 1024):
                        read.update(piece)
                    if read.hexdigest() != expected["sha256"]:
                        return f"{self.place}/{manifest['id']}/{name} is not what was written"
        return ""

    def remove(self, identifier: str) -> None:
        """See `Store.remove`. Where the bucket keeps versions, the very version goes, so that the room is free.

        cluster.json goes last: by it the next backup knows what a killed call left.
        """
        prefix = f"{self.prefix}{safe_name(identifier)}/"
        order = {f"{prefix}{MANIFEST}": 0, f"{prefix}cluster.json": 2}
        safe = "what the policy keeps; the next backup removes what is left of one that was being removed"
        with asking(self.place, safe=safe) as s3:
            found = versions(s3, self.bucket, prefix)
            for key, version in sorted(found, key=lambda one: order.get(one[0], 1)):
                s3.delete_object(Bucket=self.bucket, Key=key, VersionId=version)

    def fetch(self, manifest: Mapping[str, Any], scratch: Path) -> Iterator[Progress]:
        """Download what is not there yet, each file under another name until it is whole."""
        folder, done = self.folder_of(manifest, scratch), 0
        with moving(self.place) as s3:
            for name, expected in manifest["files"].items():
                path = folder / safe_name(name)
                if not path.is_file() or path.stat().st_size != expected["size"]:
                    durable.make_folder(path.parent)
                    of = {"done": done, "total": manifest["size"], "label": f"downloading from {self.place}"}
                    yield from download(s3, self.bucket, f"{self.prefix}{manifest['id']}/{name}", path, **of)
                done += expected["size"]
                yield Progress(done, manifest["size"], "bytes", f"downloading from {self.place}")

    def folder_of(self, manifest: Mapping[str, Any], scratch: Path) -> Path:
        """Where it is downloaded to."""
        return scratch / safe_name(str(manifest["id"]))

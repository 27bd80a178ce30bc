"""The manifest of a dump backup: what the backup is, and the size and SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.change import Progress
from salvor.errors import CannotError, UsageError

MANIFEST = "manifest.json"
_MOST_BYTES = 1 << 63


def read_manifest(text: str | bytes) -> dict[str, Any] | None:
    """A manifest, if that is what `text` is, and whole: another file of that name in the place is no error."""
    try:
        found: dict[str, Any] = json.loads(text)
        clock.read_time(found["taken"])
        texts = [found[name] for name in ("id", "database", "server_version")]
        texts += [one["sha256"] for one in found["files"].values()]
        sizes = [found["size"], *(one["size"] for one in found["files"].values())]
        is_whole = found["fingerprint"] is None or isinstance(found["fingerprint"], dict)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, UsageError):
        return None
    is_whole &= all(isinstance(one, str) for one in texts)
    is_whole &= all(isinstance(one, int) and 0 <= one < _MOST_BYTES for one in sizes)
    return found if is_whole else None


def write_manifest(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as the text of its file."""
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def safe_name(name: str) -> str:
    """A file's name out of a manifest. Raises CannotError when it leads out of the backup's folder."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise CannotError(f"The manifest names a file outside of its backup: {name!r}.", hint="use another backup")
    return name


def sum_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Progress]:
    """Read every file of a backup and compare it with the manifest. Raises CannotError, naming the damaged file."""
    done = 0
    for name, expected in manifest["files"].items():
        path = folder / safe_name(name)
        try:
            is_whole = path.stat().st_size == expected["size"] and sum_of(path) == expected["sha256"]
        except OSError as error:
            raise CannotError(
                f"The backup {manifest['id']} is damaged: {name} cannot be read: {error.strerror}.",
                safe="what is live is as it was",
                hint="use an older one: inv backups lists them",
            ) from error
        if not is_whole:
            raise CannotError(
                f"The backup {manifest['id']} is damaged: {name} is not what was written.",
                safe="what is live is as it was",
                hint="use an older one: inv backups lists them",
            )
        done += expected["size"]
        yield Progress(done, manifest["size"], "bytes", "checking the checksums")

"""What restic says, and what it means: its snapshots, its progress, its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from salvor import clock
from salvor.errors import CannotError

TAG = "salvor:"
"""Before the name of the system whose backup a snapshot is."""
INCOMPLETE = "salvor-incomplete"
"""The tag of a snapshot that lacks what restic could not read."""
NOTHING = "Is there a repository at the following location"
LOST = re.compile(r"returned error, retrying|connection refused|i/o timeout|no such host|connection reset")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a repository. `size` in bytes and `files` are what a restore brings back; None: not known.

    `owner` is the system whose backup it is, by its tag; empty when somebody else made it. `sparse`: it has files with
    holes. `whole` is False when restic could not read all that it was to back up. `emptied`: it holds not one byte, and
    an earlier one of its tree does.
    """

    repository: str
    id: str
    taken: datetime
    tree: str
    paths: tuple[str, ...]
    hostname: str
    owner: str = ""
    size: int | None = None
    files: int | None = None
    sparse: bool = False
    whole: bool = True
    emptied: bool = False

    @property
    def short(self) -> str:
        """The id as people write it."""
        return short(self.id)

    @property
    def unusable(self) -> str:
        """Why nobody would restore it without naming it; empty when it can be."""
        if not self.whole:
            return "restic could not read all of the tree"
        return "it holds nothing, and one before it does: was its disk not mounted?" if self.emptied else ""

    @property
    def is_good(self) -> bool:
        """Whether it is usable, and not of a time to come, by a clock that was wrong."""
        return not self.unusable and not clock.is_to_come(self.taken)

    def holds(self, path: str) -> bool:
        """Whether `path`, or a folder that it lies in, was backed up."""
        return any(path == one or path.startswith(f"{one.rstrip('/')}/") for one in self.paths)


def short(snapshot: str) -> str:
    """A snapshot's id as people write it."""
    return snapshot[:8]


class DamagedError(CannotError):
    """What the repository holds cannot be read back as it was written."""


class MissingError(DamagedError):
    """A piece is not where the index says that it is: it was lost, or a prune moved it after the index was read."""


MISSING = re.compile(
    r"(?:\bdata/|\bpack )[0-9a-f]{6}.*"
    r"(?:no such file|file does not exist|does not exist|doesn't exist|not found|\b404\b|BlobNotFound|NoSuchKey)",
    re.IGNORECASE,
)
"""What restic says of such a piece, on a disk, by SFTP, by HTTP and in buckets."""


def snapshot_of(repository: str, said: Mapping[str, Any]) -> Snapshot:
    """A snapshot as `restic snapshots --json` says it."""
    tags = [str(tag) for tag in said.get("tags") or ()]
    figures = {name: int(value) for name, _, value in (tag.partition(":") for tag in tags) if value.isdigit()}
    summary = said.get("summary") or {}  # restic 0.17 and newer
    return Snapshot(
        repository=repository,
        id=said["id"],
        taken=datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", said["time"])).astimezone(UTC),
        tree=said.get("tree", ""),
        paths=tuple(said.get("paths") or ()),
        hostname=said.get("hostname", ""),
        owner=next((tag.removeprefix(TAG) for tag in tags if tag.startswith(TAG)), ""),
        size=figures.get("bytes", summary.get("total_bytes_processed")),
        files=figures.get("files", summary.get("total_files_processed")),
        sparse="sparse" in tags,
        whole=INCOMPLETE not in tags,
    )


_SPOILT = re.compile(r'^(?:could not load snapshot |Ignoring ")([0-9a-f]{6,64})"?: (.*)', re.MULTILINE)


def spoilt_snapshots(said: str) -> list[str]:
    """The snapshots that restic passed over as it cannot read them, each with why; not those that were forgotten in the
    moment between its listing them and its reading them.
    """
    return [
        f"its snapshot {short(name)} cannot be read: {why}"
        for name, why in _SPOILT.findall(said)
        if not re.search("no such file|does not exist|not found", why)
    ]


REFUSED = re.compile(
    r"signature we calculated|Access Key Id you provided|Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|AuthenticationFailed|AuthorizationFailure|Permission denied \(|could not find default credentials"
    r"|no azure authentication information|error getting credentials|invalid_grant|Server failed to authenticate"
    r"|\b40[13] (Unauthorized|Forbidden)"
)
"""What S3, Azure, GCS, sshd and restic's own server say to wrong credentials."""

_TRACE = re.compile(r"\t.*|(?:github\.com|golang\.org|main|runtime)[./]\S+")
_DAMAGE = (
    "ciphertext verification failed",
    "invalid data returned",
    "hash mismatch",
    "There were ",
    "does not match",
    "not found in index",
    "unable to load",
    "unexpected EOF",
    "file does not exist",
    "invalid header",
    "no such file or directory",
    "Invalid content",
)


_HEAD_DAMAGE = re.compile(
    r"config or key [0-9a-f]+ is damaged|config file has zero size|^Fatal: Unmarshal: ", re.MULTILINE
)
"""What restic says when it can open nothing: of a config that is spoilt or empty, of a key that was cut off."""
LOCKED = "repository is already locked"


def meaning(said: str, which: str, where: str, by_hand: str) -> CannotError:
    """What restic's words mean, of the repository `which`, said on the machine `where`."""
    if "wrong password" in said:
        return CannotError(
            f"The password of {which} is not the right one, or its key was removed.",
            hint=f"see its setting `password`, and which keys there are; {by_hand}",
        )
    if "Host key verification failed" in said:
        changed = "IDENTIFICATION HAS CHANGED" in said
        return CannotError(
            f"The host key of {which} {'has changed' if changed else 'is not known'} on {where}; the host was refused.",
            safe="nothing was sent to it",
            hint="ask who runs it which key is its own, then write it in ssh: {host_keys: [...]} of this "
            f"repository, or in known_hosts on {where}; {by_hand}",
        )
    if REFUSED.search(said):
        return CannotError(
            f"The storage of {which} refuses who we say we are: {last(said)}",
            hint=f"see its environment: (and ssh:) setting; {by_hand}",
        )
    if NOTHING in said and not LOST.search(said):
        why = said.splitlines()[0].removeprefix("Fatal: ")
        return CannotError(
            f"There is nothing to read at {which}: {why}.",
            hint=f"see that its disk is mounted; where none was made yet, inv backup makes it; {by_hand}",
        )
    if "unsupported repository version" in said:
        return CannotError(
            f"The restic on {where} is too old for the format of {which}: {last(said)}",
            safe="nothing is wrong with what it holds",
            hint=f"install there the version of restic that backs up to it, or a newer one; {by_hand}",
        )
    if "no space left on device" in said:
        return CannotError(f"The disk of {which}, or of its cache, is full: {last(said)}", hint=by_hand)
    if _HEAD_DAMAGE.search(said):
        return DamagedError(
            f"Damaged: {which} cannot be opened: its file `config`, or one in `keys`, is spoilt: {last(said)}",
            safe="what is live is as it was",
            hint="nothing in restic mends these two (restic check does not open it either): copy them back from "
            f"wherever there is a copy of this repository; else another repository has to do; {by_hand}",
        )
    is_missing = bool(MISSING.search(said))
    if is_missing or any(word in said for word in _DAMAGE):
        return (MissingError if is_missing else DamagedError)(
            f"Damaged: {which} cannot be read back as it was written: {last(said)}",
            safe="what is live is as it was",
            hint=f"restic check says how much of it; {by_hand}",
        )
    # Whose lock it is stands in the first of four lines.
    held = next((line.removeprefix("Fatal: ") for line in said.splitlines() if LOCKED in line), "")
    return CannotError(f"restic could not use {which}: {held or last(said)}", hint=by_hand)


def is_trace(line: str) -> bool:
    """Whether a line is of the stack trace that restic puts behind some errors."""
    return bool(_TRACE.fullmatch(line))


def as_json(name: bytes) -> str:
    """A name as Go's JSON has it: each byte that is no UTF-8 is U+FFFD."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return re.sub("[\udc80-\udcff]", "\ufffd", name.decode("utf-8", "surrogateescape"))


def plain(line: str) -> str:
    """A line for people: restic 0.17 and newer say with --json also errors as JSON."""
    status = status_of(line)
    error = status.get("error")
    return str(status.get("message") or (error.get("message") if isinstance(error, dict) else error) or line)


def last(said: str) -> str:
    """The end of what it says, without what it tried again."""
    lines = [line for line in said.splitlines() if "returned error, retrying" not in line]
    return " / ".join((lines or said.splitlines())[-3:])[:600]


def status_of(line: str) -> dict[str, Any]:
    """A line of `--json`; empty when it is none."""
    if not line.startswith('{"message_type"'):
        return {}
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def vanished(status: Mapping[str, Any]) -> bool:
    """Whether something was removed while it was backed up, which a live tree's files are."""
    error = status.get("error")
    number = error.get("Err") if isinstance(error, dict) else None
    return number == 2 or "no such file or directory" in str(error)

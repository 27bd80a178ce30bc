"""A second place for every line of the journal, best effort: a folder, or a bucket in S3.

Each line is an object of its own, `INCIDENT/NUMBER-SHA256.json`, in a folder as in a bucket. S3 cannot append, and an
object that is written again and again could lose what it held. This way nothing is ever overwritten; a policy that
allows only `s3:PutObject`, or Object Lock, makes the mirror a witness that the operator cannot change; the names alone
say what every line was; and `cat` of them in their order is the journal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from salvor import durable
from salvor.errors import UsageError
from salvor.line import digest

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
_CONNECT_DEADLINE = 5
_ANSWER_DEADLINE = 10


class Store(Protocol):
    """Where a mirror keeps the lines of one incident. Its methods raise OSError."""

    def names(self) -> set[str]:
        """The names of the lines that are there."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Keep `content` under `name`, whole or not at all."""
        ...


def name_of(number: int, line: bytes) -> str:
    """The name of line `number` (from 1) in a mirror; `line` without its newline."""
    return f"{number:06d}-{digest(line)}.json"


def store(location: str, incident: str) -> Store:
    """The store at `location` (a folder, `file:///folder`, `s3://bucket/prefix`), not touched. Raises UsageError."""
    parts = urlsplit(location)
    if parts.scheme == "s3" and parts.netloc:
        return _Bucket(parts.netloc, "/".join(filter(None, [parts.path.strip("/"), incident])) + "/")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return _Folder(Path(unquote(parts.path)), incident)
    if parts.scheme or not location:
        raise UsageError(
            f"mirror: {location!r} is no place for a copy of the journal.",
            safe="nothing was changed",
            hint="write a folder, file:///folder or s3://bucket/prefix",
        )
    return _Folder(Path(location).expanduser(), incident)


class _Folder:
    def __init__(self, root: Path, incident: str) -> None:
        self.root = root.absolute()
        self.folder = self.root / incident

    def names(self) -> set[str]:
        # The root is never made: a share that is not mounted would else be written to the local disk.
        self.root.stat()
        try:
            return {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def put(self, name: str, content: bytes) -> None:
        self.root.stat()
        durable.make_folder(self.folder)
        durable.replace(self.folder / name, content)


class _Bucket:
    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._client: Any = None

    def names(self) -> set[str]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._open().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            return {entry["Key"].removeprefix(self.prefix) for page in pages for entry in page.get("Contents", ())}
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error

    def put(self, name: str, content: bytes) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._open().put_object(
                Bucket=self.bucket, Key=self.prefix + name, Body=content, ContentType="application/json"
            )
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error

    def _open(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            # A session of our own: the default one may not be shared between threads.
            self._client = boto3.session.Session().client(
                "s3",
                config=Config(
                    connect_timeout=_CONNECT_DEADLINE, read_timeout=_ANSWER_DEADLINE, retries={"total_max_attempts": 1}
                ),
            )
        return self._client


class Mirror:
    """Sends lines to a store from a thread of its own, in order; never waits for it, never raises.

    Its queue is the journal's own list of `lines`, so it needs no memory of its own and drops nothing: what could not
    be sent is tried again, and what an earlier process left is found by its name and sent first.
    """

    def __init__(self, location: str, incident: str, lines: Sequence[bytes], tell: Callable[[str], None]) -> None:
        self.location = location
        self._store = store(location, incident)
        self._lines = lines
        self._tell = tell
        self._offered = 0
        self._sent = 0
        self._closing = False
        self._failing = False
        self._woken = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def lacks(self) -> int:
        """How many lines are not in the mirror yet."""
        return self._offered - self._sent

    def offer(self, count: int) -> None:
        """Let the first `count` lines be sent: those on disk, or held in memory because the disk takes none."""
        with self._woken:
            self._offered = count
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal mirror", daemon=True)
                self._thread.start()
            self._woken.notify()

    def close(self, deadline: float) -> None:
        """Wait at most `deadline` seconds for the lines that are not sent, with a last try, and say what is missing."""
        with self._woken:
            self._closing = True
            self._woken.notify()
        if self._thread:
            self._thread.join(deadline)
        if self.lacks:
            self._tell(
                f"The journal's mirror {self.location} lacks the last {self.lacks} lines.\n"
                "Safe now: they are in the journal, and the next command on this incident sends them."
            )

    def _run(self) -> None:
        there: set[str] | None = None
        wait = _FIRST_WAIT
        while self._await_line():
            line = self._lines[self._sent]
            name = name_of(self._sent + 1, line)
            try:
                if there is None:
                    there = self._store.names()
                if name not in there:
                    self._store.put(name, line + b"\n")
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._tell(
                        f"The journal's mirror {self.location} cannot be written: {error}.\n"
                        "Safe now: the journal itself is written, and the recovery goes on; the mirror is tried again."
                    )
                if not self._pause(wait):
                    return
                wait = min(wait * 2, _LONGEST_WAIT)
                continue
            self._sent += 1
            wait = _FIRST_WAIT
            if self._failing:
                self._failing = False
                self._tell(f"The journal's mirror {self.location} is written again.")

    def _await_line(self) -> bool:
        with self._woken:
            self._woken.wait_for(lambda: self._closing or self.lacks > 0)
        return self.lacks > 0

    def _pause(self, seconds: float) -> bool:
        """Wait after a failure; False when there is no time for another try."""
        with self._woken:
            if self._closing:
                return False
            self._woken.wait_for(lambda: self._closing, seconds)  # not for a line: it would ask once for every one
            return True

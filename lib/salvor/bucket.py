"""S3: an address taken apart, a client with deadlines, and an object as a stream that outlives a broken connection."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from salvor import amazon, clock
from salvor.change import Progress
from salvor.errors import CannotError, RefusedError, UsageError
from salvor.streams import silent, waiting

ANSWERING = 20.0
"""Seconds that S3 has to answer a question: whoever brings a service back asks several before anything begins."""
_TRIES = 4
"""How often in a row reading an object may break off without a byte."""
_READ = "it was only read"
SILENCE = 120.0
"""Seconds after which a download that brings nothing more is given up."""
_TOLD_EVERY = 0.25
_SENDING = "before-send.s3"


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` address. A key may hold anything, `?` and `#` too."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def asking(place: str, *, safe: str = _READ) -> AbstractContextManager[Any]:
    """An S3 client for questions, each of which is given up after ANSWERING seconds; what goes wrong in the block is a
    CannotError that names the place, and says what is `safe`.
    """
    return _client(place, safe, silence=ANSWERING / 2, attempts=2)


def moving(place: str, *, safe: str = _READ) -> AbstractContextManager[Any]:
    """An S3 client for contents, with the patience that they need: half a minute of silence, four times."""
    return _client(place, safe, silence=30.0, attempts=4)


@contextmanager
def _client(place: str, safe: str, *, silence: float, attempts: int) -> Iterator[Any]:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": attempts}
    with _told(place, safe):
        config = Config(connect_timeout=10, read_timeout=silence, retries=retries)
        yield amazon.client(lambda: boto3.client("s3", config=config))


@contextmanager
def _told(place: str, safe: str = _READ) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, S3DownloadFailedError, S3ValidationError) as error:
        raise _refused(place, safe, error) from error
    except RetriesExceededError as error:
        raise _refused(place, safe, error.last_exception) from error


def _refused(place: str, safe: str, error: Exception) -> CannotError:
    from botocore.exceptions import ClientError, NoCredentialsError

    kind = RefusedError if isinstance(error, ClientError) else CannotError
    mend = f"by hand: aws s3 ls {place}"
    if isinstance(error, NoCredentialsError):
        mend = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them into ~/.aws/credentials"
    return kind(
        f"{place} does not give what was asked for: {_words(error)}.",
        safe=safe,
        hint=f"{mend}; then the same command again",
    )


def _words(error: Exception) -> str:
    return str(error).replace(' on endpoint URL: "None"', "").rstrip(".")  # a body does not know where it comes from


def head(uri: str) -> dict[str, Any]:
    """What S3 says of an object (ContentLength, LastModified, ETag). Raises UsageError when there is none."""
    bucket, key = split(uri)
    with asking(uri) as s3:
        try:
            answer: dict[str, Any] = s3.head_object(Bucket=bucket, Key=key)
        except s3.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                parent = uri.rpartition("/")[0]
                raise UsageError(f"--from: there is nothing at {uri}.", hint=f"aws s3 ls {parent}/") from error
            raise
    return answer


def versions(s3: Any, name: str, prefix: str) -> list[tuple[str, str]]:
    """Key and version of all that a bucket holds below a prefix, also of what is hidden; without versions it is one."""
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=name, Prefix=prefix)
    return [(one["Key"], one["VersionId"]) for page in pages for one in page.get("Versions", [])]


def hold(answer: Mapping[str, Any]) -> str:
    """Why S3 refuses to remove an object, by what it says when it is read; empty when it does not, or does not tell."""
    if answer.get("ObjectLockLegalHoldStatus") == "ON":
        return "legal hold"
    until = answer.get("ObjectLockRetainUntilDate")
    return f"object lock until {clock.write_time(until)}" if until and until > clock.now() else ""


def holds(place: str, keys: Sequence[str]) -> dict[str, str]:
    """Of these objects of a bucket, those that S3 refuses to remove, and why. Raises CannotError."""
    name, _ = split(place)
    with asking(place) as s3:
        try:
            s3.get_object_lock_configuration(Bucket=name)
        except s3.exceptions.ClientError:  # it locks nothing, or does not tell
            return {}
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="locks") as pool:
            answers = pool.map(lambda key: s3.head_object(Bucket=name, Key=key), keys)
            return {key: why for key, answer in zip(keys, answers, strict=True) if (why := hold(answer))}


class Object:
    """The bytes of an object, read once. When the connection breaks, it goes on where it was, if the object is the same
    still.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._at = 0
        known = head(uri)
        self._tag, self._size = known["ETag"], known["ContentLength"]
        self.identity = f"{self._size:,} bytes, ETag {self._tag.strip(chr(34))}"
        """What tells it from another object of its name."""
        self._body: Any = None  # asked for by whoever reads, who may have less patience than we
        with moving(uri) as self._s3:
            pass

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. Raises CannotError."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError
        from urllib3.exceptions import HTTPError

        if self._at >= self._size:
            return b""  # S3 refuses a range that begins at the end
        with _told(self._uri):
            for left in reversed(range(_TRIES)):
                try:
                    self._body = self._body or self._open()
                    piece: bytes = self._body.read(size)
                    self._at += len(piece)
                    return piece
                except (HTTPClientError, IncompleteReadError, ResponseStreamingError, HTTPError, OSError) as error:
                    self.close()
                    if not left:
                        raise CannotError(
                            f"{self._uri} broke off {_TRIES} times after {self._at} bytes: {_words(error)}.",
                            safe="it was only read",
                            hint="run the same command again when it answers; "
                            f"by hand: aws s3 cp {self._uri} - | wc -c",
                        ) from error
        raise AssertionError

    def _open(self) -> Any:
        name, key = split(self._uri)
        begin = {"Range": f"bytes={self._at}-"} if self._at else {}
        return self._s3.get_object(Bucket=name, Key=key, IfMatch=self._tag, **begin)["Body"]

    def close(self) -> None:
        """Let the connection go."""
        if self._body is not None:
            with suppress(Exception):
                self._body.close()
        self._body = None


def download(
    s3: Any, name: str, key: str, path: Path, *, done: int = 0, total: int | None = None, label: str = ""
) -> Iterator[Progress]:
    """Download an object of the bucket `name`, under another name until it is whole; what comes of one that fails is
    removed. `done` are the bytes of `total` that came before it. Raises CannotError, also when nothing comes for
    SILENCE seconds: S3's own library would ask again for up to nine minutes.
    """
    beside, coming = path.with_name(f".{path.name}.new"), _Coming()
    s3.meta.events.register(_SENDING, coming.see_wanted)
    yield Progress(done, total, "bytes", label)
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file, ThreadPoolExecutor(1, thread_name_prefix="downloading") as pool:
            work = pool.submit(s3.download_fileobj, name, key, file, Callback=coming.add)
            try:
                while not wait([work], _TOLD_EVERY).done:
                    yield Progress(done + coming.size, total, "bytes", label + waiting(coming.silent, SILENCE))
                    if coming.silent > SILENCE:
                        raise silent(f"s3://{name}/{key}", SILENCE)
            finally:
                coming.is_wanted = False
            work.result()
        beside.rename(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotError(
                f"{path} cannot be written: {error.strerror}.",
                safe="what is live is as it was",
                hint=f"make room there: df -h {shlex.quote(str(path.parent))}; then the same command again",
            ) from error
        raise
    finally:
        s3.meta.events.unregister(_SENDING, coming.see_wanted)


class _Coming:
    """How much of an object came, and since when nothing did that had not come before."""

    def __init__(self) -> None:
        self.size = self._most = 0
        self.is_wanted = True
        self._last = clock.monotonic()
        self._lock = threading.Lock()

    @property
    def silent(self) -> float:
        """Seconds since it came further."""
        return clock.monotonic() - self._last

    def add(self, size: int) -> None:
        """So many bytes more came, in one of several threads; fewer than none when a part is begun anew."""
        self.see_wanted()
        with self._lock:
            self.size += size
            if self.size > self._most:
                self._most, self._last = self.size, clock.monotonic()

    def see_wanted(self, **_: object) -> None:
        """Raises EOFError when nobody waits for it any more."""
        if not self.is_wanted:
            raise EOFError("nobody takes it any more")

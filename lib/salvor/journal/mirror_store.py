"""Where a mirror keeps the lines of an incident's journal: a folder, or a bucket in S3.

Each line is an object of its own, `INCIDENT/NUMBER-SHA256.json`, in a folder as in a bucket. S3 cannot append, and an
object that is written again and again could lose what it held. This way nothing is ever overwritten; a policy that
allows only `s3:PutObject`, or Object Lock, makes the mirror a witness that the operator cannot change; the names alone
say what every line was; and `cat` of them in their order is the journal.
"""

from __future__ import annotations

import errno
import re
import secrets
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from salvor import durable
from salvor.errors import UsageError
from salvor.journal.line import START, digest, parse

_CONNECT_DEADLINE = 5
_ANSWER_DEADLINE = 10
_THERE_IS_ONE = ("PreconditionFailed", "ConditionalRequestConflict")
_NAME = re.compile(r"([0-9]{6,})-([0-9a-f]{64})\.json")


class Store(Protocol):
    """Where a mirror keeps the lines of one incident. Its methods raise OSError."""

    def names(self) -> set[str]:
        """The names of the lines that are there."""
        ...

    def get(self, name: str, *, most: int | None = None) -> bytes:
        """What is kept under `name`; with `most`, only if it has no more bytes than that."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Keep `content` under `name`, whole or not at all."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Keep `content` under `name`, unless something is there already; says whether it did."""
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


def numbered(name: str) -> tuple[int, str] | None:
    """The number and the digest of the line that is kept under `name`; None when it is no name of ours."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def lines(location: str, incident: str) -> list[bytes]:
    """The longest whole chain of an incident's journal that the mirror has, each line without its newline.

    A number may be there twice (a line that a full disk never took, or two operators who did not know of each other):
    the hash in the line after it says which one counts. Raises OSError when it cannot be read.
    """
    there = store(location, incident)
    held: dict[int, list[str]] = {}
    for name in sorted(there.names()):
        if found := numbered(name):
            held.setdefault(found[0], []).append(found[1])
    for number in sorted(held, reverse=True):
        for last in held[number]:
            if chain := _chain_to(number, last, held, there):
                return chain
    return []


def _chain_to(number: int, last: str, held: dict[int, list[str]], there: Store) -> list[bytes]:
    chain: list[bytes] = []
    while number and last in held.get(number, ()):
        line = there.get(f"{number:06d}-{last}.json").removesuffix(b"\n")
        if digest(line) != last:
            return []
        chain.append(line)
        number, last = number - 1, str((parse(line) or {}).get("previous"))
    return chain[::-1] if number == 0 and last == START else []


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

    def get(self, name: str, *, most: int | None = None) -> bytes:
        return durable.read(self.folder / name, most=most)

    def put(self, name: str, content: bytes) -> None:
        self.root.stat()
        durable.make_folder(self.folder)
        durable.replace(self.folder / name, content)

    def create(self, name: str, content: bytes) -> bool:
        self.root.stat()
        durable.make_folder(self.folder)
        # A link to a whole file appears at once and only where there is none, on a shared folder (NFS) too.
        whole = self.folder / f".{name}.{secrets.token_hex(8)}"
        durable.replace(whole, content)
        try:
            (self.folder / name).hardlink_to(whole)
        except FileExistsError:
            return False
        finally:
            whole.unlink()
        durable.flush_folder(self.folder)
        return True


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

    def get(self, name: str, *, most: int | None = None) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._open().get_object(Bucket=self.bucket, Key=self.prefix + name)
            if most is not None and answer["ContentLength"] > most:
                raise OSError(errno.EFBIG, f"it has more than {most} bytes")
            return bytes(answer["Body"].read())
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error

    def put(self, name: str, content: bytes) -> None:
        self._put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        return self._put(name, content, IfNoneMatch="*")

    def _put(self, name: str, content: bytes, **condition: str) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        try:
            self._open().put_object(**where, Body=content, ContentType="application/json", **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in _THERE_IS_ONE:
                return False
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
        return True

    def _open(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            config = Config(
                connect_timeout=_CONNECT_DEADLINE, read_timeout=_ANSWER_DEADLINE, retries={"total_max_attempts": 1}
            )
            try:
                # A session of our own: the default one may not be shared between threads.
                self._client = boto3.session.Session().client("s3", config=config)
            except ValueError as error:  # what it says of an AWS_ENDPOINT_URL that is none
                raise OSError(str(error)) from error
        return self._client

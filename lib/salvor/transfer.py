"""Files to a host and back: in pieces, their checksum compared at both ends, put in place by one rename at the end.

What a broken transfer left is gone on with, once its checksum is that of the same part of the file. The host needs
nothing but `cat`; one that runs no commands is served by SFTP.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from salvor.change import Progress
from salvor.errors import CannotError, CommandError, UsageError
from salvor.shell import OnDemand, Shell

_PART = ".salvor-part"
_PIECE = 8 * 1024 * 1024
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_SUM = (
    '{ if test "$2" -gt 0; then head -c "$2"; else cat; fi; } < "$1" | '
    "if command -v sha256sum >/dev/null; then sha256sum; elif command -v shasum >/dev/null; then shasum -a 256; "
    "else openssl dgst -sha256; fi"
)


def upload(there: Shell, source: Path, target: str, *, mode: int = 0o600, deadline: float) -> Iterator[Progress]:
    """Copy the local file `source` to `target` (an absolute path) on a host; yields how many of its bytes are there.

    Each piece of 8 MiB has `deadline` seconds, and so has each checksum. Raises CannotError or OutcomeUnknownError;
    `target` is then what it was, and the same call again goes on where this one ended.
    """
    _check(target)
    part = f"{target}{_PART}"
    files = _files(there, deadline)
    total = source.stat().st_size
    done = files.size(part) or 0
    if done and (done > total or files.digest(part, done) != _digest(source, done)):
        done = 0
    if not done:
        try:
            files.create(part)
        except (CommandError, _RefusedError) as error:
            folder, said = str(PurePosixPath(target).parent), getattr(error, "stderr", "") or error.what
            raise CannotError(
                f"{target} cannot be written on {there.where}: {said.strip()}",
                safe="nothing was changed there",
                hint=f"is its folder there, and may this account write to it? There: ls -ld {shlex.quote(folder)}",
            ) from error
    with source.open("rb") as opened:
        opened.seek(done)
        yield Progress(done, total, "bytes", target)
        while piece := opened.read(_PIECE):
            try:
                files.append(part, piece)
            except (CommandError, _RefusedError):
                with suppress(CannotError):
                    files.remove(part)  # the host refused it: what would be left might fill its disk
                raise
            done += len(piece)
            yield Progress(done, total, "bytes", target)
    if files.digest(part, 0) != _digest(source, 0):
        files.remove(part)
        raise _differs(str(source), f"{target} on {there.where}")
    files.publish(part, target, mode)


def download(there: Shell, source: str, target: Path, *, deadline: float) -> Iterator[Progress]:
    """Copy `source` (an absolute path) from a host to the local file `target`; yields how many of its bytes are here.

    The whole has `deadline` seconds, and so has each checksum. Raises as `upload` does, and CannotError when there is
    no such file.
    """
    _check(source)
    part = target.with_name(f"{target.name}{_PART}")
    files = _files(there, deadline)
    total = files.size(source)
    if total is None:
        raise CannotError(f"There is no file {source} on {there.where}.", safe=f"{target} was not touched")
    done = part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    if done and (done > total or files.digest(source, done) != _digest(part, done)):
        done = 0
    if not done:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with part.open("ab") as opened:
        yield Progress(done, total, "bytes", source)
        told = done
        for piece in files.read(source, done):
            opened.write(piece)
            done += len(piece)
            if done - told >= _PIECE:
                told = done
                yield Progress(done, total, "bytes", source)
        opened.flush()
        os.fsync(opened.fileno())
    if files.digest(source, 0) != _digest(part, 0):
        part.unlink()
        raise _differs(f"{source} on {there.where}", str(target))
    part.chmod(0o600)
    part.replace(target)
    yield Progress(done, done, "bytes", source)


def _check(path: str) -> None:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise UsageError(f"{path!r} is not the absolute path of a file.", hint="begin it with /")


def _differs(source: str, target: str) -> CannotError:
    return CannotError(
        f"What arrived of {source} is not what it is now: their checksums differ.",
        safe=f"{target} was not touched",
        hint="if nobody writes to it, run the same command again",
    )


def _digest(path: Path, first: int) -> str:
    """SHA-256 of the first bytes of a local file; 0: of all."""
    sum_ = hashlib.sha256()
    left = first or path.stat().st_size
    with path.open("rb") as opened:
        while left > 0 and (piece := opened.read(min(_PIECE, left))):
            sum_.update(piece)
            left -= len(piece)
    return sum_.hexdigest()


class _Files(ABC):
    """What a host can do with files."""

    @abstractmethod
    def size(self, path: str) -> int | None: ...

    @abstractmethod
    def read(self, path: str, offset: int) -> Iterator[bytes]: ...

    @abstractmethod
    def create(self, path: str) -> None:
        """An empty file of ours alone; what stood there is removed, not written through."""

    @abstractmethod
    def append(self, path: str, piece: bytes) -> None: ...

    @abstractmethod
    def remove(self, path: str) -> None: ...

    @abstractmethod
    def publish(self, part: str, target: str, mode: int) -> None:
        """Flush `part` to disk and rename it."""

    def digest(self, path: str, first: int) -> str:
        """SHA-256 of the first bytes of a file (0: of all), read back where the host cannot say it."""
        sum_, left = hashlib.sha256(), first or None
        for piece in self.read(path, 0):
            sum_.update(piece[:left])
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    break
        return sum_.hexdigest()


class _ByCommands(_Files):
    def __init__(self, there: Shell, deadline: float) -> None:
        self._there = there
        self._deadline = deadline

    def _run(self, script: str, *words: str, input: bytes | None = None, check: bool = True) -> str:
        argv = ["sh", "-c", script, "sh", *words]
        return self._there.run(argv, input=input, deadline=self._deadline, check=check).stdout

    def size(self, path: str) -> int | None:
        said = self._run('if test -f "$1"; then wc -c < "$1"; elif test -e "$1"; then exit 3; fi', path).strip()
        return int(said) if said else None

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        return self._there.pieces(["tail", "-c", f"+{offset + 1}", path], deadline=self._deadline)

    def create(self, path: str) -> None:
        self._run('umask 077; rm -f -- "$1" && set -C && : > "$1"', path)

    def append(self, path: str, piece: bytes) -> None:
        self._run('cat >> "$1"', path, input=piece)

    def remove(self, path: str) -> None:
        self._run('rm -f -- "$1"', path)

    def publish(self, part: str, target: str, mode: int) -> None:
        script = (
            'test ! -d "$2" || { echo "$2 is a folder" >&2; exit 1; }; '
            'chmod -- "$3" "$1" && { sync -d -- "$1" 2>/dev/null || sync; } && mv -f -- "$1" "$2"'
        )
        self._run(script, part, target, f"{mode:o}")

    def digest(self, path: str, first: int) -> str:
        said = _DIGEST.search(self._run(_SUM, path, str(first), check=False))
        return said[0] if said else super().digest(path, first)


class _RefusedError(CannotError):
    """The host said no to an operation of SFTP."""


class _BySftp(_Files):
    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self._where = where

    def size(self, path: str) -> int | None:
        try:
            return int(self._client.stat(path).st_size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(path, error) from error

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        try:
            with self._client.open(path, "rb", bufsize=0) as opened:
                opened.prefetch(max_concurrent_requests=64)
                opened.seek(offset)
                while piece := opened.read(32 * 1024):
                    yield piece
        except OSError as error:
            raise self._failed(path, error) from error

    def create(self, path: str) -> None:
        try:
            with suppress(FileNotFoundError):
                self._client.remove(path)
            with self._client.open(path, "wx"):
                self._client.chmod(path, 0o600)
        except OSError as error:
            raise self._failed(path, error) from error

    def append(self, path: str, piece: bytes) -> None:
        try:
            with self._client.open(path, "ab") as opened:
                opened.set_pipelined(True)
                opened.write(piece)
        except OSError as error:
            raise self._failed(path, error) from error

    def remove(self, path: str) -> None:
        try:
            self._client.remove(path)
        except OSError as error:
            raise self._failed(path, error) from error

    def publish(self, part: str, target: str, mode: int) -> None:
        try:
            self._client.chmod(part, mode)
            self._client.posix_rename(part, target)
        except OSError as error:
            raise self._failed(target, error) from error

    def _failed(self, path: str, error: OSError) -> CannotError:
        if isinstance(error, TimeoutError):
            return CannotError(f"{path} on {self._where}: no answer over SFTP.", hint="run the same command again")
        return _RefusedError(f"{path} on {self._where}: {error.strerror or error}.", safe="it is what it was")


def _files(there: Shell, deadline: float) -> _Files:
    """By commands where the host runs them: they can be another user's, and the host adds up its own checksums."""
    from salvor.ssh.remote import Remote

    try:
        there.run(["true"], deadline=deadline)
    except CannotError:
        remote = there.opened() if isinstance(there, OnDemand) else there
        sftp = remote.link().sftp() if isinstance(remote, Remote) and not remote.user else None
        if sftp is None:
            raise
        return _BySftp(sftp, there.where)
    return _ByCommands(there, deadline)

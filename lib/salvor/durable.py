"""Files whose bytes are on disk when a call returns: what the journal and its seal are made of."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shlex
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
NO_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What a disk says that is full, or takes nothing any more."""
_LEFT_BY_A_CRASH = 3600.0
"""Seconds after which nobody writes any more what was begun to be put in a file's place."""


def make_folder(folder: Path) -> None:
    """Make `folder`, and what is missing above it, mode 700, so that the names survive a crash. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    flush_folder(folder.parent)


def check_ours(folder: Path) -> None:
    """Raises PermissionError when `folder` is a link or belongs to somebody else, who could then swap what is in it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is a link or belongs to another user", str(folder))


def refusal(folder: Path) -> OSError | None:
    """Why `folder` does not take a new file; None when it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        return error
    return None


def mend(error: OSError, folder: Path) -> str:
    """What to do so that `folder` takes what it refused with `error`, for people."""
    place = shlex.quote(str(folder))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"make room: df -h {place}"
    if error.errno == errno.EROFS:
        return f"its file system can only be read, so see why and make it writable: findmnt -T {place}"
    return f"see who may write there: ls -ld {place}"


def takes_nothing(folder: Path) -> bool:
    """Whether the disk of `folder` is full, or can only be read."""
    error = refusal(folder)
    return error is not None and error.errno in NO_DISK


def flush_folder(folder: Path) -> None:
    """Put the names in `folder` on disk: a file's own fsync does not. Raises OSError, also when `folder` is a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put `content` at `path`: the old content or the whole new one, whatever happens, also when several do so at once.
    Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = _create(beside)
    try:
        _write(descriptor, content)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        written = os.fstat(descriptor).st_mtime
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    finally:
        os.close(descriptor)
    flush_folder(path.parent)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        with suppress(OSError):
            if left.lstat().st_mtime < written - _LEFT_BY_A_CRASH:
                left.unlink()


def read(path: Path, *, most: int | None = None) -> bytes:
    """All of the file at `path`, which must not be a link. Raises OSError.

    With `most`, it may also not be a pipe or a device, which would hold the reader up, or have more bytes than that.
    """
    descriptor = os.open(path, os.O_RDONLY | _SAFE | (0 if most is None else os.O_NONBLOCK))
    try:
        found = os.fstat(descriptor)
        if most is not None and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
        return _read(descriptor)
    finally:
        os.close(descriptor)


class GrowingFile:
    """A file that only grows, by whole writes: each is on disk when `append` returns, or it raised and nothing stays.

    One process at a time has it open; the kernel releases it when that process ends, however it ends. It may be
    interrupted anywhere (a KeyboardInterrupt): `size` tells what was written, and the next `append` mends the rest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes that are on disk for certain. The first `append` makes the file, so nobody ever sees an empty one."""
        self._seen = 0  # bytes that the file had when we last looked; 0: it is not made yet
        self._unsure = False  # there may be more in the file than `size`: what is left of a write that failed
        self._descriptor: int | None = None

    @classmethod
    def open(cls, path: Path) -> tuple[GrowingFile, bytes]:
        """The file at `path` and what it holds; also when it can only be read now (then `append` tries again).

        Raises FileNotFoundError; BlockingIOError when another process has it open; OSError when it cannot be read.
        """
        file = cls(path)
        try:
            file._descriptor = _open_alone(path)
            content = _read(file._descriptor)
        except (FileNotFoundError, BlockingIOError):
            raise
        except OSError:
            content = read(path)
        file.size = file._seen = len(content)
        return file, content

    def cut(self, size: int) -> None:
        """Let the next `append` cut off everything after `size` bytes first."""
        self.size = size
        self._unsure = True

    def append(self, content: bytes) -> None:
        """Add `content` and wait until it is on disk. Raises OSError, and `size` is then as before."""
        new = self._seen == 0
        try:
            if self._descriptor is None:
                self._descriptor = self._create() if new else self._open_again()
            if self._unsure and os.fstat(self._descriptor).st_size > self.size:
                os.ftruncate(self._descriptor, self.size)
            self._unsure = True
            _write(self._descriptor, content)
            # After a failed fsync the kernel may forget what it could not write, and a second fsync then says that all
            # is well: so what failed is cut off and written anew, never only flushed again.
            os.fsync(self._descriptor)
            if new:
                self._beside.rename(self.path)
                flush_folder(self.path.parent)
        except OSError:
            with suppress(OSError):
                self._take_back(new)
            raise
        self.size += len(content)
        self._seen = self.size
        self._unsure = False

    def is_gone(self) -> bool:
        """Whether nothing has this file's name any more, so that what is appended could not be found again."""
        return self._seen > 0 and not os.path.lexists(self.path)

    def close(self) -> None:
        """Release the file. A later `append` opens it again."""
        if self._descriptor is not None:
            with suppress(OSError):  # nothing is lost: every append was flushed
                os.close(self._descriptor)
            self._descriptor = None

    @property
    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")

    def _create(self) -> int:
        folder = self.path.parent
        make_folder(folder)
        check_ours(folder)
        if os.path.lexists(self.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
        descriptor = _create(self._beside)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _open_again(self) -> int:
        descriptor = _open_alone(self.path)
        if os.fstat(descriptor).st_size != self._seen:
            os.close(descriptor)
            raise OSError(errno.ESTALE, "somebody else wrote to it", str(self.path))
        return descriptor

    def _take_back(self, new: bool) -> None:
        if self._descriptor is None:
            return
        if new:
            self.close()
            for ours in (self._beside, self.path):
                ours.unlink(missing_ok=True)
        else:
            os.ftruncate(self._descriptor, self.size)


def _create(path: Path) -> int:
    with suppress(FileNotFoundError):  # what a crash left
        path.unlink()
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | _SAFE, 0o600)


def _open_alone(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _SAFE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network file systems have no locks; the operator's lock on the service still holds
        pass
    return descriptor


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # one call, but for a disk that has room for a part only: the second then says that it is full
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read()

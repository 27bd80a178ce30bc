"""One operator at a time per service: a lock that a crash releases, in a file that names its holder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from salvor import clock, durable
from salvor.errors import CannotError, HeldError

_MEMORY = Path("/dev/shm")  # noqa: S108  what is made there belongs to us alone, or is refused
_TRIES = 5
_BETWEEN = 0.1
_TAKE_OVER = (
    "look: inv incident.show --incident={incident}; to take over, end that process (on {host}: kill {pid}, "
    "and once more if it waits for what hangs) and run the same command again: it goes on where the other one stopped"
)


@contextmanager
def hold(service: str, folder: Path, *, by: str, incident: str, hint: str = _TAKE_OVER) -> Iterator[None]:
    """Be the only operator of `service` inside the block. `folder` is the one that holds all incidents, `hint` what
    whoever comes second is told to do, with the holder's `{incident}`, `{host}` and `{pid}`.

    The lock is the kernel's (flock), on `folder/.locks/SERVICE.lock`: however the process ends, it is free again. The
    file says who holds it. On a disk that takes no new file it is in memory instead (/dev/shm).
    Raises HeldError naming the holder, CannotError when no lock can be made.
    """
    descriptor = _lock(service, folder, hint)
    try:
        holder = {
            "by": by,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": clock.write_time(clock.now()),
            "incident": incident,
        }
        with suppress(OSError):  # a full disk: the lock holds all the same, without a name
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def holder(service: str, folder: Path) -> dict[str, Any] | None:
    """Who holds the lock now: by, host, pid, since, incident ; None when nobody's name is there.

    Takes no lock, so that nobody who wants it waits for this look.
    """
    name = f"{quote(service, safe='')}.lock"
    for path in (folder.absolute() / ".locks" / name, in_memory(folder.absolute()) / name):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = _read(descriptor)
        finally:
            os.close(descriptor)
        if found and not _has_ended(found):
            return found
    return None


def _lock(service: str, folder: Path, hint: str) -> int:
    """A descriptor that holds the lock, of an empty file."""
    descriptor, path = _open(service, folder.absolute())
    try:
        for tries in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(descriptor)
                # Who has only just taken it has no name there yet, or that of a process that crashed.
                if tries < _TRIES - 1 and (not holder or _has_ended(holder)):
                    time.sleep(_BETWEEN)
                    continue
                raise _held(service, path, holder, hint) from None
            os.ftruncate(descriptor, 0)
            return descriptor
        raise AssertionError("the last try returns or raises")
    except OSError as error:
        os.close(descriptor)
        raise _cannot(service, path, error) from error
    except HeldError:
        os.close(descriptor)
        raise


def _open(service: str, folder: Path) -> tuple[int, Path]:
    name = f"{quote(service, safe='')}.lock"
    path = folder / ".locks" / name
    try:
        return _open_file(path), path
    except OSError as error:
        if error.errno not in durable.NO_DISK:
            raise _cannot(service, path, error) from error
    path = in_memory(folder) / name
    try:
        return _open_file(path), path
    except OSError as error:
        raise _cannot(service, path, error) from error


def in_memory(folder: Path) -> Path:
    """Where that is kept which the disk of `folder` does not take: for processes of our own user, on this machine."""
    return _MEMORY / f"salvor-{os.geteuid()}-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"


def _open_file(path: Path) -> int:
    durable.make_folder(path.parent)
    durable.check_ours(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether this holder, on this machine, is there no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _held(service: str, path: Path, holder: dict[str, Any], hint: str) -> HeldError:
    if not holder:
        return HeldError(
            f"Another process works on {service} now; it could not write its name to {path}.",
            safe="nothing was changed",
            hint=f"lslocks shows which process holds {shlex.quote(str(path))}",
        )
    by, host, pid, since, incident = (holder.get(name, "?") for name in ("by", "host", "pid", "since", "incident"))
    return HeldError(
        f"{by} works on {service} now: incident {incident}, since {since}, process {pid} on {host}.",
        safe="nothing was changed",
        hint=hint.format(incident=incident, host=host, pid=pid),
    )


def _cannot(service: str, path: Path, error: OSError) -> CannotError:
    return CannotError(
        f"The lock on {service} cannot be taken: {path}: {error.strerror}.",
        safe="nothing was changed",
        hint=f"ls -ld {shlex.quote(str(path.parent))}",
    )

"""Processes of the sandbox: started detached, found again by what runs now, stopped with a deadline.

There are no pid files, which a crash leaves behind and a recycled pid makes lie: a daemon is known by its argv, which
names its sandbox, and a PostgreSQL process by the folder that it works in. A process is signalled through a pidfd that
was opened before it was looked at, so a pid that was recycled meanwhile is never hit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import salvor
from salvor import clock
from salvor.errors import CannotError, OutcomeUnknownError

_PROGRAMS = ("postgres", "pgbackrest", "pg_basebackup", "node", "restic", "tar", "gzip")
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process: its pid, and when it started (clock ticks since boot), which together are never used twice."""

    pid: int
    started: int


def module(name: str, place: Path) -> list[str]:
    """The argv of one of the sandbox's own daemons."""
    return [sys.executable, "-m", f"salvor.sandbox.{name}", str(place)]


def start(argv: Sequence[str], log: Path) -> None:
    """Start a daemon unless it runs: in a session of its own, holding no terminal and no pipe, its output in `log`."""
    if find(argv):
        return
    search = [str(Path(salvor.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise CannotError(
            f"{argv[0]} cannot be started: {error.strerror}.", hint="prepare this machine: ./start shell"
        ) from error
    finally:
        os.close(descriptor)
    _children[child.pid] = child
    # Popen returns when the program is loaded, a moment before the kernel shows the arguments by which we know it.
    until(lambda: child.poll() is not None or bool(_command_line(str(child.pid))), deadline=1.0)


def find(argv: Sequence[str]) -> list[Process]:
    """The processes that run this argv, whatever the path of the program."""
    words = [*map(os.fsencode, argv[1:]), b""]
    return _those(lambda pid: _command_line(pid).split(b"\0")[1:] == words)


def working_in(folder: Path) -> list[Process]:
    """The servers and the tools of backups that work in `folder` or below, also when it was removed under them."""
    return _those(lambda pid: _link(pid, "exe").name in _PROGRAMS and _link(pid, "cwd").is_relative_to(folder))


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal those that still are what they were."""
    for process in processes:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            try:
                if _started(process.pid) == process.started:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def stop(processes: Sequence[Process], *, deadline: float = 5.0) -> None:
    """End them: SIGTERM, and SIGKILL after `deadline` seconds; frozen ones too.

    Raises OutcomeUnknownError when one is still there 5 s after SIGKILL.
    """
    send(processes, signal.SIGTERM)
    send(processes, signal.SIGCONT)
    if not until(lambda: not any(alive(process) for process in processes), deadline):
        kill(processes)


def kill(processes: Sequence[Process]) -> None:
    """End them at once: SIGKILL. Raises OutcomeUnknownError when one is still there after 5 s."""
    send(processes, signal.SIGKILL)
    if not until(lambda: not any(alive(process) for process in processes), 5):
        left = ", ".join(str(process.pid) for process in processes if alive(process))
        raise OutcomeUnknownError(
            f"Processes {left} do not end, even by SIGKILL.", hint=f"look: ps -o pid,stat,wchan,args -p {left}"
        )


def alive(process: Process) -> bool:
    """Whether it runs, or is frozen; one that ended and that nobody has waited for yet does not count."""
    if child := _children.get(process.pid):
        child.poll()
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # Readable when its last thread has ended; proc(5) calls it a zombie as soon as its first one has.
        ended = bool(select.select([descriptor], [], [], 0)[0])
        return not ended and _started(process.pid) == process.started
    finally:
        os.close(descriptor)


def wait_until(ready: Callable[[], bool], argv: Sequence[str], log: Path, *, deadline: float) -> None:
    """Wait for a daemon that was started. Raises CannotError, with the end of its log, when it is not ready in time."""
    name = argv[-2].rpartition(".")[2] if "-m" in argv else Path(argv[0]).name
    if not until(lambda: ready() or not find(argv), deadline) or not ready():
        state = "is not ready" if find(argv) else "ended at once"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]) if log.exists() else ""
        raise CannotError(
            f"The sandbox's {name} {state}: {tail or 'its log is empty'}",
            hint=f"read {log}, or begin anew: inv sandbox.up --fresh",
        )


def until(holds: Callable[[], bool], deadline: float) -> bool:
    """Wait until it holds, for `deadline` seconds at most; whether it does."""
    end = clock.monotonic() + deadline
    while not holds():
        if clock.monotonic() > end:
            return False
        time.sleep(0.03)
    return True


def _those(is_one: Callable[[str], bool]) -> list[Process]:
    """The processes, but us, whose pid this says yes to. It is asked once more when it is known which process the pid
    means, as that may have changed in between.
    """
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208  Path takes longer than the looking
        with suppress(OSError):  # it ended
            if int(pid) != os.getpid() and is_one(pid) and (started := _started(int(pid))) is not None and is_one(pid):
                found.append(Process(int(pid), started))
    return found


def _command_line(pid: str) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def _link(pid: str, name: str) -> Path:
    return Path(os.readlink(f"/proc/{pid}/{name}").removesuffix(" (deleted)"))  # noqa: PTH115


def _started(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), `stat`, field 22); None when it ended."""
    try:
        # The name in parentheses may hold anything, so fields are counted from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])

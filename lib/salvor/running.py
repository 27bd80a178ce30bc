"""A command, and one that was started: its output read as it comes, its end noticed, whoever keeps its output open."""

from __future__ import annotations

import atexit
import codecs
import os
import pwd
import queue
import re
import select
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import sleep
from typing import IO

from salvor.errors import CannotError

_PIECE = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_STDERR_KEPT = 64 * 1024
LINGER = 0.3
"""Seconds for which a command that has ended may go on printing: by what it left behind."""
_CRUMB, _GATHERING = 4096, 0.002
"""Bytes, and the seconds in which more of them gather: a program that writes line by line would wake us for each."""
_QUEUED = 1000
_QUEUED_PIECES = 16
_SUDO_REFUSES = re.compile(
    r"^(?:sudo: (?:a password is|a terminal is|sorry, )|Sorry, user |\S+ is not in the sudoers )[^'\n]*", re.MULTILINE
)


@dataclass(frozen=True)
class Command:
    """What is to be run: `argv` in `folder` (None: `/` here, the user's home on a host), with `environment` added.

    `stdin` is given piece by piece (None: no input). `binary`: what it prints is taken as bytes, not as lines.
    """

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: Iterable[bytes] | None = None
    folder: str | None = None
    binary: bool = False


class Running(ABC):
    """A command that was started: `said` is its standard output as it comes, then None: lines with their newline, or
    pieces of bytes from a binary one.

    None comes when the command has ended and its output with it; or a moment later, when something that it left in
    the background keeps its output open.
    """

    way_to_end = "it was stopped"

    def __init__(self, binary: bool = False) -> None:
        self.said: queue.Queue[str | bytes | None] = queue.Queue(_QUEUED if not binary else _QUEUED_PIECES)
        self._binary = binary
        self._stopped = threading.Event()
        self._error = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""  # that has not ended yet

    @abstractmethod
    def begin(self, stdin: Iterable[bytes] | None) -> None:
        """Let the command's output be read, and give it its input."""

    def _read_in_threads(self, read_output: Callable[[], None]) -> None:
        readers = [threading.Thread(target=work, daemon=True) for work in (read_output, self._read_errors)]
        self._error_reader = readers[1]
        for reader in readers:
            reader.start()

    def _read_output(self) -> None:
        if self._binary:
            self._read_pieces()
        else:
            self._read_lines()

    def _read_lines(self) -> None:
        with suppress(OSError, ValueError):  # it was closed while we read: the command was stopped
            while piece := self._read(_PIECE):
                *lines, self._line = (self._line + self._decoder.decode(piece)).split("\n")
                for line in lines:
                    self._put(f"{line}\n")
                if len(self._line) > _LONGEST_LINE:
                    self._put(self._line)
                    self._line = ""
        self._put_last_line()

    def _put_last_line(self) -> None:
        last, self._line = self._line + self._decoder.decode(b"", final=True), ""
        if last:
            self._put(last)

    def _read_pieces(self) -> None:
        with suppress(OSError, ValueError):
            while piece := self._read(_PIECE):
                self._put(piece)
                if len(piece) < _CRUMB:
                    sleep(_GATHERING)

    def _put(self, said: str | bytes | None) -> None:
        while not self._stopped.is_set():  # else nobody listens: what it still says is read, and forgotten
            with suppress(queue.Full):
                self.said.put(said, timeout=0.2)
                return

    def _read_errors(self) -> None:
        with suppress(OSError, ValueError):
            while piece := self._read_error(_PIECE):
                self._error += piece
                del self._error[: max(0, len(self._error) - _STDERR_KEPT)]

    def stderr(self) -> str:
        """The last 64 KiB of its standard error, when it has ended."""
        self._error_reader.join(LINGER)
        return self.stderr_so_far()

    def stderr_so_far(self) -> str:
        """The same while it goes on."""
        return bytes(self._error).decode("utf-8", "replace")

    @abstractmethod
    def exit_code(self) -> int:
        """The exit code, after that None; minus a signal's number when that ended it."""

    @abstractmethod
    def kill(self) -> None:
        """End the command at once, as far as that can be done from here. Never raises."""

    @abstractmethod
    def _read(self, most: int) -> bytes: ...

    @abstractmethod
    def _read_error(self, most: int) -> bytes: ...

    @abstractmethod
    def _write(self, stdin: Iterable[bytes]) -> None: ...


class RunningHere(Running):
    """A command on this machine; `by_sudo` is the user whose it is, where only sudo may end it."""

    def __init__(self, process: subprocess.Popen[bytes], by_sudo: str | None, *, binary: bool = False) -> None:
        super().__init__(binary)
        self.process = process
        self._by_sudo = by_sudo
        self._ended = threading.Event()
        self._no_output, self._no_errors = threading.Event(), threading.Event()

    def begin(self, stdin: Iterable[bytes] | None) -> None:
        _under_way.add(self)
        self._read_in_threads(self._read_output)
        threading.Thread(target=self._await_end, daemon=True).start()
        if stdin is not None:
            threading.Thread(target=self._write, args=(stdin,), daemon=True).start()

    def _await_end(self) -> None:
        self.process.wait()
        _under_way.discard(self)
        self._ended.set()
        self._no_output.wait()
        self._no_errors.wait()
        self._put(None)
        self._stopped.set()

    def _read(self, most: int) -> bytes:
        return self._next(self.process.stdout, self._no_output, most)

    def _read_error(self, most: int) -> bytes:
        return self._next(self.process.stderr, self._no_errors, most)

    def _next(self, stream: IO[bytes] | None, over: threading.Event, most: int) -> bytes:
        """What comes next. `over` is set at its end; or when the command has ended and nothing came for a moment: what
        it left in the background keeps it open, and is read on, so that it can go on.

        Only who reads can tell that nothing came: on a busy machine they may get no turn for longer than that moment.
        """
        assert stream
        try:
            while not over.is_set():
                ended = self._ended.is_set()  # asked first: what was said before the end is there by now
                if _comes_within(LINGER, stream):
                    break
                if ended:
                    self._ends(over)
            piece = os.read(stream.fileno(), most)
            if not piece:
                stream.close()
                self._ends(over)
            return piece
        except (OSError, ValueError):
            self._ends(over)
            raise

    def _ends(self, over: threading.Event) -> None:
        if over is self._no_output:
            self._put_last_line()  # it may have no newline, and whoever is told of the end reads no further
        over.set()

    def _write(self, stdin: Iterable[bytes]) -> None:
        assert self.process.stdin
        with suppress(OSError), self.process.stdin as stream:  # it may end without reading all; its exit code tells
            for piece in stdin:
                stream.write(piece)

    def exit_code(self) -> int:
        """Raises CannotError when sudo did not run it at all."""
        code = self.process.wait()
        if code == 1 and self._by_sudo and (refusal := _SUDO_REFUSES.search(self.stderr())):
            raise sudo_refuses(self._by_sudo, refusal[0].strip(" .;"))
        return code

    def kill(self) -> None:
        self._stopped.set()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # it is another user's, by sudo, which passes no SIGKILL on
            group = ["sudo", "-n", "-u", str(self._by_sudo), "--", "kill", "-KILL", "--", f"-{self.process.pid}"]
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(group, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
        with suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk cannot be killed
            self.process.wait(5)


_under_way: set[RunningHere] = set()
os.register_at_fork(after_in_child=_under_way.clear)


@atexit.register
def _end_all() -> None:
    """After a second Ctrl-C nobody waits for what is under way: it ends with us, and what it started with it."""
    for each in list(_under_way):
        each.kill()


def sudo_refuses(user: str, why: str) -> CannotError:
    """The error of a command that could not become `user`'s on this machine."""
    us = pwd.getpwuid(os.geteuid()).pw_name
    return CannotError(
        f"{us} may not run commands as {user} on this machine: {why}.",
        hint=f"as root: echo '{us} ALL=({user}) NOPASSWD: ALL' >/etc/sudoers.d/salvor; or work as root or {user}",
    )


def _comes_within(seconds: float, stream: IO[bytes]) -> bool:
    """Whether there is something to read, or its end."""
    looked = select.poll()
    looked.register(stream, select.POLLIN)
    return bool(looked.poll(seconds * 1000))

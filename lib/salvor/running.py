"""A command, and one that was started: its output read as it comes, its end noticed, whoever keeps its output open."""

from __future__ import annotations

import codecs
import os
import queue
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from salvor import clock

_PIECE = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_STDERR_KEPT = 64 * 1024
LINGER = 0.3
"""Seconds for which a command that has ended may go on printing: by what it left behind."""
_QUEUED = 1000
_QUEUED_PIECES = 16


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
        self._reading = True  # waiting for output, rather than for somebody to take it
        self._heard = clock.monotonic()

    def begin(self, stdin: Iterable[bytes] | None) -> None:
        """Let the command's output be read, and give it its input."""
        readers = self._read_in_threads(self._read_output)
        threading.Thread(target=self._await_end, args=(readers,), daemon=True).start()
        if stdin is not None:
            threading.Thread(target=self._write, args=(stdin,), daemon=True).start()

    def _read_in_threads(self, read_output: Callable[[], None]) -> Sequence[threading.Thread]:
        readers = [threading.Thread(target=work, daemon=True) for work in (read_output, self._read_errors)]
        self._error_reader = readers[1]
        for reader in readers:
            reader.start()
        return readers

    def _read_output(self) -> None:
        if self._binary:
            self._read_pieces()
        else:
            self._read_lines()

    def _read_lines(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        with suppress(OSError, ValueError):  # it was closed while we read: the command was stopped
            while piece := self._read(_PIECE):
                self._reading = False
                *lines, rest = (rest + decoder.decode(piece)).split("\n")
                for line in lines:
                    self._put(f"{line}\n")
                if len(rest) > _LONGEST_LINE:
                    self._put(rest)
                    rest = ""
                self._heard, self._reading = clock.monotonic(), True
        rest += decoder.decode(b"", final=True)
        if rest:
            self._put(rest)

    def _read_pieces(self) -> None:
        with suppress(OSError, ValueError):
            while piece := self._read(_PIECE):
                self._reading = False
                self._put(piece)
                self._heard, self._reading = clock.monotonic(), True

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
                self._heard = clock.monotonic()

    def _await_end(self, readers: Sequence[threading.Thread]) -> None:
        self._await()
        ended = clock.monotonic()
        while any(reader.is_alive() for reader in readers):
            if self._reading and clock.monotonic() - max(ended, self._heard) > LINGER:
                break
            readers[0].join(0.02)
            readers[1].join(0.02)
        self._put(None)
        self._stopped.set()

    def stderr(self) -> str:
        """The last 64 KiB of its standard error."""
        self._error_reader.join(LINGER)
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

    @abstractmethod
    def _await(self) -> None:
        """Return when the command itself has ended."""


class RunningHere(Running):
    """A command on this machine; `by_sudo` is the user whose it is, where only sudo may end it."""

    def __init__(self, process: subprocess.Popen[bytes], by_sudo: str | None, *, binary: bool = False) -> None:
        super().__init__(binary)
        self.process = process
        self._by_sudo = by_sudo

    def _read(self, most: int) -> bytes:
        return _read(self.process.stdout, most)

    def _read_error(self, most: int) -> bytes:
        return _read(self.process.stderr, most)

    def _write(self, stdin: Iterable[bytes]) -> None:
        assert self.process.stdin
        with suppress(OSError), self.process.stdin as stream:  # it may end without reading all; its exit code tells
            for piece in stdin:
                stream.write(piece)

    def _await(self) -> None:
        self.process.wait()

    def exit_code(self) -> int:
        return self.process.wait()

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


def _read(stream: IO[bytes] | None, most: int) -> bytes:
    assert stream
    piece = os.read(stream.fileno(), most)
    if not piece:
        stream.close()
    return piece

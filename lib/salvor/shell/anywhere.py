"""What runs commands somewhere: argv lists, a deadline on every call, masked errors, files."""

from __future__ import annotations

import errno
import os
import queue
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from salvor import clock
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.running import Command, Running
from salvor.secrets import mask

_MOST_OUTPUT = 64 * 1024 * 1024
_STDERR_KEPT = 64 * 1024
_GLANCE = 1.0  # seconds without a word after which what it says on standard error is looked at


@dataclass(frozen=True)
class Result:
    """What a command that ended said. `seconds` is how long it took."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class Shell(ABC):
    """Runs argv somewhere. `where` names the place in messages; `user` is who it runs as (None: whoever we are
    there).
    """

    def __init__(self, where: str, user: str | None = None) -> None:
        self.where = where
        self.user = user

    @property
    def remarks(self) -> tuple[str, ...]:
        """What an operator should know of how this place is reached, such as old algorithms that had to be opened."""
        return ()

    @abstractmethod
    def _start(self, command: Command) -> Running: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: float = 30.0,
        idle: float | None = None,
        input: bytes | Iterable[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        check: bool = True,
        hear: Callable[[str], None] | None = None,
    ) -> Result:
        """Run `argv` to its end, in `folder`; `input` is given on standard input (secrets go there or in `environment`,
        never in argv). What it prints is read as UTF-8. While it prints nothing, `hear` is given what it has said on
        standard error, each second; when that raises, the command is ended.

        Raises CommandError when the exit code is not zero (with `check`; a negative one is a signal's number),
        OutcomeUnknownError after `deadline` seconds, or after `idle` seconds without a word on standard output (it was
        ended, and what it had done by then is not known), CannotError when it is not there or prints more than 64 MiB.
        """
        begun = clock.monotonic()
        pieces = [input] if isinstance(input, bytes) else input
        running = self._start(Command(argv, environment or {}, pieces, folder))
        lines: list[str] = []
        size = 0
        with closing(self._said(running, argv, begun + deadline, deadline, idle, hear)) as said:
            for line in said:
                assert isinstance(line, str)
                lines.append(line)
                size += len(line)
                if size > _MOST_OUTPUT:
                    raise CannotError(f"{_name(argv)} on {self.where} prints without end; it was stopped.")
        result = Result(tuple(argv), running.exit_code(), "".join(lines), running.stderr(), clock.monotonic() - begun)
        if check and result.exit_code:
            raise self.failed(argv, result.exit_code, result.stderr or result.stdout[-_STDERR_KEPT:])
        return result

    def stream(
        self,
        argv: Sequence[str],
        *,
        deadline: float,
        idle: float | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> Iterator[str]:
        """Run `argv` and yield each line of its standard output as it comes, without the newline. Raises as `run` does.

        A line of more than 1 MiB comes in pieces. Closing the iterator ends the command.
        """
        for line in self._stream(Command(argv, environment or {}, None, folder), deadline, idle):
            assert isinstance(line, str)
            yield line.removesuffix("\n")

    def pieces(
        self,
        argv: Sequence[str],
        *,
        deadline: float,
        idle: float | None = None,
        environment: Mapping[str, str] | None = None,
        hear: Callable[[str], None] | None = None,
    ) -> Iterator[bytes]:
        """As `stream`, but what it prints comes as it is: bytes, in pieces of at most 64 KiB. `hear` as for `run`."""
        for piece in self._stream(Command(argv, environment or {}, binary=True), deadline, idle, hear):
            assert isinstance(piece, bytes)
            yield piece

    def _stream(
        self, command: Command, deadline: float, idle: float | None, hear: Callable[[str], None] | None = None
    ) -> Iterator[str | bytes]:
        begun = clock.monotonic()
        running = self._start(command)
        with closing(self._said(running, command.argv, begun + deadline, deadline, idle, hear)) as said:
            yield from said
        code = running.exit_code()
        if code:
            raise self.failed(command.argv, code, running.stderr())

    def _said(
        self,
        running: Running,
        argv: Sequence[str],
        until: float,
        deadline: float,
        idle: float | None,
        hear: Callable[[str], None] | None = None,
    ) -> Generator[str | bytes, None, None]:
        ended = False
        try:
            while True:
                try:
                    # The clock is looked at for every line: one that prints on and on must end too.
                    left = until - clock.monotonic()
                    wait = min(left, idle or left)
                    said = _next(running, wait, hear)
                    if left <= 0 and said is not None:
                        raise queue.Empty
                except queue.Empty:
                    how = f"did not end within {clock.write_duration(deadline)}"
                    if idle and clock.monotonic() < until:
                        how = f"said nothing for {clock.write_duration(idle)}"
                    running.kill()
                    ended = True
                    raise OutcomeUnknownError(
                        f"{_name(argv)} on {self.where} {how}; {running.way_to_end}.",
                        safe="what it had done by then is not known",
                        hint="look again with: inv assess",
                    ) from None
                if said is None:
                    ended = True
                    return
                yield said
        finally:
            if not ended:
                running.kill()

    def failed(self, argv: Sequence[str], code: int, said: str) -> CommandError:
        """The error of a command that ended with `code` and `said` that, masked. A full disk is told alone."""
        lines = said.strip().splitlines()
        full = [line.strip() for line in lines if os.strerror(errno.ENOSPC) in line]
        tail = mask("\n".join(full[-1:] or lines[-12:]))
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal(-code)}"
        return CommandError(
            f"{_name(argv)} on {self.where} {how}{': ' + tail if tail else '.'}",
            exit_code_of_command=code,
            stderr=mask(said),
            hint=f"make room on {self.where} (df -h shows where), then the same command again"
            if full
            else f"by hand, {self.by_hand(argv)}",
        )

    def by_hand(self, argv: Sequence[str]) -> str:
        """Where, as whom and how an operator runs it, masked: `on this machine as postgres: pgbackrest info`."""
        who = f" as {self.user}" if self.user else ""
        return f"on {self.where}{who}: {mask(shlex.join(argv))}"

    def succeeds(self, argv: Sequence[str]) -> bool:
        """Whether the command ends with exit code 0."""
        return self.run(argv, check=False).exit_code == 0

    def cores(self) -> int:
        """How many processors there are for what is run here. Raises CommandError."""
        return int(self.run(["nproc"]).stdout)

    def exists(self, path: str) -> bool:
        """Whether there is anything at `path`."""
        return self.succeeds(["test", "-e", path])

    def read(self, path: str) -> str | None:
        """The text of a file; None when there is no such file."""
        result = self.run(["sh", "-c", 'test -e "$1" || exit 44; cat -- "$1"', "sh", path], check=False)
        if result.exit_code == 44:
            return None
        if result.exit_code:
            raise self.failed(["cat", path], result.exit_code, result.stderr)
        return result.stdout

    def write(self, path: str, text: str, *, mode: int = 0o600, deadline: float = 30.0) -> None:
        """Replace a file's content atomically: written beside it, flushed to disk, renamed over it.

        A connection that breaks leaves the old content: what came is counted before the rename.
        """
        content = text.encode()
        script = (
            'umask 077; t="$1.salvor-new"; rm -f -- "$t" && set -C && cat > "$t" && test "$(wc -c < "$t")" -eq "$3" '
            '&& chmod -- "$2" "$t" && sync -d -- "$t" && mv -f -- "$t" "$1"'
        )
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}", str(len(content))], input=content, deadline=deadline)


def _next(running: Running, seconds: float, hear: Callable[[str], None] | None) -> str | bytes | None:
    """What a command says next, within `seconds`. Raises queue.Empty, and what `hear` raises."""
    while hear and seconds > _GLANCE:
        with suppress(queue.Empty):
            return running.said.get(timeout=_GLANCE)
        hear(running.stderr_so_far())
        seconds -= _GLANCE
    return running.said.get(timeout=seconds) if seconds > 0 else running.said.get_nowait()


def _name(argv: Sequence[str]) -> str:
    return PurePosixPath(argv[0]).name


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a signal"

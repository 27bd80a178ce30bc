"""Commands and files on this machine or on a host over SSH, the same way: argv lists, a deadline on every call,
masked errors.

Everything that is sent to a host is POSIX sh, quoted in one place (`shlex.join`).
"""

from __future__ import annotations

import getpass
import os
import queue
import shlex
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from salvor import clock
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.secrets import mask

_END = None
_STDERR_KEPT = 64 * 1024


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

    @abstractmethod
    def _start(self, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> _Running: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: float = 30.0,
        input: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Result:
        """Run `argv` to its end; `input` is given on standard input (secrets go there or in `environment`, never in
        argv).

        Raises CommandError when the exit code is not zero (with `check`), OutcomeUnknownError after `deadline` seconds
        (it was killed, and what it had done by then is not known), CannotError when it is not there.
        """
        begun = clock.monotonic()
        running = self._start(argv, environment or {}, input)
        lines = list(self._lines(running, argv, begun + deadline, deadline))
        code = running.wait(max(0.1, begun + deadline - clock.monotonic()))
        result = Result(tuple(argv), code, "".join(lines), running.stderr(), clock.monotonic() - begun)
        if check and code:
            raise self._failed(argv, code, result.stderr or result.stdout)
        return result

    def stream(
        self, argv: Sequence[str], *, deadline: float, environment: Mapping[str, str] | None = None
    ) -> Iterator[str]:
        """Run `argv` and yield each line of its standard output as it comes, without the newline. Raises as `run` does.

        Closing the iterator ends the command.
        """
        begun = clock.monotonic()
        running = self._start(argv, environment or {}, None)
        for line in self._lines(running, argv, begun + deadline, deadline):
            yield line.rstrip("\n")
        code = running.wait(max(0.1, begun + deadline - clock.monotonic()))
        if code:
            raise self._failed(argv, code, running.stderr())

    def _lines(self, running: _Running, argv: Sequence[str], until: float, deadline: float) -> Iterator[str]:
        ended = False
        try:
            while True:
                try:
                    line = running.lines.get(timeout=max(0.01, until - clock.monotonic()))
                except queue.Empty:
                    raise OutcomeUnknownError(
                        f"{_name(argv)} on {self.where} did not end within {clock.write_duration(deadline)}; "
                        "it was stopped.",
                        safe="what it had done by then is not known",
                        hint="look again with: inv assess",
                    ) from None
                if line is _END:
                    ended = True
                    return
                yield line
        finally:
            if not ended:
                running.kill()

    def _failed(self, argv: Sequence[str], code: int, said: str) -> CommandError:
        tail = mask("\n".join(said.strip().splitlines()[-12:]))
        return CommandError(
            f"{_name(argv)} on {self.where} ended with exit code {code}{': ' + tail if tail else '.'}",
            exit_code_of_command=code,
            stderr=mask(said),
            hint=f"by hand, on {self.where}: {mask(shlex.join(argv))}",
        )

    def succeeds(self, argv: Sequence[str], *, deadline: float = 30.0) -> bool:
        """Whether the command ends with exit code 0."""
        return self.run(argv, deadline=deadline, check=False).exit_code == 0

    def exists(self, path: str) -> bool:
        """Whether there is anything at `path`."""
        return self.succeeds(["test", "-e", path])

    def read(self, path: str, *, deadline: float = 30.0) -> str | None:
        """The text of a file; None when there is no such file."""
        result = self.run(
            ["sh", "-c", 'test -e "$1" || exit 44; cat -- "$1"', "sh", path], deadline=deadline, check=False
        )
        if result.exit_code == 44:
            return None
        if result.exit_code:
            raise self._failed(["cat", path], result.exit_code, result.stderr)
        return result.stdout

    def write(self, path: str, text: str, *, mode: int = 0o600, deadline: float = 30.0) -> None:
        """Replace a file's content atomically: written beside it, flushed to disk, renamed over it."""
        script = 'umask 077; t="$1.salvor-new"; cat > "$t" && chmod "$2" "$t" && sync -d "$t" && mv -f -- "$t" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], input=text.encode(), deadline=deadline)


def _name(argv: Sequence[str]) -> str:
    return PurePosixPath(argv[0]).name


class _Running(ABC):
    """A command that was started: its lines as they come, then `_END`."""

    lines: queue.Queue[str | None]

    @abstractmethod
    def wait(self, seconds: float) -> int: ...

    @abstractmethod
    def stderr(self) -> str: ...

    @abstractmethod
    def kill(self) -> None: ...


def local(user: str | None = None) -> Shell:
    """This machine, as `user` (None, or our own name: as we are). Another user needs root, or sudo without a
    password.
    """
    return _Local("this machine", None if user == getpass.getuser() else user)


class _Local(Shell):
    def _start(self, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> _Running:
        whole = list(argv)
        if self.user:
            if os.geteuid() == 0:
                whole = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups", "--", *whole]
            else:
                names = ",".join(environment)
                whole = ["sudo", "-n", *([f"--preserve-env={names}"] if names else []), "-u", self.user, "--", *whole]
        try:
            # A session of its own, so that the deadline ends all that the command started. Its folder is `/`, which
            # every
            # user may enter.
            process = subprocess.Popen(
                whole,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**_plain_environment(), **environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise CannotError(
                f"{_name(argv)} cannot be started on this machine: {error.strerror}.",
                hint=f"is it installed? command -v {shlex.quote(argv[0])}",
            ) from error
        return _LocalRunning(process, stdin)


def _plain_environment() -> dict[str, str]:
    """Our environment without what would change a tool's output (language) or hand it our own secrets (PG*)."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG", "PGBACKREST_"))
    }
    return {**kept, "LC_ALL": "C.UTF-8"}


class _LocalRunning(_Running):
    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes | None) -> None:
        self.process = process
        self.lines = queue.Queue(maxsize=10_000)
        self._error = bytearray()
        assert process.stdout and process.stderr
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._read_error, args=(process.stderr,), daemon=True),
        ]
        if stdin is not None:
            threading.Thread(target=self._write, args=(stdin,), daemon=True).start()
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.lines.put(line.decode("utf-8", "replace"))
        self.lines.put(_END)

    def _read_error(self, stream: IO[bytes]) -> None:
        with stream:
            while piece := stream.read1(65536) if hasattr(stream, "read1") else stream.read(65536):
                self._error += piece
                del self._error[: max(0, len(self._error) - _STDERR_KEPT)]

    def _write(self, stdin: bytes) -> None:
        assert self.process.stdin
        try:
            with self.process.stdin as stream:
                stream.write(stdin)
        except BrokenPipeError:
            pass  # it ended without reading all of it; its exit code tells the rest

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait(5)

    def stderr(self) -> str:
        self._readers[1].join(1)
        return bytes(self._error).decode("utf-8", "replace")

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # it runs as another user, by sudo
            self.process.kill()
        self.process.wait(5)


def on_host(where: str, connection: Any, user: str | None = None) -> Shell:
    """A host, over an open fabric connection, as `user` (by sudo without a password)."""
    return _Remote(where, connection, user)


class _Remote(Shell):
    def __init__(self, where: str, connection: Any, user: str | None) -> None:
        super().__init__(where, user)
        self.connection = connection

    def _start(self, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> _Running:
        # The environment goes by standard input, read by sh before the command starts: argv is seen by every user of
        # a host.
        setting = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        script = 'eval "$(dd bs=1 count="$1" 2>/dev/null)"; shift; exec "$@"'
        sudo = ["sudo", "-n", "-u", self.user, "--"] if self.user else []
        command = shlex.join([*sudo, "sh", "-c", script, "sh", str(len(setting.encode())), *argv])
        channel = self.connection.transport.open_session(timeout=10)
        channel.exec_command(command)
        return _RemoteRunning(channel, setting.encode() + (stdin or b""))


class _RemoteRunning(_Running):
    def __init__(self, channel: Any, stdin: bytes) -> None:
        self.channel = channel
        self.lines = queue.Queue(maxsize=10_000)
        self._error = bytearray()
        threading.Thread(target=self._write, args=(stdin,), daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()
        self._error_reader = threading.Thread(target=self._read_error, daemon=True)
        self._error_reader.start()

    def _write(self, stdin: bytes) -> None:
        try:
            self.channel.sendall(stdin)
            self.channel.shutdown_write()
        except OSError:
            pass  # the host is gone or closed its end; the reader tells the rest

    def _read(self) -> None:
        with self.channel.makefile("rb") as stream:
            for line in stream:
                self.lines.put(line.decode("utf-8", "replace"))
        self.lines.put(_END)

    def _read_error(self) -> None:
        while piece := self.channel.recv_stderr(65536):
            self._error += piece
            del self._error[: max(0, len(self._error) - _STDERR_KEPT)]

    def wait(self, seconds: float) -> int:
        if not self.channel.status_event.wait(seconds):
            self.kill()
            return 255
        return int(self.channel.recv_exit_status())

    def stderr(self) -> str:
        self._error_reader.join(1)
        return bytes(self._error).decode("utf-8", "replace")

    def kill(self) -> None:
        self.channel.close()


def connect(
    host: str, *, user: str | None = None, port: int = 22, run_as: str | None = None, deadline: float = 10.0
) -> Shell:
    """A host over SSH, its key checked against known_hosts: an unknown or changed key is an error, never accepted.

    Raises CannotError when it cannot be reached within `deadline` seconds, or is not who it should be.
    """
    import paramiko
    from fabric import Connection

    connection = Connection(host, user=user, port=port, connect_timeout=int(deadline) or 1)
    connection.client.load_system_host_keys()
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        connection.open()
    except (OSError, EOFError, paramiko.SSHException) as error:
        name = f"{user + '@' if user else ''}{host}:{port}"
        raise CannotError(
            f"{name} cannot be reached over SSH: {error}.", hint=f"ssh -p {port} {shlex.quote(host)} true"
        ) from error
    connection.transport.set_keepalive(5)
    return on_host(host, connection, run_as)


def on_demand(where: str, open_shell: Callable[[], Shell]) -> Shell:
    """A shell that is opened when it is first used, so that a host that is down hinders nothing before."""
    return _OnDemand(where, open_shell)


class _OnDemand(Shell):
    def __init__(self, where: str, open_shell: Callable[[], Shell]) -> None:
        super().__init__(where)
        self._open = open_shell
        self._opened: Shell | None = None
        self._lock = threading.Lock()

    def _start(self, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> _Running:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
        return self._opened._start(argv, environment, stdin)

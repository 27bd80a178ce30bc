"""Commands on a host, over any link to it: begun, given their input, read, and ended there when nobody waits."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from salvor import clock, secrets
from salvor.errors import CannotError, OutcomeUnknownError, SalvorError
from salvor.running import Command, Running
from salvor.shell import Shell
from salvor.ssh.envelope import END_TREE, Envelope

_TO_BEGIN = 3.0
_TO_END = 5.0
_LAST_WORDS = 3.0
_KEPT = 64 * 1024
_ROOM = 16 * 1024  # bytes that every host takes before it reads any


class Pipe(ABC):
    """A line that a host's login shell executes: its three streams and its end. Reading and writing raise OSError when
    it is closed.
    """

    @abstractmethod
    def read(self, most: int) -> bytes:
        """Standard output; nothing at its end. Raises TimeoutError when none comes for a while."""

    @abstractmethod
    def read_error(self, most: int) -> bytes:
        """Standard error, likewise."""

    @abstractmethod
    def write(self, piece: bytes) -> None:
        """Give all of `piece` to standard input."""

    @abstractmethod
    def end_input(self) -> None:
        """Close standard input."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the line has ended, or the connection."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """When it has ended: the exit code, -1 for a signal, None when the connection broke first."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Never raises."""

    @abstractmethod
    def is_over(self) -> bool:
        """Whether nothing of it runs on the host any more; a moment is waited for that when it was closed by us."""


class Link(ABC):
    """An open connection to a host, as the user `login`."""

    login: str
    remarks: tuple[str, ...] = ()

    @property
    def one_by_one(self) -> bool:
        """Whether a command on it must have ended before the next begins."""
        return False

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it was not seen to break."""

    @abstractmethod
    def begin(self, line: str) -> Pipe:
        """Let the login shell execute `line`. Raises CannotError when it was not begun: from a ConnectionError or an
        EOFError when the connection broke.
        """

    def sftp(self) -> Any:
        """A paramiko SFTPClient; None where this client has none. Raises CannotError where the host has none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """End it. Never raises."""


class Remote(Shell):
    """A host, over the link that `link` gives (a new one when the last has broken), as `run_as`."""

    def __init__(self, where: str, link: Callable[[], Link], run_as: str | None, sudo_password: str | None) -> None:
        super().__init__(where, run_as)
        self.link = link
        self._sudo_password = sudo_password
        self._remarks: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._remarks

    def _start(self, command: Command) -> Running:
        return self._begin(command, self._end)

    def _begin(self, command: Command, end: Callable[[int], bool] | None) -> Running:
        link = self.link()
        self._remarks = link.remarks
        password = secrets.resolve(self._sudo_password) if self._sudo_password and self.user else None
        envelope = Envelope.of(command, login=link.login, run_as=self.user, by_password=password is not None)
        try:
            pipe = link.begin(envelope.line)
        except CannotError as error:
            if not isinstance(error.__cause__, (ConnectionError, EOFError)):
                raise
            pipe = self.link().begin(envelope.line)  # the connection had broken, and nothing was begun on it
        running = _Running(self, pipe, envelope, password, end, command.binary)
        running.begin(command.stdin)
        return running

    def _end(self, pid: int) -> bool:
        """End process `pid` and what it started. Whether that was done; if not, the link is of no use either."""
        link = self.link()
        try:
            running = self._begin(Command(["sh", "-c", END_TREE, "sh", str(pid)]), None)
            for _ in self._said(running, ["kill"], clock.monotonic() + _TO_END, _TO_END, None):
                pass
            return running.exit_code() == 0
        except SalvorError:
            link.close()
            return False


class _Running(Running):
    def __init__(
        self,
        shell: Remote,
        pipe: Pipe,
        envelope: Envelope,
        password: str | None,
        end: Callable[[int], bool] | None,
        binary: bool,
    ) -> None:
        super().__init__(binary)
        self._shell = shell
        self._pipe = pipe
        self._envelope = envelope
        self._password = password
        self._end = end
        self._pid: int | None = None
        self._code: int | None = None
        self._rest = b""  # the beginning of what may be a mark
        self._rest_of_error = b""
        self._way_to_end = ""
        self._killed = False
        self._begun = threading.Event()
        self._before = bytearray()  # what the login said before the command began
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begin(self, stdin: Iterable[bytes] | None) -> None:
        if stdin is None and self._password is None and len(self._envelope.script) < _ROOM:
            self._write(())  # there is room for it: a thread less
        else:
            threading.Thread(target=self._write, args=(stdin or (),), daemon=True).start()
        self._read_in_threads(self._read_to_end)

    def _read_to_end(self) -> None:
        self._read_output()
        self._put(None)
        self._stopped.set()

    def _read(self, most: int) -> bytes:
        while self._code is None:
            piece = self._piece(self._pipe.read, most)
            said, number, self._rest = self._envelope.split(self._rest + piece)
            if self._pid is None:
                self._before += said
                del self._before[:-_KEPT]
                said = b""
                if number is not None:
                    self._pid = number
                    self._begun.set()
                    self._events.put("begun")
                    said, number, self._rest = self._envelope.split(self._rest)
            if number is not None:
                self._code = number
            if said:
                return said
            if not piece:
                break
        self._begun.set()
        self._events.put("ended")
        return b""

    def _read_error(self, most: int) -> bytes:
        while piece := self._piece(self._pipe.read_error, most):
            said, code, self._rest_of_error = self._envelope.split(self._rest_of_error + piece)
            if self._password and self._pid is None and self._envelope.prompt in self._error[-200:] + said:
                self._events.put("asks")
            if code is not None:
                self._error += said
                break
            if said:
                return said
        return b""

    def _piece(self, read: Callable[[int], bytes], most: int) -> bytes:
        """What comes next; nothing at the end, or some time after the line has ended and something holds it open."""
        ended: float | None = None
        while not self._killed:
            try:
                return read(most)
            except TimeoutError:
                if self._pipe.ended:
                    ended = ended or clock.monotonic()
                    if clock.monotonic() - ended > _LAST_WORDS:
                        break
        return b""

    def stderr(self) -> str:
        return super().stderr().replace(self._envelope.prompt.decode(), "")

    def _write(self, stdin: Iterable[bytes]) -> None:
        with suppress(OSError):  # the host is gone or closed its end; the reader tells the rest
            if self._password is None or self._is_let_in(self._password):
                self._pipe.write(self._envelope.script)
                for piece in stdin:
                    self._pipe.write(piece)
            self._pipe.end_input()

    def _is_let_in(self, password: str) -> bool:
        """Give sudo the password when it asks, once: asked again, it was wrong; more tries could lock the account."""
        asked = False
        while (event := self._events.get()) == "asks" and not asked:
            asked = True
            self._pipe.write(f"{password}\n".encode())
        return event == "begun"

    def exit_code(self) -> int:
        code = self._pipe.exit_code() if self._code is None else self._code
        self._error_reader.join(_LAST_WORDS)  # what it said comes on a stream of its own
        self._pipe.close()
        where = self._shell.where
        if code is None:
            raise OutcomeUnknownError(
                f"The connection to {where} broke while a command ran there.",
                safe="whether it goes on there is not known",
                hint="look again with: inv assess",
            )
        if self._pid is None:
            said = secrets.mask(f"{self._before.decode('utf-8', 'replace')}\n{self.stderr()}".strip()[-1000:]).rstrip(
                "."
            )
            as_user = f" as {self._shell.user}" if self._shell.user else ""
            raise CannotError(
                f"{where} runs no command{as_user}: its login ended with exit code {code}"
                f"{f', saying: {said}' if said else ' and said nothing'}.",
                safe="the command was not begun",
                hint=_why_not(said, self._shell),
            )
        return code

    @property
    def way_to_end(self) -> str:  # type: ignore[override]
        return self._way_to_end

    def kill(self) -> None:
        self._stopped.set()
        self._way_to_end = "its connection was closed, and it may go on there"
        if self._end:
            self._begun.wait(_TO_BEGIN)  # its script was sent: it would begin yet
        self._killed = True  # what nobody reads fills its pipe and waits: the line is free for the order to end it
        if self._pid is not None and self._end and self._end(self._pid):
            self._way_to_end = "it was stopped there"
        self._pipe.close()
        self._events.put("ended")


def _why_not(said: str, shell: Remote) -> str:
    if shell.user and "sudo" in said:
        if "not found" in said:
            return f"install sudo there, or log in as {shell.user} (ssh: user: {shell.user})"
        if "password" in said:
            return "name sudo's password in the inventory (ssh: sudo_password: env:NAME), or mend that password"
        return f"let sudo there run sh as {shell.user} without a terminal"
    return "the account needs a shell there: getent passwd shows which it has"

"""A link by paramiko: every step within one deadline, and the host's key checked before it gets anything."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from salvor import clock
from salvor.deadline import within
from salvor.errors import CannotError
from salvor.ssh import apart, keys, known
from salvor.ssh.remote import Link, Pipe
from salvor.ssh.route import Hop, Route

if TYPE_CHECKING:
    from salvor.ssh.channel import Channel

BEGINNING = 10.0
_PAUSE = 0.1
_WAIT = 0.3
_FULL = (1, 2, 4)  # prohibited, connect failed, resource shortage: what servers say of one session too many
_KEEPALIVE = 5
_PIECE = 32 * 1024
_SILENT_PEER = 20_000  # milliseconds for which what was sent may go unacknowledged
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Wire(Link):
    """Open transports, one a machine on the way; the last leads to the host."""

    def __init__(self, route: Route, transports: list[Any]) -> None:
        self.login = route.host.user
        self.where = route.alias
        self.transport = transports[-1]
        self._transports = transports

    @property
    def alive(self) -> bool:
        return bool(self.transport.is_active())

    @property
    def one_by_one(self) -> bool:
        return apart.is_needed(self.transport.remote_version)

    def begin(self, line: str) -> Pipe:
        import paramiko

        try:
            channel = self._session()
            channel.settimeout(_WAIT)
            channel.execute(line, BEGINNING)
            return _ChannelPipe(channel)
        except (OSError, EOFError, paramiko.SSHException) as error:
            if not isinstance(error, paramiko.ChannelException):
                self.close()  # it broke, or does not answer: the next command connects anew
            raise CannotError(
                f"{self.where} does not run a command: {why(error)}.",
                safe="it was not begun",
                hint="the same command again connects anew",
            ) from error

    def _session(self) -> Channel:
        """A channel. A host lets only so many be open at once (MaxSessions): others wait."""
        from paramiko import ChannelException

        until = clock.monotonic() + BEGINNING
        while True:
            try:
                return cast("Channel", self.transport.open("session", seconds=BEGINNING))
            except ChannelException as error:
                if error.code not in _FULL or clock.monotonic() > until - _PAUSE:
                    raise
                time.sleep(_PAUSE)

    def sftp(self) -> Any:
        import paramiko

        try:
            channel = self._session()
            channel.settimeout(BEGINNING)
            return within(BEGINNING, lambda: (channel.invoke_subsystem("sftp"), paramiko.SFTPClient(channel))[1])
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise CannotError(f"{self.where} offers no SFTP: {why(error)}.", safe="no file was touched") from error

    def close(self) -> None:
        for transport in reversed(self._transports):
            with suppress(OSError, EOFError):
                transport.close()


class _ChannelPipe(Pipe):
    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def read(self, most: int) -> bytes:
        return bytes(self.channel.recv(most))

    def read_error(self, most: int) -> bytes:
        return bytes(self.channel.recv_stderr(most))

    def write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            with suppress(TimeoutError):  # the host takes no more for now; who waits for the command has a deadline
                left = left[self.channel.send(left) :]
            if self.channel.closed or self.channel.ended:
                raise BrokenPipeError(errno.EPIPE, "the host closed the channel")

    def end_input(self) -> None:
        self.channel.shutdown_write()

    @property
    def ended(self) -> bool:
        return bool(self.channel.status_event.is_set())

    def exit_code(self) -> int | None:
        """-1 stands for any signal, which paramiko does not name."""
        self.channel.status_event.wait(_WAIT)
        code = int(self.channel.exit_status)
        return None if code == -1 and self.channel.broken else code

    def close(self) -> None:
        with suppress(OSError, EOFError):
            self.channel.close()

    def is_over(self) -> bool:
        return bool(self.channel.gone.wait(_WAIT if self.channel.closed else 0))


def why(error: BaseException) -> str:
    """What a library or the system says of its error, without its full stop."""
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error).rstrip(".") or type(error).__name__


def open_wire(route: Route, deadline: float, opened: socket.socket | None) -> Wire:
    """A link along `route` within `deadline` seconds; `opened` is a connection to its first machine that stands
    already. Raises CannotError.
    """
    import paramiko

    from salvor.ssh.channel import Connection

    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else it prints tracebacks of its own
    until = clock.monotonic() + deadline
    transports: list[Any] = []
    hop = route.hops[0]
    try:
        for hop in route.hops:
            line = _through(transports[-1], hop, until) if transports else prepare(opened or _call(hop, until))
            transport = Connection(line)
            transports.append(transport)
            _let_in(transport, hop, until)
    except BaseException as error:
        for transport in reversed(transports):
            transport.close()
        if isinstance(error, (OSError, EOFError, UnicodeError, paramiko.SSHException)):
            raise explained(error, route, hop) from error
        raise
    transport.set_keepalive(_KEEPALIVE)
    return Wire(route, transports)


def _call(hop: Hop, until: float) -> socket.socket:
    def call() -> socket.socket:
        return socket.create_connection((hop.host, hop.port), timeout=_left(until))

    return within(_left(until), call)  # name resolution has no deadline of its own


def _through(transport: Any, hop: Hop, until: float) -> Any:
    """A connection to the next machine that the last one makes for us."""
    line = transport.open("direct-tcpip", hop.host, hop.port, "", 0, seconds=_left(until))
    close = line.close

    def close_quietly() -> None:  # paramiko's thread prints a traceback when the connection below is gone already
        with suppress(OSError, EOFError):
            close()

    line.close = close_quietly
    return line


class _Line(socket.socket):
    """A connection on which all that came is taken at once, where paramiko asks the system twice for each packet, and
    whose end is seen at once by who waits for more.
    """

    _ahead = b""

    def recv(self, most: int, flags: int = 0) -> bytes:
        """See socket."""
        if not self._ahead:
            self._ahead = super().recv(max(most, _PIECE), flags)
        piece, self._ahead = self._ahead[:most], self._ahead[most:]
        return piece

    def close(self) -> None:
        """See socket."""
        with suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        super().close()


def prepare(line: socket.socket) -> socket.socket:
    """Neither wait to fill a packet (paramiko never sets TCP_NODELAY), nor for a peer that acknowledges nothing."""
    line = _Line(fileno=line.detach())
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_PEER)
    return line


def _let_in(transport: Any, hop: Hop, until: float) -> None:
    import paramiko

    expected = hop.known
    offered = transport.get_security_options()
    ours = [kind for each in expected.kinds for kind in (_RSA if each == "ssh-rsa" else (each,))]
    if usable := [kind for kind in ours if kind in offered.key_types]:
        offered.key_types = usable  # else a host that has several keys might show one that is not known
    transport.banner_timeout = transport.handshake_timeout = _left(until)
    transport.begin(_left(until))
    shown = transport.get_remote_server_key()
    known.check(
        (shown.get_name(), shown.asbytes()),
        expected, hop.name, hop.host, hop.port, pinned=hop.pinned is not None,
    )  # fmt: skip
    if missing := keys.authenticate(transport, hop, _left(until)):
        raise paramiko.AuthenticationException(f"it also asks for: {', '.join(missing)}")


def _left(until: float) -> float:
    left = until - clock.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def explained(error: BaseException, route: Route, hop: Hop) -> CannotError:
    """What kept us from `hop` on the way along `route`."""
    import paramiko

    by_hand = f"ssh -p {hop.port} -- {shlex.quote(f'{hop.user}@{hop.host}')} true"
    on_the_way = f", on the way to {route.alias}," if hop is not route.host else ""
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return CannotError(
            f"{hop.name}{on_the_way} knows no algorithm that is still in use: {why(error)}.",
            safe="nothing was sent to it",
            hint="if it cannot be renewed, open what it needs, for it alone: ssh: {legacy: true} in the inventory",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return CannotError(
            f"{hop.name}{on_the_way} refuses us: {why(error)}.",
            safe="nothing was run there",
            hint=f"{by_hand}, with -v to see why",
        )
    return CannotError(
        f"{hop.name}{on_the_way} cannot be reached over SSH: {why(error)}.",
        safe="nothing was run there",
        hint=by_hand,
    )

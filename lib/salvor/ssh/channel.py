"""Channels over paramiko that keep their order: nothing is sent on one that is no more.

paramiko decides under a channel's lock what it sends, and sends it after that, while its own thread answers the host's
CLOSE: the end of the input, or room for more output, then comes to a channel that neither side has any more. For that a
host may end the connection, with every other command on it, as dropbear does. Here whoever uses a channel answers that
CLOSE, when they let go of it, and takes turns with all others who send on it.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import paramiko
from paramiko import common

from salvor import clock

_LOOK = 1.0
"""Seconds after which a thread that waits for the host looks whether somebody let go of the connection."""


class Channel(paramiko.Channel):  # type: ignore[misc]
    """A channel to a host. `ended`: the host closed it. `gone`: that, or the connection broke. `refusal`: why it was
    not opened, or what was asked for was not granted.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.ended = False
        self.gone = threading.Event()
        self.refusal: paramiko.ChannelException | None = None
        self._turn = threading.Lock()

    @property
    def broken(self) -> bool:
        """Whether the connection broke before the host closed the channel."""
        return bool(self.closed) and not self.ended

    def execute(self, line: str, seconds: float) -> None:
        """Let the login shell execute `line`. Raises ChannelException when the host refuses, EOFError when the
        connection breaks first, SSHException when it does not answer within `seconds`.
        """
        # As paramiko's own exec_command, which waits without end for the host's answer. Dropbear may lose what is
        # sent before it.
        request = _message(common.cMSG_CHANNEL_REQUEST, self.remote_chanid, "exec", True, line)
        self._event_pending()
        self._send_in_turn(request)
        if not self.closed and not self.event.wait(seconds):
            raise paramiko.SSHException(f"it did not say within {seconds:.0f} s that it begins it")
        if self.event_ready:  # that it is closed says nothing: a command may have ended by now
            return
        self.close()
        if self.refusal or self.ended:
            raise self.refusal or paramiko.ChannelException(1, "it refuses to")
        raise EOFError("the connection broke")

    def close(self) -> None:
        """See paramiko. To be called also when the host has closed it: it has an answer to come."""
        with self._turn:
            super().close()

    def shutdown(self, how: int) -> None:
        """See paramiko."""
        with self._turn:
            super().shutdown(how)

    def _send(self, piece: bytes, message: paramiko.Message) -> int:
        with self.lock:
            size = 0 if self.ended else int(self._wait_for_send_window(len(piece)))
        if not size:
            return 0
        message.add_string(piece[:size])
        self._send_in_turn(message)
        return size

    def _send_in_turn(self, message: paramiko.Message) -> None:
        with self._turn:
            if not self.closed and not self.eof_sent:
                self.transport._send_user_message(message)

    def _check_add_window(self, taken: int) -> int:
        """Called when output was taken. The caller would send what this returns out of turn: so nothing."""
        with self._turn:
            if room := super()._check_add_window(taken):
                more = _message(common.cMSG_CHANNEL_WINDOW_ADJUST, self.remote_chanid, int(room))
                self.transport._send_user_message(more)
        return 0

    # ...called by the thread of the connection

    def _request_failed(self, message: paramiko.Message) -> None:
        self.refusal = paramiko.ChannelException(1, "it refuses to")
        self.event.set()

    def _handle_close(self, message: paramiko.Message) -> None:
        self.ended = True
        with self.lock:
            self.in_buffer.close()
            self.in_stderr_buffer.close()
            self.out_buffer_cv.notify_all()
            self.event.set()
            self.status_event.set()
        self.gone.set()
        self.transport._unlink_channel(self.chanid)

    def _unlink(self) -> None:
        super()._unlink()
        self.gone.set()


class _Packets(paramiko.Packetizer):  # type: ignore[misc]
    def start_handshake(self, timeout: float) -> None:
        """Nothing: who waits for the handshake has a deadline, and paramiko's would be a thread for each connection."""


class Connection(paramiko.Transport):  # type: ignore[misc]
    """A connection to a host, with channels of the kind above, by what costs least: a key exchange over a curve (group
    16 takes 15 times as long), and a cipher without a checksum of its own, which paramiko compares in Python.
    """

    _preferred_kex = tuple(
        sorted(paramiko.Transport._preferred_kex, key=lambda name: not name.startswith(("curve25519", "ecdh")))
    )
    _preferred_ciphers = tuple(sorted(paramiko.Transport._preferred_ciphers, key=lambda name: "gcm" not in name))
    _channel_handler_table: ClassVar = {
        **paramiko.Transport._channel_handler_table,
        common.MSG_CHANNEL_FAILURE: Channel._request_failed,
        common.MSG_CHANNEL_CLOSE: Channel._handle_close,
    }

    _active_check_timeout = _LOOK

    def __init__(self, line: Any) -> None:
        super().__init__(line, packetizer_class=_Packets)

    def begin(self, seconds: float) -> None:
        """Agree on keys with the host. Raises SSHException or OSError, TimeoutError after `seconds`."""
        agreed = threading.Event()
        self.start_client(agreed)
        if not self._is_over(agreed, seconds):
            raise TimeoutError("timed out")
        if not self.is_active():
            raise self.get_exception() or paramiko.SSHException("Negotiation failed")

    def auth_publickey(self, user: str, key: paramiko.PKey, event: threading.Event | None = None) -> list[str]:
        """See paramiko. `auth_timeout` is to be set before."""
        answered = event or threading.Event()
        super().auth_publickey(user, key, answered)
        if not self._is_over(answered, self.auth_timeout):
            raise paramiko.AuthenticationException("Authentication timeout")
        return list(self.auth_handler.wait_for_response(answered))

    def _is_over(self, event: threading.Event, seconds: float) -> bool:
        """Wait for `event`, or for the connection to end, where paramiko would look ten times a second. Whether one of
        them came within `seconds`.
        """
        until = clock.monotonic() + seconds
        while self.is_active() and not event.wait(max(0.0, min(_LOOK, until - clock.monotonic()))):
            if clock.monotonic() >= until:
                return False
        return True

    def _filter_algorithm(self, kind: str) -> Any:
        return getattr(self, f"_preferred_{kind}")  # none is disabled, and paramiko asks for each a dozen times

    def open(self, kind: str, *fields: str | int, seconds: float) -> Channel:
        """A channel of that kind (RFC 4254: `session`, `direct-tcpip`; `fields` are those of the kind). Raises
        ChannelException when the host refuses, EOFError when the connection breaks, SSHException after `seconds`.
        """
        with self.lock:
            channel = Channel(self._next_channel())
            channel._set_transport(self)
            channel._set_window(self.default_window_size, self.default_max_packet_size)
            self._channels.put(channel.chanid, channel)
            self.channels_seen[channel.chanid] = True
            self.channel_events[channel.chanid] = answered = threading.Event()
        own = (channel.chanid, self.default_window_size, self.default_max_packet_size)
        self._send_user_message(_message(common.cMSG_CHANNEL_OPEN, kind, *own, *fields))
        if not self._is_over(answered, seconds):
            raise paramiko.SSHException(f"it opened no channel within {seconds:.0f} s")
        if channel.refusal:
            raise channel.refusal
        if not channel.active:
            raise EOFError("the connection broke") from self.get_exception()
        return channel

    def _parse_debug(self, message: paramiko.Message) -> None:
        pass  # a server's remarks for its developers: paramiko would write them out, at some cost, for a log of its own

    def _parse_channel_open_failure(self, message: paramiko.Message) -> None:
        number, code = message.get_int(), message.get_int()
        reason = common.CONNECTION_FAILED_CODE.get(code, "(unknown code)")
        with self.lock:
            if channel := self._channels.get(number):
                channel.refusal = paramiko.ChannelException(code, reason)
                self._channels.delete(number)
            if answered := self.channel_events.pop(number, None):
                answered.set()


def _message(kind: bytes, *fields: str | int | bool) -> Any:
    message = paramiko.Message()
    message.add_byte(kind)
    for field in fields:
        if isinstance(field, bool):
            message.add_boolean(field)
        elif isinstance(field, int):
            message.add_int(field)
        else:
            message.add_string(field)
    return message

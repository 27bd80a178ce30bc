"""A host over SSH: its key checked, always; a deadline on connecting, on each command, and on one that never begins."""

from __future__ import annotations

import logging
import re
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.deadline import within
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.running import Running
from salvor.shell import Shell

_BEGINNING = 10.0
_PAUSE = 0.1
_FULL = (1, 2, 4)  # prohibited, connect failed, resource shortage: what servers say of one session too many
_KEEPALIVE = 5
_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# The environment goes by standard input, read by sh before the command starts: argv is seen by every user of a host.
_WITH_ENVIRONMENT = 'eval "$(dd bs=1 count="$1" 2>/dev/null)"; shift; exec "$@"'


def on_host(where: str, connection: Any, user: str | None = None) -> Shell:
    """A host, over an open fabric connection, as `user` (by sudo without a password)."""
    return _Remote(where, connection, user)


class _Remote(Shell):
    def __init__(self, where: str, connection: Any, user: str | None) -> None:
        super().__init__(where, user)
        self.connection = connection
        self._beginning = threading.Lock()

    def _start(self, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> Running:
        import paramiko

        if wrong := [name for name in environment if not _VARIABLE.fullmatch(name)]:
            raise ValueError(f"no names of environment variables: {wrong}")
        setting = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()
        inner = ["sh", "-c", _WITH_ENVIRONMENT, "sh", str(len(setting)), *argv] if setting else argv
        sudo = ["sudo", "-n", "-u", self.user, "--"] if self.user else []
        command = shlex.join([*sudo, *inner])

        try:
            # paramiko itself waits without end for the answer to a request.
            channel = within(_BEGINNING, lambda: self._begin(command))
        except TimeoutError:
            raise OutcomeUnknownError(
                f"{self.where} did not say within {_BEGINNING:.0f} s that it begins {argv[0]}.",
                safe="whether it was begun is not known",
                hint="look again with: inv assess",
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise CannotError(
                f"{self.where} does not run {argv[0]}: {str(error).rstrip('.') or type(error).__name__}.",
                safe="it was not begun",
                hint="the same command again connects anew",
            ) from error
        running = _RemoteRunning(self.where, channel)
        running.begin(setting + (stdin or b""))
        return running

    def _begin(self, command: str) -> Any:
        """A channel on which `command` was begun. A host lets only so many run at once (MaxSessions): others wait.

        One at a time: paramiko keeps a refusal's reason for the whole connection, and another thread would take it.
        """
        from paramiko import ChannelException

        until = clock.monotonic() + _BEGINNING
        with self._beginning:
            while True:
                try:
                    channel = self.connection.transport.open_session(timeout=_BEGINNING)
                    channel.exec_command(command)
                    return channel
                except ChannelException as error:
                    if error.code not in _FULL or clock.monotonic() > until - _PAUSE:
                        raise
                    time.sleep(_PAUSE)


class _RemoteRunning(Running):
    way_to_end = "its connection was closed, and it may go on there"

    def __init__(self, where: str, channel: Any) -> None:
        super().__init__()
        self.where = where
        self.channel = channel

    def _read(self, most: int) -> bytes:
        return bytes(self.channel.recv(most))

    def _read_error(self, most: int) -> bytes:
        return bytes(self.channel.recv_stderr(most))

    def _write(self, stdin: bytes) -> None:
        with suppress(OSError):  # the host is gone or closed its end; the reader tells the rest
            self.channel.sendall(stdin)
            self.channel.shutdown_write()

    def _await(self) -> None:
        self.channel.status_event.wait()

    def exit_code(self) -> int:
        """As for any command; -1 stands for any signal, which paramiko does not name."""
        code = int(self.channel.exit_status)
        if code == -1 and not self.channel.transport.is_active():
            raise OutcomeUnknownError(
                f"The connection to {self.where} broke while a command ran there.",
                safe="whether it goes on there is not known",
                hint="look again with: inv assess",
            )
        self.channel.close()
        return code

    def kill(self) -> None:
        self._stopped.set()
        with suppress(OSError, EOFError):
            self.channel.close()


def connect(host: str, *, user: str | None, port: int, run_as: str | None, deadline: float) -> Shell:
    """See `salvor.shell.connect`."""
    import paramiko
    from fabric import Connection

    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else it prints tracebacks of its own
    name = f"{user + '@' if user else ''}{host}:{port}"
    by_hand = f"ssh -p {port} -- {shlex.quote(f'{user}@{host}' if user else host)} true"
    waits = {"banner_timeout": deadline, "auth_timeout": deadline, "channel_timeout": deadline}
    connection = Connection(host, user=user, port=port, connect_timeout=deadline, connect_kwargs=waits)
    connection.client.load_system_host_keys()
    if _KNOWN_HOSTS.is_file():
        connection.client.load_system_host_keys(str(_KNOWN_HOSTS))
    connection.client.set_missing_host_key_policy(_refuse_unknown(name, port))
    try:
        within(deadline, connection.open)
    except CannotError:
        connection.client.close()
        raise
    except paramiko.BadHostKeyException as error:
        connection.client.close()
        raise CannotError(
            f"The host key of {name} has changed: it shows {_print_of(error.key)}, and {_print_of(error.expected_key)} "
            "is known. Either the host was rebuilt, or somebody is in between.",
            safe="nothing was sent to it",
            hint=f"ask who runs it; if it was rebuilt: ssh-keygen -R {shlex.quote(_entry(host, port))}",
        ) from error
    except (OSError, EOFError, UnicodeError, paramiko.SSHException) as error:  # a TimeoutError is an OSError
        connection.client.close()
        why = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in why:
            raise CannotError(f"{name} refuses us: {why}.", hint=f"{by_hand}, with -v to see why") from error
        raise CannotError(f"{name} cannot be reached over SSH: {why}.", hint=by_hand) from error
    connection.transport.set_keepalive(_KEEPALIVE)
    return on_host(host, connection, run_as)


def _entry(host: str, port: int) -> str:
    """The name of a host in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"


def _print_of(key: Any) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _refuse_unknown(name: str, port: int) -> Any:
    """The policy for a key that known_hosts does not have: an error that shows it."""
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            host = hostname.removeprefix("[").rpartition("]:")[0] or hostname
            raise CannotError(
                f"The host key of {name} is not known: it shows {_print_of(key)}.",
                safe="nothing was sent to it",
                hint="ask who runs it whether that is its fingerprint; if so: "
                f"ssh-keyscan -p {port} -- {shlex.quote(host)} >> ~/.ssh/known_hosts",
            )

    return Refuse()

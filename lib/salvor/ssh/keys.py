"""The keys that we show: files read once, and those of an agent, which is asked once and by one thread at a time."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from salvor import secrets
from salvor.deadline import within
from salvor.errors import CannotError
from salvor.ssh.route import Hop

_AGENT = 3.0
_signing = threading.Lock()


def candidates(hop: Hop) -> Iterator[tuple[str, Any]]:
    """What each key is, and the key, in the order in which they are tried. A named file that is not there or does not
    open is an error (CannotError); others are passed over.
    """
    passphrase = secrets.resolve(hop.passphrase) if hop.passphrase else None
    if hop.named:
        yield from _files(hop, passphrase)
    if hop.agent and (socket := os.environ.get("SSH_AUTH_SOCK")):
        for key in _of_agent(socket):
            yield f"the agent's {key.get_name()}", key
    if not hop.named:
        yield from _files(hop, passphrase)


def _files(hop: Hop, passphrase: str | None) -> Iterator[tuple[str, Any]]:
    for path in hop.keys:
        try:
            status = Path(path).stat()
            key, certified = _load(path, passphrase, status.st_mtime_ns, status.st_size)
        except CannotError:
            if hop.named:
                raise
        except OSError as error:
            if hop.named:
                raise CannotError(
                    f"The key {path} for {hop.name} cannot be read: {error.strerror}.",
                    hint=f"ls -l {shlex.quote(path)}",
                ) from error
        else:
            if certified:
                yield f"{path} with its certificate", certified
            yield path, key


@lru_cache(maxsize=64)
def _load(path: str, passphrase: str | None, *_version: int) -> tuple[Any, Any]:
    """The key of a file; and once more with its certificate, where there is one."""
    import paramiko

    try:
        key = paramiko.PKey.from_path(path, passphrase.encode() if passphrase else None)
        certified = None
        if Path(f"{path}-cert.pub").exists():
            certified = paramiko.PKey.from_path(path, passphrase.encode() if passphrase else None)
            certified.load_certificate(f"{path}-cert.pub")
    except (paramiko.SSHException, ValueError, TypeError) as error:
        raise CannotError(
            f"The key {path} does not open: {type(error).__name__}: {error}.",
            hint=f"ssh-keygen -y -f {shlex.quote(path)} tries it by hand; "
            "a passphrase is named in the inventory (passphrase)",
        ) from error
    return key, certified


@lru_cache(maxsize=4)
def _of_agent(socket: str) -> tuple[Any, ...]:
    """The keys of the agent; none when it does not answer: a socket may outlive it."""
    import paramiko

    try:
        return tuple(within(_AGENT, lambda: paramiko.Agent().get_keys()))
    except (TimeoutError, OSError, paramiko.SSHException):
        return ()


def authenticate(transport: Any, hop: Hop, deadline: float) -> list[str]:
    """Show the keys, then the password, until the host is content. Returns the methods that it still asks for: none
    when we are in. Raises paramiko's AuthenticationException when it wants none of them.
    """
    import paramiko

    refused: paramiko.AuthenticationException | None = None
    transport.auth_timeout = deadline
    tried = []
    for what, key in candidates(hop):
        tried.append(what)
        try:
            # An agent's connection is one conversation: threads that talk at once garble it.
            with _signing if isinstance(key, paramiko.AgentKey) else threading.Lock():
                missing = list(transport.auth_publickey(hop.user, key))
            if not missing:
                return []
            break
        except paramiko.BadAuthenticationType as error:
            refused = error
            break
        except paramiko.AuthenticationException as error:
            refused = error
            if not transport.is_active():
                raise
    if hop.password:
        return list(transport.auth_password(hop.user, secrets.resolve(hop.password)))
    if refused:
        raise paramiko.AuthenticationException(f"{refused}; it was shown {', '.join(tried)}") from refused
    if tried:
        return missing
    raise paramiko.AuthenticationException("No authentication methods available: no key was found, no password named")

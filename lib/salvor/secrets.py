"""Secrets are references (`env:NAME`, `file:PATH`, `cmd:COMMAND`), resolved at use and masked in everything that is
written.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from salvor.errors import CannotError, UsageError

MASK = "[secret]"
_KINDS = ("env:", "file:", "cmd:")
_DEADLINE = 20.0

_lock = threading.Lock()
_known: set[str] = set()


def _check(reference: str) -> str:
    if not reference.startswith(_KINDS):
        raise ValueError(
            "a secret is never written here; name where it is: "
            "env:NAME, file:PATH or cmd:COMMAND (this value is not shown)"
        )
    return reference


SecretReference = Annotated[str, AfterValidator(_check)]
"""A settings field that names a secret and never holds one."""


def resolve(reference: str) -> str:
    """The secret that `reference` names, without its final newline. It is masked in everything written from now on.

    Raises CannotError when it is not there, is empty, or its file can be read by others.
    """
    where, _, rest = reference.partition(":")
    if where == "env":
        value = os.environ.get(rest, "")
    elif where == "file":
        value = _from_file(Path(rest).expanduser())
    elif where == "cmd":
        value = _from_command(rest)
    else:
        raise UsageError("A secret must be a reference: env:NAME, file:PATH or cmd:COMMAND.")
    value = value.removesuffix("\n")
    if not value:
        raise CannotError(
            f"The secret {reference!r} is empty or not set.",
            hint=f"set it, then run the same command again: {reference}",
        )
    remember(value)
    return value


def _from_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CannotError(
                f"The secret file {path} can be read by others (mode {mode & 0o777:o}).",
                hint=f"chmod 600 {shlex.quote(str(path))}",
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotError(
            f"The secret file {path} cannot be read: {error.strerror}.", hint=f"ls -l {shlex.quote(str(path))}"
        ) from error


def _from_command(command: str) -> str:
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=_DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        # The output of a secret's command is never shown: it may hold the secret.
        raise CannotError(
            f"The secret command {command!r} did not answer: {type(error).__name__}.", hint=f"try it by hand: {command}"
        ) from None
    if done.returncode:
        raise CannotError(
            f"The secret command {command!r} ended with exit code {done.returncode}.", hint=f"try it by hand: {command}"
        )
    return done.stdout


def remember(value: str) -> None:
    """Mask `value` in everything written from now on. Values under 4 characters are too short to be masked safely."""
    if len(value) >= 4:
        with _lock:
            _known.add(value)


_PATTERNS = (
    # a URL's password; a keyword=value password of a connection string; PostgreSQL's stored verifiers; a private key
    (re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@"), rf"\1:{MASK}@"),
    (
        re.compile(r"(?i)\b(password|passwd|pwd|secret|token|api[_-]?key)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&]+)"),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"(?i)\b(PASSWORD\s+)(E?'[^']*')"), rf"\1{MASK}"),
    (re.compile(r"SCRAM-SHA-256\$[^\s'\"]+"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S), MASK),
)


def mask(text: str) -> str:
    """`text` without any secret that was resolved so far, and without what looks like one."""
    with _lock:
        known = sorted(_known, key=len, reverse=True)
    for value in known:
        if value in text:
            text = text.replace(value, MASK)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def mask_data(value: Any) -> Any:
    """`mask` for every string in plain data (dicts and lists), keys included."""
    # Nearly all data holds no secret, and one look at all of its strings is much quicker than one look at each.
    together = "\n".join(_strings(value))
    return _map_strings(value, str if mask(together) == together else mask)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    return value

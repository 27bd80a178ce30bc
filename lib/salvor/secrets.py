"""Secrets are references (`env:NAME`, `file:PATH`, `cmd:COMMAND`), resolved at use and masked in everything that is
written.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, quote_plus

from pydantic import AfterValidator

from salvor.errors import SecretError, UsageError

MASK = "[secret]"
_DEADLINE = 20.0
_SHORTEST = 4
_SHORT = 6
_LINE = 8

_lock = threading.Lock()
_known: set[str] = set()
_names: set[str] = set()
_hidden: re.Pattern[str] | None = None


def check_reference(reference: str) -> str:
    """`reference`. Raises ValueError for what is none; a secret that was written there is not shown."""
    where, _, rest = reference.partition(":")
    if where not in ("env", "file", "cmd"):
        raise ValueError(
            "a secret is never written here; name where it is: "
            "env:NAME, file:PATH or cmd:COMMAND (this value is not shown)"
        )
    if where == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
        raise ValueError("env: must be followed by the name of an environment variable (this value is not shown)")
    if not rest.strip() or "\0" in rest:
        raise ValueError(f"{where}: names nothing")
    if where == "cmd":
        try:
            shlex.split(rest)
        except ValueError as error:
            raise ValueError(f"cmd: {error} in this command") from None
    return reference


SecretReference = Annotated[str, AfterValidator(check_reference)]
"""A settings field that names a secret and never holds one."""


def resolve(reference: str) -> str:
    """The secret that `reference` names, without its final newline. It is masked in everything written from now on.

    Raises SecretError when it is not there, is empty, or its file can be read by others.
    """
    try:
        where, _, rest = check_reference(reference).partition(":")
    except ValueError as error:
        raise UsageError(f"A secret must be a reference: {error}.") from None
    if where == "env":
        value = os.environ.get(rest, "")
    elif where == "file":
        value = _from_file(Path(rest).expanduser())
    else:
        value = _from_command(rest)
    value = value.removesuffix("\n")
    if not value:
        raise SecretError(
            f"The secret {reference!r} is empty or not set.",
            hint=f"set it, then run the same command again: {reference}",
        )
    remember(value)
    return value


def _from_file(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"The secret file {path} is no file.", hint=f"ls -ld {shlex.quote(str(path))}")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretError(
                f"The secret file {path} can be read by others (mode {stat.S_IMODE(status.st_mode):o}).",
                hint=f"chmod 600 {shlex.quote(str(path))}",
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SecretError(
            f"The secret file {path} cannot be read: {error.strerror}.", hint=f"ls -l {shlex.quote(str(path))}"
        ) from error
    except UnicodeDecodeError:  # its text would quote the secret
        raise SecretError(f"The secret file {path} is not UTF-8 text.", hint=f"file {shlex.quote(str(path))}") from None


def _from_command(command: str) -> str:
    hint = f"try it by hand: {command}"
    try:
        done = subprocess.run(
            shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE, check=False
        )
        said = done.stdout.decode()
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        # The output of a secret's command is never shown: it may hold the secret.
        raise SecretError(
            f"The secret command {command!r} gave no secret: {type(error).__name__}.", hint=hint
        ) from None
    if done.returncode:
        raise SecretError(f"The secret command {command!r} ended with exit code {done.returncode}.", hint=hint)
    return said


def remember(value: str) -> None:
    """Mask `value` in everything written from now on, as it is and as URLs, JSON, SQL and Python write it; of a value
    of several lines each line too. What is under 4 characters is too short to be masked.
    """
    lines = [line for line in value.splitlines() if len(line) >= _LINE] if "\n" in value else []
    with _lock:
        _known.update(each for each in (value, *lines) if len(each) >= _SHORTEST and each not in MASK)
        _renew()


def leave_readable(names: Iterable[str]) -> None:
    """Never mask what is part of one of `names`: the names of services and systems stand in the open, and what is
    written must keep them. A secret that is no more than such a name is a guess, and hiding it would tell it.
    """
    with _lock:
        _names.update(names)
        _renew()


def _renew() -> None:
    global _hidden
    written = {
        form for value in _known if not any(value in name for name in _names) for form in _forms(value)
    }  # fmt: skip
    # The longest first, so that a secret that begins another one leaves nothing of it. A short one only where it stands
    # alone (or after an escape such as \\n): it would be found in hashes and numbers.
    alone = r"(?:(?<![\w-])|(?<=\\[nrtbf])){}(?![\w-])"
    parts = [
        re.escape(form) if len(form) >= _SHORT else alone.format(re.escape(form))
        for form in sorted(written, key=len, reverse=True)
    ]
    _hidden = re.compile("|".join(parts)) if parts else None


def _forms(value: str) -> set[str]:
    """How a value is written by what quotes it."""
    return {
        value,
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        value.replace("'", "''"),
    }


def is_known(value: str) -> bool:
    """Whether `value` is a secret that was resolved, and nothing else."""
    with _lock:
        return value in _known


_WORDS = ("password", "passwd", "passphrase", "secret", "token", "api", "cipher")
_WORD = r"(password|passwd|passphrase|secret(?:[_-](?:access[_-])?key)?|token|api[_-]?key|cipher[_-]pass)"
_REFERENCE = r"(?:env|file|cmd):"
_QUOTED = r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|\\\"[^\"\\]*\\\""
# What a secret looks like: small letters that the text must hold (to look is quick, the pattern is not), the pattern,
# and what stands there instead.
_PATTERNS = tuple(
    (triggers, re.compile(pattern), instead)
    for triggers, pattern, instead in (
        # a URL's password
        (("://",), r"(?<=://)([^/\s:@]*):([^/\s]+)@", rf"\1:{MASK}@"),
        # password=value, in connection strings, environments and settings
        (
            _WORDS,
            rf"(?i){_WORD}((?:\\?['\"])?[ \t]*=>?[ \t]*)(?!['\"]?{_REFERENCE})(?!\[secret\])({_QUOTED}|[^\s,;&]+)",
            rf"\1\2{MASK}",
        ),
        # password: value, where the value is quoted or all that follows; a sentence with the word goes on
        (
            _WORDS,
            rf"(?im){_WORD}((?:\\?['\"])?[ \t]*:[ \t]*)(?!['\"]?{_REFERENCE})"
            rf"({_QUOTED}|[^\s,;&'\"{{}}\[\]()]+(?=[ \t]*(?:$|[\r,;}}\])])))",
            rf"\1\2{MASK}",
        ),
        (
            ("authorization",),
            r"(?i)\b(authorization['\"]?[ \t]*[:=][ \t]*['\"]?(?:basic|bearer)[ \t]+)[^\s'\"]+",
            rf"\1{MASK}",
        ),
        # SQL, and the verifiers that PostgreSQL stores
        (("password", "identified"), r"(?i)\b(PASSWORD\s+|IDENTIFIED\s+BY\s+)E?'(?:[^']|'')*'", rf"\1{MASK}"),
        (("scram-sha-256",), r"SCRAM-SHA-256\$[^\s'\"]+", MASK),
        (("md5",), r"\bmd5[0-9a-f]{32}\b", MASK),
        (
            ("private key",),
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            MASK,
        ),
    )
)
_NAMES_A_SECRET = re.compile(rf"(?is).*{_WORD}")


def mask(text: str) -> str:
    """`text` without any secret that was resolved so far, and without what looks like one."""
    hidden = _hidden
    if hidden:
        text = hidden.sub(MASK, text)
    small = text.lower()
    for triggers, pattern, instead in _PATTERNS:
        if any(trigger in small for trigger in triggers):
            text = pattern.sub(instead, text)
    return text


def mask_data(value: Any) -> Any:
    """`mask` for every string in plain data (dicts and lists), keys included; what a key calls a password is one."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(str(key)): _mask_item(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_data(item) for item in value]
    return value


def _mask_item(key: str, item: Any) -> Any:
    if isinstance(item, str) and item and _NAMES_A_SECRET.fullmatch(key) and not re.match(_REFERENCE, item):
        return MASK
    return mask_data(item)

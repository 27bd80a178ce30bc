"""The host keys that are known: known_hosts, read once however many hosts there are; and the errors of a key that is
not known, or not the one that is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from salvor.errors import CannotError

GLOBAL = "/etc/ssh/ssh_known_hosts"

Key = tuple[str, bytes]
"""The kind of a host key (`ssh-ed25519`), and the key as it crosses the wire."""


@dataclass
class _Entries:
    plain: dict[str, list[Key]] = field(default_factory=lambda: defaultdict(list))
    hashed: list[tuple[bytes, bytes, Key]] = field(default_factory=list)
    patterns: list[tuple[list[str], Key]] = field(default_factory=list)
    revoked: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class Known:
    """What is known of one host: the keys that it may show, and those that nobody may."""

    keys: tuple[Key, ...]
    revoked: frozenset[bytes] = frozenset()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of these keys, each once."""
        return tuple(dict.fromkeys(kind for kind, _ in self.keys))


def entry(host: str, port: int) -> str:
    """The name of a host in known_hosts."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def parse(text: str) -> Key:
    """A key as a `.pub` file has it. Raises ValueError."""
    kind, encoded = text.split()[:2]
    return kind, base64.b64decode(encoded, validate=True)


def look_up(host: str, port: int, files: Sequence[str]) -> Known:
    """What these known_hosts files say of a host."""
    name = entry(host, port)
    keys: list[Key] = []
    revoked: set[bytes] = set()
    for path in files:
        entries = _read(path)
        keys += entries.plain.get(name, ())
        for salt, digest, key in entries.hashed:
            if hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest):
                keys.append(key)
        for patterns, key in entries.patterns:
            if _matches(name, patterns):
                keys.append(key)
        revoked |= entries.revoked
    return Known(tuple(dict.fromkeys(keys)), frozenset(revoked))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    # fnmatch knows [...] as a set of letters, known_hosts does not.
    plain = [pattern.replace("[", "[[]") for pattern in patterns]
    if any(fnmatchcase(name, pattern[1:]) for pattern in plain if pattern.startswith("!")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in plain)


def _read(path: str) -> _Entries:
    try:
        status = Path(path).stat()
    except OSError:
        return _Entries()
    return _parsed(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=16)
def _parsed(path: str, *_version: int) -> _Entries:
    entries = _Entries()
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CannotError(
            f"The known host keys in {path} cannot be read: {error.strerror}.", hint=f"ls -l {shlex.quote(path)}"
        ) from error
    for line in lines:
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker == "@cert-authority":
            continue
        try:
            key = parse(f"{words[1]} {words[2]}")
        except (ValueError, binascii.Error):
            continue  # as OpenSSH does: the host is then unknown, which is said
        if marker == "@revoked":
            entries.revoked.add(key[1])
        elif words[0].startswith("|1|"):
            salt, _, digest = words[0][3:].partition("|")
            entries.hashed.append((base64.b64decode(salt), base64.b64decode(digest), key))
        else:
            names = words[0].lower().split(",")
            if any("*" in name or "?" in name or name.startswith("!") for name in names):
                entries.patterns.append((names, key))
            else:
                for name in names:
                    entries.plain[name].append(key)
    return entries


def fingerprint(key: Key) -> str:
    """`ssh-ed25519 SHA256:...`, as ssh-keygen says it."""
    return f"{key[0]} SHA256:{base64.b64encode(hashlib.sha256(key[1]).digest()).decode().rstrip('=')}"


def check(shown: Key, known: Known, name: str, host: str, port: int, *, pinned: bool) -> None:
    """Raise CannotError unless `shown` is a key that is known for the host. `pinned`: the inventory says which."""
    if shown not in known.keys or shown[1] in known.revoked:
        raise refusal(fingerprint(shown), known, name, host, port, pinned)


def refusal(prints: str, known: Known, name: str, host: str, port: int, pinned: bool) -> CannotError:
    """The error of a key, by its fingerprint, that is not one of those that are known."""
    ours = [fingerprint(key) for key in known.keys if key[1] not in known.revoked]
    if any(prints.endswith(fingerprint(("", key))) for key in known.revoked):
        return CannotError(
            f"The host key of {name} was revoked: it shows {prints}.",
            safe="nothing was sent to it",
            hint="ask who runs it which key is its own now",
        )
    if ours:
        mend = f"ssh-keygen -R {shlex.quote(entry(host, port))}"
        if pinned:
            mend = "write its new key in the inventory (host_keys)"
        return CannotError(
            f"The host key of {name} has changed: it shows {prints}, and {', '.join(ours)} "
            "is known. Either the host was rebuilt, or somebody is in between.",
            safe="nothing was sent to it",
            hint=f"ask who runs it; if it was rebuilt: {mend}",
        )
    return CannotError(
        f"The host key of {name} is not known: it shows {prints}.",
        safe="nothing was sent to it",
        hint="ask who runs it whether that is its fingerprint; if so: "
        f"ssh-keyscan -p {port} -- {shlex.quote(host)} >> ~/.ssh/known_hosts",
    )

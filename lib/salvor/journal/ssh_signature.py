"""Signatures by SSH keys, made and checked by ssh-keygen(1) alone (`-Y`), so that anybody can check them by hand."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from salvor import shell
from salvor.errors import UsageError

SIGN_DEADLINE = 60.0
"""Seconds: a security key waits for a finger."""
_DEADLINE = 20.0


def signing_key(key: str) -> Path | None:
    """The key to sign with: as asked, SALVOR_SIGNING_KEY, or the operator's own. Raises UsageError when the one asked
    for is not there.
    """
    if asked := configured_key(key):
        return asked
    own = [Path.home() / ".ssh" / name for name in ("id_ed25519", "id_ecdsa", "id_rsa")]
    return next((path for path in own if path.is_file()), None)


def configured_key(key: str) -> Path | None:
    """The key that was asked for, or SALVOR_SIGNING_KEY. Raises UsageError when it is not there."""
    asked = key or os.environ.get("SALVOR_SIGNING_KEY", "")
    if not asked:
        return None
    path = Path(asked).expanduser()
    if not path.is_file():
        raise UsageError(f"--key: there is no file {path}.", hint="ssh-keygen -t ed25519 -f PATH makes one")
    return path


def ssh_keygen(
    act: str, namespace: str, arguments: Sequence[str], stdin: bytes = b"", *, deadline: float = _DEADLINE
) -> str:
    """What `ssh-keygen -Y ACT` prints. Raises CommandError when it refuses, CannotError, OutcomeUnknownError."""
    named = [] if act == "find-principals" else ["-n", namespace]
    argv = ["ssh-keygen", "-Y", act, *named, *arguments]
    return shell.local().run(argv, input=stdin, deadline=deadline, environment={"TZ": "UTC"}).stdout


def sign(content: bytes, key: Path, namespace: str) -> str:
    """The signature of `content` by the key in the file `key` (public: its agent signs). Raises as `ssh_keygen`."""
    return ssh_keygen("sign", namespace, ["-f", str(key.absolute())], content, deadline=SIGN_DEADLINE)


def signer(signature: str) -> bytes:
    """The public key inside a signature, as a line of an authorized_keys file. Raises ValueError.

    The format is OpenSSH's PROTOCOL.sshsig: `SSHSIG`, a 4 byte version, then the key as a string of its own.
    """
    blob = base64.b64decode(
        "".join(line for line in signature.splitlines() if not line.startswith("---")), validate=True
    )
    if not blob.startswith(b"SSHSIG"):
        raise ValueError("not an SSH signature")
    key = _string(blob[10:])
    return _string(key) + b" " + base64.b64encode(key)


def _string(data: bytes) -> bytes:
    return data[4 : 4 + int.from_bytes(data[:4], "big")]

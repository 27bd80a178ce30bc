"""Streams that `openssl enc -aes-256-cbc` wrote, and writes: no password ever leaves this process.

The form is that of apps/enc.c: `Salted__`, 8 bytes of salt, then AES-256-CBC with PKCS #7 padding. Nothing in it says
how the key was made from the password, so each way is tried on the first bytes until they are an archive's. There is
no checksum in it either: damage is found by that of gzip, or by the one in the file beside the archive.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salvor.errors import CannotError
from salvor.streams import Peeked, Readable, read_fully

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import CBC

MAGIC = b"Salted__"
ITERATIONS = 10_000
"""What `-pbkdf2` means when no `-iter` is given."""
_BASE64 = b"U2FsdGVkX1"
_BLOCK = 16
_KEY = 48  # 32 bytes of key, 16 of initialisation vector


@dataclass(frozen=True)
class Derivation:
    """One way in which a key is made from a password, as `openssl enc` options say it."""

    options: str
    derive: Callable[[bytes, bytes], bytes]


def derivations(iterations: int = ITERATIONS) -> tuple[Derivation, ...]:
    """The ways that are tried: -pbkdf2, also with SHA-512, then the old default of OpenSSL 1.1.0 and newer, then that
    of older ones.
    """
    count = "" if iterations == ITERATIONS else f" -iter {iterations}"

    def stretched(digest: str) -> Callable[[bytes, bytes], bytes]:
        return lambda password, salt: hashlib.pbkdf2_hmac(digest, password, salt, iterations, _KEY)

    return (
        Derivation(f"-pbkdf2{count}", stretched("sha256")),
        Derivation(f"-pbkdf2 -md sha512{count}", stretched("sha512")),
        Derivation("-md sha256", lambda password, salt: _bytes_to_key("sha256", password, salt)),
        Derivation("-md md5", lambda password, salt: _bytes_to_key("md5", password, salt)),
    )


def _bytes_to_key(digest: str, password: bytes, salt: bytes) -> bytes:
    """EVP_BytesToKey(3) with a count of 1."""
    found = last = b""
    while len(found) < _KEY:
        last = hashlib.new(digest, last + password + salt, usedforsecurity=False).digest()
        found += last
    return found[:_KEY]


def is_encrypted(head: bytes) -> bool:
    """Whether it starts as `openssl enc` writes."""
    return head.startswith((MAGIC, _BASE64))


class Decrypted:
    """What was encrypted, as a stream; `options` says how its key was made."""

    def __init__(
        self, stream: Peeked, password: str, is_sound: Callable[[bytes], bool], name: str, iterations: int = ITERATIONS
    ) -> None:
        """Find the key: `is_sound` says whether the first bytes make sense. Raises CannotError, EOFError."""
        if stream.head.startswith(_BASE64):
            raise CannotError(
                f"{name} is encrypted and written as text (openssl enc -a).",
                hint=f"make it binary first: openssl base64 -d -in {name} -out {name}.bin",
            )
        if len(stream.head) < 2 * _BLOCK:
            raise EOFError("unexpected end of the encrypted data")
        head, salt = stream.head[_BLOCK:], stream.head[len(MAGIC) : _BLOCK]
        self._name, self._last = name, b""
        self.options = ""
        for way in derivations(iterations):
            cipher = _cipher(way.derive(password.encode(), salt))
            first = cipher.decryptor().update(head[: len(head) // _BLOCK * _BLOCK])
            if is_sound(first):
                self.options, self._decryptor = way.options, cipher.decryptor()
                break
        else:
            raise CannotError(
                f"{name} cannot be decrypted: the password is wrong, or it was not made by openssl enc -aes-256-cbc "
                f"(tried {', '.join(way.options for way in derivations(iterations))}).",
                safe="what is live is as it was",
                hint="see archives: password in the inventory; of another -iter, also archives: iterations; one of "
                "other options is restored when openssl enc -d has decrypted it by hand",
            )
        read_fully(stream, _BLOCK)
        self._stream: Readable = stream
        self._over = False

    def read(self, size: int, /) -> bytes:
        """Some more than no bytes; none at the end. Raises EOFError when the end is missing, CannotError."""
        while not self._over:
            packed = self._stream.read(max(size, _BLOCK))
            if not packed:
                return self._end()
            # The last block is held back: only at the end is it known to be the one with the padding.
            clear = self._last + self._decryptor.update(packed)
            self._last = clear[-_BLOCK:]
            if piece := clear[:-_BLOCK]:
                return piece
        return b""

    def _end(self) -> bytes:
        self._over = True
        padding = self._last[-1] if self._last else 0
        try:
            self._decryptor.finalize()
            if not 1 <= padding <= _BLOCK or not self._last.endswith(bytes([padding]) * padding):
                raise ValueError("wrong padding")
        except ValueError as error:
            raise EOFError("unexpected end of the encrypted data") from error
        return self._last[:-padding]


def encrypted(pieces: Iterator[bytes], password: str) -> Iterator[bytes]:
    """What `openssl enc -d -aes-256-cbc -pbkdf2` decrypts."""
    salt = os.urandom(8)
    encryptor = _cipher(derivations()[0].derive(password.encode(), salt)).encryptor()
    yield MAGIC + salt
    size = 0
    for piece in pieces:
        size += len(piece)
        yield encryptor.update(piece)
    padding = _BLOCK - size % _BLOCK
    yield encryptor.update(bytes([padding]) * padding) + encryptor.finalize()


def _cipher(key: bytes) -> Cipher[CBC]:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256
    from cryptography.hazmat.primitives.ciphers.modes import CBC

    return Cipher(AES256(key[:32]), CBC(key[32:]))

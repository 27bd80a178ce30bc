"""A tree with everything in it that a file system can hold, quick repositories, and a comparison that asks no tool of
ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import chdir, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.poly1305 import Poly1305
from salvor.files.settings import FilesSettings
from salvor.system import Context
from salvor.systems.files import Files

PASSWORD = "only-for-these-tests"
INCIDENT = "20261121T003300Z-shop-3f2a"


def restic(repository: Path | str, *arguments: str, **environment: str) -> str:
    """What a restic command prints."""
    done = subprocess.run(
        ["restic", "--repo", str(repository), *arguments],
        env=os.environ | {"RESTIC_PASSWORD": PASSWORD} | environment,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_repository(place: Path) -> None:
    """A repository whose password is looked up in a moment: restic's own takes half a second for each command."""
    restic(place, "init")
    (file,) = (place / "keys").iterdir()
    key = json.loads(file.read_text())
    sealed = base64.b64decode(key["data"])
    opened = _crypt(_derive(key), sealed[:16], sealed[16:-16])
    key |= {"N": 2, "r": 1, "p": 1}
    derived, nonce = _derive(key), os.urandom(16)
    hidden = _crypt(derived, nonce, opened)
    once = Cipher(algorithms.AES(derived[32:48]), modes.ECB()).encryptor()  # noqa: S305  one block: Poly1305-AES
    one_time = derived[48:] + once.update(nonce)
    key["data"] = base64.b64encode(nonce + hidden + Poly1305.generate_tag(one_time, hidden)).decode()
    text = json.dumps(key)
    file.unlink()
    file = file.with_name(hashlib.sha256(text.encode()).hexdigest())
    file.write_text(text)
    file.chmod(0o400)


def _derive(key: dict[str, Any]) -> bytes:
    salt = base64.b64decode(key["salt"])
    return Scrypt(salt=salt, length=64, n=key["N"], r=key["r"], p=key["p"]).derive(PASSWORD.encode())


def _crypt(derived: bytes, nonce: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(derived[:32]), modes.CTR(nonce)).encryptor().update(data)


@dataclass(frozen=True)
class Lab:
    """A place with one tree, and the repositories that it is backed up to."""

    root: Path
    repositories: dict[str, str] = field(default_factory=dict)

    @property
    def tree(self) -> Path:
        return self.root / "srv" / "media"

    @property
    def box(self) -> Path:
        """What this incident has beside the tree."""
        return self.root / "srv" / f"media.salvor-{INCIDENT}"

    def open(
        self, path: Path | str | None = None, *, incident: str = INCIDENT, name: str = "media", **more: Any
    ) -> Files:
        """The tree, or another path, as a system."""
        repositories = [
            {"name": name_, "location": location, "password": f"file:{self.root / 'password'}"}
            for name_, location in self.repositories.items()
        ]
        settings = {"kind": "files", "path": str(path or self.tree), "repositories": repositories, **more}
        return Files(name, FilesSettings.model_validate(settings), Context(incident, self.root / "incident", dict))


def act(system: Files, verb: str, **arguments: Any) -> list[Any]:
    """Carry a verb out, as the runner does."""
    return list(system.apply(system.change(verb, why="-", no_undo="-", **arguments)))


def make_nasty(top: Path) -> None:
    """A tree with links, holes, odd names and modes, attributes; and as root owners, a device, an ACL."""
    top.mkdir(parents=True)

    def write(name: bytes, content: bytes = b"x", mode: int = 0o644) -> Path:
        path = top / os.fsdecode(name)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    for name in (b"new\nline", b"--", b"-rf", b"bad\xff\xfename", b" space ", "한국.jpg".encode(), b"n" * 255):
        write(name, name)
    write(b"q*?[a]\\\"'$HOME`", b"quoted")
    plain, owned, empty = write(b"plain", b"hello" * 1000), write(b"owned", mode=0o640), write(b"empty", b"")
    write(b"noise", os.urandom(300_000))
    write(b"setuid", mode=0o4755)
    write(b"secret", mode=0)
    for folder, mode in (("empty folder", 0o755), ("sticky", 0o1777), ("group", 0o2750), ("sub", 0o755)):
        (top / folder).mkdir()
        (top / folder).chmod(mode)
    for link, target in (("link", "plain"), ("broken -> link", "/nowhere/ -> /\n"), ("up", "../../..")):
        (top / link).symlink_to(target)
    for link in ("hard", "sub/hard too"):
        (top / link).hardlink_to(plain)
    with (top / "sparse").open("wb") as sparse:
        sparse.write(b"a" * 4096)
        sparse.seek(3 << 20)
        sparse.write(b"z" * 4096)
        sparse.truncate(4 << 20)
    os.mkfifo(top / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as unix, chdir(top):
        unix.bind("socket")
    os.setxattr(plain, "user.colour", b"re\x00d\xff")
    os.setxattr(top / "sub", "user.of.folder", b"1")
    if os.geteuid() == 0:
        os.mknod(top / "null", 0o20666, os.makedev(1, 3))
        os.setxattr(empty, "trusted.word", b"t")
        os.chown(owned, 1234, 2345)
        os.chown(top / "group", 33, 33)
        (top / "group").chmod(0o2750)  # chown took the bit away
        os.lchown(top / "link", 55, 66)
        entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
        access = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        os.setxattr(owned, "system.posix_acl_access", access)
    os.utime(plain, ns=(1, 1234567890123456789))
    os.utime(top / "empty folder", ns=(1, -5 * 10**9))
    os.utime(top / "link", ns=(1, 1111111111000000001), follow_symlinks=False)


def everything(root: Path) -> dict[str, Any]:
    """All that can be seen of a tree by its system calls, but for sockets, which no backup brings back."""
    found: dict[str, Any] = {}
    nodes: dict[int, list[str]] = {}
    for path in _walk(root):
        status = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISSOCK(status.st_mode):
            continue
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in _attributes(path)}
        one: list[Any] = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, attributes]
        if stat.S_ISREG(status.st_mode):
            nodes.setdefault(status.st_ino, []).append(name)
            one += [status.st_size, status.st_nlink, status.st_blocks * 512 < status.st_size]
            one.append(hashlib.sha256(path.read_bytes()).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            one.append(path.readlink())
        elif stat.S_ISCHR(status.st_mode):
            one.append(status.st_rdev)
        found[name] = one
    found["hard links"] = sorted(sorted(names) for names in nodes.values() if len(names) > 1)
    return found


def _attributes(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def _walk(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            yield from _walk(inner)

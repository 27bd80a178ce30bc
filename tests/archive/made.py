"""Archives made by real tar, gzip and openssl, or member by member where real tar would not make them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from salvor import shell
from salvor.archive.extract import extract
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import Archive
from salvor.archive.taking import Extracted
from salvor.change import Progress
from salvor.shell import Shell

NAME = "o4o_backup_20250129_120000"
PASSWORD = "correct horse \N{EURO SIGN}"


def run(*argv: str | Path, **environment: str) -> None:
    done = subprocess.run(argv, capture_output=True, env=os.environ | environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def platform(root: Path) -> Path:
    """What the customer has below one folder."""
    top = root / "srv"
    (top / "uploads" / "deep" / "er").mkdir(parents=True)
    (top / "uploads" / "one.jpg").write_bytes(os.urandom(300_000))
    (top / "uploads" / "deep" / "er" / "grün \u202e.txt").write_text("text\n" * 1000)
    (top / "uploads" / os.fsdecode(b"raw \xff\xfe")).write_bytes(b"no UTF-8 in its name")
    (top / "uploads" / "empty").touch()
    (top / "uploads" / "current").symlink_to("deep/er")
    os.link(top / "uploads" / "one.jpg", top / "uploads" / "deep" / "same.jpg")
    (top / "uploads" / "only for me").mkdir(mode=0o700)
    (top / "uploads" / ("long " * 40)).write_text("a name of 200 bytes")
    (top / "build").mkdir()
    (top / "build" / "index.html").write_text("<p>shop</p>")
    (top / "logs").mkdir()
    (top / "logs" / "shop.log").write_text("GET / 200\n" * 20_000)
    (top / ".env").write_text("DATABASE_URL=postgres://shop:hunter2@localhost/shop\n")
    (top / ".env").chmod(0o600)
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return top


def pack(top: Path, target: Path, *options: str) -> Path:
    """A tar.gz of everything in `top`, by tar."""
    run("tar", "-czf", target, *options, "-C", top, ".")
    return target


def encrypt(plain: Path, *options: str) -> Path:
    """By openssl, in whatever way its options say."""
    target = plain.with_name(f"{plain.name}.enc")
    options = ("-salt", *options, "-pass", "env:P")
    run("openssl", "enc", "-aes-256-cbc", *options, "-in", plain, "-out", target, P=PASSWORD)
    return target


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def by_hand(target: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    """An archive of these members in this order, whatever they are."""
    with tarfile.open(target, mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target


def settings(member: str = "uploads", password: str = "", folder: str = "/nowhere") -> ArchivesSettings:
    return ArchivesSettings.model_validate(
        {"folder": folder, "member": member, **({"password": password} if password else {})}
    )


def unpack(
    path: Path | str,
    into: Path,
    member: str = "uploads",
    told: list[Progress] | None = None,
    using: ArchivesSettings | None = None,
    there: Shell | None = None,
    on_host: bool = False,
    **terms: object,
) -> Extracted:
    """Unpack `there` (None: here); `into` is made. `on_host`: that machine reads the archive too."""
    into.mkdir(mode=0o700, exist_ok=True)
    size = Path(path).stat().st_size if not str(path).startswith("s3://") else 0
    archive = Archive(str(path), on_host, None, size)
    work = extract(archive, using, member, there or shell.local(), str(into), **terms)
    while True:
        try:
            progress = next(work)
        except StopIteration as ended:
            found: Extracted = ended.value
            return found
        if told is not None:
            told.append(progress)


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that must come back, asked of the operating system."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (top, *top.rglob("*")) if top.is_dir() else (top,):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        mode = 0 if path.is_symlink() else status.st_mode
        name = str(path.relative_to(top))
        found[name] = (mode, int(status.st_mtime), status.st_uid, status.st_gid, content)
    return found

"""The stand-in's files, made up: pictures, the built application, logs, a rendered page."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from datetime import timedelta
from pathlib import Path

from salvor import clock
from salvor.sandbox import folders
from salvor.sandbox.o4o import settings
from salvor.sandbox.o4o.layout import APPLICATIONS, Layout

PRODUCTS = 400
"""How many products have a picture of their own, `products/0001.jpg` and so on."""
PICTURE = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
"""How every picture begins."""
UPLOADS = "uploads"
"""The folder of what customers upload, within the media."""

_SERVER = '''\
"""The application server of this release: one program, called with the application's name."""

import sys
from pathlib import Path

from salvor.sandbox.o4o import settings

name, path = sys.argv[1:]
found = settings.read(Path(path), name)

from salvor.sandbox.o4o import applications  # noqa: E402  only with settings

applications.run(name, found)
'''
_INDEX = b"<!doctype html><title>o4o</title><h1>o4o</h1>\n"
_MADE = "content-is-made"


def is_made(sandbox: Layout) -> bool:
    """Whether the files were made, whatever became of them since."""
    return (sandbox.root / _MADE).exists()


def make(sandbox: Layout) -> None:
    """Make all files below `srv`; what a killed call left is thrown away first."""
    shutil.rmtree(sandbox.root / "srv")
    sandbox.make()
    settings.write(sandbox)
    _media(sandbox.media)
    _build(sandbox.build)
    _logs(sandbox.logs)
    _write(sandbox.cache / "index.html", _INDEX)
    folders.write(sandbox.root / _MADE, clock.write_time(clock.now()) + "\n")


def _media(folder: Path) -> None:
    """2,000 files of 30 MB: the products' pictures, and two years of uploads. No two are alike, none compresses."""
    chance = random.Random(20261121)
    for number in range(1, PRODUCTS + 1):
        _write(folder / "products" / f"{number:04}.jpg", PICTURE + chance.randbytes(chance.randint(4_000, 24_000)))
    for number in range(1599):
        size = chance.choice((2_000, 5_000, 9_000, 16_000)) if number % 40 else chance.choice((60_000, 350_000))
        name = ("리뷰 {}.jpg", "IMG_{}.jpg", "photo {}.jpg")[number % 3].format(1000 + number)
        month = Path(UPLOADS) / f"{2025 + number % 24 // 12}" / f"{1 + number % 12:02}"
        _write(folder / month / name, PICTURE + chance.randbytes(size))
    (folder / "banner.jpg").symlink_to("products/0001.jpg")


def _build(folder: Path) -> None:
    """The release: its server, pages, and assets, with a manifest of them."""
    chance = random.Random(7)
    files = {"server.py": _SERVER.encode(), "index.html": _INDEX}
    for number in range(60):
        text = "".join(f"export const part{number}_{line} = {chance.random()};\n" for line in range(400))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        files[f"assets/chunk-{number:02}.{digest}.js"] = text.encode()
    for name, content in files.items():
        _write(folder / name, content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    _write(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def _logs(folder: Path) -> None:
    """A week of logs of each application, compressed but for the newest."""
    for name in APPLICATIONS:
        for days in range(7):
            day = (clock.now() - timedelta(days=days)).date().isoformat()
            lines = "".join(f"{day}T{n // 60:02}:{n % 60:02}:00Z {name} GET /health 200\n" for n in range(0, 1440, 3))
            if days:
                _write(folder / f"{name}-{day}.log.gz", gzip.compress(lines.encode(), 1))
            else:
                _write(folder / f"{name}.log", lines.encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # below `srv`, which is closed to others
    path.write_bytes(content)
    path.chmod(0o600)

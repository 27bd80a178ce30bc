"""How the stand-in's files and customers are, in words."""

from __future__ import annotations

from pathlib import Path

from salvor.sandbox import writer
from salvor.sandbox.o4o import customers
from salvor.sandbox.o4o.content import PICTURE
from salvor.sandbox.o4o.layout import Layout
from salvor.sandbox.parts import Part


def of_files(sandbox: Layout) -> list[Part]:
    """The settings, the media and the release."""
    settings = sandbox.settings.read_text(encoding="utf-8").splitlines() if sandbox.settings.exists() else []
    values = sum("=" in line for line in settings)
    media = [path for path in sandbox.media.rglob("[!.]*") if path.is_file()]  # not what is being uploaded
    broken = sum(not _is_picture(path) for path in media)
    release = (sandbox.build / "manifest.json").exists()
    return [
        Part("settings", values > 0, f"{sandbox.settings}: {values} values"),
        Part(
            "media",
            bool(media) and not broken,
            f"{sandbox.media}: {len(media)} files{f', {broken} of them no pictures' if broken else ''}",
        ),
        Part("release", release, str(sandbox.build)),
    ]


def _is_picture(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(PICTURE)) == PICTURE


def of_customers(sandbox: Layout) -> tuple[bool, str]:
    """That they are at work, and what was acknowledged to them."""
    kinds = (customers.ORDERS, customers.PAYMENTS, customers.UPLOADS)
    counted = {kind: len(writer.acknowledged(sandbox.acknowledged, kind)) for kind in kinds}
    return True, ", ".join(f"{number} {kind}" for kind, number in counted.items()) + " acknowledged"

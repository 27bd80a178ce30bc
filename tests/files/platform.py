"""A small platform whose service is a tree, for whole chains: its inventory, its backup, and what became of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from salvor.files.settings import FilesSettings
from salvor.journal import Journal, incidents
from salvor.session import Session
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import Context
from salvor.systems.files import Files
from salvor.wish import Wish

from tests.files.lab import Lab

_PLATFORM = """
systems:
  media: {settings}
  post: {{kind: letters, path: {root}/post/letters}}
services:
  shop:
    rto: 5m
    rpo: 1d
    systems: [media]
    messages: post
    checks:
      - {{name: nothing was lost, system: media, ask: changed, at_most: 2}}
      - {{name: the pictures are there, system: media, ask: "files *.jpg", at_least: 1}}
"""


def describe(lab: Lab, **more: Any) -> Files:
    """Write the platform's inventory; the tree as a system of it, outside of any incident."""
    settings = lab.open(**more).settings.model_dump(mode="json", exclude_defaults=True) | {"kind": "files"}
    for folder in ("inventory", "incidents", "post"):
        (lab.root / folder).mkdir(exist_ok=True)
    text = _PLATFORM.format(settings=json.dumps(settings), root=lab.root)
    (lab.root / "inventory" / "shop.yaml").write_text(text)
    context = Context("20260101T000000Z-shop-0000", lab.root / "nowhere", dict)
    return Files("media", FilesSettings.model_validate(settings), context)


def environment(lab: Lab) -> dict[str, str]:
    """What points Salvor at the platform."""
    return {
        "SALVOR_INVENTORY": str(lab.root / "inventory"),
        "SALVOR_INCIDENTS": str(lab.root / "incidents"),
        "SALVOR_OPERATOR": "tester@here",
        "RESTIC_CACHE_DIR": str(lab.root / "cache"),
    }


def session(**wishes: Any) -> Session:
    """A sitting of the shop's recovery."""
    return open_session("shop", Plain(), platform="shop", wish=Wish(**wishes))


def journals(lab: Lab) -> list[Journal]:
    return [Journal.read(path) for path in incidents(lab.root / "incidents")]


def letters(lab: Lab) -> list[str]:
    """The messages that were sent."""
    path = lab.root / "post" / "letters"
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []


def beside(lab: Lab) -> list[str]:
    """What stands beside the tree, and in the incident's folder."""
    names = sorted(path.name.partition("salvor-")[2][:5] or path.name for path in lab.tree.parent.iterdir())
    inside = [path.name for box in lab.tree.parent.glob("media.salvor-2*") for path in box.iterdir()]
    return names + sorted(inside)


def lose(tree: Path) -> None:
    """As ransomware does it: every file has another content, and a new name."""
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
            path.write_bytes(os.urandom(16))
            path.rename(path.with_name(path.name[:240] + ".locked"))

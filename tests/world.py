"""A small world for tests of the core: a folder as the database, a file as the route, a file as the outbox; all on a
real disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import salvor.systems
from salvor import console
from salvor.journal import Journal, incidents
from salvor.session import Session
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.wish import Wish

KINDS = str(Path(__file__).parent / "kinds")
GOOD = "good good good\n"
BAD = "bad\n"

SYSTEMS = """
  {store}: {{kind: folder, root: {root}/{store}}}
  {sign}: {{kind: pointer, path: {root}/{sign}, leads_to: {store}}}
"""
PLATFORM = """
systems:{systems}
  post: {{kind: letters, path: {root}/post/letters}}
services:
  things:
    rto: 5m
    rpo: 1d
    systems: [{stores}]
    routes: [{signs}]
    messages: post
    checks:
{checks}
"""


def use_kinds() -> None:
    """Let the kinds of tests/kinds be found beside the real ones."""
    if KINDS not in salvor.systems.__path__:
        salvor.systems.__path__.append(KINDS)


@dataclass(frozen=True)
class World:
    """A healthy platform `world` below `root`, with one backup."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def live(self) -> str:
        path = self.store / "live" / "data"
        return path.read_text() if path.exists() else ""

    @property
    def sign(self) -> str:
        return (self.root / "sign").read_text()

    @property
    def letters(self) -> list[str]:
        path = self.root / "post" / "letters"
        return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def kept(self) -> list[str]:
        return sorted((path / "data").read_text() for path in self.store.glob("kept-*"))

    def journals(self) -> list[Journal]:
        return [Journal.read(path) for path in incidents(self.root / "incidents")]

    def damage(self) -> None:
        (self.store / "live" / "data").write_text(BAD)

    def session(self, **wishes: Any) -> Session:
        runbook = wishes.pop("runbook", "")
        return open_session("things", Plain(), platform="world", wish=Wish(**wishes), runbook_name=runbook)

    def recover(self, **wishes: Any) -> str:
        """Bring it back by one command; the incident."""
        session = self.session(**wishes)
        console.recover(session, Plain(), yes=True)
        return session.incident.id

    def lines(self, *kinds: str) -> list[dict[str, Any]]:
        """Those of the newest journal."""
        return self.journals()[0].of(*kinds)

    def intents(self, verb: str) -> list[dict[str, Any]]:
        """What the newest journal says was begun."""
        return [line for line in self.lines("intent") if line["change"]["verb"] == verb]


def make(root: Path, stores: tuple[str, ...] = ("store",)) -> World:
    """A healthy world in `root`, with a sign to each of its stores; the environment is the caller's to point at it (see
    `environment`).
    """
    for folder in ("inventory", "post", "incidents"):
        (root / folder).mkdir(parents=True)
    signs = ["sign" if store == "store" else f"sign-{store}" for store in stores]
    for store, sign in zip(stores, signs, strict=True):
        for folder in ("live", "backups/b1"):
            (root / store / folder).mkdir(parents=True)
            (root / store / folder / "data").write_text(GOOD)
        (root / sign).write_text("10.0.0.1")
    text = PLATFORM.format(
        root=root,
        systems="".join(
            SYSTEMS.format(root=root, store=store, sign=sign) for store, sign in zip(stores, signs, strict=True)
        ),
        stores=", ".join(stores),
        signs=", ".join(signs),
        checks="\n".join(
            f"      - {{name: {store} is good, system: {store}, sql: good, at_least: 3}}" for store in stores
        ),
    )
    (root / "inventory/world.yaml").write_text(text)
    return World(root)


def environment(root: Path) -> dict[str, str]:
    """What points Salvor at the world."""
    return {
        "SALVOR_INVENTORY": str(root / "inventory"),
        "SALVOR_INCIDENTS": str(root / "incidents"),
        "SALVOR_OPERATOR": "tester@here",
    }


def point_at(root: Path) -> None:
    """For a process of its own: use this world and these kinds."""
    os.environ.update(environment(root))
    use_kinds()

"""Where the sandbox lives: a database of two members, its name, a shop and a receiver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from salvor.sandbox.folders import Folders

ADDRESSES = {"a": "127.0.0.11", "b": "127.0.0.12"}
"""The loopback address of each member of the cluster."""


@dataclass(frozen=True)
class Layout(Folders):
    """The sandbox that `inventory/sandbox` describes."""

    PLATFORM = "sandbox"
    SECRETS = ("operator.password", "shop.password", "replica.password", "repository.passphrase", "tsig.secret")
    SERVER_FOLDERS = ("a", "b", "repository", "pgbackrest")
    FOLDERS = ("dumps",)
    SERVERS: ClassVar[tuple[str, ...]] = tuple(ADDRESSES.values())

    dns_port: int
    shop_port: int

    def data(self, member: str) -> Path:
        """The data directory of a member, `a` or `b`."""
        return self.root / member / "data"

"""Where the o4o stand-in lives: a server of its own with a database, files, backups and applications."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from salvor.sandbox.folders import Folders

ADDRESS = "127.0.0.1"
APPLICATIONS = ("auth", "api", "payments", "web", "admin", "analytics", "reports")
"""The applications that pm2 runs."""


@dataclass(frozen=True)
class Layout(Folders):
    """The platform that `inventory/o4o` describes."""

    PLATFORM = "o4o"
    SECRETS = ("operator.password", "o4o.password", "repository.passphrase", "restic.password")
    SERVER_FOLDERS = ("database", "repository", "pgbackrest")
    FOLDERS = ("dumps", "srv", "backup", "off-site", "pm2", "bin")
    SERVERS: ClassVar[tuple[str, ...]] = (ADDRESS,)

    auth_port: int
    api_port: int
    payments_port: int
    web_port: int
    admin_port: int
    analytics_port: int
    reports_port: int

    @property
    def data(self) -> Path:
        """The data directory of the database."""
        return self.root / "database" / "data"

    @property
    def settings(self) -> Path:
        """The applications' `.env`."""
        return self.root / "srv" / ".env"

    @property
    def media(self) -> Path:
        """The pictures of the products, and what customers uploaded."""
        return self.root / "srv" / "media"

    @property
    def build(self) -> Path:
        """The built application."""
        return self.root / "srv" / "build"

    @property
    def logs(self) -> Path:
        """What the applications log."""
        return self.root / "srv" / "logs"

    @property
    def cache(self) -> Path:
        """The rendered pages."""
        return self.root / "srv" / "cache"

    @property
    def archives(self) -> Path:
        """The nightly archives."""
        return self.root / "backup" / "o4o-platform"

    @property
    def repositories(self) -> dict[str, Path]:
        """The restic repositories by their names."""
        return {"local": self.root / "backup" / "restic", "off-site": self.root / "off-site" / "restic"}

    def port(self, application: str) -> int:
        """The port of an application, one of APPLICATIONS."""
        return int(getattr(self, f"{application}_port"))

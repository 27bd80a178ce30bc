"""The applications' settings, `.env`: made up once, and read by every application when it starts.

Light on purpose: an application whose settings are not there says so and ends before it loads anything else.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from urllib.parse import quote

from salvor.sandbox import folders
from salvor.sandbox.o4o.layout import ADDRESS, APPLICATIONS, Layout

_MADE_UP = ("JWT_SECRET", "SESSION_SECRET", "PAYMENT_KEY", "SMTP_PASSWORD", "SLACK_TOKEN", "S3_SECRET_KEY")
_NEEDED = ("DATABASE_URL", "JWT_SECRET", "MEDIA_PATH", "BUILD_PATH", "LOG_PATH", "PAYMENT_KEY", "PORT")


def write(sandbox: Layout) -> None:
    """Write `.env`, with new secrets."""
    password = quote(sandbox.secret("o4o.password"), safe="")
    values = {
        "NODE_ENV": "production",
        "DATABASE_URL": f"postgresql://o4o:{password}@{ADDRESS}:{sandbox.database_port}/o4o",
        "MEDIA_PATH": str(sandbox.media),
        "BUILD_PATH": str(sandbox.build),
        "LOG_PATH": str(sandbox.logs),
        "SMTP_USER": "shop@o4o.example.com",
        "S3_ACCESS_KEY": "O4OBACKUP",
    }
    values |= {name: secrets.token_urlsafe(24) for name in _MADE_UP}
    values |= {f"{name.upper()}_PORT": str(sandbox.port(name)) for name in APPLICATIONS}
    lines = ["# The settings of every application. Made up.", *(f"{name}={value}" for name, value in values.items())]
    folders.write(sandbox.settings, "\n".join(lines) + "\n")


def read(path: Path, application: str) -> dict[str, str]:
    """What `.env` says to an application: all its values, and its own port as PORT. Ends the process when one that is
    needed is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        sys.exit(f"{application}: its settings cannot be read: {error}")
    found = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    found["PORT"] = found.get(f"{application.upper()}_PORT", "")
    if missing := [name for name in _NEEDED if not found.get(name)]:
        sys.exit(f"{application}: {path} does not say {', '.join(missing)}")
    return found

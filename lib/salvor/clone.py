"""Where this code was cloned to."""

from __future__ import annotations

from pathlib import Path


def root() -> Path:
    """The folder that holds `runbooks/`, `notebooks/` and, if nothing else is said, `inventory/` and `incidents/`."""
    return Path(__file__).absolute().parents[2]

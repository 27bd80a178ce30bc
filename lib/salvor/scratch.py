"""Temporary folders that nobody leaves behind: what a killed process could not remove, the next one does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """A private folder, removed at the end of the block. Those of this purpose whose processes have ended go first."""
    prefix = f"salvor-{purpose}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}[0-9]*-*"):
        with suppress(OSError, ValueError):
            if left.lstat().st_uid == os.geteuid() and _has_ended(int(left.name.removeprefix(prefix).split("-")[0])):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False

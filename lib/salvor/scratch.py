"""Temporary folders that nobody leaves behind: what a killed process could not remove, the next one does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder(purpose: str, within: Path | None = None) -> Iterator[Path]:
    """A private folder, removed at the end of the block. Those of this purpose whose processes have ended go first.

    It lies `within` a folder that is there (None: where temporary files are).
    """
    prefix = f"salvor-{purpose}-"
    for left in (within or Path(tempfile.gettempdir())).glob(f"{prefix}[0-9]*-*"):
        with suppress(OSError, ValueError):
            if left.lstat().st_uid == os.geteuid() and _has_ended(int(left.name.removeprefix(prefix).split("-")[0])):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=within, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False

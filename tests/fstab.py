"""A table of disks over that of this machine, for as long as a test needs it. Needs root."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TABLE = Path("/etc/fstab")


@contextmanager
def naming(point: Path) -> Iterator[None]:
    """While the block runs, /etc/fstab names a disk that belongs at `point`. One test at a time."""
    with (
        (Path(tempfile.gettempdir()) / "salvor-tests-fstab").open("w") as lock,
        tempfile.NamedTemporaryFile("w", prefix="salvor-fstab-") as table,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        escaped = str(point).replace(" ", "\\040")
        table.write(f"# <file system> <mount point> <type>\nUUID=4711 {escaped} ext4 defaults 0 2\nnone none swap sw\n")
        table.flush()
        Path(table.name).chmod(0o644)
        _TABLE.touch()
        subprocess.run(["mount", "--bind", table.name, _TABLE], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", _TABLE], check=True)

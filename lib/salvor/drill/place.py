"""Where a drill on a stand-in plays: the key that signs its journals, and the look that proves that nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from salvor import shell
from salvor.change import Finding, Level
from salvor.sandbox import processes, traces
from salvor.sandbox.survivors import Survivors
from salvor.show import Shown

_LOOKED = "folders, processes that name it or work in it, and ports"


def signing_key(place: Path) -> Path:
    """The stand-in's own SSH key, for the operator of a drill; made when there is none in `place`."""
    path = place / "operator_key"
    if not path.exists():
        shell.local().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "drill", "-f", str(path)])
    return path


@contextmanager
def in_memory(path: Path) -> Iterator[Path]:
    """A private file that lives in memory alone, with the content of `path`: it ends with this process, however that
    ends.
    """
    descriptor = os.memfd_create(path.name)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, path.read_bytes())
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def taken_down(stand_in: ModuleType, shown: Shown, *, keep: bool) -> list[Finding]:
    """Take a stand-in down (a package with `find` and `down`), unless it is to be kept, and say what is left of it."""
    check = "nothing of it is left"
    if keep:
        return [Finding("sandbox", check, Level.WARN, "it stands", detail="--keep: it was asked for")]
    stood = stand_in.find()
    stand_in.down()
    processes.until(lambda: not traces.of(stood), 2.0)  # the kernel is still at it
    left = traces.of(stood)
    shown.tell("The sandbox is down; the records stay.")
    return [Finding("sandbox", check, Level.FAIL if left else Level.PASS, "; ".join(left) or "none", "none", _LOOKED)]


def counted(subject: str, survived: Survivors) -> Finding:
    """How much of what customers had acknowledged before the disaster is there after the cutover."""
    lost = survived.before - survived.before_survived
    detail = "acknowledged before the disaster" + (f"; {lost} are lost" if lost else "")
    level = Level.WARN if lost else Level.PASS
    figure = f"{survived.before_survived} of {survived.before}"
    return Finding(subject, "what was acknowledged is there", level, figure, "all", detail)

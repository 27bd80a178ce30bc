"""Files to machines and back: to many side by side, each checked by its checksum and put in place by one rename."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from salvor import durable, transfer
from salvor.change import Progress
from salvor.errors import CannotError, UsageError
from salvor.hosts.rolling import Moved, Rolling, Said, roll
from salvor.shell import Shell
from salvor.show import Shown, write_bytes

_MODE = re.compile(r"[0-7]{3,4}")


def upload(platform: str, limit: str, file: str, to: str, mode: str, how: Rolling, shown: Shown) -> None:
    """Copy a local file to the path `to` on each machine. What a broken transfer left is gone on with. `how.deadline`
    is that of each 8 MiB. Raises UsageError, and as `hosts.rolling.run` does.
    """
    source = Path(file).expanduser()
    if not source.is_file():
        raise UsageError(f"There is no file {source} here.", safe="nothing was copied", hint="--file=/path/of/a/file")
    if not _MODE.fullmatch(mode):
        raise UsageError(f"--mode: {mode!r} is no mode.", safe="nothing was copied", hint="for example --mode=644")
    target = f"{to}{source.name}" if to.endswith("/") else to
    _check(target, "--to")

    def work(name: str, there: Shell, moved: Moved) -> Said:
        return _moved(name, transfer.upload(there, source, target, mode=int(mode, 8), deadline=how.deadline), moved)

    roll("hosts.upload", f"{source} to {target}", platform, limit, work, how, shown)


def download(platform: str, limit: str, file: str, to: str, how: Rolling, shown: Shown) -> None:
    """Copy the file `file` of each machine into the local folder `to`, below the machine's name; else as `upload`."""
    _check(file, "--file")
    folder = Path(to).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", safe="nothing was copied", hint="--to=/path/of/a/folder")

    def work(name: str, there: Shell, moved: Moved) -> Said:
        durable.make_folder(folder / name)
        target = folder / name / file.rpartition("/")[2]
        return _moved(name, transfer.download(there, file, target, deadline=how.deadline), moved)

    roll("hosts.download", f"{file} into {folder}", platform, limit, work, how, shown)


def _moved(name: str, copy: Iterator[Progress], moved: Moved) -> Said:
    done = 0
    try:
        for progress in copy:
            moved(name, progress)
            done = progress.done
    except CannotError as error:
        return Said(str(error), None)
    return Said(f"{write_bytes(done)}, the checksums agree\n")


def _check(path: str, option: str) -> None:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise UsageError(
            f"{option}: {path!r} is not the absolute path of a file.",
            safe="nothing was copied",
            hint=f"{option}=/path/of/a/file",
        )

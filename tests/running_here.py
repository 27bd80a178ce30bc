"""What runs on this machine, as everybody can see it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def command_lines() -> dict[int, list[bytes]]:
    """The words of every process' command line, by its number. One that is over, or has none, is left out."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if words := (process / "cmdline").read_bytes():
                found[int(process.name)] = words.removesuffix(b"\0").split(b"\0")
    return found


def runs(argv: list[str]) -> bool:
    """Whether any process has just this command line."""
    return [word.encode() for word in argv] in command_lines().values()

"""What kinds of system share when they look at their own repositories of backups: room, permissions. Reads only."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from salvor.change import Finding, Level
from salvor.errors import SalvorError
from salvor.shell import Shell

INTEGRITY, PERMISSIONS, SPACE, WAL = "integrity", "permissions", "space", "wal"
"""The checks by which a kind's findings are told apart: the labels of its metrics too."""
_SHOWN = 3
_SECONDS = 300.0


@dataclass(frozen=True)
class Room:
    """The file system that a repository lies on: its size and what is free of it, in bytes."""

    repository: str
    path: str
    size: int
    free: int


Audited = Finding | Room


def each(system: str, looks: Iterable[Iterator[Audited]]) -> Iterator[Audited]:
    """What each of these looks finds; one that cannot be taken is said, and hinders no other."""
    for look in looks:
        try:
            yield from look
        except SalvorError as error:
            yield Finding(system, INTEGRITY, Level.UNKNOWN, "not looked at", detail=error.what)


def place(shell: Shell, system: str, repository: str, path: str, *, open_to: str = "077") -> Iterator[Audited]:
    """The room and the permissions of a repository in a folder at `path`. `open_to` are the bits of a mode that no file
    and no folder in it may have.
    """
    try:
        if not shell.exists(path):
            yield Finding(system, INTEGRITY, Level.FAIL, "not there", detail=f"{path} on {shell.where}")
            return
        yield room(shell, repository, path)
        yield permissions(shell, system, path, open_to)
    except SalvorError as error:
        yield Finding(system, SPACE, Level.UNKNOWN, detail=f"{path}: {error.what}")


def room(shell: Shell, repository: str, path: str) -> Room:
    """How full the file system at `path` is. Raises CannotError."""
    line = shell.run(["df", "-P", "-k", "--", path]).stdout.splitlines()[-1]
    words = line.rsplit(None, 5)
    return Room(repository, path, (int(words[2]) + int(words[3])) * 1024, int(words[3]) * 1024)


def permissions(shell: Shell, system: str, path: str, open_to: str) -> Finding:
    """Whether no file and no folder at `path` has these bits of a mode (`077`: files 600, folders 700). Raises
    CannotError.
    """
    argv = ["find", "-H", path, "!", "-type", "l", "-perm", f"/{open_to}", "-printf", "%m %p\\n"]
    found = shell.run(argv, deadline=_SECONDS).stdout.splitlines()
    if not found:
        return Finding(system, PERMISSIONS, Level.PASS, "closed", detail=path)
    shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    limit, who = ("files 600, folders 700", "go") if open_to == "077" else ("files 640, folders 750", "o")
    mend = f"on {shell.where}: chmod -R {who}-rwx {shlex.quote(path)}"
    return Finding(system, PERMISSIONS, Level.FAIL, f"{len(found)} open to others", limit, detail=f"{shown}; {mend}")


def integrity(system: str, problems: list[str], checked: str, *, how: str) -> Finding:
    """What is damaged, or that nothing of what was `checked` is."""
    if not problems:
        return Finding(system, INTEGRITY, Level.PASS, checked, detail=how)
    shown = "; ".join(problems[:_SHOWN]) + ("; ..." if len(problems) > _SHOWN else "")
    return Finding(system, INTEGRITY, Level.FAIL, f"{len(problems)} damaged of {checked}", detail=shown)

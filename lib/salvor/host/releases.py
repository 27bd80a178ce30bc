"""The releases of an application on a machine: a folder for each, and a link `current` beside them to the live one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from salvor.errors import CannotError
from salvor.host import PATH
from salvor.shell import Shell

_DEADLINE = 20.0
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")

_LOOK = r"""
cd -- "$1" || exit
target=$(readlink -- ../current) || exit 44
if [ "$(cd .. && cd -P -- "$(dirname -- "$target")" && pwd -P)" != "$(pwd -P)" ]; then
    echo "current leads to $target" >&2
    exit 45
fi
printf '%s\n' "$target"
for name in *; do [ ! -d "$name" ] || [ -L "$name" ] || printf '%s\n' "$name"; done
"""
_SWAP = r"""
cd -- "$1/.." && old=$(readlink current) || exit
new=$(dirname -- "$old")/$2
[ -d "$new" ] || exit 44
# A rename over the old link: whoever opens `current` finds one release or the other.
rm -rf current.salvor-new && ln -s "$new" current.salvor-new && mv -fT current.salvor-new current
"""


@dataclass(frozen=True)
class Releases:
    """The name of the live release, and of all that are there, the oldest first."""

    current: str
    names: tuple[str, ...]

    @property
    def before(self) -> str | None:
        """The release before the live one; None when there is none."""
        older = [name for name in self.names if _order(name) < _order(self.current)]
        return older[-1] if older else None


def _order(name: str) -> list[tuple[int, int, str]]:
    """Names in the order of people: `v1.9` before `v1.10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def look(shell: Shell, folder: str) -> Releases:
    """What is in `folder`, and which of it `current` beside it leads to. Raises CannotError."""
    said = shell.run(["sh", "-c", PATH + _LOOK, "sh", folder], deadline=_DEADLINE, check=False)
    target, *names = said.stdout.splitlines() or [""]
    if said.exit_code or not target:
        raise CannotError(
            f"{shell.where} has no releases in {folder} with a link beside them: {said.stderr.strip()[-300:]}",
            safe="nothing was changed",
            hint=f"ls -l {PurePosixPath(folder).parent} there; current has to be a link to one of {folder}/*",
        )
    current = PurePosixPath(target).name
    return Releases(current, tuple(sorted(filter(NAME.fullmatch, names), key=_order)))


def turn_to(shell: Shell, folder: str, name: str) -> None:
    """Let `current` lead to the release `name`, at once. Its doing so already is no error. Raises CannotError."""
    if look(shell, folder).current == name:
        return
    if not NAME.fullmatch(name):
        raise CannotError(f"{name!r} is no release's name.", safe="nothing was changed")
    said = shell.run(["sh", "-c", PATH + _SWAP, "sh", folder, name], deadline=_DEADLINE, check=False)
    if said.exit_code:
        why = f"there is no release {name!r} in {folder}" if said.exit_code == 44 else said.stderr.strip()[-300:]
        raise CannotError(
            f"{shell.where} was not turned to another release: {why}.",
            safe="nothing was changed",
            hint=f"there: ls -l {folder} {PurePosixPath(folder).parent}",
        )

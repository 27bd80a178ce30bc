"""What a check may ask of a tree: a figure, from one pass over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salvor.errors import CannotError, UsageError
from salvor.files import proof

if TYPE_CHECKING:
    from salvor.systems.files import Files

_ASKING = 300.0
_FILES = 'find "$1" -type f -name "$2" -printf x | wc -c'
_BYTES = "find \"$1\" -type f -printf '%s\\n' | awk '{ size += $1 } END { printf \"%.0f\\n\", size }'"
_LINES = 'grep -c -E -e "$2" -- "$1" || [ $? = 1 ]'
_SCRIPTS = {"files": _FILES, "bytes": _BYTES, "lines": _LINES}


def check(question: str) -> tuple[str, str]:
    """The word that a question begins with, and what follows it. Raises UsageError for what is no question.

    `files` how many there are, `files *.jpg` of that name; `bytes` in all; `lines PATTERN` of a single file that match
    (extended regular expression); `changed`: how many files of the newest backup are missing or have another size or
    time.
    """
    word, _, rest = question.strip().partition(" ")
    rest = rest.strip()
    if word not in (*_SCRIPTS, "changed") or ((word == "lines") != bool(rest) and word != "files"):
        raise UsageError(
            f"{question!r} cannot be asked of a tree.",
            hint="ask: files, files *.jpg, bytes, lines PATTERN (of a single file), or changed",
        )
    return word, rest


def ask(system: Files, question: str, path: str) -> int:
    """The answer for what is at `path`. Raises CannotError when it is not there or cannot be read."""
    word, rest = check(question)
    if word == "changed":
        return proof.changed(system, path)
    script = f'[ -e "$1" ] || {{ echo "$1 is not there" >&2; exit 1; }}; {_SCRIPTS[word]}'
    said = system.shell.run(["sh", "-c", script, "sh", path, rest or "*"], deadline=_ASKING)
    if said.stderr.strip():
        raise CannotError(f"{path} on {system.shell.where} could not all be read: {said.stderr.strip()[:300]}")
    return int(said.stdout)

"""What is sent to a host: POSIX sh, quoted here and nowhere else.

The login shell, which may be any, gets one plain line. It starts sh as the user who is to run the command, and that sh
reads the command from standard input: neither its words nor its environment are seen in the list of processes before it
runs, and none of them is ever read by csh or fish. Marks on standard output say where the command's own begins (what a
profile printed before is passed over; with it comes the process id, by which all of it can be ended) and where it ends,
with the exit code: the end of the stream may never come while something that it left behind holds it, and the host's
word that the command ended may come before what it said.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from dataclasses import dataclass

from salvor.errors import CannotError
from salvor.running import Command

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = b"\x1e"
_RUN = (
    'printf "\\036%s %s\\036" "$1" "$$"; '
    '(n=${IFS#??}; IFS= read -r line && eval "$line"); '  # n is a newline; a line that arrives in part is not run
    'set "$1" "$?"; printf "\\036%s %s\\036" "$@"; printf "\\036%s %s\\036" "$@" >&2'
)

END_TREE = r"""
tree() {
    kill -STOP "$1" 2>/dev/null
    for pair in $all; do
        case $pair in *:"$1") tree "${pair%:*}" ;; esac
    done
    kill -KILL "$1"
}
kill -KILL "-$1" 2>/dev/null && exit
all=$({ ps -A -o pid= -o ppid= 2>/dev/null || ps -o pid,ppid; } |
    while read -r pid parent; do echo "$pid:$parent"; done)
tree "$1"
"""
"""Ends process $1 and all that it started: its process group where it leads one, else its children by their parents."""


@dataclass(frozen=True)
class Envelope:
    """A command as it is sent: `line` for the login shell, `script` for the sh on its standard input."""

    line: str
    script: bytes
    token: bytes
    prompt: bytes

    def split(self, output: bytes) -> tuple[bytes, int | None, bytes]:
        """What stands before a mark, its number (the process id, or the exit code) and what follows; without a mark,
        what surely stands before one, None, and the rest, which may be the beginning of one.
        """
        begins = _MARK + self.token + b" "
        at = output.find(begins)
        end = output.find(_MARK, at + 1) if at >= 0 else -1
        if end >= 0:
            return output[:at], int(output[at + len(begins) : end]), output[end + 1 :]
        if at < 0:
            at = output.rfind(_MARK, -len(begins))
            if at < 0 or not begins.startswith(output[at:]):
                at = len(output)
        return output[:at], None, output[at:]

    @staticmethod
    def of(command: Command, *, login: str, run_as: str | None, by_password: bool) -> Envelope:
        """`command` for a host where we are `login`, to be run as `run_as`. `by_password`: sudo asks for one."""
        token = secrets.token_hex(8)
        prompt = f"{token}?"
        inner = ["sh", "-c", _RUN, "sh", token]
        if not run_as or run_as == login:
            words = inner
        elif login == "root":
            words = ["su", "-s", "/bin/sh", run_as, "-c", f"exec {shlex.join(inner)}"]
        else:
            words = ["sudo", *(["-S", "-p", prompt] if by_password else ["-n"]), "-u", run_as, "--", *inner]
        return Envelope(f"exec {shlex.join(words)}", _script(command), token.encode(), prompt.encode())


def _script(command: Command) -> bytes:
    """One line, which no sh takes for anything else before it is whole."""
    if wrong := [name for name in command.environment if not _VARIABLE.fullmatch(name)]:
        raise ValueError(f"no names of environment variables: {wrong}")
    parts = [f"export {name}={_quote(value)}" for name, value in command.environment.items()]
    if command.folder:
        parts.append(f"CDPATH= cd -- {_quote(command.folder)} || exit 126")
    parts.append(f"exec {' '.join(map(_quote, command.argv))}\n")
    script = os.fsencode("; ".join(parts))
    if b"\0" in script or command.argv[0].startswith("-"):
        raise CannotError(f"{command.argv[0]!r} cannot be started: it is no program's name, or holds a null byte.")
    return script


def _quote(word: str) -> str:
    return shlex.quote(word).replace("\n", "'\"$n\"'")

"""What is sent to a host: POSIX sh, quoted here and nowhere else.

The login shell, which may be any, gets one plain line. It starts sh as the user who is to run the command; that sh says
on standard output that it begins (what a profile printed before is passed over) and its process id (by which the
command can be ended), and reads the command itself from standard input: neither its words nor its environment are seen
in the list of processes before it runs, and none of them is ever read by csh or fish.
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
_BEGIN = 'printf "\\n%s %s\\n" "$1" "$$"; '
_READ = 'eval "$(dd bs=1 count="$2" 2>/dev/null)"'
_END = '; printf "\\n%s %s\\n" "$1" "$?" >&2'

END_TREE = r"""
tree() {
    kill -STOP "$1" 2>/dev/null
    for child in $({ ps -A -o ppid= -o pid= 2>/dev/null || ps -o ppid,pid; } | while read -r parent pid; do
        test "$parent" = "$1" && echo "$pid"
    done); do tree "$child"; done
    kill -KILL "$1"
}
kill -KILL -- "-$1" 2>/dev/null || tree "$1"
"""
"""Ends process $1 and all that it started: its process group where it leads one, else its children by their parents."""


@dataclass(frozen=True)
class Envelope:
    """A command as it is sent: `line` for the login shell, `script` for the sh on its standard input. `says` is found
    in its output with the process id when it begins, in its errors with the exit code when it ends.
    """

    line: str
    script: bytes
    says: re.Pattern[bytes]
    prompt: bytes

    @staticmethod
    def of(command: Command, *, login: str, run_as: str | None, by_password: bool, says_end: bool) -> Envelope:
        """`command` for a host where we are `login`, to be run as `run_as`. `by_password`: sudo asks for one.
        `says_end`: it says on standard error when it has ended, and how.
        """
        script = _script(command)
        token = secrets.token_hex(8)
        prompt = f"{token}?"
        run = f"({_READ}){_END}" if says_end else _READ
        inner = ["sh", "-c", _BEGIN + run, "sh", token, str(len(script))]
        if not run_as or run_as == login:
            words = inner
        elif login == "root":
            words = ["su", "-s", "/bin/sh", run_as, "-c", f"exec {shlex.join(inner)}"]
        else:
            words = ["sudo", *(["-S", "-p", prompt] if by_password else ["-n"]), "-u", run_as, "--", *inner]
        says = re.compile(rb"\n" + token.encode() + rb" (\d+)\n")
        return Envelope(f"exec {shlex.join(words)}", script, says, prompt.encode())


def _script(command: Command) -> bytes:
    """Braces, so that sh runs nothing of a script that arrives in part."""
    if wrong := [name for name in command.environment if not _VARIABLE.fullmatch(name)]:
        raise ValueError(f"no names of environment variables: {wrong}")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in command.environment.items()]
    if command.folder:
        lines.append(f"CDPATH= cd -- {shlex.quote(command.folder)} || exit 126")
    lines.append(f"exec {shlex.join(command.argv)}")
    script = os.fsencode("\n".join(["{", *lines, "}"]))
    if b"\0" in script or command.argv[0].startswith("-"):
        raise CannotError(f"{command.argv[0]!r} cannot be started: it is no program's name, or holds a null byte.")
    return script

"""A command that is run once on a machine, however often it is asked for: it is noted there that it was begun, and how
it ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from salvor.errors import CannotError, OutcomeUnknownError
from salvor.shell import Shell

_OCCASION = re.compile(r"[A-Za-z0-9-]{1,200}")
_BEGUN = 75
_ONCE = r"""
umask 077
place=$HOME/.salvor-once
mkdir -p "$place" || exit
find "$place" -type f -mtime +30 -exec rm -f {} + 2>/dev/null
note=$place/$1
shift
# With noclobber, of two at once one makes the file.
if (set -C; : > "$note") 2>/dev/null; then
    "$@"
    code=$?
    echo "$code" > "$note"
    exit "$code"
fi
[ -e "$note" ] || exit 1
read -r code < "$note" || { echo "salvor: begun before" >&2; exit 75; }
exit "$code"
"""


def run(shell: Shell, command: Sequence[str], occasion: str, *, deadline: float) -> None:
    """Run it, unless it was run for this occasion: then it ends as it did. What it was is kept for 30 days there.

    Raises CommandError when it ends with another exit code than 0, OutcomeUnknownError after `deadline` seconds, and
    when it was begun before and nobody saw its end.
    """
    if not _OCCASION.fullmatch(occasion):
        raise CannotError(f"{occasion!r} cannot name a run; it takes letters, digits and hyphens.")
    try:
        result = shell.run(["sh", "-c", _ONCE, "sh", occasion, *command], deadline=deadline, check=False)
    except OutcomeUnknownError as error:
        hint = f"look whether something of it still runs, on {shell.where}: ps -ef"
        raise OutcomeUnknownError(f"{command[0]}: {error.what}", safe=error.safe, hint=hint) from error
    if result.exit_code == _BEGUN and "salvor: begun before" in result.stderr:
        raise OutcomeUnknownError(
            f"{command[0]} was begun on {shell.where} before, and nobody saw its end.",
            safe="it was not run again",
            hint=f"look whether it still runs, on {shell.where}: ps -ef",
        )
    if result.exit_code:
        raise shell.failed(command, result.exit_code, result.stderr or result.stdout)

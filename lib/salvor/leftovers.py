"""What a killed call left working on a host: it is ended before the same work is begun again."""

from __future__ import annotations

import time

from salvor import clock
from salvor.errors import OutcomeUnknownError
from salvor.shell import Shell

_PATIENCE = 10.0

# Neither its own shell nor its own grep, whose arguments have it, too.
_FIND = r"""
grep -l -s -F -e "$1" /proc/[0-9]*/cmdline | while read -r line; do
    case "|$(tr '\0' '|' < "$line")" in
    *"|salvor-leftovers|"* | "|grep|-l|-s|-F|"*) ;;
    *"|$1|"*)
        process=${line%/cmdline}
        echo "${process#/proc/}"
        ;;
    esac
done 2>/dev/null
"""


def end(shell: Shell, argument: str, where: str) -> bool:
    """End every process on a host that has `argument` among its arguments, and that works in `where`. Whether there was
    one.

    Raises OutcomeUnknownError when one goes on after 10 s.
    """
    until = clock.monotonic() + _PATIENCE
    ended = False
    while found := shell.run(["sh", "-c", _FIND, "salvor-leftovers", argument], check=False).stdout.split():
        if clock.monotonic() > until:
            raise OutcomeUnknownError(
                f"What an earlier call began still works in {where} on {shell.where} (process {found[0]}).",
                safe="nothing was changed",
                hint="end it, then run the same command again",
            )
        shell.run(["kill", "-KILL", *found], check=False)
        ended = True
        time.sleep(0.1)
    return ended

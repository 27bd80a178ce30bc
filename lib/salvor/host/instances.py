"""How many instances of a service run on a machine: processes of one name under pm2, instances of a template of
systemd.
"""

from __future__ import annotations

import json
import time

from salvor import clock
from salvor.errors import CannotError, NotConvergedError
from salvor.host import PATH
from salvor.host.services import NOTHING, Environment
from salvor.shell import Shell

_LOOKING = 20.0
_BETWEEN = 0.5
_RUNS = ("online", "launching")

_TEMPLATE = r"""
systemctl list-units --no-legend --plain --state=active,activating,reloading -- "$1*.service" | grep -c .
:
"""
_SCALE = r"""
case $1 in
*@)
    number=1
    while [ "$number" -le "$2" ]; do systemctl start "$1$number.service" || exit; number=$((number + 1)); done
    for unit in $(systemctl list-units --no-legend --plain --all -- "$1*.service" | sed 's/ .*//'); do
        number=${unit#"$1"}
        number=${number%.service}
        case $number in '' | *[!0-9]*) continue ;; esac
        [ "$number" -le "$2" ] || systemctl stop "$unit" || exit
    done ;;
*) pm2 scale "$1" "$2" ;;
esac </dev/null
"""


def count(shell: Shell, name: str, environment: Environment = NOTHING) -> int:
    """How many run: of `name` under pm2, or of the template `name@` of systemd. Raises CannotError."""
    if name.endswith("@"):
        return int(shell.run(["sh", "-c", PATH + _TEMPLATE, "sh", name], deadline=_LOOKING).stdout)
    said = shell.run(["sh", "-c", f"{PATH}pm2 jlist"], deadline=_LOOKING, check=False, environment=environment)
    try:
        # What pm2 says to people may stand above it.
        found = json.loads(next(line for line in said.stdout.splitlines() if line.startswith("[")))
        return sum(one["name"] == name and one["pm2_env"]["status"] in _RUNS for one in found)
    except (StopIteration, ValueError, LookupError, TypeError) as error:
        raise CannotError(
            f"{shell.where} does not say how many of {name} run: {said.stderr.strip()[-300:] or 'pm2 does not answer'}",
            safe="nothing was changed",
            hint=f"there: pm2 list; a template of systemd is named by template: {name}@",
        ) from error


def scale(shell: Shell, name: str, instances: int, *, deadline: float, environment: Environment = NOTHING) -> None:
    """Let so many run: of pm2, or those that a template of systemd numbers from 1; those above are stopped. Its being
    so already is no error. Raises CannotError, or NotConvergedError when it is not so within `deadline` seconds.
    """
    until = clock.monotonic() + deadline
    before = count(shell, name, environment)
    if before == instances:
        return
    if not before and not name.endswith("@"):
        raise CannotError(
            f"{shell.where} has no {name} under pm2, so it has nothing to scale.",
            safe="nothing was changed",
            hint="there: pm2 list; a template of systemd is named by template: NAME@",
        )
    command = ["sh", "-c", PATH + _SCALE, "sh", name, str(instances)]
    shell.run(command, deadline=deadline, environment=environment)
    while (now := count(shell, name, environment)) != instances:
        if clock.monotonic() > until:
            raise NotConvergedError(
                f"{name} on {shell.where} runs {now} times, not {instances}.",
                safe="nothing else was changed",
                hint="look at its log there",
            )
        time.sleep(_BETWEEN)

"""How the machines of a platform are: looked at side by side, what is wrong first, and how their disks grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salvor import clock, durable, hosts, inventory
from salvor.change import Finding, Level, Reachable
from salvor.errors import NotProvenError, SalvorError, WarnedError
from salvor.fleet import Answered
from salvor.host import facts, health
from salvor.host.facts import Facts
from salvor.host.health import Look
from salvor.hosts import show as show_hosts
from salvor.journal.folders import incidents_folder
from salvor.shell import Shell
from salvor.show import Shown
from salvor.ssh.host import refuses

_DAYS_KEPT = 8


@dataclass(frozen=True)
class Health:
    """How a machine is: what is wrong with it, the worst first. `facts` are None when it was not reached."""

    name: str
    reachable: Reachable
    wrong: tuple[Finding, ...]
    facts: Facts | None


def show_all(platform_name: str, limit: str, shown: Shown) -> Sequence[Health]:
    """Look at the machines side by side, and show them, those with something wrong first."""
    platform = inventory.load(platform_name)
    chosen = hosts.select(hosts.places(platform), limit)
    looks = _Looks(incidents_folder() / ".looks" / f"{platform.name}.json")

    def work(name: str, there: Shell) -> Facts:
        return facts.ask(there, chosen[name].services)

    found = []
    with show_hosts.counting(shown, len(chosen)) as count:
        for answered in hosts.each({name: one.host for name, one in chosen.items()}, work):
            found.append(_health(answered, looks.earlier(answered.host)))
            count.answered(answered.error is not None)
    found.sort(key=_urgency)
    show_hosts.table(found, shown)
    if error := looks.keep(found):
        shown.tell(f"How the disks grow is not kept: {error}.")
    return found


def verdict(found: Sequence[Health]) -> None:
    """Raises NotProvenError when something is wrong with a machine or cannot be told, WarnedError when one warns."""
    bad = [one.name for one in found if any(each.level in (Level.FAIL, Level.UNKNOWN) for each in one.wrong)]
    if bad:
        raise NotProvenError(
            f"{len(bad)} of {len(found)} machines have something wrong: {', '.join(bad)}.",
            safe="nothing was changed",
            hint="mend what is said above, then: inv hosts",
        )
    if warned := [one.name for one in found if one.wrong]:
        raise WarnedError(f"{len(warned)} of {len(found)} machines warn: {', '.join(warned)}.")


def _health(answered: Answered[Facts], earlier: Sequence[Look]) -> Health:
    name, error = answered.host, answered.error
    if answered.answer is not None:
        return Health(name, Reachable.UP, tuple(health.findings(name, answered.answer, earlier)), answered.answer)
    assert error is not None
    reachable = Reachable.DOWN if refuses(error) else Reachable.UNKNOWN
    level = Level.FAIL if reachable is Reachable.DOWN else Level.UNKNOWN
    return Health(name, reachable, (Finding(name, "SSH", level, error.what.rstrip("."), detail=error.hint),), None)


def _urgency(one: Health) -> tuple[int, int, str]:
    states = {Reachable.DOWN: 0, Reachable.UNKNOWN: 1, Reachable.UP: 2}
    return states[one.reachable], min((health.ORDER[each.level] for each in one.wrong), default=9), one.name


class _Looks:
    """What was taken of each disk on each of the last days, to tell how it grows; kept beside the incidents."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, dict[str, dict[str, int]]] = {}
        try:
            read = json.loads(durable.read(path))
            for host, looks in read.items():
                for at, used in looks.items():
                    if clock.age(clock.read_time(at)).days < _DAYS_KEPT:
                        self._kept.setdefault(host, {})[at] = {disk: int(count) for disk, count in used.items()}
        except (OSError, ValueError, AttributeError, SalvorError):
            self._kept = {}  # none yet, or damaged: it is only an estimate that is missing

    def earlier(self, host: str) -> list[Look]:
        return [Look(clock.read_time(at), used) for at, used in self._kept.get(host, {}).items()]

    def keep(self, found: Sequence[Health]) -> OSError | None:
        """Add today's, where there is none. Returns what hindered it."""
        today = clock.write_time(clock.now())[:10]
        added = False
        for one in found:
            if one.facts and not any(at.startswith(today) for at in self._kept.get(one.name, {})):
                now = health.look(one.facts)
                self._kept.setdefault(one.name, {})[clock.write_time(now.at)] = dict(now.used)
                added = True
        try:
            if added:
                durable.make_folder(self._path.parent)
                durable.replace(self._path, json.dumps(self._kept).encode())
        except OSError as error:
            return error
        return None

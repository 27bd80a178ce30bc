"""All machines of a platform at once: how they are, and one command on many, in batches."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from salvor import clock, durable, fleet, inventory
from salvor.change import Finding, Level, Reachable
from salvor.errors import CannotError, NotProvenError, OutcomeUnknownError, SalvorError, UsageError, WarnedError
from salvor.fleet import Answered
from salvor.host import facts, health
from salvor.host.facts import Facts
from salvor.host.health import Look
from salvor.hosts import record as hosts_record
from salvor.hosts import show as show_hosts
from salvor.hosts.record import Record
from salvor.inventory import Platform
from salvor.journal.folders import incidents_folder
from salvor.shell import Result, Shell
from salvor.show import Shown
from salvor.ssh.host import Host

HERE = "this-machine"
_AT_ONCE = 50
_CONNECTING = 10.0
_DAYS_KEPT = 8

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Place:
    """A machine of the platform: how it is reached, the services that are to run there, and the names that it may be
    selected by: its own, and those of the systems and services that live there.
    """

    host: Host
    services: tuple[str, ...]
    names: frozenset[str]


@dataclass(frozen=True)
class Health:
    """How a machine is: what is wrong with it, the worst first. `facts` are None when it was not reached."""

    name: str
    reachable: Reachable
    wrong: tuple[Finding, ...]
    facts: Facts | None


def places(platform: Platform) -> dict[str, Place]:
    """The machines that the inventory names, each once: systems of the kind host, and where members of a database,
    trees of files and applications are. Raises UsageError when there is none.
    """
    from salvor.on_a_machine import OnAMachineSettings
    from salvor.postgres.settings import PostgresSettings
    from salvor.systems.host import HostSettings

    described = platform.settings.items()
    own = [(name, name, one.host, one.services) for name, one in described if isinstance(one, HostSettings)]
    of_databases = [
        (member.host or HERE, name, Host(member.host, member.ssh), ())
        for name, one in described
        if isinstance(one, PostgresSettings)
        for member in one.members
    ]
    of_others = [
        (one.address or HERE, name, Host(one.address, one.ssh), ())
        for name, one in described
        if isinstance(one, OnAMachineSettings) and not isinstance(one, HostSettings)
    ]
    found: dict[tuple[str, int | None], tuple[str, Place]] = {}
    for name, system, host, services in (*own, *of_databases, *of_others):
        served = {one.name for one in platform.services.values() if system in (*one.systems, *one.applications)}
        key = (host.address, host.ssh.port)
        first, place = found.get(key, (name, Place(host, services, frozenset())))
        found[key] = (first, Place(place.host, place.services, place.names | {name, system} | served))
    if not found:
        raise UsageError(
            f"The platform {platform.name!r} names no machine.",
            hint=f"describe one in {platform.path}, below systems: web-1: {{kind: host, address: web-1.example.com}}",
        )
    return dict(found.values())


def select(all_places: Mapping[str, Place], limit: str) -> dict[str, Place]:
    """Those that `limit` names: names or patterns of machines, systems or services, separated by commas; empty: all.
    Raises UsageError for a name that fits none: a typing error must not make the selection another one.
    """
    if not limit:
        return dict(all_places)
    chosen: set[str] = set()
    for pattern in (one.strip() for one in limit.split(",")):
        fitting = {name for name, one in all_places.items() if fnmatch.filter(one.names, pattern)}
        if not fitting:
            known = ", ".join(all_places)
            raise UsageError(
                f"--limit: {pattern!r} selects no machine.",
                safe="nothing was asked, and nothing was changed",
                hint=f"the machines are: {known[:500]}; a name of a system or service, and * and ?, work too",
            )
        chosen |= fitting
    return {name: one for name, one in all_places.items() if name in chosen}


# ------------------------------------------------------------------------------------------ how they are


def show_all(platform_name: str, limit: str, shown: Shown) -> Sequence[Health]:
    """Look at the machines side by side, and show them, those with something wrong first."""
    platform = inventory.load(platform_name)
    chosen = select(places(platform), limit)
    looks = _Looks(incidents_folder() / ".looks" / f"{platform.name}.json")

    def work(name: str, there: Shell) -> Facts:
        return facts.ask(there, chosen[name].services)

    hosts = {name: one.host for name, one in chosen.items()}
    found = []
    with show_hosts.counting(shown, len(hosts)) as count:
        for answered in _each(hosts, work, _AT_ONCE):
            found.append(_health(answered, looks.earlier(answered.host)))
            count(answered.error is not None)
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


def _each(
    hosts: Mapping[str, Host], work: Callable[[str, Shell], _Answer], at_once: int
) -> Iterator[Answered[_Answer]]:
    return fleet.each(hosts, work, at_once=at_once, deadline=_CONNECTING)


def _health(answered: Answered[Facts], earlier: Sequence[Look]) -> Health:
    name, error = answered.host, answered.error
    if answered.answer is not None:
        return Health(name, Reachable.UP, tuple(health.findings(name, answered.answer, earlier)), answered.answer)
    assert error is not None
    reachable = Reachable.DOWN if "Connection refused" in error.what else Reachable.UNKNOWN
    level = Level.FAIL if reachable is Reachable.DOWN else Level.UNKNOWN
    return Health(name, reachable, (Finding(name, "SSH", level, error.what, detail=error.hint),), None)


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


# ------------------------------------------------------------------------------------------ one command on many


@dataclass(frozen=True)
class Ran:
    """What a command did on a machine: `said` is what it printed, `outcome` done, failed, unreachable or unknown.
    `exit_code` is None when it did not come to one.
    """

    host: str
    outcome: str
    said: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Rolling:
    """How a command goes from machine to machine: `batch` at a time (0: all at once); the next batch begins as long as
    no more than `failures` failed. `deadline` is that of each, in seconds.
    """

    batch: int
    failures: int
    deadline: float


def rolling(batch: int, failures: int | None, deadline: str) -> Rolling:
    """From what an operator types. Raises UsageError."""
    if batch < 0 or (failures or 0) < 0:
        raise UsageError(
            "--batch and --failures are numbers from 0.",
            safe="nothing was run",
            hint="for example --batch=5 --failures=1",
        )
    if failures is not None and not batch:
        raise UsageError(
            "--failures needs --batch: when all begin at once, nothing is left to stop.",
            safe="nothing was run",
            hint=f"for example --batch=5 --failures={failures}",
        )
    try:
        seconds = clock.read_duration(deadline)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}.", safe="nothing was run", hint="for example --deadline=60s") from error
    return Rolling(batch, failures or 0, seconds)


def run(platform_name: str, limit: str, argv: Sequence[str], how: Rolling, shown: Shown) -> None:
    """Run a command on the machines and show what they say, grouped by equal answers. One word is a line for sh. It is
    written down in a journal of its own: who runs what where, before it is run, and how it ended.

    Raises CannotError when it failed somewhere, OutcomeUnknownError when that cannot be told of some machine.
    """
    if not argv:
        raise UsageError("Which command?", safe="nothing was run", hint="inv hosts.run -- uptime")
    command = ["sh", "-c", argv[0]] if len(argv) == 1 else list(argv)
    platform = inventory.load(platform_name)
    chosen = select(places(platform), limit)
    hosts = {name: place.host for name, place in chosen.items()}
    done: list[Ran] = []
    line = shlex.join(argv)
    with (
        hosts_record.kept(platform.name, line, asdict(how), shown) as record,
        show_hosts.counting(shown, len(chosen)) as count,
    ):
        for one in _rolled(hosts, command, how, record):
            done.append(one)
            count(one.outcome != "done")
    begun = {one.host for one in done}
    left = [name for name in chosen if name not in begun]
    show_hosts.groups(done, left, shown)
    _judge(done, left, line)


def _rolled(hosts: Mapping[str, Host], command: Sequence[str], how: Rolling, record: Record) -> Iterator[Ran]:
    def work(name: str, there: Shell) -> Result:
        return there.run(command, deadline=how.deadline, check=False)

    names = list(hosts)
    size = how.batch or len(names)
    failed = 0
    for first in range(0, len(names), size):
        batch = {name: hosts[name] for name in names[first : first + size]}
        record.begun(list(batch))
        done = []
        try:
            for answered in _each(batch, work, min(size, _AT_ONCE)):
                one = _ran(answered, hosts[answered.host].address)
                done.append(one)
                failed += one.outcome != "done"
                yield one
        finally:
            record.ended(done)
        if failed > how.failures:
            return


def _ran(answered: Answered[Result], address: str) -> Ran:
    result, error = answered.answer, answered.error
    if result is not None:
        said = result.stdout + result.stderr
        if result.exit_code:
            told = f"{said.rstrip()}\n(exit code {result.exit_code})".lstrip()
            return Ran(answered.host, "failed", told, result.exit_code)
        return Ran(answered.host, "done", said, 0)
    assert error is not None
    outcome = "unknown" if isinstance(error, OutcomeUnknownError) else "unreachable"
    same = re.sub(rf"\S*{re.escape(address)}(:\d+)?", "it", error.what) if address else error.what
    return Ran(answered.host, outcome, same)  # without its name, so that equal errors are shown once


def _judge(done: Sequence[Ran], left: Sequence[str], command: str) -> None:
    counts = {outcome: sum(one.outcome == outcome for one in done) for outcome in ("failed", "unreachable", "unknown")}
    if not any(counts.values()):
        return
    wrong = ", ".join(f"{outcome} on {count}" for outcome, count in counts.items() if count)
    what = f"{command}: {wrong} of {len(done) + len(left)} machines."
    safe = f"it was not begun on {len(left)} machines" if left else ""
    names = ",".join([one.host for one in done if one.outcome != "done"][:20])
    hint = f"look there: inv hosts --limit={names}"
    if counts["unknown"]:
        raise OutcomeUnknownError(what, safe=safe, hint=hint)
    raise CannotError(what, safe=safe, hint=hint)

"""Look at the backups of a platform, every system side by side, and say what is wrong, the worst first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from salvor import clock, durable, inventory
from salvor import prometheus as metrics
from salvor.backups import audit
from salvor.backups import checks as backup_checks
from salvor.backups.audit import Room
from salvor.backups.checks import AGE, ORDER, Due, Known
from salvor.backups.policy import BackedUpSettings, Expect
from salvor.change import Backup, Finding, Level
from salvor.errors import NotProvenError, SalvorError, WarnedError
from salvor.history import History
from salvor.incident import Incident
from salvor.inventory import Platform, Service
from salvor.journal.folders import incidents_folder
from salvor.maintenance import sitting
from salvor.roles import Restorable
from salvor.schedule.moments import read
from salvor.show import Shown

_DAYS_KEPT = 30
_PHYSICAL = ("full", "diff", "incr")


@dataclass(frozen=True)
class Looked:
    """What a look at one system found. `known` is what was asked of it."""

    system: str
    known: Known
    backups: Sequence[Backup]
    findings: Sequence[Finding]
    rooms: Sequence[Room] = ()


def report(service: str, platform: str, shown: Shown, *, deep: bool = False, prometheus: str | bool = "") -> None:
    """Look and say what was found; `prometheus`: True prints the metrics instead, a path writes them there too.

    Raises as `verdict` does, but not where the metrics were asked for on standard output: they tell it. Raises as the
    file's `prometheus.check_file` and `prometheus.write` do.
    """
    from salvor.backups import metrics as backup_metrics

    if isinstance(prometheus, str):
        metrics.check_file(prometheus, service)
    looks, unkept = look(service, platform, shown, deep=deep)
    figures = backup_metrics.metrics(platform, looks, clock.now()) if prometheus else []
    if prometheus is True:
        shown.lines(metrics.text(figures).splitlines())
        return
    for finding in sorted((each for one in looks for each in one.findings), key=lambda each: ORDER[each.level]):
        shown.finding(finding)
    shown.tell(summary(looks))
    if unkept:
        shown.tell(f"This look was not remembered, so the next one cannot compare with it: {unkept}")
    if prometheus:
        metrics.write(Path(prometheus).absolute(), figures)  # last: what is wrong was said, also where this fails
    verdict(looks, platform)


def look(service: str, platform: str, shown: Shown, *, deep: bool = False) -> tuple[list[Looked], OSError | None]:
    """Look at each system, and remember it for the next look; what hindered that is returned too. Changes nothing."""
    described = inventory.load(platform)
    services = [described.service(service)] if service else list(described.services.values())
    session = sitting(Service(name="backups", rto=0, rpo=0), described, shown)
    memory = _Memory(incidents_folder() / ".looks" / f"backups-{platform}.json")
    systems = [
        system
        for name in dict.fromkeys(name for one in services for name in one.systems)
        if isinstance(system := session.incident.system(name), Restorable)
    ]
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="look") as pool:
        looks = list(pool.map(lambda one: _look(one, session.incident, session.history, memory, deep), systems))
    return looks, memory.keep(looks)


def verdict(looks: Sequence[Looked], platform: str) -> None:
    """Raises NotProvenError when a check failed or could not be made, WarnedError when one warns."""
    found = [each for one in looks for each in one.findings]
    bad = [one for one in found if one.level in (Level.FAIL, Level.UNKNOWN)]
    warned = [one for one in found if one.level is Level.WARN]
    if bad:
        names = ", ".join(dict.fromkeys(f"{one.subject} {one.check}" for one in bad))
        raise NotProvenError(
            f"{len(bad)} of {len(found)} checks of backups failed, or could not be made: {names}.",
            safe="nothing was changed",
            hint=f"mend what is said above, then: inv backups --check --platform={platform}",
        )
    if warned:
        names = ", ".join(dict.fromkeys(f"{one.subject} {one.check}" for one in warned))
        raise WarnedError(
            f"{len(warned)} of {len(found)} checks of backups warn: {names}.",
            safe="every system can be restored",
            hint=f"see to what is said above before it fails, then: inv backups --check --platform={platform}",
        )


def _look(system: Restorable, incident: Incident, history: History, memory: _Memory, deep: bool) -> Looked:
    """One system: whatever cannot be looked at is said, and hinders nothing else."""
    known = _known(system, incident.platform, memory)
    backups: list[Backup] = []
    rooms: list[Room] = []
    found: list[Finding] = []
    try:
        backups = [replace(one, proven=history.proven(system.name, one.id)) for one in system.backups()]
        known = replace(known, unread=tuple(system.unread), failed_drill=_failed_drill(backups, incident, history))
        found += backup_checks.judge(system.name, backups, known)
    except SalvorError as error:
        found.append(Finding(system.name, AGE, Level.UNKNOWN, "the backups cannot be listed", detail=error.what))
    try:
        for each in system.audit(deep=deep):
            if isinstance(each, Room):
                rooms.append(each)
                earlier = memory.free(system.name, each)
                found.append(backup_checks.fill(system.name, each, earlier, _newest_size(backups, each)))
            else:
                found.append(each)
    except SalvorError as error:
        found.append(Finding(system.name, audit.INTEGRITY, Level.UNKNOWN, "not looked at", detail=error.what))
    return Looked(system.name, known, backups, found, rooms)


def _failed_drill(backups: Sequence[Backup], incident: Incident, history: History) -> str:
    """The newest drill that failed since a restore of one of them was proven."""
    backup = backup_checks.reaches_furthest(backups)
    if backup is None:
        return ""
    services = [one.name for one in incident.platform.services.values() if backup.system in one.systems]
    return history.failed_drill(backup.system, backup.way, services)


def _newest_size(backups: Sequence[Backup], room: Room) -> int:
    return next((one.size for one in backups if one.repository == room.repository and one.usable), 0)


def _known(system: Restorable, platform: Platform, memory: _Memory) -> Known:
    settings = system.settings if isinstance(system.settings, BackedUpSettings) else None
    expect = settings.expect if settings else Expect()
    services = [one for one in platform.services.values() if system.name in one.systems]
    due = [Due("expect: at", read(expect.at))] if expect.at else []
    for name, schedule in platform.schedules.items():
        service, kind = schedule.option("service"), schedule.option("kind")
        if schedule.run[0] == "backup" and any(service == one.name for one in services):
            kinds = _PHYSICAL if kind in _PHYSICAL else (kind,) if kind else ()
            due.append(Due(f"schedule {name}", schedule.calendar, kinds if system.settings.kind == "postgres" else ()))
    return Known(
        min((one.rpo for one in services), default=0.0),
        settings.keep if settings else None,
        settings.own_policies if settings else {},
        expect,
        tuple(due),
        memory.backups(system.name),
        " ".join([*(f"--service={one.name}" for one in services[:1]), f"--platform={platform.name}"]),
    )


class _Memory:
    """What the last look saw, and how much room each repository had on each of the last days; kept beside the
    incidents.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, dict[str, Any]] = {}
        try:
            read_ = json.loads(durable.read(path))
            self._kept = {
                name: {"backups": dict(one["backups"]), "free": {place: dict(at) for place, at in one["free"].items()}}
                for name, one in read_.items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._kept = {}  # none yet, or damaged: then nothing is compared, and the next look can again

    def backups(self, system: str) -> dict[str, Backup]:
        """What the last look saw, and earlier ones that the policy kept then."""
        said: Mapping[str, Mapping[str, Any]] = self._kept.get(system, {}).get("backups", {})
        try:
            return {
                key: Backup(**{**one, "taken": clock.read_time(one["taken"]), "needs": tuple(one["needs"])})
                for key, one in said.items()
            }
        except (SalvorError, TypeError, LookupError, ValueError):
            return {}

    def free(self, system: str, room: Room) -> dict[datetime, int]:
        """What was free of a system's repository at earlier looks; by how much its file system was enlarged since is
        added.
        """
        try:
            said = self._kept[system]["free"][_place(room)]
            return {clock.read_time(at): int(free) + max(0, room.size - size) for at, (free, size) in said.items()}
        except (SalvorError, LookupError, TypeError, ValueError, AttributeError):
            return {}

    def keep(self, looks: Sequence[Looked]) -> OSError | None:
        """Remember these. Returns what hindered it."""
        now = clock.now()
        for one in looks:
            before = self._kept.get(one.system, {"backups": {}, "free": {}})
            if one.backups:
                seen = backup_checks.remembered(one.backups, one.known)
                before = {**before, "backups": {key: _plain(each) for key, each in seen.items()}}
            for room in one.rooms:
                free = dict(before["free"].get(_place(room), {}))
                if not any(at.startswith(f"{now:%Y-%m-%d}") for at in free):
                    free[clock.write_time(now)] = room.free, room.size
                recent = clock.write_time(now - timedelta(days=_DAYS_KEPT))
                before["free"] = {**before["free"], _place(room): {at: of for at, of in free.items() if at > recent}}
            self._kept[one.system] = before
        try:
            durable.make_folder(self._path.parent)
            durable.replace(self._path, json.dumps(self._kept).encode())
        except OSError as error:
            return error
        return None


def _place(room: Room) -> str:
    return f"{room.repository} {room.path}"  # two machines may have the same path


def _plain(backup: Backup) -> dict[str, Any]:
    names = ("id", "system", "way", "kind", "size", "location", "repository")
    plain = {name: getattr(backup, name) for name in names}
    return {**plain, "taken": clock.write_time(backup.taken), "needs": list(backup.needs)}


def summary(looks: Sequence[Looked]) -> str:
    """`3 systems: 1 failed, 2 warn, 20 ok.`"""
    levels = [each.level for one in looks for each in one.findings]
    counted = [
        f"{count} {word}"
        for level, word in (
            (Level.FAIL, "failed"),
            (Level.UNKNOWN, "unknown"),
            (Level.WARN, "warn"),
            (Level.PASS, "ok"),
        )
        if (count := levels.count(level))
    ]
    return f"{len(looks)} system{'s' if len(looks) != 1 else ''}: {', '.join(counted) or 'nothing to check'}."

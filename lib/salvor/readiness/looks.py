"""What the systems of a platform say today, all asked side by side: one that hangs holds up no other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from salvor import clock, fleet, hosts, secrets
from salvor.change import Backup, Reachable, State, WayBack
from salvor.deadline import within
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.incident import new_id
from salvor.inventory import Platform, Service
from salvor.journal.folders import incidents_folder
from salvor.plain import one_line
from salvor.roles import Outbox, Restorable, Route
from salvor.ssh.settings import DoorSettings
from salvor.system import Context, kind
from salvor.wish import Wish

DEADLINE = 20.0
"""Seconds that each look has."""
_CONNECTING = 5.0
_MOST_AT_ONCE = 500
_REFERENCE = re.compile(r"(env|file|cmd):(?!//)")

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Drift:
    """Something that the inventory says and reality does not: `what` it is of, and the next command."""

    what: str
    problem: str
    hint: str = ""


@dataclass(frozen=True)
class Newest:
    """The newest usable backup of a system; `id` is empty when it has none, and `problem` says why.

    `way`, `loses` and `furthest` (its kind) are of the one that reaches furthest by a way that is open, which a restore
    of now would take (WAL goes on after a newer dump), and so is `size`, the bytes that it brings back. `can_tell` is
    False when nobody could be asked for them. `is_closed`: no way is open, and `problem` says why; it also says what is
    known of no way, and why the furthest one is closed. `unread` says which repository could not be read, of several.
    """

    system: str
    id: str = ""
    way: str = ""
    kind: str = ""
    taken_seconds_ago: float = 0.0
    loses: float = 0.0
    size: int = 0
    problem: str = ""
    can_tell: bool = True
    is_closed: bool = False
    furthest: str = ""
    unread: str = ""


@dataclass(frozen=True)
class Seen:
    """Everything that was seen, by the names of systems; `hosts` by the names of machines, with the systems there."""

    states: Mapping[str, State]
    backups: Mapping[str, Newest]
    drift: Mapping[str, tuple[Drift, ...]]


def look(platform: Platform, services: Iterable[Service]) -> Seen:
    """Look at every system of these services. Changes nothing and sends nothing."""
    names = list(dict.fromkeys(name for service in services for name in parts(service)))
    incident = new_id("readiness")  # it is never begun: systems name what they stage after one
    context = Context(incident, incidents_folder() / incident, dict)
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    for name in names:
        role = kind(platform.settings[name].kind)
        # Each look has a system of its own: they are made for one thread.
        works["state", name] = partial(_observe, platform, name, context)
        works["drift", name] = partial(_drift, platform, name, context)
        if issubclass(role, Restorable):
            works["backups", name] = partial(_backups, platform, name, context)
            works["ways", name] = partial(_ways, platform, name, context)
    machines = _Machines(platform, names)
    works["hosts", ""] = machines.ask
    answers = side_by_side(works)
    late = answers.pop(("hosts", ""))
    drift: dict[str, tuple[Drift, ...]] = {}
    for name in names:
        found = answers["drift", name]
        drift[name] = found if isinstance(found, tuple) else (Drift(name, _said(found)),)
    for name, found in machines.drift(late):
        drift[name] = (*drift[name], found)
    return Seen(
        {name: _state(answers["state", name]) for name in names},
        {
            name: _told(name, answer, answers["ways", name])
            for (what, name), answer in answers.items()
            if what == "backups"
        },
        drift,
    )


def parts(service: Service) -> list[str]:
    """The names of all systems that a recovery of this service needs."""
    messages = [service.messages] if service.messages else []
    return [*service.systems, *service.applications, *service.routes, *messages]


def side_by_side(works: Mapping[_Key, Callable[[], Any]]) -> dict[_Key, Any]:
    """What each work returns, or the exception that it ended with: a TimeoutError after DEADLINE."""

    def answer(work: Callable[[], Any]) -> Any:
        try:
            return within(DEADLINE, work)
        except Exception as error:  # noqa: BLE001  said in the words of the one who asked
            return error

    with ThreadPoolExecutor(max(1, min(len(works), _MOST_AT_ONCE)), thread_name_prefix="look") as pool:
        return dict(zip(works, pool.map(answer, works.values()), strict=True))


def _observe(platform: Platform, name: str, context: Context) -> State:
    return platform.open(name, context).observe()


def _backups(platform: Platform, name: str, context: Context) -> tuple[list[Backup], str]:
    """Its backups, and which of its repositories could not be read, and why."""
    system = platform.open(name, context)
    assert isinstance(system, Restorable)
    found = system.backups()
    if system.unread and not any(each.usable for each in found):  # what could not be read may hold some
        raise CannotError(f"{system.unread[0].repository}: {system.unread[0].why}")
    return found, "; ".join(f"{one.repository} could not be read: {one.why.removesuffix('.')}" for one in system.unread)


def _ways(platform: Platform, name: str, context: Context) -> list[WayBack]:
    system = platform.open(name, context)
    assert isinstance(system, Restorable)
    return system.ways_back(Wish())


def _said(error: object) -> str:
    return one_line(error.what if isinstance(error, SalvorError) else f"{error}" or type(error).__name__, most=300)


def _state(answer: State | Exception) -> State:
    if isinstance(answer, State):
        return answer
    return State(Reachable.UNKNOWN, "unknown", None, _said(answer))


def _told(system: str, answer: tuple[list[Backup], str] | Exception, ways: list[WayBack] | Exception) -> Newest:
    if isinstance(answer, Exception):
        return _newest(system, answer, ways)
    found, unread = answer
    return replace(_newest(system, found, ways), unread=unread)


def _newest(system: str, answer: list[Backup] | Exception, ways: list[WayBack] | Exception) -> Newest:
    if isinstance(answer, Exception):
        return Newest(system, problem=f"its backups cannot be listed: {_said(answer)}", can_tell=False)
    usable = [each for each in answer if each.usable and not clock.is_to_come(each.taken)]
    if not usable:
        count = f", and {len(answer)} that cannot be used, or of a time to come" if answer else ""
        return Newest(system, problem=f"{system} has no usable backup{count}")
    newest = max(usable, key=lambda each: each.taken)
    closed = {} if isinstance(ways, Exception) else {way.name: way.why for way in ways if not way.possible}
    leads_back = [each for each in usable if each.way not in closed]
    furthest, best = (
        max(some, key=lambda each: (_reaches(each), each.taken)) for some in (leads_back or usable, usable)
    )
    problem = ""
    if isinstance(ways, Exception):
        problem = f"whether a restore of {system} could begin cannot be told: {_said(ways)}"
    elif not leads_back:
        told = "; ".join(f"{way}: {_said(closed[way])}" for way in dict.fromkeys(each.way for each in usable))
        problem = f"no restore of {system} could begin: {told}"
    elif best.way in closed:
        problem = f"{system} would be restored by {furthest.way}, not by {best.way}: {_said(closed[best.way])}"
    return Newest(
        system,
        newest.id,
        furthest.way,
        newest.kind,
        clock.age(newest.taken).total_seconds(),
        max(0.0, clock.age(_reaches(furthest)).total_seconds()),
        furthest.content if furthest.content is not None else furthest.size,
        problem,
        is_closed=not leads_back,
        furthest=furthest.kind,
    )


def _reaches(backup: Backup) -> datetime:
    """The newest moment that it can be restored to (UTC)."""
    return backup.window[1] if backup.window else backup.taken


# ------------------------------------------------------------------------------- the inventory against reality


def _drift(platform: Platform, name: str, context: Context) -> tuple[Drift, ...]:
    """What of a system is written in the inventory and not there: secrets, key files, contacts, records."""
    settings = platform.settings[name]
    role = kind(settings.kind)
    if issubclass(role, Outbox):
        outbox = platform.open(name, context)
        assert isinstance(outbox, Outbox)
        mend = f"mend the channel in {platform.path}"
        return tuple(Drift(f"{name}: {channel}", why, mend) for channel, why in outbox.unreachable().items())
    found = [*_secrets(name, settings), *_keys(name, settings)]
    if issubclass(role, Route):
        state = _observe(platform, name, context)
        if state.reachable is Reachable.UP and not state.address:
            found.append(Drift(name, f"it leads nowhere: {state.summary}", "make the record, or mend the inventory"))
    return tuple(found)


def _values(value: object) -> Iterator[object]:
    """Everything in settings, however deep."""
    yield value
    inner: Iterable[object] = ()
    if isinstance(value, BaseModel):
        inner = (getattr(value, field) for field in type(value).model_fields)
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    for each in inner:
        yield from _values(each)


def _secrets(name: str, settings: BaseModel) -> Iterator[Drift]:
    references = {text for text in _values(settings) if isinstance(text, str) and _REFERENCE.match(text)}
    for reference in sorted(references):
        try:
            secrets.resolve(reference)
        except SalvorError as error:
            yield Drift(name, _said(error), one_line(error.hint))


def _keys(name: str, settings: BaseModel) -> Iterator[Drift]:
    for door in (value for value in _values(settings) if isinstance(value, DoorSettings)):
        for key in door.keys:
            if not Path(key).expanduser().is_file():
                yield Drift(name, f"the SSH key {key} is not there", f"ls -l {key}")


class _Machines:
    """The machines of some systems: whether each lets us in, and is who it was. What has answered counts, also when not
    all have within the deadline.
    """

    def __init__(self, platform: Platform, names: Iterable[str]) -> None:
        places: Mapping[str, hosts.Place] = {}
        with suppress(UsageError):  # the platform names no machine
            places = hosts.places(platform)
        systems = {place: set(one.names) & set(names) for place, one in places.items() if one.host.address}
        self._systems = {place: of for place, of in systems.items() if of}
        self._asked = {place: places[place].host for place in self._systems}
        self._answered: dict[str, SalvorError | None] = {}

    def ask(self) -> None:
        """Knock at each."""
        knock = fleet.each(
            self._asked, lambda _, shell: shell.run(["true"], deadline=_CONNECTING), deadline=_CONNECTING
        )
        for answered in knock:
            self._answered[answered.host] = answered.error

    def drift(self, late: Exception | None) -> Iterator[tuple[str, Drift]]:
        """Those that cannot be reached, or are not who they were, with each system there; `late` is why the others have
        not answered.
        """
        for place, systems in self._systems.items():
            error = self._answered.get(place, late)
            if error:
                found = Drift(f"machine {place}", _said(error), one_line(getattr(error, "hint", "")))
                yield from ((system, found) for system in sorted(systems))

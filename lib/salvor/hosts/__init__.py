"""The machines of a platform: which there are, those that an operator means, and work on all of them side by side."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from salvor import fleet
from salvor.errors import UsageError
from salvor.fleet import Answered
from salvor.inventory import Platform
from salvor.shell import Shell
from salvor.ssh.host import Host

HERE = "this-machine"
_AT_ONCE = 50
_CONNECTING = 10.0
_SSH_PORT = 22

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Place:
    """A machine of the platform: how it is reached, the services that are to run there, and the names that it may be
    selected by: its own, its address, and those of the systems and services that live there.
    """

    host: Host
    services: tuple[str, ...]
    names: frozenset[str]


def places(platform: Platform) -> dict[str, Place]:
    """The machines that the inventory names, each once: systems of the kind host, and where members of a database,
    trees of files and applications are: behind one address, each SSH port is another one, and so is each way of jump
    hosts. Raises UsageError when there is none.
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
    found: dict[str, Place] = {}
    first: dict[tuple[str, int, tuple[str, ...]], str] = {}
    for name, system, host, services in (*own, *of_databases, *of_others):
        served = {one.name for one in platform.services.values() if system in (*one.systems, *one.applications)}
        port, jumps = host.ssh.port or _SSH_PORT, tuple(jump.address for jump in host.ssh.jump)
        through = "".join(f"@{jump}" for jump in jumps)
        longer = name, f"{name}{through}", f"{name}:{port}{through}"
        unused = next((one for one in longer if one not in found), name)
        known = first.setdefault((host.address, port, jumps), unused)
        if name == system:  # one described twice, with other accounts: whoever names one means that one
            known = name
        place = found.get(known, Place(host, services, frozenset()))
        names = {known, name, system, host.address or HERE, *served}
        found[known] = Place(place.host, place.services, place.names | names)
    if not found:
        raise UsageError(
            f"The platform {platform.name!r} names no machine.",
            hint=f"describe one in {platform.path}, below systems: web-1: {{kind: host, address: web-1.example.com}}",
        )
    return found


def select(all_places: Mapping[str, Place], limit: str) -> dict[str, Place]:
    """Those that `limit` names: names or patterns of machines, systems or services, separated by commas. Raises
    UsageError for one that fits none, an empty one too: what is mistyped, or a variable that is not set, must not make
    the selection another one.
    """
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


def each(
    hosts: Mapping[str, Host], work: Callable[[str, Shell], _Answer], at_once: int = _AT_ONCE
) -> Iterator[Answered[_Answer]]:
    """Do `work(name, shell)` on each, on `at_once` of them at a time (50 at the most); each answer as it comes."""
    return fleet.each(hosts, work, at_once=min(at_once, _AT_ONCE), deadline=_CONNECTING)

"""What a service is called on the status page, and why. The one place that tells degraded from outage.

The first line that fits counts:

| state | when |
|---|---|
| maintenance | a notice in force says that it is affected |
| outage | something that it is made of is down: a system, an application, a route; or it has checks that go the users' way (of HTTP, TCP or a command), and none of them passes |
| degraded | a check of it fails; or it takes no writes; or a service that it depends on has an outage; or an incident of it is open that has not recovered |
| unknown | something of it did not answer in time: that is not known to be down |
| operational | everything answers, and every check passes |
"""  # noqa: E501  a table

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from salvor.change import Finding, Level, Reachable, State


class Status(StrEnum):
    """A service as customers see it, from good to bad."""

    OPERATIONAL = "operational"
    UNKNOWN = "unknown"
    MAINTENANCE = "maintenance"
    DEGRADED = "degraded"
    OUTAGE = "outage"


_BADNESS = list(Status)


@dataclass(frozen=True)
class Seen:
    """What one look saw of a service: its parts by name, and its checks: those of the users' way, and of its data.
    `is_complete` is False when the look did not come to its end in time.
    """

    parts: Mapping[str, State]
    users_way: tuple[Finding, ...] = ()
    data: tuple[Finding, ...] = ()
    is_complete: bool = True


def judge(seen: Seen, *, in_maintenance: bool, has_incident: bool, needs: list[Status]) -> Status:
    """The status of a service. `needs` are those of the services that it depends on."""
    checks = (*seen.users_way, *seen.data)
    if in_maintenance:
        return Status.MAINTENANCE
    if any(state.reachable is Reachable.DOWN for state in seen.parts.values()):
        return Status.OUTAGE
    if seen.users_way and all(finding.level is Level.FAIL for finding in seen.users_way):
        return Status.OUTAGE
    if any(finding.level is Level.FAIL for finding in checks):
        return Status.DEGRADED
    if any(state.writable is False for state in seen.parts.values()):
        return Status.DEGRADED
    if has_incident or Status.OUTAGE in needs:
        return Status.DEGRADED
    answers = all(state.reachable is Reachable.UP for state in seen.parts.values())
    if not (seen.is_complete and answers and all(finding.level is not Level.UNKNOWN for finding in checks)):
        return Status.UNKNOWN
    return Status.OPERATIONAL


def worst(states: list[Status]) -> Status:
    """The worst of them; operational when there is none."""
    return max(states, key=_BADNESS.index, default=Status.OPERATIONAL)

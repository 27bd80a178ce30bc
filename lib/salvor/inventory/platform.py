"""What the inventory describes: a platform, its services, and the settings of its systems."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from salvor import clock
from salvor.approval.settings import SecondPerson
from salvor.checks import Check
from salvor.errors import UsageError
from salvor.inventory.located_yaml import Document
from salvor.schedule.settings import Schedule
from salvor.status.settings import Notice, Page
from salvor.system import Context, Settings, System, kind
from salvor.watch.rules import Escalation, Rule

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def is_name(text: str) -> bool:
    """Whether a platform, a system or a service can be called so."""
    return bool(_NAME.fullmatch(text))


def check_name(name: str) -> str:
    """The name as it is. Raises ValueError for what can be none."""
    if not is_name(name):
        raise ValueError(
            f"{name!r} is not a name; use small letters, digits and hyphens, 63 at most, for example orders-db"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
Duration = Annotated[float, BeforeValidator(clock.read_duration)]
"""Seconds; written as `30s`, `15m`, `4h`, `7d`."""


class Service(BaseModel):
    """What the business names: its targets, what it depends on, the systems it lives in, the routes that lead to it.
    `availability` is the percentage of the time that its users are promised, if they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: str = ""
    tier: int = Field(default=1, ge=1, le=9)
    rto: Duration
    rpo: Duration
    availability: float | None = Field(default=None, gt=0, lt=100)
    depends_on: tuple[Name, ...] = ()
    systems: tuple[Name, ...] = ()
    applications: tuple[Name, ...] = ()
    routes: tuple[Name, ...] = ()
    messages: Name | None = None
    checks: tuple[Check, ...] = ()
    second_person: SecondPerson | None = None


@dataclass(frozen=True)
class Platform:
    """One team's platform, validated: its services and the settings of its systems, by name. `path` is the file or the
    folder that describes it.
    """

    name: str
    path: Path
    title: str
    services: Mapping[str, Service]
    settings: Mapping[str, Settings]
    watch: Mapping[str, Rule] = field(default_factory=dict)
    escalation: Mapping[str, Escalation] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    notices: Mapping[str, Notice] = field(default_factory=dict)
    status: Page = field(default_factory=Page)
    documents: tuple[Document, ...] = field(repr=False, default=())

    def service(self, name: str) -> Service:
        """The service of that name. Raises UsageError, naming those that exist."""
        if name not in self.services:
            known = ", ".join(self.services) or "none"
            raise UsageError(
                f"--service: the platform {self.name!r} has no service {name!r}.", hint=f"its services are: {known}"
            )
        return self.services[name]

    def in_tiers(self) -> dict[int, list[list[Service]]]:
        """The services by the tiers in which they are brought back, the lower first; one that a lower tier needs comes
        with that tier. Those of a tier in waves: each after those of it that it depends on.
        """
        needs = {name: service.depends_on for name, service in self.services.items()}
        needed_first = [*TopologicalSorter(needs).static_order()]
        tiers = {name: service.tier for name, service in self.services.items()}
        for name in reversed(needed_first):
            for needed in needs[name]:
                tiers[needed] = min(tiers[needed], tiers[name])
        depths: dict[str, int] = {}
        for name in needed_first:
            depths[name] = max((depths[one] + 1 for one in needs[name] if tiers[one] == tiers[name]), default=0)
        waves: dict[int, dict[int, list[Service]]] = {}
        for name, service in self.services.items():
            waves.setdefault(tiers[name], {}).setdefault(depths[name], []).append(service)
        return {tier: [wave for _, wave in sorted(waves[tier].items())] for tier in sorted(waves)}

    def in_order(self) -> list[Service]:
        """The services in the order in which they are brought back."""
        return [service for waves in self.in_tiers().values() for wave in waves for service in wave]

    def applications_before(self, application: str) -> set[str]:
        """The programs that run before this one does: those of the services that its own depend on."""
        return {
            before
            for service in self.services.values()
            if application in service.applications
            for name in service.depends_on
            for before in self.services[name].applications
        } - {application}

    def together(self, system: str) -> set[str]:
        """This system, and those that are in the same place: whatever is done to a cluster is done to its databases."""
        places = self.settings[system].places
        return {system, *(name for name, settings in self.settings.items() if settings.places & places)}

    def open(self, system: str, context: Context) -> System:
        """The system of that name, ready to be looked at, working for the incident that `context` names.

        Raises UsageError when it is not described: an incident may be older than the inventory.
        """
        if system not in self.settings:
            raise UsageError(
                f"The platform {self.name!r} has no system {system!r} any more.",
                safe="nothing was changed",
                hint=f"describe it again in {self.path}; its systems are: {', '.join(self.settings)}",
            )
        settings = self.settings[system]
        return kind(settings.kind)(system, settings, context)

"""The inventory: YAML to models. An error says file, line, column and the mend, and nothing is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from salvor import clock, located_yaml, secrets
from salvor.approval.settings import SecondPerson
from salvor.checks import Check
from salvor.errors import SalvorError, UsageError
from salvor.located_yaml import Document, Location
from salvor.schedule import settings as schedule
from salvor.schedule.settings import Schedule
from salvor.status import settings as status
from salvor.status.settings import Notice
from salvor.system import Application, Context, Outbox, Restorable, Route, Settings, System, kind
from salvor.watch import references
from salvor.watch.rules import Escalation, Rule

SANDBOX = "sandbox"
"""The platform that is there to be broken."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SECTIONS = ("systems", "services", "watch", "escalation", "schedules", "notices")
_Model = TypeVar("_Model", bound=BaseModel)
_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name; use small letters, digits and hyphens, 63 at most, for example orders-db"
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]
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
    """One team's platform, validated: its services and the settings of its systems, by name."""

    name: str
    path: Path
    title: str
    services: Mapping[str, Service]
    settings: Mapping[str, Settings]
    watch: Mapping[str, Rule] = field(default_factory=dict)
    escalation: Mapping[str, Escalation] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    notices: Mapping[str, Notice] = field(default_factory=dict)
    status: status.Page = field(default_factory=status.Page)
    documents: tuple[Document, ...] = field(repr=False, default=())

    def service(self, name: str) -> Service:
        """The service of that name. Raises UsageError, naming those that exist."""
        if name not in self.services:
            known = ", ".join(self.services) or "none"
            raise UsageError(
                f"--service: the platform {self.name!r} has no service {name!r}.", hint=f"its services are: {known}"
            )
        return self.services[name]

    def in_order(self) -> list[Service]:
        """The services in the order in which they are brought back: each after those that it depends on, the lower tier
        first, else as the inventory has them.
        """
        found: dict[str, Service] = {}

        def visit(service: Service) -> None:
            for name in service.depends_on:
                visit(self.services[name])
            found.setdefault(service.name, service)

        for service in sorted(self.services.values(), key=lambda service: service.tier):
            visit(service)
        return list(found.values())

    def applications_before(self, application: str) -> set[str]:
        """The programs that run before this one does: those of the services that its own depend on."""
        return {
            before
            for service in self.services.values()
            if application in service.applications
            for name in service.depends_on
            for before in self.services[name].applications
        } - {application}

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


def root() -> Path:
    """The folder that this code was cloned to: it holds `runbooks/`, `notebooks/` and, if nothing else is said,
    `incidents/`.
    """
    return Path(__file__).absolute().parents[2]


def home() -> Path:
    """The folder of the platforms: SALVOR_INVENTORY, or `inventory/` in the project."""
    return Path(os.environ.get("SALVOR_INVENTORY") or root() / "inventory").absolute()


def names() -> list[str]:
    """The platforms that the inventory describes."""
    folder = home()
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {
        path.stem if path.suffix == ".yaml" else path.name for path in paths if path.is_dir() or path.suffix == ".yaml"
    }
    return sorted(name for name in found if _NAME.fullmatch(name))


def meant(service: str) -> str:
    """The platform that is meant when none is named: SALVOR_PLATFORM, else the only one that has the service, else the
    sandbox. Raises UsageError when several have it.
    """
    if named := os.environ.get("SALVOR_PLATFORM"):
        return named
    found = [name for name in names() if service and _names(name, service)]
    if len(found) > 1:
        raise UsageError(
            f"--platform: {service!r} is a service of {' and of '.join(found)}.",
            safe="nothing was changed",
            hint=f"say which: --platform={found[0]}",
        )
    return found[0] if found else SANDBOX


def _names(platform: str, service: str) -> bool:
    """Whether a platform has the service, as far as its files can be read: whoever loads it is told what is wrong."""
    import yaml

    with suppress(SalvorError, OSError, ValueError, yaml.YAMLError):
        for path in _paths(platform):
            text = path.read_text(encoding="utf-8")
            if f"{service}:" not in text:
                continue  # to parse all platforms would take longer than to look at one
            data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  a safe loader
            if isinstance(data, dict) and service in (data.get("services") or {}):
                return True
    return False


def load(name: str) -> Platform:
    """Read and check a platform: `inventory/NAME.yaml` or every YAML file in `inventory/NAME/`.

    Raises UsageError with file, line, column, what is wrong and the mend.
    """
    try:
        _check_name(name)
    except ValueError as error:
        raise UsageError(f"--platform: {error}.") from error
    return _Builder(name, [_read(path) for path in _paths(name)]).build()


def _paths(name: str) -> list[Path]:
    """The files of a platform: never none. Files whose name begins with a dot are an editor's or a system's own."""
    folder, single = home() / name, home() / f"{name}.yaml"
    if folder.is_dir() and single.exists():
        raise UsageError(
            f"--platform: {name!r} is described twice: in {folder} and in {single}.",
            hint=f"move {single} into {folder}",
        )
    if folder.is_dir():
        paths = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))
        if not paths:
            raise UsageError(
                f"--platform: no file in {folder} ends in .yaml.",
                hint=f"describe the platform in {folder}/platform.yaml",
            )
        return paths
    if not single.exists():
        raise UsageError(
            f"--platform: there is no platform {name!r} in {home()}.",
            hint=f"the platforms are: {', '.join(names()) or 'none'}",
        )
    return [single]


def _read(path: Path) -> Document:
    """One file, with the variables that it names in `variables_from`."""
    raw = located_yaml.read(path)
    source = raw.data.get("variables_from") if isinstance(raw.data, dict) else None
    if source is None:
        return raw
    place = raw.place(("variables_from",))
    expanded = Path(
        _ENVIRONMENT.sub(lambda match: os.environ.get(match[1]) or match[2] or "", str(source))
    ).expanduser()
    if not expanded.is_file():
        from salvor.sandbox.platforms import PACKAGES

        platform = path.parent.name
        up = f"start its stand-in: inv sandbox.up --platform={platform}"
        hint = up if platform in PACKAGES else f"write that file, or mend {place}"
        raise UsageError(f"{place}: the variables file {expanded} is not there.", hint=hint)
    return located_yaml.read(path, _variables(located_yaml.read(expanded)))


def _variables(document: Document) -> dict[str, str]:
    """The variables that a file defines: names and plain values."""
    if not isinstance(document.data, dict):
        raise UsageError(f"{document.place(())}: a variables file is a mapping.", hint="write one name: value a line")
    for name, value in document.data.items():
        if value is None or isinstance(value, (dict, list)):
            raise UsageError(
                f"{document.place((name,))}: {name!r} needs one plain value.", hint=f'write {name}: "value"'
            )
    return {name: str(value) for name, value in document.data.items()}


class _Builder:
    """Merges the files of a platform and validates them; every error is placed."""

    def __init__(self, name: str, documents: list[Document]) -> None:
        self.name = name
        self.documents = documents
        self.title = ""
        self.status: dict[str, Any] = {}
        self.where: dict[Location, Document] = {}

    def error(self, location: Location, what: str, hint: str = "") -> UsageError:
        document = self.where.get(location[:2]) or self.documents[0]
        return UsageError(f"{document.place(location)}: {what}", hint=hint)

    def refuse(self, location: Location, what: str, hint: str) -> NoReturn:
        raise self.error(location, what, hint)

    def build(self) -> Platform:
        entries: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for document in self.documents:
            self.merge(document, entries)
        settings = {name: self.system(name, entry) for name, entry in entries["systems"].items()}
        services = {name: self.service(name, entry) for name, entry in entries["services"].items()}
        for name, one in settings.items():
            self.leads(name, one, settings)
            self.uses(name, one, settings)
        for service in services.values():
            self.references(service, settings, services)
            self.roles(service, settings)
            self.checks(service, settings)
        self.loops(services)
        rules = {name: self.validate(Rule, entry, ("watch", name)) for name, entry in entries["watch"].items()}
        escalations = {
            name: self.validate(Escalation, entry, ("escalation", name))
            for name, entry in entries["escalation"].items()
        }
        references.check(rules, escalations, services, settings, self.refuse)
        schedules = {
            name: self.validate(Schedule, entry, ("schedules", name)) for name, entry in entries["schedules"].items()
        }
        schedule.check(schedules, services, self.refuse)
        notices = {name: self.validate(Notice, entry, ("notices", name)) for name, entry in entries["notices"].items()}
        page = self.validate(status.Page, self.status, ("status",))
        status.check(page, notices, services, self.refuse)
        verbs = {verb for one in settings.values() for verb in kind(one.kind).verbs()}
        secrets.leave_readable({self.name, *services, *settings, *rules, *verbs})
        return Platform(
            self.name,
            self.documents[0].path.parent,
            self.title,
            services,
            settings,
            rules,
            escalations,
            schedules,
            notices,
            page,
            tuple(self.documents),
        )

    def merge(self, document: Document, entries: dict[str, dict[str, Any]]) -> None:
        if not isinstance(document.data, dict):
            raise UsageError(
                f"{document.place(())}: a platform's file is a mapping.", hint="begin with systems: and services:"
            )
        for section, content in document.data.items():
            if section == "title":
                self.title = str(content)
            elif section == "status" and isinstance(content, dict):
                self.where |= {("status", name): document for name in content}
                self.status |= content
            elif section in entries:
                if not isinstance(content, dict):
                    raise UsageError(
                        f"{document.place((section,))}: {section} maps names to their settings.",
                        hint=f"write each name below {section}:, indented, or remove {section}:",
                    )
                for name, entry in content.items():
                    location = (section, name)
                    if location in self.where:
                        first = self.where[location].place(location)
                        raise UsageError(
                            f"{document.place(location)}: {name!r} stands twice; the first is at {first}.",
                            hint="remove or rename one of the two",
                        )
                    self.where[location] = document
                    try:
                        _check_name(name)
                    except ValueError as error:
                        raise UsageError(f"{document.place(location)}: {error}.", hint="rename it") from error
                    if not isinstance(entry, dict):
                        raise UsageError(
                            f"{document.place(location)}: {name!r} needs its settings, as a mapping.",
                            hint=f"write one setting: value a line below {name}:, indented",
                        )
                    entries[section][name] = entry
            elif section != "variables_from":
                raise UsageError(
                    f"{document.place((section,))}: {section!r} is not known here.",
                    hint=f"the sections are title, variables_from, status, {', '.join(_SECTIONS)}",
                )

    def system(self, name: str, entry: dict[str, Any]) -> Settings:
        location: Location = ("systems", name)
        if "kind" not in entry:
            raise self.error(location, f"the system {name!r} has no kind.", hint="add kind: postgres (or another kind)")
        try:
            model = kind(str(entry["kind"])).Settings
        except SalvorError as error:
            raise self.error((*location, "kind"), error.what, error.hint) from error
        return self.validate(model, entry, location)

    def service(self, name: str, entry: dict[str, Any]) -> Service:
        if "name" in entry:
            raise self.error(("services", name, "name"), f"the service is {name!r} already.", hint="remove name:")
        return self.validate(Service, {"name": name, **entry}, ("services", name))

    def validate(self, model: type[_Model], entry: dict[str, Any], location: Location) -> _Model:
        try:
            return model.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            inner = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
            label = ".".join(str(part) for part in inner) or location[-1]
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                known = ", ".join(info.alias or field for field, info in model.model_fields.items() if field != "name")
                raise self.error(
                    (*location, *inner), f"{label}: there is no such setting.", f"the settings are: {known}"
                ) from None
            if first["type"] == "missing":
                raise self.error(
                    (*location, *inner), f"{label}: this setting is missing.", f"add {inner[-1]}: to {location[-1]}"
                ) from None
            hint = "put it in quotes if it is text" if first["type"] == "string_type" else "mend that value"
            raise self.error((*location, *inner), f"{label}: {message}.", hint) from None

    def references(self, service: Service, settings: Mapping[str, Settings], services: Mapping[str, Service]) -> None:
        for key, names_, known in (
            ("depends_on", service.depends_on, services),
            ("systems", service.systems, settings),
            ("applications", service.applications, settings),
            ("routes", service.routes, settings),
            ("messages", (service.messages,) if service.messages else (), settings),
        ):
            seen: set[str] = set()
            for index, name in enumerate(names_):
                location: Location = (
                    ("services", service.name, key) if key == "messages" else ("services", service.name, key, index)
                )
                if name not in known:
                    raise self.error(
                        location, f"there is no {name!r}.", hint=f"known are: {', '.join(known) or 'none'}"
                    )
                if name in seen:
                    raise self.error(location, f"{name!r} stands twice.", hint="remove one")
                seen.add(name)

    def roles(self, service: Service, settings: Mapping[str, Settings]) -> None:
        """Refuse a system in a place that its kind cannot fill: it would be passed over in silence."""
        messages = (service.messages,) if service.messages else ()
        for key, names_, role, what in (
            ("systems", service.systems, Restorable, "holds no data that could be restored"),
            ("applications", service.applications, Application, "is no program that could be started"),
            ("routes", service.routes, Route, "is no route that leads users anywhere"),
            ("messages", messages, Outbox, "sends no messages"),
        ):
            for index, name in enumerate(names_):
                if not issubclass(kind(settings[name].kind), role):
                    place = (key,) if key == "messages" else (key, index)
                    raise self.error(
                        ("services", service.name, *place),
                        f"{name!r} is a {settings[name].kind}: it {what}.",
                        hint=f"remove it from {key}, or name another one",
                    )

    def checks(self, service: Service, settings: Mapping[str, Settings]) -> None:
        """Refuse a check of a system that the service does not live in or that does not understand it, and two checks
        of one name: of two, one verdict would hide the other.
        """
        if not (service.systems or service.applications):
            raise self.error(
                ("services", service.name),
                f"{service.name!r} lives in no system and in no application.",
                hint="name what it is made of: systems: [...], applications: [...]",
            )
        seen: set[str] = set()
        for index, check in enumerate(service.checks):
            location: Location = ("services", service.name, "checks", index)
            if check.system is not None and check.system not in service.systems:
                raise self.error(
                    (*location, "system"),
                    f"{service.name!r} does not live in {check.system!r}.",
                    hint=f"its systems are: {', '.join(service.systems)}",
                )
            if check.system is not None:
                self.question(check, settings[check.system].kind, location)
            if check.name in seen:
                raise self.error((*location, "name"), f"the check {check.name!r} stands twice.", hint="rename one")
            seen.add(check.name)

    def question(self, check: Check, kind_name: str, location: Location) -> None:
        asked = kind(kind_name)
        assert issubclass(asked, Restorable)
        other = "ask" if asked.asked_by == "sql" else "sql"
        if getattr(check, other) is not None:
            raise self.error(
                (*location, other),
                f"{check.system!r} is a {kind_name}: it is asked by {asked.asked_by}, not by {other}.",
                hint=f"write {asked.asked_by}: and a question to a {kind_name}",
            )
        try:
            asked.check_question(check.question or "")
        except UsageError as error:
            raise self.error((*location, asked.asked_by), error.what, error.hint) from error

    def leads(self, name: str, settings: Settings, known: Mapping[str, Settings]) -> None:
        """Refuse a route that leads to nothing that is described, or round in a circle."""
        way = [name]
        while to := getattr(settings, "leads_to", ""):
            if to not in known:
                raise self.error(
                    ("systems", way[-1], "leads_to"),
                    f"there is no system {to!r}.",
                    hint=f"known are: {', '.join(known)}",
                )
            if to in way:
                circle = " -> ".join((*way[way.index(to) :], to))
                raise self.error(
                    ("systems", way[-1], "leads_to"), f"leads_to is a loop: {circle}.", hint="remove one of these"
                )
            way.append(to)
            settings = known[to]

    def uses(self, name: str, settings: Settings, known: Mapping[str, Settings]) -> None:
        """Refuse a program that works on what is not described, or on what holds no data."""
        for index, other in enumerate(getattr(settings, "uses", ())):
            location: Location = ("systems", name, "uses", index)
            if other not in known:
                raise self.error(location, f"there is no system {other!r}.", hint=f"known are: {', '.join(known)}")
            if not issubclass(kind(known[other].kind), Restorable):
                raise self.error(
                    location, f"{other!r} is a {known[other].kind}: it holds no data.", hint="name a system of data"
                )

    def loops(self, services: Mapping[str, Service]) -> None:
        """Refuse a loop in depends_on, naming the way round."""
        done: set[str] = set()

        def visit(name: str, way: tuple[str, ...]) -> None:
            if name in way:
                circle = " -> ".join((*way[way.index(name) :], name))
                raise self.error(
                    ("services", name, "depends_on"), f"depends_on is a loop: {circle}.", hint="remove one of these"
                )
            if name not in done:
                for other in services[name].depends_on:
                    visit(other, (*way, name))
                done.add(name)

        for name in services:
            visit(name, ())

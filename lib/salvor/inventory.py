"""The inventory: YAML to models. An error says file, line, column and the mend, and nothing is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from salvor import clock, located_yaml
from salvor.checks import Check
from salvor.errors import SalvorError, UsageError
from salvor.located_yaml import Document, Location
from salvor.system import Context, Settings, System, kind

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
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
    """What the business names: its targets, what it depends on, the systems it lives in, the routes that lead to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: str = ""
    tier: int = Field(default=1, ge=1, le=9)
    rto: Duration
    rpo: Duration
    depends_on: tuple[Name, ...] = ()
    systems: tuple[Name, ...] = Field(min_length=1)
    routes: tuple[Name, ...] = ()
    messages: Name | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Platform:
    """One team's platform, validated: its services and the settings of its systems, by name."""

    name: str
    path: Path
    title: str
    services: Mapping[str, Service]
    settings: Mapping[str, Settings]
    documents: tuple[Document, ...] = field(repr=False, default=())

    def service(self, name: str) -> Service:
        """The service of that name. Raises UsageError, naming those that exist."""
        if name not in self.services:
            known = ", ".join(self.services) or "none"
            raise UsageError(
                f"--service: the platform {self.name!r} has no service {name!r}.", hint=f"its services are: {known}"
            )
        return self.services[name]

    def open(self, system: str, context: Context) -> System:
        """The system of that name, ready to be looked at, working for the incident that `context` names."""
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
    found = (
        {path.stem for path in folder.glob("*.yaml")} | {path.name for path in folder.iterdir() if path.is_dir()}
        if folder.is_dir()
        else set()
    )
    return sorted(found)


def load(name: str) -> Platform:
    """Read and check a platform: `inventory/NAME.yaml` or every YAML file in `inventory/NAME/`.

    Raises UsageError with file, line, column, what is wrong and the mend.
    """
    try:
        _check_name(name)
    except ValueError as error:
        raise UsageError(f"--platform: {error}.") from error
    folder, single = home() / name, home() / f"{name}.yaml"
    paths = sorted(folder.glob("*.yaml")) if folder.is_dir() else [single] if single.is_file() else []
    if not paths:
        raise UsageError(
            f"--platform: there is no platform {name!r} in {home()}.",
            hint=f"the platforms are: {', '.join(names()) or 'none'}",
        )
    documents = [_read(path) for path in paths]
    return _Builder(name, documents).build()


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
        hint = "start the sandbox: inv sandbox.up" if "sandbox" in path.parts else f"write that file, or mend {place}"
        raise UsageError(f"{place}: the variables file {expanded} is not there.", hint=hint)
    variables = located_yaml.read(expanded).data
    return located_yaml.read(path, {str(key): str(value) for key, value in variables.items()})


class _Builder:
    """Merges the files of a platform and validates them; every error is placed."""

    def __init__(self, name: str, documents: list[Document]) -> None:
        self.name = name
        self.documents = documents
        self.title = ""
        self.where: dict[Location, Document] = {}

    def error(self, location: Location, what: str, hint: str = "") -> UsageError:
        document = self.where.get(location[:2]) or self.documents[0]
        return UsageError(f"{document.place(location)}: {what}", hint=hint)

    def build(self) -> Platform:
        entries: dict[str, dict[str, Any]] = {"systems": {}, "services": {}}
        for document in self.documents:
            self.merge(document, entries)
        settings = {name: self.system(name, entry) for name, entry in entries["systems"].items()}
        services = {
            name: self.validate(Service, {"name": name, **entry}, ("services", name))
            for name, entry in entries["services"].items()
        }
        for service in services.values():
            self.references(service, settings, services)
        self.loops(services)
        return Platform(self.name, self.documents[0].path.parent, self.title, services, settings, tuple(self.documents))

    def merge(self, document: Document, entries: dict[str, dict[str, Any]]) -> None:
        if not isinstance(document.data, dict):
            raise UsageError(
                f"{document.path}:1:1: a platform's file is a mapping.", hint="begin with systems: and services:"
            )
        for section, content in document.data.items():
            if section == "title":
                self.title = str(content)
            elif section in entries:
                if not isinstance(content, dict):
                    raise UsageError(f"{document.place((section,))}: {section} maps names to their settings.")
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
                        raise UsageError(f"{document.place(location)}: {error}.") from error
                    if not isinstance(entry, dict):
                        raise UsageError(f"{document.place(location)}: {name!r} needs its settings, as a mapping.")
                    entries[section][name] = entry
            elif section != "variables_from":
                raise UsageError(
                    f"{document.place((section,))}: {section!r} is not known here.",
                    hint="the sections are title, variables_from, systems and services",
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

    def validate(self, model: type[_Model], entry: dict[str, Any], location: Location) -> _Model:
        try:
            return model.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            inner = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
            label = ".".join(str(part) for part in inner) or location[-1]
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                known = ", ".join(field for field in model.model_fields if field not in ("name",))
                raise self.error(
                    (*location, *inner), f"{label}: there is no such setting.", f"the settings are: {known}"
                ) from None
            if first["type"] == "missing":
                raise self.error(
                    (*location, *inner), f"{label}: this setting is missing.", f"add {inner[-1]}: to {location[-1]}"
                ) from None
            raise self.error((*location, *inner), f"{label}: {message}.") from None

    def references(self, service: Service, settings: Mapping[str, Settings], services: Mapping[str, Service]) -> None:
        for key, names_, known in (
            ("depends_on", service.depends_on, services),
            ("systems", service.systems, settings),
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

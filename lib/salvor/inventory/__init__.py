"""The inventory: which platforms there are, and what each is made of, from YAML. `load` reads and checks one.

`sections` reads its files, `platform` holds the models, `references` checks what they name. An error says file, line,
column and the mend, and nothing is changed.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from salvor import clone, secrets
from salvor.errors import SalvorError, UsageError
from salvor.inventory import references
from salvor.inventory.platform import Platform, Service, check_name, is_name
from salvor.inventory.sections import Sections, read
from salvor.schedule import settings as schedule
from salvor.schedule.settings import Schedule
from salvor.status import settings as status
from salvor.status.settings import Notice, Page
from salvor.system import Settings, kind
from salvor.watch import references as watch
from salvor.watch.rules import Escalation, Rule

__all__ = ["SANDBOX", "Platform", "Service", "home", "load", "meant", "names"]

SANDBOX = "sandbox"
"""The platform that is there to be broken."""
_Model = TypeVar("_Model", bound=BaseModel)


def home() -> Path:
    """The folder of the platforms: SALVOR_INVENTORY, or `inventory/` in the project."""
    return Path(os.environ.get("SALVOR_INVENTORY") or clone.root() / "inventory").absolute()


def names() -> list[str]:
    """The platforms that the inventory describes."""
    folder = home()
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {
        path.stem if path.suffix == ".yaml" else path.name for path in paths if path.is_dir() or path.suffix == ".yaml"
    }
    return sorted(filter(is_name, found))


def meant(service: str) -> str:
    """The platform that is meant when none is named: SALVOR_PLATFORM, else the only one that has the service; without a
    service the only one that there is, or the sandbox where only stand-ins are. Raises UsageError when several have the
    service, or none, and when it could be the platform of somebody.
    """
    if named := os.environ.get("SALVOR_PLATFORM"):
        return named
    if not service:
        every = names()
        if len(every) == 1:
            return every[0]
        from salvor.sandbox.platforms import PACKAGES

        if own := [name for name in every if name not in PACKAGES]:
            raise UsageError(  # what is well with the sandbox would be read as word of the platform that is in trouble
                f"--platform is missing, and there are several: {', '.join(every)}.",
                safe="nothing was changed",
                hint=f"say which: --platform={own[0]}; or export SALVOR_PLATFORM={own[0]}",
            )
        return SANDBOX
    found = [name for name in names() if service in (_services(name, service) or ())]
    if len(found) > 1:
        raise UsageError(
            f"--platform: {service!r} is a service of {' and of '.join(found)}.",
            safe="nothing was changed",
            hint=f"say which: --platform={found[0]}",
        )
    if not found:
        raise _nobodys(service)
    return found[0]


def _nobodys(service: str) -> UsageError:
    """No platform has the service: which there are, and which platforms cannot be read."""
    known = {name: _services(name) for name in names()}
    words = [f"{', '.join(services)} (of {name})" for name, services in known.items() if services]
    words += [f"those of {name} cannot be read: inv assess --platform={name}" for name in known if known[name] is None]
    return UsageError(
        f"--service: no platform in {home()} has a service {service!r}.",
        safe="nothing was changed",
        hint=f"the services are: {'; '.join(words) or 'none'}",
    )


def _services(platform: str, named: str = "") -> list[str] | None:
    """The services of a platform, of files that may describe `named`; None when one cannot be read: whoever loads it is
    told what is wrong.
    """
    import yaml

    found: list[str] = []
    try:
        for path in _files_of(platform):
            text = path.read_text(encoding="utf-8")
            if named and not re.search(rf"{re.escape(named)}[\"']?\s*:", text):
                continue  # to parse all platforms would take longer than to look at one
            data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  a safe loader
            found += map(str, (data.get("services") or {}) if isinstance(data, dict) else ())
    except (SalvorError, OSError, ValueError, TypeError, yaml.YAMLError):
        return None
    return found


def load(name: str) -> Platform:
    """Read and check a platform: `inventory/NAME.yaml` or every YAML file in `inventory/NAME/`.

    Raises UsageError with file, line, column, what is wrong and the mend.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"--platform: {error}.", hint=f"the platforms are: {', '.join(names()) or 'none'}") from error
    return _build(name, Sections([read(path) for path in _files_of(name)]))


def _files_of(name: str) -> list[Path]:
    """The files of a platform: never none. Files whose name begins with a dot are an editor's or a system's own."""
    folder, single = home() / name, home() / f"{name}.yaml"
    if folder.is_dir() and single.exists():
        raise UsageError(
            f"--platform: {name!r} is described twice: in {folder} and in {single}.",
            hint=f"move {single} into {folder}",
        )
    unread = [*sorted(folder.glob("*.yml")), home() / f"{name}.yml"]
    for path in unread:
        if path.exists() and not path.name.startswith("."):
            raise UsageError(
                f"--platform: {path} would not be read: its name must end in .yaml.",
                hint=f"mv {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.yaml')))}",
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


def _build(name: str, sections: Sections) -> Platform:
    """The models of a platform, each checked by itself and then with the others."""
    entries, refuse = sections.entries, sections.refuse
    if not (entries["systems"] or entries["services"]):
        refuse(
            (), f"the platform {name!r} has no systems and no services.", "describe them below systems: and services:"
        )

    def validated(section: str, model: type[_Model]) -> dict[str, _Model]:
        return {key: sections.validate(model, entry, (section, key)) for key, entry in entries[section].items()}

    settings = {key: _settings(key, entry, sections) for key, entry in entries["systems"].items()}
    services = {key: _service(key, entry, sections) for key, entry in entries["services"].items()}
    references.check(services, settings, refuse)
    rules, escalations = validated("watch", Rule), validated("escalation", Escalation)
    watch.check(rules, escalations, services, settings, refuse)
    schedules = validated("schedules", Schedule)
    schedule.check(schedules, services, refuse)
    notices, page = validated("notices", Notice), sections.validate(Page, sections.status, ("status",))
    status.check(page, notices, services, refuse)
    verbs = {verb for one in settings.values() for verb in kind(one.kind).verbs()}
    secrets.leave_readable({name, *services, *settings, *rules, *verbs})
    first = sections.documents[0].path
    return Platform(
        name=name,
        path=first if first.parent == home() else first.parent,
        title=sections.title,
        services=services,
        settings=settings,
        watch=rules,
        escalation=escalations,
        schedules=schedules,
        notices=notices,
        status=page,
        documents=tuple(sections.documents),
    )


def _settings(name: str, entry: dict[str, Any], sections: Sections) -> Settings:
    """The settings of a system, as its kind has them."""
    if "kind" not in entry:
        sections.refuse(("systems", name), f"the system {name!r} has no kind.", "add kind: postgres (or another kind)")
    try:
        model = kind(str(entry["kind"])).Settings
    except SalvorError as error:
        sections.refuse(("systems", name, "kind"), error.what, error.hint)
    return sections.validate(model, entry, ("systems", name))


def _service(name: str, entry: dict[str, Any], sections: Sections) -> Service:
    if "name" in entry:
        sections.refuse(("services", name, "name"), f"the service is {name!r} already.", "remove name:")
    return sections.validate(Service, {"name": name, **entry}, ("services", name))

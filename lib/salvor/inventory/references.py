"""What the services and systems of a platform name must be there, and be of a kind that can fill that place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

from salvor.checks import Check
from salvor.errors import UsageError
from salvor.inventory.located_yaml import Location
from salvor.inventory.platform import Service
from salvor.roles import Application, Outbox, Restorable, Route
from salvor.system import Settings, kind

Refuse = Callable[[Location, str, str], NoReturn]
"""Raises the error of a place in the inventory: what is wrong, and the mend."""


def check(services: Mapping[str, Service], settings: Mapping[str, Settings], refuse: Refuse) -> None:
    """Refuse the first reference that leads nowhere, in a circle, or to what cannot do what is asked of it."""
    for name in settings:
        _check_leads_to(name, settings, refuse)
        _check_uses(name, settings, refuse)
    for service in services.values():
        _check_known(service, services, settings, refuse)
        _check_roles(service, settings, refuse)
        _check_checks(service, settings, refuse)
    _check_dependencies(services, refuse)


def _check_leads_to(name: str, known: Mapping[str, Settings], refuse: Refuse) -> None:
    """A route leads to a system that is described, and not round in a circle."""
    way = [name]
    while to := getattr(known[way[-1]], "leads_to", ""):
        place: Location = ("systems", way[-1], "leads_to")
        if to not in known:
            refuse(place, f"there is no system {to!r}.", f"known are: {', '.join(known)}")
        if to in way:
            circle = " -> ".join((*way[way.index(to) :], to))
            refuse(place, f"leads_to is a loop: {circle}.", "remove one of these")
        way.append(to)


def _check_uses(name: str, known: Mapping[str, Settings], refuse: Refuse) -> None:
    """A program works on systems that are described and hold data."""
    for index, other in enumerate(getattr(known[name], "uses", ())):
        place: Location = ("systems", name, "uses", index)
        if other not in known:
            refuse(place, f"there is no system {other!r}.", f"known are: {', '.join(known)}")
        if not issubclass(kind(known[other].kind), Restorable):
            refuse(place, f"{other!r} is a {known[other].kind}: it holds no data.", "name a system of data")


def _check_known(
    service: Service, services: Mapping[str, Service], settings: Mapping[str, Settings], refuse: Refuse
) -> None:
    """What a service names is described, and named once."""
    for key, names, known in (
        ("depends_on", service.depends_on, services),
        ("systems", service.systems, settings),
        ("applications", service.applications, settings),
        ("routes", service.routes, settings),
        ("messages", _messages(service), settings),
    ):
        for index, name in enumerate(names):
            place = _place(service, key, index)
            if name not in known:
                refuse(place, f"there is no {name!r}.", f"known are: {', '.join(known) or 'none'}")
            if name in names[:index]:
                refuse(place, f"{name!r} stands twice.", "remove one")


def _check_roles(service: Service, settings: Mapping[str, Settings], refuse: Refuse) -> None:
    """No system stands where its kind could do nothing: it would be passed over in silence."""
    for key, names, role, what in (
        ("systems", service.systems, Restorable, "holds no data that could be restored"),
        ("applications", service.applications, Application, "is no program that could be started"),
        ("routes", service.routes, Route, "is no route that leads users anywhere"),
        ("messages", _messages(service), Outbox, "sends no messages"),
    ):
        for index, name in enumerate(names):
            if not issubclass(kind(settings[name].kind), role):
                refuse(
                    _place(service, key, index),
                    f"{name!r} is a {settings[name].kind}: it {what}.",
                    f"remove it from {key}, or name another one",
                )


def _messages(service: Service) -> tuple[str, ...]:
    return (service.messages,) if service.messages else ()


def _place(service: Service, key: str, index: int) -> Location:
    return ("services", service.name, key) if key == "messages" else ("services", service.name, key, index)


def _check_checks(service: Service, settings: Mapping[str, Settings], refuse: Refuse) -> None:
    """A check asks a system that the service lives in, in its words, and bears a name of its own: of two of one name,
    one verdict would hide the other.
    """
    if not (service.systems or service.applications):
        refuse(
            ("services", service.name),
            f"{service.name!r} lives in no system and in no application.",
            "name what it is made of: systems: [...], applications: [...]",
        )
    seen: set[str] = set()
    for index, each in enumerate(service.checks):
        place: Location = ("services", service.name, "checks", index)
        if each.system is not None:
            if each.system not in service.systems:
                refuse(
                    (*place, "system"),
                    f"{service.name!r} does not live in {each.system!r}.",
                    f"its systems are: {', '.join(service.systems)}",
                )
            _check_question(each, settings[each.system].kind, place, refuse)
        if each.name in seen:
            refuse((*place, "name"), f"the check {each.name!r} stands twice.", "rename one")
        seen.add(each.name)


def _check_question(check: Check, kind_name: str, place: Location, refuse: Refuse) -> None:
    asked = kind(kind_name)
    assert issubclass(asked, Restorable)
    other = "ask" if asked.asked_by == "sql" else "sql"
    if getattr(check, other) is not None:
        refuse(
            (*place, other),
            f"{check.system!r} is a {kind_name}: it is asked by {asked.asked_by}, not by {other}.",
            f"write {asked.asked_by}: and a question to a {kind_name}",
        )
    try:
        asked.check_question(check.question or "")
    except UsageError as error:
        refuse((*place, asked.asked_by), error.what, error.hint)


def _check_dependencies(services: Mapping[str, Service], refuse: Refuse) -> None:
    """No service waits for itself: the way round is named."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join((*way[way.index(name) :], name))
            refuse(("services", name, "depends_on"), f"depends_on is a loop: {circle}.", "remove one of these")
        if name not in done:
            for other in services[name].depends_on:
                visit(other, (*way, name))
            done.add(name)

    for name in services:
        visit(name, ())

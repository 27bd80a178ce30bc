"""What the rules of a platform name must be there, and able to do what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from salvor.checks import Check
from salvor.inventory.located_yaml import Location
from salvor.roles import Machine, Outbox
from salvor.system import Settings, kind
from salvor.watch.rules import Action, Escalation, Rule

Refuse = Callable[[Location, str, str], NoReturn]
"""Raises the error of a place in the inventory: what is wrong, and the mend."""
_VERBS = {
    "restart": "restart",
    "clear": "clear",
    "reset_connections": "end_sessions",
    "scale": "scale",
    "roll_back": "roll_back",
    "run": "execute",
}
"""The verb that each action is."""


class Watched(Protocol):
    """What is asked of a service here."""

    @property
    def checks(self) -> Sequence[Check]: ...
    @property
    def messages(self) -> str | None: ...


def check(
    rules: Mapping[str, Rule],
    escalations: Mapping[str, Escalation],
    services: Mapping[str, Watched],
    settings: Mapping[str, Settings],
    refuse: Refuse,
) -> None:
    """Refuse what names something that is not described, or that cannot do what is asked of it."""
    for name, escalation in escalations.items():
        where: Location = ("escalation", name)
        _known(escalation.messages, settings, (*where, "messages"), refuse)
        if not issubclass(kind(settings[escalation.messages].kind), Outbox):
            refuse((*where, "messages"), f"{escalation.messages!r} sends no messages.", "name a system of kind outbox")
        channels: Any = getattr(settings[escalation.messages], "channels", {})
        for index, call in enumerate(escalation.people):
            _known(call.channel, channels, (*where, "people", index, "channel"), refuse)
        if escalation.ticket:
            _known(escalation.ticket, channels, (*where, "ticket"), refuse)
    for name, rule in rules.items():
        where = ("watch", name)
        if name in services:
            refuse(where, f"{name!r} is the name of a service, and its incidents bear it.", "rename the rule")
        _known(rule.service, services, (*where, "service"), refuse)
        if rule.escalate:
            _known(rule.escalate, escalations, (*where, "escalate"), refuse)
        if rule.metric.check:
            names = [one.name for one in services[rule.service].checks]
            _known(rule.metric.check, names, (*where, "metric", "check"), refuse)
        if rule.metric.host:
            _machine(rule.metric.host, settings, (*where, "metric", "host"), refuse)
        for place, action in _actions(rule):
            _able(action, settings, (*where, *place), refuse)


def _actions(rule: Rule) -> Iterator[tuple[Location, Action]]:
    for stage in ("immediately", "then"):
        for index, action in enumerate(rule.actions(stage)):
            yield (stage, index), action


def _able(action: Action, settings: Mapping[str, Settings], where: Location, refuse: Refuse) -> None:
    if action.system is None:
        return
    place = (*where, "host" if action.host else action.kind)
    if action.host:
        _machine(action.host, settings, place, refuse)
    else:
        _known(action.system, settings, place, refuse)
    found = kind(settings[action.system].kind)
    is_able = _VERBS[action.kind] in found.verbs() and (bool(action.host) or not issubclass(found, Machine))
    if not is_able:
        mend = "add host: MACHINE, and name the service there" if issubclass(found, Machine) else "name another system"
        refuse(place, f"{action.system!r} is a {settings[action.system].kind}: it has no {action.kind}.", mend)
    if action.kind == "roll_back" and not getattr(settings[action.system], "releases", None):
        refuse(place, f"{action.system!r} has no releases.", f"add releases: FOLDER to {action.system}")


def _machine(name: str, settings: Mapping[str, Settings], where: Location, refuse: Refuse) -> None:
    _known(name, settings, where, refuse)
    if not issubclass(kind(settings[name].kind), Machine):
        refuse(where, f"{name!r} is a {settings[name].kind}, and no machine.", "name a system of kind host")


def _known(name: str, known: Collection[str], where: Location, refuse: Refuse) -> None:
    if name not in known:
        refuse(where, f"there is no {name!r}.", f"known are: {', '.join(known) or 'none'}")

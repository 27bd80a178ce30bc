"""The System interface: one thing with an observable state and repeatable verbs, and what each verb promises.

A kind of system is one file under `systems/`, found by its file name, with its settings model in that file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from salvor.change import (
    Argument,
    Backup,
    Change,
    Finding,
    Progress,
    State,
    Undo,
)
from salvor.errors import UsageError

if TYPE_CHECKING:
    pass

Outcome = Iterator[Progress | Finding] | None
"""What a verb returns: nothing, or while it works its progress, from the engine's own figures, and what went amiss
beside its success, such as a repository that did not take the backup which another one has.
"""


class Settings(BaseModel):
    """The base of every settings model: unknown keys are errors, because a typing error must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    @property
    def places(self) -> frozenset[str]:
        """Where it is, for kinds of which several systems may be in one place: databases of one cluster."""
        return frozenset()


@dataclass(frozen=True)
class Context:
    """What a system knows of the incident it works for. Names of stages and kept copies follow from `incident`.

    `folder` is the incident's folder (it may not exist: a plan writes nothing); `facts` are the incident's figures for
    the texts of messages; `system_of` gives another system of the platform (for an archive of several); `under_way` the
    changes that are made side by side at this moment (for one reading of an archive by several); `machine_at` is the
    machine with an address and a port of SSH (None: the usual), as the inventory names it, or empty; `fails_at` is what
    of another service's system is wrong now, or empty (for a program that works on it); `hears` is told, by the name of
    a system, how far a look is that takes long, first without a total, and None when it has ended; `overridden` is the
    operator's reason for an override, or empty; `is_drill` says that nobody needs what is staged for it, `is_rehearsal`
    that nothing of it becomes live.
    """

    incident: str
    folder: Path
    facts: Callable[[], Mapping[str, Any]]
    system_of: Callable[[str], System] = field(default=lambda name: _alone(name))
    under_way: Callable[[], Collection[Change]] = tuple
    machine_at: Callable[[str, int | None], str] = field(default=lambda address, port: "")
    fails_at: Callable[[str], str] = field(default=lambda name: "")
    hears: Callable[[str, Progress | None], None] = field(default=lambda name, progress: None)
    overridden: Callable[[str], str] = field(default=lambda name: "")
    is_drill: bool = False
    is_rehearsal: bool = False


def _alone(name: str) -> System:
    raise UsageError(f"There is no system {name!r} beside this one.")


@dataclass(frozen=True)
class VerbInfo:
    """What `@verb` says of a method: seconds until its outcome counts as unknown, and whether it loses something for
    good.
    """

    deadline: float
    destructive: bool = False
    waits: bool = True


_Method = TypeVar("_Method", bound=Callable[..., Any])


def verb(*, deadline: float, destructive: bool = False, waits: bool = True) -> Callable[[_Method], _Method]:
    """Mark a method as a verb. `waits` False: the recovery goes on while it works (messages), and its failure is
    owed.
    """

    def mark(method: _Method) -> _Method:
        method.__dict__["salvor_verb"] = VerbInfo(deadline, destructive, waits)
        return method

    return mark


class System(ABC):
    """One thing with an observable state and repeatable verbs.

    Promises: `observe` and `backups` never write, and never raise for "it is down". Every verb may be called twice; the
    second call finds its work done. Every verb has a deadline, after which it raises OutcomeUnknownError.
    """

    Settings: ClassVar[type[Settings]]

    def __init__(self, name: str, settings: Any, context: Context) -> None:
        self.name = name
        self.settings = settings
        self.context = context

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a plan says of how it was reached, such as old algorithms that had to be opened. Asks nobody."""
        return ()

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The systems that must be changed before this one is: a route waits for what it leads to."""
        return ()

    @abstractmethod
    def observe(self) -> State:
        """What it is like now. Never writes; down and unknown are answers, never exceptions."""

    def backups(self) -> list[Backup]:
        """Its restorable points, newest first. Never writes. Raises CannotError when no repository can be read."""
        return []

    @classmethod
    def verbs(cls) -> dict[str, VerbInfo]:
        """The verbs that this kind offers, by name."""
        found = {}
        for name, member in inspect.getmembers(cls, inspect.isfunction):
            info = member.__dict__.get("salvor_verb")
            if info:
                found[name.removesuffix("_")] = info
        return found

    def change(
        self, name: str, /, *, why: str, undo: Undo | None = None, no_undo: str = "", **arguments: Argument
    ) -> Change:
        """The change that would call verb `name`; building it touches nothing.

        Raises UsageError when the verb does not exist, the arguments do not bind, or neither an undo nor the reason for
        having none is given.
        """
        info = self._bind(name, arguments)
        if undo is not None:
            self._bind(undo.verb, undo.arguments)
        elif not no_undo:
            raise UsageError(
                f"{self.name}: the change {name!r} says neither how to undo it nor that it cannot be undone."
            )
        return Change(self.name, name, arguments, why, undo, no_undo, info.destructive)

    def _bind(self, name: str, arguments: Mapping[str, Argument]) -> VerbInfo:
        info = self.verbs().get(name)
        if info is None:
            raise UsageError(
                f"{self.name}: a {self.settings.kind} cannot {name!r}; it can {', '.join(sorted(self.verbs()))}."
            )
        try:
            inspect.signature(getattr(self, name)).bind(**arguments)
        except TypeError as error:
            raise UsageError(f"{self.name}: arguments of {name!r}: {error}.") from error
        return info

    def apply(self, change: Change) -> Iterator[Progress | Finding]:
        """Call the change's verb. Only the runner does this."""
        self._bind(change.verb, change.arguments)
        self.forget()
        try:
            outcome = getattr(self, change.verb)(**change.arguments)
            if outcome is not None:
                yield from outcome
        finally:
            self.forget()

    def forget(self) -> None:  # noqa: B027  most systems remember nothing
        """Forget what was seen of it: it is being changed."""

    def forecast(self, state: State, change: Change) -> State:
        """What `observe` will say after `change`, so that a whole chain can be planned before any of it is done."""
        return state


@cache
def kinds() -> dict[str, type[System]]:
    """Every kind of system by its name, which is its file's name under `systems/`. Imports them all: use `kind` where
    one is meant.
    """
    import salvor.systems

    return {module.name: kind(module.name) for module in pkgutil.iter_modules(salvor.systems.__path__)}


@cache
def kind(name: str) -> type[System]:
    """The class of one kind. Raises UsageError, naming the kinds that exist."""
    import salvor.systems

    names = sorted(module.name for module in pkgutil.iter_modules(salvor.systems.__path__))
    if name not in names:
        raise UsageError(f"kind: there is no kind of system {name!r}.", hint=f"the kinds are {', '.join(names)}")
    module = importlib.import_module(f"salvor.systems.{name}")
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, System) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"salvor/systems/{name}.py must define exactly one System, not {len(found)}")
    return found[0]

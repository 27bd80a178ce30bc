"""The runbooks: the files of `runbooks/`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from salvor import clone
from salvor.errors import UsageError
from salvor.steps import Step


@dataclass(frozen=True)
class Runbook:
    """A scenario: when to use it (its docstring, for people), its steps in order, and the ways back it allows (empty:
    all).
    """

    name: str
    docstring: str
    steps: tuple[Step, ...]
    ways: tuple[str, ...] = ()


MAINTENANCE = Runbook("maintenance", "Work between incidents.", ())
"""What a journal of work between incidents names as its runbook: it has no steps to go on with."""


def names() -> list[str]:
    """The names of the runbooks."""
    return sorted(path.stem for path in (clone.root() / "runbooks").glob("[a-z]*.py"))


def load(name: str) -> Runbook:
    """The runbook of that name. Raises UsageError, naming those that exist."""
    if name == MAINTENANCE.name:
        return MAINTENANCE
    if name not in names():
        raise UsageError(f"--runbook: there is no runbook {name!r}.", hint=f"the runbooks are {', '.join(names())}")
    module = _load(clone.root() / "runbooks" / f"{name}.py")
    return Runbook(name, (module.__doc__ or "").strip(), tuple(module.STEPS), tuple(getattr(module, "WAYS", ())))


def _load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"runbooks.{path.stem}", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module

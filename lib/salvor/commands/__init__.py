"""What `inv` offers, a file a theme. Thin: parse, call, show; everything else is imported when a task runs."""

# Imports stand inside the tasks on purpose: `inv --list` must answer at once.

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from invoke.collection import Collection
from invoke.tasks import task

from salvor.errors import SalvorError

# invoke has all that a task file imports compiled anew each time: for ours that would be a third of a start.
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

_Body = TypeVar("_Body", bound=Callable[..., None])

_HELP = {
    "service": "the service, as the inventory names it",
    "platform": "a folder or file of inventory/ (default: SALVOR_PLATFORM, else the one that has the service, or the "
    "only one)",
    "incident": "the id of an incident; inv incidents lists them",
    "from_": "what to restore from: latest, a backup id, a path, s3://... or file://...",
    "at": "restore to this time (ISO 8601 with an offset)",
    "target": "restore to this point: name:NAME or lsn:LSN",
    "failed_at": "when the failure or damage began, if you know (ISO 8601 with an offset)",
    "runbook": "the scenario: a file of runbooks/",
    "plan": "show every change with its reason and its undo; write nothing",
    "approve": "approve the plan with this hash",
    "yes": "approve whatever the plan is; for machines",
    "json": "one JSON object a line",
    "override": "a named deviation with its reason, for example promote-without-fence=REASON",
}


def command(
    *positional: str, optional: Sequence[str] = (), of_a_stand_in: bool = False, **help_: str
) -> Callable[[_Body], _Body]:
    """An invoke task with our help texts and exit codes. `optional` names options that need no value: then it is
    True. A task `of_a_stand_in` finds its platform by itself.
    """

    def make(body: _Body) -> _Body:
        import functools
        import inspect

        @functools.wraps(body)
        def wrapped(*arguments: Any, **named: Any) -> None:
            from salvor.commands.ending import ends_with_exit_code

            called = body if of_a_stand_in else _on_its_platform(body)
            ends_with_exit_code(_patient(called))(*arguments, **named)

        names = [name for name in inspect.signature(body).parameters if name != "c"]
        texts = {name.rstrip("_"): help_.get(name, _HELP.get(name, "")) for name in names}
        made = task(
            wrapped,
            positional=list(positional),
            optional=list(optional),
            help={name: text for name, text in texts.items() if text},
            auto_shortflags=False,
        )
        return cast(_Body, made)

    return make


def _on_its_platform(body: Callable[..., None]) -> Callable[..., None]:
    """`body`, with the platform that is meant where none was named. An error's hint then names what was asked for."""

    def called(*arguments: Any, **named: Any) -> None:
        if named.get("platform") == "":
            from salvor import inventory

            named["platform"] = inventory.meant(named.get("service", ""))
        try:
            body(*arguments, **named)
        except SalvorError as error:
            error.hint = _whole(error.hint, named)
            raise

    return called


def _whole(hint: str, named: Mapping[str, Any]) -> str:
    """`hint`, whose commands name what was asked for: a service of a platform, or that of an incident."""
    from salvor.commands import hints
    from salvor.journal import folders

    asked = {name: str(named.get(name) or "") for name in ("service", "platform", "incident")}
    if asked["incident"] and not asked["service"]:
        try:
            asked["platform"], asked["service"] = folders.of_incident(asked["incident"])
        except SalvorError:  # of an incident that cannot be read nothing is known
            asked["platform"] = ""
    return hints.whole(hint, **asked)


def _patient(body: Callable[..., None]) -> Callable[..., None]:
    """`body`, which waits for whoever works on its service where SALVOR_WAIT says so."""

    def called(*arguments: Any, **named: Any) -> None:
        from salvor.patience import patiently

        patiently(lambda: body(*arguments, **named), lambda text: print(text, file=sys.stderr))

    return called


def collection(name: str, *, default: Any = None, also: str = "show", **tasks: Any) -> Collection:
    """Commands that share a first word: `inv NAME.TASK`; `default` is what `inv NAME` does, as `inv NAME.ALSO`."""
    made = Collection(name)
    if default is not None:
        made.add_task(default, name=also, default=True)
    for task_name, one in tasks.items():
        made.add_task(one, name=task_name.rstrip("_"))
    return made

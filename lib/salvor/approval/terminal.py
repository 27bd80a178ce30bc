"""Approval at the terminal: by the hash of a plan, by --yes, or typed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType

from salvor import show
from salvor.change import Change, plan_hash
from salvor.errors import CannotError, PlanMovedError
from salvor.plain import amount
from salvor.plan import describe
from salvor.show import Shown


def approval(
    shown: Shown,
    changes: tuple[Change, ...],
    *,
    approve: str,
    yes: bool,
    one: str = "",
    earlier: Mapping[str, set[str]] = MappingProxyType({}),
) -> str:
    """How these changes were approved: by hash, by --yes, or typed here. Raises CannotError or PlanMovedError when
    they are not.

    A destructive change asks for the observed identity to be typed. `one` are the options that mean this plan alone,
    where the command is about several (`--service=orders`). `earlier` are the approvals of this incident (the
    keys of the changes, by hash): what is left of an approved plan is approved.
    """
    hash_ = plan_hash(changes)
    if approve:
        is_rest = approve in earlier and {change.key for change in changes} <= earlier[approve]
        if approve != hash_ and not is_rest:
            raise PlanMovedError(
                f"--approve={approve} is not the hash of this plan: it is {hash_} now.",
                safe="nothing was changed",
                hint="read the plan above; if it is what you want, approve its hash",
            )
        return f"--approve={approve}"
    if yes or not changes:
        return "--yes" if yes else "nothing to approve"
    refuse_nobody(shown, f"the same command with {f'{one} --approve={hash_}'.strip()}, or --yes")
    for change in changes:
        if change.destructive:
            identity = show.clean(str(change.arguments.get("identity", change.system)))
            does = f": {change.why}" if change.undo else " removes it for good"
            typed(f"{show.clean(describe(change) + does)}. Type {identity} to allow it: ", identity)
    if not any(change.destructive for change in changes):
        typed(f"Make {amount(len(changes), 'change')}? Type yes: ", "yes")
    return "typed at the terminal"


def refuse_nobody(shown: Shown, instead: str) -> None:
    """Raise CannotError when nobody is at the terminal who could be asked; `instead` are the arguments that do."""
    if isinstance(shown, show.Json) or not sys.stdin.isatty():
        raise CannotError(
            "The plan was not approved: nobody is at the terminal.", safe="nothing was changed", hint=instead
        )


def typed(question: str, expected: str) -> None:
    """Ask, and raise CannotError when anything else is typed, or nothing; KeyboardInterrupt at Ctrl-C, with what it
    stopped.
    """
    try:
        answer = input(question)
    except EOFError:
        answer = ""
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped by you before this was approved: nothing of it was done.") from None
    if answer.strip() != expected:
        raise CannotError(
            "It was not approved.",
            safe="nothing was changed",
            hint=f"the same command again asks anew; only {expected}, typed in full, approves",
        )

"""What can go wrong, said for someone woken at 3 a.m.: what happened, what is safe now, and the next command."""

from __future__ import annotations

MAKE_ROOM = (
    "make room there: inv discard --incident=ID removes what an earlier incident kept (inv incidents lists them)"
)
"""It names no incident: the one that lacks the room has nothing to discard."""
STOPPED = "Stopped by you. What was begun may be unfinished; nothing that was live has been removed."


class SalvorError(Exception):
    """An error that a user can meet. `what` happened to what, what is `safe` now, and the `hint`: the next command.

    `exit_code` is what `inv` ends with.
    """

    exit_code = 1

    def __init__(self, what: str, *, safe: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.safe = safe
        self.hint = hint

    @property
    def reason(self) -> str:
        """What happened, with its hint, on one line: why something else cannot be."""
        return f"{self.what.removesuffix('.')} ({self.hint})" if self.hint else self.what

    def __str__(self) -> str:
        parts = [self.what]
        if self.safe:
            parts.append(f"Safe now: {self.safe}")
        if self.hint:
            parts.append(f"HINT: {self.hint}")
        return "\n".join(parts)


class UsageError(SalvorError):
    """What was asked for makes no sense: an argument, a time, a line of the inventory. Nothing was changed."""

    exit_code = 2


class CannotError(SalvorError):
    """It was understood, and cannot be done: a tool failed, nothing to restore from, no fence evidence."""

    exit_code = 3


class SecretError(CannotError):
    """A secret that the inventory names cannot be had on this machine: that says nothing of whom it would have let us
    ask.
    """


def nothing_kept(place: str, incident: str) -> CannotError:
    """The error of an undo that would take away what is live and put nothing in its place."""
    return CannotError(
        f"There is nothing to go back to: {place} is gone.",
        safe="the data that is live stays live",
        hint=f"inv restore --incident={incident} goes forward again, and starts what was stopped",
    )


class CommandError(CannotError):
    """A command ended with an exit code other than zero; `exit_code_of_command` and `stderr` say how."""

    def __init__(self, what: str, *, exit_code_of_command: int, stderr: str, safe: str = "", hint: str = "") -> None:
        super().__init__(what, safe=safe, hint=hint)
        self.exit_code_of_command = exit_code_of_command
        self.stderr = stderr


class NoRoomError(CannotError):
    """A disk lacks room for it: with more room it can be done."""


class RefusedError(CannotError):
    """Whoever was asked answered, and said no: to ask for something else makes sense."""


class NotConvergedError(SalvorError):
    """A step's changes were made and the step still plans something: the world is not as it should be."""

    exit_code = 4


class OutcomeUnknownError(NotConvergedError):
    """A change or command was sent and its deadline passed: it may or may not have happened. Look, never repeat
    blindly.
    """


class PlanMovedError(SalvorError):
    """The world moved between approval and act: a change is planned that nobody approved."""

    exit_code = 5


class NotProvenError(SalvorError):
    """What was staged, or what is live now, did not pass its checks."""

    exit_code = 6


class HeldError(SalvorError):
    """Another operator works on this service."""

    exit_code = 7


class WarnedError(SalvorError):
    """Everything can be restored, and something should be seen to before it cannot."""

    exit_code = 8

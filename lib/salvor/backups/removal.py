"""Backups are removed one by one: one whose removal is refused hinders no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from salvor.change import Progress
from salvor.errors import CommandError, RefusedError


def each(names: Sequence[str], remove: Callable[[str], None]) -> Iterator[Progress]:
    """Remove every one of these backups. Raises RefusedError at the end for those that are not to be removed, and at
    once what `remove` raises when nobody answers.
    """
    refused: dict[str, CommandError | RefusedError] = {}
    for count, name in enumerate(names):
        yield Progress(count, len(names), "backups", f"removing {name}")
        try:
            remove(name)
        except (CommandError, RefusedError) as error:
            refused[name] = error
    if refused:
        first = next(iter(refused.values()))
        raise RefusedError(
            f"{len(refused)} of {len(names)} backups were not removed, {', '.join(refused)}: {first.what}",
            safe=first.safe,
            hint=first.hint,
        ) from first
    yield Progress(len(names), len(names), "backups", "removed")

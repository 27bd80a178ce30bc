"""pgBackRest's repositories that do not answer: it waits minutes for each, so that one of them holds up the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor

from salvor import clock
from salvor.errors import CannotError, OutcomeUnknownError

_REMEMBERED_SECONDS = 300.0
_NUMBERS = range(1, 9)
"""A repository is known by its number alone: what describes it may stand in included files and in the environment."""

_remembered: dict[Hashable, tuple[float, tuple[int, ...]]] = {}


def hear(place: Hashable, ask: Callable[..., str], deadline: float) -> tuple[str, tuple[int, ...]]:
    """What `ask` is told by the repositories of a place, and the numbers of those that do not answer. It takes seconds
    and pgBackRest's options, and raises OutcomeUnknownError when no answer comes, CannotError for a number that is not
    configured. All together are given a third of `deadline` seconds, and then each for itself the rest; those that did
    not answer are not asked again for five minutes.

    Raises OutcomeUnknownError when none answers.
    """
    since, silent = _remembered.get(place, (0.0, ()))
    if not silent or clock.monotonic() - since > _REMEMBERED_SECONDS:
        try:
            return ask(deadline / 3), ()
        except OutcomeUnknownError:
            silent = _silent_ones(lambda number: ask(deadline * 2 / 3, f"--repo={number}"))
            _remembered[place] = clock.monotonic(), silent
    return ask(deadline, *leaving_out(silent)), silent


def _silent_ones(ask: Callable[[int], object]) -> tuple[int, ...]:
    """The numbers of those that do not answer. Raises OutcomeUnknownError when none answers."""
    silent: dict[int, OutcomeUnknownError] = {}

    def answers(number: int) -> bool:
        try:
            ask(number)
        except OutcomeUnknownError as error:
            silent[number] = error
            return False
        except CannotError:
            return False
        return True

    with ThreadPoolExecutor(len(_NUMBERS)) as pool:
        answer = list(pool.map(answers, _NUMBERS))
    if silent and not any(answer):
        raise next(iter(silent.values()))
    return tuple(sorted(silent))


def leaving_out(numbers: Iterable[int]) -> list[str]:
    """Options by which pgBackRest does without these repositories. It has none for that, but passes over one that is
    not there.
    """
    return [
        option
        for number in numbers
        for option in (f"--repo{number}-type=posix", f"--repo{number}-path=/nonexistent", f"--reset-repo{number}-host")
    ]

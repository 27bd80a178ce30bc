"""A deadline for what has none of its own: name resolution, a server that answers a byte a minute, a library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")


def within(seconds: float, work: Callable[[], _Answer], over: threading.Event | None = None) -> _Answer:
    """What `work` returns or raises; TimeoutError after `seconds`, or when somebody sets `over` before.

    Python cannot end a thread: work that is late goes on unseen, in a thread that does not keep the process alive.
    So it must be something that may be left alone, such as a question.
    """
    over = over or threading.Event()
    answers: list[_Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            errors.append(error)
        over.set()

    threading.Thread(target=run, daemon=True).start()
    given_up = over.wait(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("given up" if given_up else f"no answer within {round(seconds, 2):g} s")
    return answers[0]

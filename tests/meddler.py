"""Something that happens from outside while a change is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable

from salvor.change import Change
from salvor.show import Plain


class Meddler(Plain):
    """Shows as any terminal does, and does something `after` so many seconds of a verb, once."""

    def __init__(self, verb: str, meddle: Callable[[], object], after: float = 0.5) -> None:
        super().__init__()
        self.verb, self.meddle, self.after = verb, meddle, after
        self.meddled: threading.Timer | None = None

    def begun(self, change: Change) -> None:
        super().begun(change)
        if change.verb == self.verb and not self.meddled:
            self.meddled = threading.Timer(self.after, self.meddle)
            self.meddled.start()

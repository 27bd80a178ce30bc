"""Something that happens from outside while a change is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable

from salvor.change import Change
from salvor.show import Plain


class Meddler(Plain):
    """Shows as any terminal does, and does something half a second after a verb began, once."""

    def __init__(self, verb: str, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.verb, self.meddle = verb, meddle
        self.meddled: threading.Timer | None = None

    def begun(self, change: Change) -> None:
        super().begun(change)
        if change.verb == self.verb and not self.meddled:
            self.meddled = threading.Timer(0.5, self.meddle)
            self.meddled.start()

"""The messages of a run, which go out beside it: no recovery waits for paperwork."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from salvor.change import Change
from salvor.errors import HeldError
from salvor.plan import describe
from salvor.secrets import mask

DEADLINE = 60.0
"""Seconds that the end of a run waits for messages that are still going out; later they are owed."""
IN_ORDER = 10.0
"""Seconds for which a message waits for the one before it on its channel; then it overtakes one that hangs."""


class Outgoing:
    """The messages that are on their way. `owe` notes what was not sent, and why."""

    def __init__(self, owe: Callable[[str, str], None]) -> None:
        self._owe = owe
        self._sent: dict[str, tuple[Change, Future[None]]] = {}
        self._late: set[str] = set()
        self._newest: dict[object, Future[None]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether the message of that key was posted, and is not known to be over."""
        return key in self._sent

    def is_late(self, change: Change) -> bool:
        """Whether it was owed before it ended: the journal is closed by now, and gets no word of it any more."""
        return change.key in self._late

    def post(self, change: Change, make: Callable[[], str]) -> None:
        """Send a message in the background, in a thread that keeps no process alive. `make` returns done or unknown."""
        sent: Future[None] = Future()
        self._sent[change.key] = change, sent
        channel = change.system, change.arguments.get("channel")
        before, self._newest[channel] = self._newest.get(channel), sent

        def send() -> None:
            try:
                wait([before] if before else [], timeout=IN_ORDER)
                if make() == "unknown":
                    self._owe(describe(change), "whether it was sent is not known")
            except HeldError:
                pass  # who took it over tells what is still to tell
            except Exception as error:  # noqa: BLE001 - whatever a notifier raises
                if not self.is_late(change):
                    self._owe(describe(change), mask(str(error)) or type(error).__name__)
            finally:
                sent.set_result(None)

        threading.Thread(target=send, name=f"message {change.key}", daemon=True).start()

    def finish(self) -> None:
        """Wait for what is still going out, for DEADLINE seconds at most; what is left is owed."""
        wait([sent for _, sent in self._sent.values()], timeout=DEADLINE)
        for key, (change, sent) in list(self._sent.items()):
            if sent.done():
                del self._sent[key]  # one that failed is planned again, when this incident goes on
            elif key not in self._late:
                self._late.add(key)
                self._owe(describe(change), f"it was not sent within {DEADLINE:.0f} s")

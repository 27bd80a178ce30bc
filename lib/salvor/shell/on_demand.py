"""A shell that is opened when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Callable

from salvor import clock
from salvor.errors import SalvorError
from salvor.running import Command, Running
from salvor.shell.anywhere import Shell

_SILENCE = 10.0  # seconds for which a host that gave no answer is not asked again
_QUICK = 1.0  # seconds within which an error is an answer


class OnDemand(Shell):
    """A shell that is opened when it is first used, so that a host that is down hinders nothing before."""

    def __init__(self, where: str, open_shell: Callable[[], Shell]) -> None:
        super().__init__(where)
        self._open = open_shell
        self._opened: Shell | None = None
        self._lock = threading.Lock()
        self._silent: tuple[float, SalvorError] | None = None  # until when it is not asked again, and what was wrong

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._opened.remarks if self._opened else ()

    def opened(self) -> Shell:
        """The shell itself, opened if it was not. A host that did not answer is not asked again for _SILENCE seconds:
        a look asks for many things, and would wait for each.
        """
        with self._lock:
            if self._opened is None:
                if self._silent and clock.monotonic() < self._silent[0]:
                    raise self._silent[1].with_traceback(None)
                begun = clock.monotonic()
                try:
                    self._opened = self._open()
                except SalvorError as error:
                    ended = clock.monotonic()
                    self._silent = (ended + _SILENCE, error) if ended - begun > _QUICK else None
                    raise
        return self._opened

    def _start(self, command: Command) -> Running:
        return self.opened()._start(command)

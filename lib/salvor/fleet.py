"""The same work on many hosts: side by side in a bounded number of threads, each answer as it comes."""

from __future__ import annotations

import gc
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from salvor import clock
from salvor.errors import SalvorError
from salvor.shell import Shell
from salvor.ssh.host import Host
from salvor.ssh.knock import Knocker
from salvor.ssh.route import Route

_Answer = TypeVar("_Answer")
_TURN = 0.05
"""Seconds for which a thread may go on computing while others wait."""


@dataclass(frozen=True)
class Answered(Generic[_Answer]):
    """What one host answered within `seconds`: `answer`, or the `error` that kept it from answering."""

    host: str
    answer: _Answer | None
    error: SalvorError | None
    seconds: float


def each(
    hosts: Mapping[str, Host],
    work: Callable[[str, Shell], _Answer],
    *,
    at_once: int = 50,
    deadline: float = 10.0,
) -> Iterator[Answered[_Answer]]:
    """Do `work(name, shell)` on every host, on `at_once` of them at a time; yields what each answered as it comes, so
    that the caller counts, shows and stops: closing the iterator begins no further host.

    A host that cannot be reached within `deadline` seconds, or whose work raises a SalvorError, answers with that
    error. It holds up nobody: all hosts are called at once, and only those that answer get one of the threads. `work`
    gives each command of its own a deadline. Any other exception is a defect, and is raised.
    """
    visits = _Visits(hosts, work, at_once, deadline)
    with _at_ease():
        try:
            visits.begin()
            for _ in hosts:
                answered = visits.answers.get()
                if isinstance(answered, BaseException):
                    raise answered
                yield answered
        finally:
            visits.stop()


@contextmanager
def _at_ease() -> Iterator[None]:
    """Spare many threads what Python does for few, some hundredths of the client's CPU: the collector would look again
    at all that stood before for what they throw away, and each that waits its turn would wake every 5 ms to ask for
    it, of threads that give it up by themselves at their next packet.
    """
    before = sys.getswitchinterval()
    gc.freeze()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


class _Visits(Generic[_Answer]):
    """The threads of one call of `each`: one that calls, and those that work."""

    def __init__(
        self, hosts: Mapping[str, Host], work: Callable[[str, Shell], _Answer], at_once: int, deadline: float
    ) -> None:
        self.answers: queue.SimpleQueue[Answered[_Answer] | BaseException] = queue.SimpleQueue()
        self._hosts = hosts
        self._work = work
        self._deadline = deadline
        self._at_once = max(1, min(at_once, len(hosts)))
        self._waiting: queue.SimpleQueue[tuple[str, Route | None, socket.socket | None] | None] = queue.SimpleQueue()
        self._knocker = Knocker(self._called, deadline=deadline, most=self._at_once)
        self._stop = threading.Event()
        self._begun = clock.monotonic()

    def begin(self) -> None:
        """Sort the hosts: those that are called directly, and those that somebody else calls (a jump host, ssh)."""
        self._direct: dict[str, Route] = {}
        for name, host in self._hosts.items():
            try:
                route = host.route
            except SalvorError as error:
                self._answer(name, None, error, self._begun)
                continue
            if route is None or len(route.hops) > 1 or route.by_openssh:
                self._waiting.put((name, route, None))
            else:
                self._direct[name] = route
        for target in (self._call, *[self._serve] * self._at_once):
            threading.Thread(target=target, name="fleet", daemon=True).start()
        if self._direct:
            import salvor.ssh.channel  # noqa: F401  takes its time, in which the first hosts begin to speak

    def _call(self) -> None:
        try:
            doors = {name: (route.host.host, route.host.port) for name, route in self._direct.items()}
            self._knocker.call(doors)
        except Exception as error:  # noqa: BLE001  raised where somebody sees it
            self.answers.put(error)
        finally:
            for _ in range(self._at_once):
                self._waiting.put(None)

    def _called(self, name: str, line: socket.socket | OSError) -> None:
        route = self._direct[name]
        if isinstance(line, OSError):
            from salvor.ssh.wire import explained

            self._answer(name, None, explained(line, route, route.host), self._begun)
        else:
            self._waiting.put((name, route, line))

    def _serve(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            name, route, line = waiting
            if line:
                self._knocker.served()
            if self._stop.is_set():
                if line:
                    line.close()
                continue
            begun = clock.monotonic()
            try:
                with self._hosts[name].opened(self._deadline, line, route) as shell:
                    answer = self._work(name, shell)
            except SalvorError as error:
                self._answer(name, None, error, begun)
            except BaseException as error:  # noqa: BLE001  raised where somebody sees it
                self.answers.put(error)
            else:
                self._answer(name, answer, None, begun)

    def _answer(self, name: str, answer: _Answer | None, error: SalvorError | None, begun: float) -> None:
        self.answers.put(Answered(name, answer, error, clock.monotonic() - begun))

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()
        self._knocker.stop()
        with suppress(queue.Empty):
            while waiting := self._waiting.get_nowait():
                if waiting[2]:
                    waiting[2].close()
        for _ in range(self._at_once):
            self._waiting.put(None)

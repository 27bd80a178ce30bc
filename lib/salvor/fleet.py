"""The same work on many hosts: side by side in a bounded number of threads, each answer as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Generic, TypeVar

from salvor import clock
from salvor.errors import SalvorError
from salvor.shell import Shell
from salvor.ssh.host import Host

_Answer = TypeVar("_Answer")


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
    error; it holds up nobody. `work` gives each command of its own a deadline. Any other exception is a defect, and is
    raised.
    """

    def visit(name: str) -> Answered[_Answer]:
        begun = clock.monotonic()
        try:
            with hosts[name].opened(deadline) as shell:
                answer = work(name, shell)
        except SalvorError as error:
            return Answered(name, None, error, clock.monotonic() - begun)
        return Answered(name, answer, None, clock.monotonic() - begun)

    pool = ThreadPoolExecutor(max(1, min(at_once, len(hosts))), thread_name_prefix="fleet")
    try:
        for done in as_completed([pool.submit(visit, name) for name in hosts]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

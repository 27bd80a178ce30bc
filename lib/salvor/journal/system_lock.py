"""One recovery at a time per system that it changes: two services may share one, such as a program that works on both.

The lock and the lease of a service keep apart who works on the same service. These keep apart who works on two: the
same lock and the same lease, of a system. All recoveries of one process (a whole platform) hold a system together:
they know of each other (`whole_platform.py`). Nobody waits: who comes second is told, and holds nothing then, so that
there is no deadlock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from salvor.errors import HeldError
from salvor.journal import lock
from salvor.journal.lease import Lease

_AGAIN = "when that is over, the same command again (SALVOR_WAIT=1h before it: it waits by itself)"
_HELD_HERE = (
    f"{_AGAIN}; look: inv incident.show --incident={{incident}}. If it hangs, end that process (on {{host}}: "
    "kill {pid}, and once more): inv restore --incident={incident} goes on where it stopped"
)
_HELD_ELSEWHERE = (
    f"{_AGAIN}; if that machine is gone: inv incident.take --incident={{incident}}, then "
    "inv restore --incident={incident}, then the same command again"
)


@dataclass
class _Held:
    """A system that this process holds, and the leases of those who do."""

    lock: ExitStack = field(default_factory=ExitStack)
    leases: list[Lease | None] = field(default_factory=list)


_held: dict[tuple[str, Path], _Held] = {}
_guard = threading.Lock()


@contextmanager
def hold(system: str, platform: str, folder: Path, *, by: str, incident: str, service: Lease | None) -> Iterator[None]:
    """Hold a system inside the block, beside whoever else in this process does. `folder` is the one that holds all
    incidents, `service` the lease of the incident's service, which is held (None: there is no mirror).

    Raises HeldError naming the holder when another process does, CannotError when no lock can be made.
    """
    name = f"{system} of {platform}"  # no service has a name like that
    key = name, folder.absolute()
    lease = service.with_it(name, _HELD_ELSEWHERE) if service else None
    with _guard:
        held = _held.get(key) or _Held()
        try:
            if not held.leases:
                held.lock.enter_context(lock.hold(name, folder, by=by, incident=incident, hint=_HELD_HERE))
            if lease:
                with suppress(OSError):  # a mirror that does not answer holds nobody up; the service's lease says it
                    lease.claim(take=bool(held.leases))
        except HeldError as error:
            if not held.leases:
                held.lock.close()
            raise HeldError(
                f"{error.what} This would change it meanwhile, or what it works on.",
                safe="nothing was changed",
                hint=error.hint,
            ) from error
        held.leases.append(lease)
        _held[key] = held
    try:
        yield
    finally:
        with _guard:
            held.leases.remove(lease)
            others = [one for one in held.leases if one]
            with suppress(OSError):
                if lease and others:
                    others[-1].claim(take=True)  # what is under our service's lease is worth nothing when that is over
                elif lease:
                    lease.release()
            if not held.leases:
                del _held[key]
                held.lock.close()

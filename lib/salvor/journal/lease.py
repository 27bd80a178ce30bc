"""One operator at a time per service, among machines that share a journal's mirror.

The lock (`lock.py`) knows one machine. Beside it the mirror holds a lease: `.leases/PLATFORM.SERVICE/NUMBER-held.json`
says who works on the service, `NUMBER-released.json` that it is over, and the highest number counts. Each is made only
when there is none of that name (S3: `If-None-Match`, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html),
and nothing is ever overwritten. A lease has no end in time: a clock that is wrong would let two work. Who takes over
says so, and the other one finds it before its next change, and before a line of its journal that comes more than
A_MOMENT after it asked last. A mirror that cannot be reached holds nobody up: it is said.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from salvor import clock
from salvor.deadline import within
from salvor.errors import HeldError
from salvor.journal.mirror_store import Store, store

A_MOMENT = 1.0
"""Seconds for which what the mirror said is taken for what it says."""
_DEADLINE = 5.0  # seconds for the mirror's answer: a recovery waits for it before each change
_PAUSE = 60.0  # seconds before a mirror that gave no answer is asked again: a recovery does not wait each time
_TAKE_OVER = (
    "to take over: inv incident.take --incident={incident}, then the same command again; "
    "the other one stops before its next change"
)
SETTLED = 1.5 * A_MOMENT
"""Seconds after a takeover by which who held it before has asked, and what it wrote until then is in the mirror."""
_MACHINE_ID = Path("/etc/machine-id")
_HELD = re.compile(r"([0-9]{6})-held\.json")


class Lease:
    """One operator's claim on a service in the mirror at `location`. One `under` another service's is worth something
    only as long as that one is held by the same incident in the same process.
    """

    def __init__(
        self,
        location: str,
        service: str,
        *,
        by: str,
        incident: str,
        folder: Path,
        tell: Callable[[str], None],
        under: str = "",
        hint: str = _TAKE_OVER,
    ) -> None:
        self.location, self.service, self.incident, self.folder = location, service, incident, folder.absolute()
        self._store = _store(location, service)
        self._me = {"by": by, "host": socket.gethostname(), "pid": os.getpid(), "folder": str(self.folder)}
        self._me |= {"machine": _machine()}
        self._me |= {"under": under} if under else {}
        self._hint = hint
        self._tell = tell
        self.follows_another = False
        """Whether another machine held the service before this claim."""
        self._number = 0
        self._released = False
        self._taken_by: dict[str, Any] = {}
        self._asked_at = float("-inf")
        self._asked_again_at: float | None = None
        self._asking = threading.Lock()

    def with_it(self, name: str, hint: str) -> Lease | None:
        """A claim on `name` under this one; None when this one could not be made, because the mirror does not answer.

        `hint` is what whoever comes second is told to do, with the holder's `{incident}`.
        """
        if not self._number:
            return None
        me = self._me
        return Lease(
            self.location,
            name,
            by=str(me["by"]),
            incident=self.incident,
            folder=self.folder,
            tell=self._tell,
            under=self.service,
            hint=hint,
        )

    def claim(self, *, take: bool = False) -> dict[str, Any]:
        """Hold the service, unless another machine does; returns who held it before and did not release it, if anyone.

        What a process of these same incidents (this machine and folder) left is ours: the lock says that it has ended.
        `take`: whoever holds it. Raises HeldError naming the holder, OSError when the mirror gives no answer.
        """
        while True:
            number, holder, is_over = _newest(self._store)
            self.follows_another = bool(holder) and not self.left_here(holder)
            holder = {} if is_over else holder
            if holder and not take and not self.left_here(holder) and not self._is_void(holder):
                raise self._held(holder)
            if self._make(f"{number + 1:06d}-held.json", since=clock.write_time(clock.now()), incident=self.incident):
                self._number = number + 1
                return holder

    def holder(self) -> dict[str, Any] | None:
        """Who holds the service on another machine now; None: nobody. Raises OSError when the mirror is silent."""
        _, holder, is_over = _newest(self._store)
        return None if is_over or self.left_here(holder) or self._is_void(holder) else holder

    def check(self, *, since: float = 0.0) -> None:
        """Raises HeldError when it is not ours any more. Claims it first, when that could not be done before.

        What the mirror said less than `since` seconds ago is taken for what it says. Any thread may call this.
        """
        with self._asking:
            if self._taken_by:
                raise self._taken(self._taken_by)
            now = clock.monotonic()
            if self._released or now < max(self._asked_at + since, self._asked_again_at or now):
                return
            self._ask()

    def _ask(self) -> None:
        self._asked_at = clock.monotonic()
        try:
            if not self._number:
                try:
                    self.claim()
                except HeldError:
                    if self._asked_again_at is None:  # nothing was begun yet
                        raise
            number = within(_DEADLINE, lambda: _highest(self._store.names()))
            if number < self._number:
                raise OSError("what was written to it is not there any more")  # emptied, or not mounted
            taken_by = _newest(self._store)[1] if number > self._number else {}
        except OSError as error:
            if self._asked_again_at is None:
                self._tell(
                    f"The mirror {self.location} does not say who else works on {self.service}: {error}\n"
                    "Safe now: on this machine nobody else does, and the recovery goes on; ask your colleagues."
                )
            self._asked_again_at = clock.monotonic() + _PAUSE
            return
        self._asked_again_at = None
        if taken_by:
            self._taken_by = taken_by
            raise self._taken(taken_by)

    def release(self) -> None:
        """Let the next one in. A mirror that cannot be reached is told: the next one must take over then."""
        self._released = True
        if not self._number:
            return
        try:
            self._make(f"{self._number:06d}-released.json", at=clock.write_time(clock.now()))
        except OSError as error:
            self._tell(
                f"The mirror {self.location} still says that {self._me['by']} works on {self.service}: {error}\n"
                f"HINT: on another machine: inv incident.take --incident={self.incident}"
            )
        self._number = 0

    def _make(self, name: str, **said: Any) -> bool:
        content = json.dumps({**self._me, **said}).encode() + b"\n"
        return within(_DEADLINE, lambda: self._store.create(name, content))

    def left_here(self, holder: dict[str, Any]) -> bool:
        """Whether a process of these same incidents held it: it has ended, for whoever asks has the lock."""
        known = {"machine": self._me["machine"], **holder}  # an older Salvor does not say on which machine it is
        return all(known.get(name) == self._me[name] for name in ("host", "machine", "folder"))

    def _is_void(self, holder: dict[str, Any]) -> bool:
        """Whether what it was held under is over, or somebody else's by now. Raises OSError."""
        if not (under := holder.get("under")):
            return False
        _, above, is_over = _newest(_store(self.location, str(under)))
        return is_over or any(above.get(name) != holder.get(name) for name in ("incident", "host", "pid", "folder"))

    def _held(self, holder: dict[str, Any]) -> HeldError:
        incident = holder.get("incident", "?")
        return HeldError(
            f"{_named(holder)} works on {self.service} now: incident {incident}, since {holder.get('since', '?')}.",
            safe="nothing was changed",
            hint=self._hint.format(incident=incident),
        )

    def _taken(self, holder: dict[str, Any]) -> HeldError:
        return HeldError(
            f"{_named(holder)} took {self.service} over at {holder.get('since', '?')}; this process goes no further.",
            safe="the change that was under way has ended; no other was begun",
            hint="talk to them before you run anything: the same command again would take part in their incident",
        )


def _store(location: str, service: str) -> Store:
    return store(location, f".leases/{quote(service, safe='')}")


def _machine() -> str:
    """What tells this machine from another one of its name: a digest of its id, which is not for others to know
    (machine-id(5)); empty when it has none.
    """
    try:
        known = _MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"salvor " + known).hexdigest()[:16] if known else ""


def _highest(names: Iterable[str]) -> int:
    return max((int(found[1]) for name in names if (found := _HELD.fullmatch(name))), default=0)


def _newest(there: Store) -> tuple[int, dict[str, Any], bool]:
    """The highest number, who made it, and whether it was released. Raises OSError."""

    def ask() -> tuple[int, dict[str, Any], bool]:
        names = there.names()
        number = _highest(names)
        if not number:
            return 0, {}, True
        return number, _parse(there.get(f"{number:06d}-held.json")), f"{number:06d}-released.json" in names

    return within(_DEADLINE, ask)


def _named(holder: dict[str, Any]) -> str:
    return f"{holder.get('by', 'somebody')} (process {holder.get('pid', '?')} on {holder.get('host', '?')})"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {"by": "somebody whose name cannot be read"}


@contextmanager
def hold(lease: Lease | None) -> Iterator[Callable[[], None]]:
    """Hold `lease` inside the block (None: there is no mirror); gives what must be asked before each change."""
    if lease is None:
        yield lambda: None
        return
    lease.check()
    try:
        yield lease.check
    finally:
        lease.release()

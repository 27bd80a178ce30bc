"""What a sitting holds, so that nobody else changes it meanwhile: its service, and the systems that others share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from salvor.incident import Incident
from salvor.journal import lock, system_lock
from salvor.journal.folders import lease_of
from salvor.journal.lease import A_MOMENT, Lease
from salvor.journal.lease import hold as hold_lease
from salvor.plan import Plan

_LIVE = ("isolate", "reroute", "undo")
"""The steps that change what is live; the others work beside it."""


def touched(incident: Incident, plan: Plan) -> set[str]:
    """The systems that nobody else may change while a plan is carried out: those that it changes where they are live,
    with those that are in the same place, and the programs that work on what it swaps, whether or not they run now.
    """
    changes = [change for step in plan.steps if step.name in _LIVE for change in step.changes]
    swapped = {change.system for change in changes if change.verb in ("promote", "demote")}
    programs = {one.name for one in incident.programs if swapped & set(one.uses)}
    together = (incident.platform.together(change.system) for change in changes if incident.waits(change))
    return programs.union(*together)


class Holding:
    """The hold of one incident's sitting; `tell` is told when a mirror does not answer."""

    def __init__(self, incident: Incident, tell: Callable[[str], None]) -> None:
        self._incident, self._tell = incident, tell
        self._lease: Lease | None = None
        self._systems = ExitStack()
        self._held: set[str] = set()

    @contextmanager
    def all(self, plan: Plan | None = None) -> Iterator[Callable[[], None]]:
        """Be the only operator of the incident's service inside the block, and of what `plan` touches. Gives what is to
        be asked before each change. Raises HeldError.
        """
        name = self._incident.service.name
        self._lease = self._lease_of(name)
        with self._operator(name, self._lease) as still_ours, self._systems:
            self._systems.callback(self._held.clear)
            if plan:
                self.systems(touched(self._incident, plan))
            yield still_ours

    def is_ours(self) -> None:
        """Raises HeldError when the service was taken over, as far as could be seen a moment ago."""
        if self._lease:
            self._lease.check(since=A_MOMENT)

    @property
    def follows_another(self) -> bool:
        """Whether another machine held the service last, and so may have changed what was seen before."""
        return self._lease is not None and self._lease.follows_another

    @contextmanager
    def service(self, name: str) -> Iterator[Callable[[], None]]:
        """Be the only operator of one more service inside the block. Gives what is to be asked before each change.
        Raises HeldError.
        """
        with self._operator(name, self._lease_of(name)) as still_ours:
            yield still_ours

    def systems(self, names: Iterable[str]) -> None:
        """Hold these systems too, until the block of `all` ends. Raises HeldError."""
        incident = self._incident
        for name in sorted(set(names) - self._held):
            held = system_lock.hold(
                name,
                incident.platform.name,
                incident.folder.parent,
                by=incident.operator,
                incident=incident.id,
                service=self._lease,
            )
            self._systems.enter_context(held)
            self._held.add(name)

    def _lease_of(self, service: str) -> Lease | None:
        return lease_of(service, self._incident.platform.name, self._incident.id, self._tell)

    @contextmanager
    def _operator(self, service: str, lease: Lease | None) -> Iterator[Callable[[], None]]:
        incident = self._incident
        with (
            lock.hold(service, incident.folder.parent, by=incident.operator, incident=incident.id),
            hold_lease(lease) as still_ours,
        ):
            yield still_ours

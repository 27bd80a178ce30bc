"""What one incident knows: its service, what broke, the ways back that were chosen, and what was proven. It never
acts.
"""

from __future__ import annotations

import secrets as _random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from salvor import checks, clock
from salvor.change import Change, Decision, Finding, Kept, Level, Progress, Reachable, State, WayBack
from salvor.checks import Check
from salvor.inventory import Platform, Service
from salvor.journal.learned import Learned
from salvor.roles import FORECAST, Application, Machine, Outbox, Restorable, Route
from salvor.system import Context, System, kind
from salvor.wish import Wish

RESTART = "restart"
"""The way back of a program that runs and does not do its work."""


def new_id(service: str) -> str:
    """An incident's id: when, which service, and four random digits: `20261121T003300Z-orders-3f2a`."""
    return f"{clock.now():%Y%m%dT%H%M%SZ}-{service}-{_random.token_hex(2)}"


@dataclass(frozen=True)
class Broken:
    """A system that is broken: the identity that `assess` pinned, and the way back."""

    system: Restorable
    decision: Decision

    @property
    def identity(self) -> str:
        """The identity to act on. What bears the same name after the cutover has another."""
        return self.decision.identity


@dataclass
class Incident(Learned):
    """One recovery of one service. Only the runner calls `learn` and `foresee`; steps only read.

    `detected_at` is when Salvor was first asked, `failed_at` when the failure or damage began, where that is known.
    """

    id: str
    platform: Platform
    service: Service
    wish: Wish
    runbook: str
    operator: str
    folder: Path
    purpose: str = "incident"
    scenario: str = ""
    """What a drill plays: a disaster, or what is rehearsed."""
    detected_at: datetime = field(default_factory=clock.now)
    failed_at: datetime | None = None
    error: str = ""
    """What the recovery failed on last, in one line."""
    to_halt: set[str] = field(default_factory=set, repr=False)
    """The applications that it would stop, in a plan."""
    _systems: dict[str, System] = field(default_factory=dict, repr=False)
    _seen: dict[str, tuple[float, State]] = field(default_factory=dict, repr=False)
    """What was seen of each system, and when it was looked at (`clock.monotonic`)."""
    _foreseen: dict[str, State] = field(default_factory=dict, repr=False)
    under_way: dict[str, Change] = field(default_factory=dict, repr=False)
    """What the runner makes side by side at this moment, by key."""
    hears: Callable[[str, Progress | None], None] = field(default=lambda name, progress: None, repr=False)
    """Is told how far a system's look is that takes long: see `Context`."""
    ahead: bool = False
    """Whether a chain is being planned: nothing of it is done yet, so nothing of it can be proven yet."""
    proves_ahead: bool = False
    """Whether `verify` is in the chain that is being planned: what comes after it counts on what it will prove."""
    rerouted_ahead: bool = False
    """Whether `reroute` comes before the step that is being planned, which counts on the checks that it will pass."""

    # --- what there is -------------------------------------------------------------------------------------------

    @property
    def options(self) -> str:
        """How `inv` is told of which service: `--service=orders --platform=shop`."""
        return f"--service={self.service.name} --platform={self.platform.name}"

    def system(self, name: str) -> System:
        """A system of the platform, opened for this incident."""
        if name not in self._systems:
            context = Context(
                self.id,
                self.folder,
                self.facts,
                self.system,
                under_way=lambda: list(self.under_way.values()),
                machine_at=self._machine_at,
                fails_at=self._fails_at,
                hears=lambda name, progress: self.hears(name, progress),
                overridden=lambda name: self.whole_wish().override(name),
                is_drill=self.purpose == "drill",
                is_rehearsal=self.runbook == "rehearsal",
            )
            self._systems[name] = self.platform.open(name, context)
        return self._systems[name]

    def _machine_at(self, address: str, port: int | None) -> str:
        """The machine with that address and port of SSH, as the inventory names it; empty when it does not."""
        for name, settings in self.platform.settings.items():
            there = getattr(settings, "host", None) if issubclass(kind(settings.kind), Machine) else None
            if there and (there.address, there.ssh.port) == (address, port):
                return name
        return ""

    def _fails_at(self, name: str) -> str:
        """Which checks of its own service a system of another service does not pass now; empty when it does its work,
        or is of this service: that was proven before anything is started on it.
        """
        if name in self.service.systems:
            return ""
        theirs = [check for service in self.platform.in_order() for check in service.checks if check.system == name]
        wrong = [found.check for found in self.check_all(theirs, "live") if found.level is Level.FAIL]
        return "; ".join(f"{name}: {check}" for check in wrong)

    def broken_below(self, application: Application) -> str:
        """What is wrong with the data of other services that a program works on; empty when nothing is."""
        return "; ".join(filter(None, map(self._fails_at, application.uses)))

    @property
    def systems(self) -> list[Restorable]:
        """The systems that the service's data lives in."""
        return [system for system in map(self.system, self.service.systems) if isinstance(system, Restorable)]

    @property
    def own_applications(self) -> list[Application]:
        """The programs that are this service."""
        return [one for one in map(self.system, self.service.applications) if isinstance(one, Application)]

    @property
    def applications(self) -> list[Application]:
        """The programs to stop before the cutover and to start after it: the service's own, and whichever work on data
        that is swapped; each after those of the services that its own depends on.
        """
        swapped = {broken.system.name for broken in self.broken if broken.decision.way.arguments is not None}
        own = self.service.applications
        return [one for one in self.programs if one.name in own or swapped & set(one.uses)]

    @property
    def programs(self) -> list[Application]:
        """The programs of all services of the platform, each after those of the services that its own depends on."""
        names = [name for service in self.platform.in_order() for name in service.applications]
        return [one for one in map(self.system, dict.fromkeys(names)) if isinstance(one, Application)]

    @property
    def routes(self) -> list[Route]:
        """The routes that lead to the service."""
        return [route for route in map(self.system, self.service.routes) if isinstance(route, Route)]

    @cached_property
    def outbox(self) -> Outbox | None:
        """Where the service's messages go out, if it has such a place. A rehearsal has none: nobody is woken."""
        outbox = self.system(self.service.messages) if self.service.messages and self.runbook != "rehearsal" else None
        return outbox if isinstance(outbox, Outbox) else None

    def messages(self, moment: str) -> list[Change]:
        """The messages of `moment` that are still to be sent. Those that went out by the journal did, though an outbox
        may know only what was sent from its own machine.
        """
        unsent = self.outbox.messages(moment) if self.outbox else []
        return [message for message in unsent if self.outcomes.get(message.key) != "done"]

    @property
    def needs(self) -> Iterator[Service]:
        """The services that this one depends on, directly or not, the deepest first."""
        done: set[str] = set()

        def visit(service: Service) -> Iterator[Service]:
            for name in service.depends_on:
                if name not in done:
                    done.add(name)
                    yield from visit(self.platform.services[name])
                    yield self.platform.services[name]

        yield from visit(self.service)

    def waits(self, change: Change) -> bool:
        """Whether what comes after a change waits for it; a message goes out beside the others."""
        return self.system(change.system).verbs()[change.verb].waits

    def whole_wish(self, *, live_is_sound: bool = True) -> Wish:
        """What the operator wished, with the service's limits and what is known of the damage."""
        overrides = {**(self.wish.overrides or {}), **self.added}
        return replace(
            self.wish,
            damaged_at=self.failed_at,
            live_is_sound=live_is_sound,
            rpo=self.service.rpo,
            overrides=overrides or None,
        )

    @property
    def steps_of_two(self) -> tuple[str, ...]:
        """The steps that need a second person. A rehearsal has none: it touches nothing that is live."""
        rule = self.service.second_person
        return rule.steps if rule and self.runbook != "rehearsal" else ()

    # --- what it is like now -------------------------------------------------------------------------------------

    def observe(self, system: System) -> State:
        """What the system is like: one look a plan, so that a step sees one world; with what the plan would change so
        far.
        """
        if system.name in self._foreseen:
            return self._foreseen[system.name]
        if system.name not in self._seen:
            self._seen[system.name] = clock.monotonic(), system.observe()
        return self._seen[system.name][1]

    @property
    def kept(self) -> list[tuple[Restorable, Kept]]:
        """What this incident replaced, which is there until it is discarded."""
        every = [(system, kept) for system in self.systems for kept in self.observe(system).kept]
        return [(system, kept) for system, kept in every if kept.incident == self.id]

    def observe_all(self, systems: Iterable[System]) -> None:
        """Look at these systems side by side, so that each that does not answer costs its deadline only once."""
        unseen = {system.name: system for system in systems if system.name not in self._seen}
        if not unseen:
            return
        begun = clock.monotonic()
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="look") as pool:
            states = pool.map(lambda system: system.observe(), unseen.values())
            self._seen.update({name: (begun, state) for name, state in zip(unseen, states, strict=True)})

    def look_again(self, *, since: float = 0.0) -> None:
        """Forget what was foreseen, and what was seen more than `since` seconds ago: the next `observe` looks at the
        world.
        """
        oldest = clock.monotonic() - since
        self._seen = {name: seen for name, seen in self._seen.items() if since and seen[0] >= oldest}
        self._foreseen.clear()
        self.to_halt.clear()

    def foresee(self, change: Change) -> None:
        """Let `observe` answer as if `change` were done, so that the rest of a chain can be planned."""
        system = self.system(change.system)
        state = self.observe(system)
        if change.verb == "promote" and change.system in self.decisions:
            way = self.decisions[change.system].way
            state = replace(
                state,
                reachable=Reachable.UP,
                writable=True,
                identity=way.identity or FORECAST,
                origin=self.id,
                address=way.address or state.address,
                staged=tuple(staged for staged in state.staged if staged.name != way.stage),
            )
        else:
            state = system.forecast(state, change)
            if change.verb == "stop" and isinstance(system, Application):
                self.to_halt.add(system.name)
        self._foreseen[change.system] = state

    def is_down_after(self, change: Change) -> bool:
        """Whether a program that was started does not run."""
        system = self.system(change.system)
        is_start = isinstance(system, Application) and change.verb == "start"
        return is_start and self.observe(system).reachable is Reachable.DOWN

    def depends(self, system: str, on: str) -> bool:
        """Whether `system` must wait for `on`: a route waits for what it leads to, a program for those of the services
        that its own depends on.
        """
        needs = (*self.system(system).depends_on, *self.platform.applications_before(system))
        return on in needs or any(self.depends(need, on) for need in needs if need != system)

    # --- what was decided ----------------------------------------------------------------------------------------

    @property
    def broken(self) -> list[Broken]:
        """What `assess` pinned, in the order of the service's systems."""
        return [Broken(system, self.decisions[system.name]) for system in self.systems if system.name in self.decisions]

    def ways_before_damage(self, broken: Broken) -> list[WayBack]:
        """The ways back to before the damage, those that are open first; none when it is not known when that began, or
        the first is the one that is pinned.
        """
        if not self.failed_at:
            return []
        ways = sorted(broken.system.ways_back(self.whole_wish(live_is_sound=False)), key=lambda way: not way.possible)
        pinned = broken.decision.way
        is_another = ways and ways[0].possible and (ways[0].name, ways[0].arguments) != (pinned.name, pinned.arguments)
        return ways if is_another else []

    # --- what its checks say -------------------------------------------------------------------------------------

    def checks_of(self, system: str | None) -> list[Check]:
        """The service's checks of one system's data; with None, those of no system: they go through the routes."""
        return [check for check in self.service.checks if check.system == system]

    def check(self, check: Check, where: str, evidence: str = "") -> Finding:
        """Run one of the service's checks: `live`, a stage's name, or `route`."""

        def ask(statement: str, place: str) -> Any:
            system = self.system(check.system or "")
            assert isinstance(system, Restorable)
            return system.ask(statement, self._through_the_route(system) if place == "route" else place)

        finding = checks.run(check, ask=ask, where=where)
        return replace(finding, evidence=evidence)

    def check_all(self, questions: Iterable[Check], where: str, evidence: str = "") -> list[Finding]:
        """Run checks side by side; what they found, in the order of the checks."""
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="check") as pool:
            return list(pool.map(lambda check: self.check(check, where, evidence), questions))

    def _through_the_route(self, system: System) -> str:
        """Where the users of a system are led: the address that its route answers, else what is live."""
        for route in self.routes:
            address = self.observe(route).address if route.leads_to == system.name else None
            if address:
                return f"address:{address}"
        return "live"

    # --- what is told of it --------------------------------------------------------------------------------------

    def facts(self) -> Mapping[str, Any]:
        """The incident's figures for the texts of messages; plain text, times in ISO 8601 UTC."""
        broken = [f"{name}: {decision.seen}" for name, decision in self.decisions.items()]
        ways = sorted({decision.way.name for decision in self.decisions.values()})
        read = self.platform.status.services.get(self.service.name)  # what customers read on the status page
        return {
            "incident": self.id,
            "platform": self.platform.name,
            "service": self.service.name,
            "title": self.service.title or self.service.name,
            "title_en": read.en if read else None,
            "title_ko": read.ko if read else None,
            "operator": self.operator,
            "purpose": self.purpose,
            "broken": "; ".join(broken),
            "way": ", ".join(ways),
            "detected_at": clock.write_time(self.detected_at),
            "failed_at": clock.write_time(self.failed_at) if self.failed_at else None,
            "rto_target": clock.write_duration(self.service.rto),
            "rpo_target": clock.write_duration(self.service.rpo),
            "error": self.error or None,
            "plan": self.asked or None,
            **{
                name: clock.write_duration(value) if isinstance(value, float) else value
                for name, value in self.measured.items()  # a copy for each change: messages read it in other threads
            },
        }

    def opening(self) -> dict[str, Any]:
        """The data of the journal's first line, from which the incident is made again."""
        return {
            "incident": self.id,
            "platform": self.platform.name,
            "service": self.service.name,
            "title": self.service.title or self.service.name,
            "purpose": self.purpose,
            "scenario": self.scenario,
            "runbook": self.runbook,
            "systems": list(self.service.systems),
            "wish": self.wish.to_json(),
            "detected_at": clock.write_time(self.detected_at),
            "failed_at": clock.write_time(self.failed_at) if self.failed_at else None,
            "targets": {"rto": self.service.rto, "rpo": self.service.rpo},
        }

"""A machine of the platform: what it says of itself, its services, and a fence around it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, IPvAnyNetwork

from salvor.change import UNSEEN, Reachable, State
from salvor.errors import CannotError, OutcomeUnknownError, SalvorError
from salvor.host import facts, fence, health, once, services
from salvor.host.facts import Facts
from salvor.host.services import Service
from salvor.on_a_machine import OnAMachine, OnAMachineSettings
from salvor.roles import Machine
from salvor.ssh.host import refuses
from salvor.system import Context, verb

_LOOKING = 8.0
_WHO_SECONDS = 3.0


def _check_service(name: str) -> str:
    if not services.NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a service")
    return name


class HostSettings(OnAMachineSettings):
    """A machine as the inventory describes it. `address`: empty for this one. `run_as`: who commands run as there; a
    fence, and most services, need root. `management`: the networks from which it stays reachable when it is fenced,
    besides the address that we come from. `services`: those that are to run.
    """

    kind: Literal["host"]
    management: tuple[IPvAnyNetwork, ...] = ()
    services: tuple[Annotated[str, AfterValidator(_check_service)], ...] = ()


class Host(OnAMachine, Machine):
    """One machine, reached over SSH; or this one."""

    Settings = HostSettings
    settings: HostSettings

    def __init__(self, name: str, settings: Any, context: Context) -> None:
        super().__init__(name, settings, context)
        self._first_look: health.Look | None = None

    def look(self) -> Facts:
        """What it says of itself. Raises CannotError, or OutcomeUnknownError."""
        return facts.ask(self.shell, self.settings.services, deadline=_LOOKING)

    def is_cut_off(self) -> bool:
        """Whether the fence is known to stand, and to be kept."""
        try:
            return facts.who(self.shell, deadline=_WHO_SECONDS)[1].open is False
        except SalvorError:
            return False

    def service(self, name: str, action: str = "") -> Service:
        """How a service is there, named by the inventory or not. Raises CannotError when the machine is not reached, or
        when nothing there could take that action (start, stop, restart).
        """
        if action:
            return services.see_surely(self.shell, name, action=action)
        return services.see(self.shell, name)

    def observe(self) -> State:
        """One look, in one command. Refused is down; everything else that keeps us from it is unknown."""
        address = self.settings.address or None
        try:
            seen = self.look()
        except OutcomeUnknownError as error:
            return self._who_at_least(error.what)
        except SalvorError as error:
            reachable = Reachable.DOWN if refuses(error) else Reachable.UNKNOWN
            return State(reachable, UNSEEN, None, error.what, address=address)
        earlier = [self._first_look] if self._first_look else []
        self._first_look = self._first_look or health.look(seen)
        wrong = health.findings(self.name, seen, earlier)
        told = "; ".join(f"{one.check} {one.figure}" for one in wrong) or "nothing is wrong with it"
        return State(
            Reachable.UP,
            _identity(seen.machine),
            seen.fence.open,
            f"{address or 'this machine'}: {told}",
            address=address,
            details={**asdict(seen), "findings": [one.to_json() for one in wrong]},
        )

    def _who_at_least(self, why: str) -> State:
        """Which machine it is and whether it is fenced: a dead disk keeps it from saying more, and not from that."""
        address = self.settings.address or None
        try:
            machine, seen = facts.who(self.shell, deadline=_WHO_SECONDS)
        except SalvorError:
            return State(Reachable.UNKNOWN, UNSEEN, None, why, address=address)
        told = f"{address or 'this machine'}: it lets us in, and does not say how it is: {why}"
        return State(
            Reachable.UNKNOWN, _identity(machine), seen.open, told, address=address, details={"fence": asdict(seen)}
        )

    def _checked(self, identity: str) -> fence.Seen:
        machine, seen = facts.who(self.shell, deadline=_LOOKING)
        if _identity(machine) != identity:
            raise CannotError(
                f"{self.name}: at {self.settings.address or 'this place'} is another machine now: "
                f"{_identity(machine)}, not {identity}.",
                safe="nothing was changed",
                hint="inv hosts",
            )
        return seen

    @verb(deadline=120)
    def fence(self, identity: str) -> None:
        """Cut it off from everybody but its operator, in and out, also after a reboot. Raises CannotError."""
        route = self.settings.host.route
        login = route.host.user if route else ""
        fence.raise_it(self.shell, self._checked(identity), self.settings.management, login)

    @verb(deadline=120)
    def unfence(self, identity: str) -> None:
        """Take the fence away. Raises CannotError."""
        self._checked(identity)
        fence.lift(self.shell)

    @verb(deadline=180)
    def start(self, service: str) -> None:
        """Start a service, unless it runs. Raises CannotError, or NotConvergedError when it does not stay up."""
        services.act(self.shell, service, "start", deadline=90.0)

    @verb(deadline=180)
    def stop(self, service: str) -> None:
        """Stop a service, if it runs. Raises CannotError, or NotConvergedError when it goes on."""
        services.act(self.shell, service, "stop", deadline=90.0)

    @verb(deadline=180)
    def restart(self, service: str, run: str) -> None:
        """Restart a service whose run is `run` (as `Service.run` says; empty: it is not known). Another run is a
        restart that was made already. Raises CannotError, or NotConvergedError when it does not stay up.
        """
        now = self.service(service)
        if not (run and now.runs and now.run != run):
            services.act(self.shell, service, "restart", deadline=90.0)

    @verb(deadline=3700, destructive=True)
    def execute(self, command: list[str], occasion: str, deadline: float) -> None:
        """Run a command there, once for an `occasion` (letters, digits, hyphens), within `deadline` seconds. Raises
        CommandError when it fails, OutcomeUnknownError when it was begun and nobody saw its end: it is not run again.
        """
        once.run(self.shell, command, occasion, deadline=deadline)


def _identity(machine: str) -> str:
    return f"machine {machine}"

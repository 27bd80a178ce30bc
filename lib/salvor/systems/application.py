"""A program that users reach: it runs on a machine under systemd, supervisor, pm2 or a script of sysvinit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from salvor import checks, clock
from salvor.change import UNSEEN, Finding, Level, Reachable, State
from salvor.checks import Check
from salvor.errors import CannotError, NotConvergedError, OutcomeUnknownError, SalvorError
from salvor.host import instances, releases, services
from salvor.host.releases import Releases
from salvor.host.services import Service
from salvor.on_a_machine import OnAMachine, OnAMachineSettings
from salvor.roles import Application as Role
from salvor.system import Outcome, verb

_TURNING = 90.0
_BETWEEN_LOOKS = 0.2
_UP_BY_THEN = 1.0
"""Seconds after which a program that is not healthy has the data that it works on looked at."""


def _check_service(name: str) -> str:
    if not services.NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a service")
    return name


def _check_template(name: str) -> str:
    if name and not (services.NAME.fullmatch(name) and name.endswith("@")):
        raise ValueError(f"{name!r} is not the name of a template of systemd, such as shop@")
    return name


def _check_folder(path: str) -> str:
    if not path.startswith("/") or str(PurePosixPath(path)) != path or ".." in path.split("/") or "\0" in path:
        raise ValueError(f"{path!r} is not a folder's absolute path, written without . and ..")
    return path


class ApplicationSettings(OnAMachineSettings):
    """A program as the inventory describes it. `address` (empty: this machine), `ssh` and `run_as` say how its machine
    is reached, `service` what it is called there, `environment` where its manager is at home (PM2_HOME, PATH; never a
    secret), `uses` the systems whose data it works on. `healthy`: the check that it passes once it has started, within
    `starts_within` seconds. `template`: the template of systemd that is scaled (`shop@`); pm2 needs none.
    `releases`: the folder of its releases, with the link `current` beside it.
    """

    kind: Literal["application"]
    service: Annotated[str, AfterValidator(_check_service)]
    environment: Mapping[str, str] = {}
    uses: tuple[str, ...] = ()
    healthy: Check | None = None
    template: Annotated[str, AfterValidator(_check_template)] = ""
    releases: Annotated[str, AfterValidator(_check_folder)] | None = None
    starts_within: Annotated[float, BeforeValidator(clock.read_duration), Field(gt=0, le=600)] = 30.0

    @model_validator(mode="after")
    def _asks_no_data(self) -> ApplicationSettings:
        if self.healthy and self.healthy.system:
            raise ValueError("healthy asks the program itself: by http, tcp or a command")
        return self


class Application(OnAMachine, Role):
    """One program on one machine."""

    Settings = ApplicationSettings
    settings: ApplicationSettings

    def look(self) -> Service:
        """How its service is. Raises CannotError, or OutcomeUnknownError, when its machine cannot be asked."""
        return services.see(self.shell, self.settings.service, self.settings.environment)

    def instances(self) -> int:
        """How many instances of it run. Raises CannotError when that cannot be told."""
        return instances.count(self.shell, self._scaled, self.settings.environment)

    @property
    def _scaled(self) -> str:
        return self.settings.template or self.settings.service

    def deployed(self) -> Releases:
        """Its releases. Raises CannotError."""
        return releases.look(self.shell, self._releases)

    @property
    def _releases(self) -> str:
        if not self.settings.releases:
            raise CannotError(f"{self.name} has no releases.", hint=f"add releases: FOLDER to {self.name}")
        return self.settings.releases

    def observe(self) -> State:
        """Whether it runs. What we cannot ask is unknown; that nothing of its name is there is down."""
        address = self.settings.address or None
        try:
            seen = self.look()
        except SalvorError as error:
            return State(Reachable.UNKNOWN, UNSEEN, None, error.what, address=address)
        reachable = {"running": Reachable.UP, "starting": Reachable.UP, "unknown": Reachable.UNKNOWN}
        said = f"{seen.name} is {seen.state}" if seen.state != "unknown" else f"whether {seen.name} runs cannot be told"
        by = f"{seen.manager} {seen.line}" if seen.silent else seen.manager
        summary = said + (f" ({by})" if seen.manager != "none" else "")
        return State(
            reachable.get(seen.state, Reachable.DOWN),
            f"{seen.name} of {seen.manager}" if seen.manager != "none" else "absent",
            None,
            summary,
            address=address,
            details={"state": seen.state, "run": seen.run},
        )

    @verb(deadline=180)
    def start(self, await_health: bool = True) -> Outcome:
        """Start it, unless it runs, and wait until it is healthy. Raises CannotError, or NotConvergedError when it
        does not stay up; OutcomeUnknownError when it runs and is not healthy in time, or does not stay up while
        another service's data is broken that it works on: the checks of its service tell.
        """
        try:
            self._turn("start")
        except NotConvergedError as died:
            if not await_health:
                return iter([Finding(self.name, "runs", Level.WARN, "no", detail=died.what)])
            if lacks := self._lacks():
                what = f"{died.what.rstrip('.')}; what it works on is broken: {lacks}."
                raise OutcomeUnknownError(what, safe=died.safe, hint=died.hint) from died
            raise
        if await_health:
            try:
                self._wait_until_healthy()
            except NotConvergedError as late:
                raise OutcomeUnknownError(late.what, safe=late.safe, hint=late.hint) from late
        return None

    @verb(deadline=180)
    def stop(self) -> None:
        """Stop it, if it runs. Raises CannotError, or NotConvergedError when it goes on."""
        self._turn("stop")

    @verb(deadline=180)
    def restart(self, run: str) -> None:
        """Restart it if that run still goes on (empty: it is not known), and wait until it is healthy. Another run is a
        restart that was made already. Raises CannotError, or NotConvergedError.
        """
        now = self.look()
        if not (run and now.runs and now.run != run):
            self._turn("restart")
        self._wait_until_healthy()

    def _turn(self, action: str) -> None:
        said = self.settings
        services.act(self.shell, said.service, action, deadline=_TURNING, environment=said.environment)

    @verb(deadline=180)
    def scale(self, to: int) -> None:
        """Let so many instances of it run, by pm2 or of a template of systemd. Raises CannotError, or
        NotConvergedError.
        """
        environment = self.settings.environment
        instances.scale(self.shell, self._scaled, to, deadline=_TURNING, environment=environment)

    @verb(deadline=240)
    def roll_back(self, release: str, run: str) -> None:
        """Turn it to another release, then restart it as `restart` does. Raises CannotError, or NotConvergedError."""
        services.see_surely(self.shell, self.settings.service, self.settings.environment)  # else it could not follow
        releases.turn_to(self.shell, self._releases, release)
        self.restart(run)

    def _wait_until_healthy(self) -> None:
        """Raises NotConvergedError when it is not healthy in time, or cannot be: what it works on is broken."""
        began, check, lacks = clock.monotonic(), self.settings.healthy, None
        while check and (found := checks.run(check, ask=_nobody, where="live")).level is not Level.PASS:
            waited = clock.monotonic() - began
            if lacks is None and waited > _UP_BY_THEN:
                lacks = self._lacks()
            if lacks or waited > self.settings.starts_within:
                reading = services.last_words(self.look().manager, self.settings.service, self.settings.environment)
                why = f"; what it works on is broken, and not waited for: {lacks}" if lacks else ""
                raise NotConvergedError(
                    f"{self.name} was started and is not healthy after {clock.write_duration(waited)}: "
                    f"{found.figure} {found.detail}".rstrip()
                    + why,
                    safe="nothing else was changed",
                    hint=f"there: {reading}",
                )
            time.sleep(_BETWEEN_LOOKS)

    def _lacks(self) -> str:
        """What is wrong with the data of other services that it works on; empty when nothing is."""
        return "; ".join(filter(None, map(self.context.fails_at, self.settings.uses)))


def _nobody(statement: str, where: str) -> Any:
    raise NotImplementedError

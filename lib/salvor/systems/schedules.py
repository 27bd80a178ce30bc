"""What runs by itself on a machine for one platform: by systemd's timers, or by cron."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from salvor.change import UNSEEN, Reachable, State
from salvor.errors import CannotError, SalvorError
from salvor.roles import Timetable
from salvor.schedule.crontab import Crontab
from salvor.schedule.entry import Caller, Entry
from salvor.schedule.systemd import Systemd
from salvor.shell import OnDemand, Shell
from salvor.ssh.host import Host
from salvor.ssh.settings import Address, SshSettings
from salvor.system import Settings, verb

_CONNECTING = 5.0


class SchedulesSettings(Settings):
    """Made from `schedules:` of the inventory. `address`: the machine on which they run; empty: this one."""

    kind: Literal["schedules"]
    caller: Caller
    address: Address | Literal[""] = ""
    ssh: SshSettings = SshSettings()


class Schedules(Timetable):
    """What is installed, and the verbs that change it."""

    Settings = SchedulesSettings
    settings: SchedulesSettings

    @cached_property
    def shell(self) -> Shell:
        """Where they run."""
        address, way = self.settings.address, Host(self.settings.address, self.settings.ssh)
        return OnDemand(address or "this machine", lambda: way.open(_CONNECTING))

    @cached_property
    def scheduler(self) -> Systemd | Crontab:
        """What begins them. Raises CannotError when the machine has neither."""
        for each in (Systemd, Crontab):
            if each.runs(self.shell):
                return each(self.shell, self.settings.caller)
        raise CannotError(
            f"Neither systemd nor cron is on {self.shell.where}.",
            safe="nothing was changed",
            hint="apt-get install cron; or let something else run what schedules: of the inventory names",
        )

    def installed(self) -> dict[str, Entry]:
        """What is installed for the platform, by name. Raises CannotError when that cannot be seen."""
        return self.scheduler.installed()

    def observe(self) -> State:
        """What begins them, and how many there are."""
        try:
            found = self.installed()
        except SalvorError as error:
            return State(Reachable.UNKNOWN, UNSEEN, None, error.what)
        return State(Reachable.UP, self.scheduler.name, None, f"{len(found)} run by {self.scheduler.name}")

    @verb(deadline=120.0)
    def install(self, name: str, at: str, run: list[str]) -> None:
        """Let `inv` run with the words `run` at `at`, instead of what the name did before."""
        self.scheduler.put(name, at, run)

    @verb(deadline=120.0)
    def remove(self, name: str) -> None:
        """Let it run no more."""
        self.scheduler.remove(name)

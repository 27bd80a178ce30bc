"""What all kinds share whose systems are on a machine: how the inventory says where, and the shell that works there."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from salvor import shell
from salvor.shell import Shell
from salvor.ssh.host import Host
from salvor.ssh.settings import Address, SshSettings, User
from salvor.system import Settings, System

_CONNECTING = 5.0


class OnAMachineSettings(Settings):
    """`address`: empty for this machine. `run_as`: who commands run as there."""

    address: Address | Literal[""] = ""
    ssh: SshSettings = SshSettings()
    run_as: User | None = None

    @property
    def host(self) -> Host:
        """How it is reached."""
        return Host(self.address, self.ssh, self.run_as)


class OnAMachine(System):
    """A system on one machine, reached over SSH; or on this one."""

    settings: OnAMachineSettings

    @property
    def address(self) -> str | None:
        """Its machine's address; None: this one."""
        return self.settings.address or None

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.shell.remarks

    @cached_property
    def shell(self) -> Shell:
        """Where it is. A machine that is silent is asked once in a while, not by everybody again."""
        return shell.OnDemand(self.address or "this machine", lambda: self.settings.host.open(_CONNECTING))

"""A host of the inventory: where it is, how it is reached, and as whom commands run there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from salvor import shell, ssh
from salvor.errors import SalvorError
from salvor.shell import Shell
from salvor.ssh.remote import Remote
from salvor.ssh.route import Route, plan
from salvor.ssh.settings import SshSettings


def refuses(error: SalvorError) -> bool:
    """Whether the machine itself refused the connection, so that it is down: of one on the way there that does, and of
    every other error, nothing follows for it.
    """
    return "Connection refused" in error.what and ", on the way to " not in error.what


@dataclass(frozen=True)
class Host:
    """A machine at `address` (empty: this one), where commands run as `run_as` (None: as who we are there)."""

    address: str
    ssh: SshSettings = field(default_factory=SshSettings)
    run_as: str | None = None

    @property
    def route(self) -> Route | None:
        """The way there; None when it is this machine. Raises as `open` does."""
        return plan(self.address, self.ssh) if self.address else None

    def open(self, deadline: float = 10.0) -> Shell:
        """A shell there; the connection is kept for the next one who asks. Raises CannotError when it cannot be
        reached within `deadline` seconds, or is not who it should be.
        """
        if not self.address:
            return shell.local(self.run_as)
        return shell.connect(self.address, run_as=self.run_as, deadline=deadline, settings=self.ssh)

    @contextmanager
    def opened(
        self, deadline: float = 10.0, line: socket.socket | None = None, route: Route | None = None
    ) -> Iterator[Shell]:
        """A shell there for the block; its connection is closed with it, unless one is kept already. `line` is a TCP
        connection to the first machine on the way (`route`) that stands already.
        """
        way = route or self.route
        if way is None or ssh.is_open(way):
            yield self.open(deadline)
            return
        link = ssh.new_link(way, deadline, line)
        try:
            yield Remote(self.address, lambda: link, self.run_as, self.ssh.sudo_password)
        finally:
            link.close()

"""A host of the inventory: where it is, how it is reached, and as whom commands run there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from salvor import shell
from salvor.shell import Shell
from salvor.ssh.settings import SshSettings


@dataclass(frozen=True)
class Host:
    """A machine at `address` (empty: this one), where commands run as `run_as` (None: as who we are there)."""

    address: str
    ssh: SshSettings = field(default_factory=SshSettings)
    run_as: str | None = None

    def open(self, deadline: float = 10.0) -> Shell:
        """A shell there; the connection is kept for the next one who asks. Raises CannotError when it cannot be
        reached within `deadline` seconds, or is not who it should be.
        """
        if not self.address:
            return shell.local(self.run_as)
        return shell.connect(
            self.address, user=self.ssh.user, port=self.ssh.port or 22, run_as=self.run_as, deadline=deadline
        )

    @contextmanager
    def opened(self, deadline: float = 10.0) -> Iterator[Shell]:
        """A shell there for the block; its connection is closed with it, unless it was open before."""
        yield self.open(deadline)

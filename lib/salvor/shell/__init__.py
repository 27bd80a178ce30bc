"""Commands and files on this machine or on a host over SSH, the same way: argv lists, a deadline on every call,
masked errors.

Everything that is sent to a host is POSIX sh, quoted in one place (`salvor.ssh.envelope`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salvor.shell.anywhere import Result, Shell
from salvor.shell.here import local, plain_environment
from salvor.shell.on_demand import OnDemand

if TYPE_CHECKING:
    from salvor.ssh.settings import SshSettings

__all__ = ["OnDemand", "Result", "Shell", "connect", "local", "plain_environment"]


def connect(
    host: str,
    *,
    user: str | None = None,
    port: int | None = None,
    run_as: str | None = None,
    deadline: float = 10.0,
    settings: SshSettings | None = None,
) -> Shell:
    """A host over SSH, reached as `settings` says (`user` and `port` overrule it), its key checked, always: an unknown
    or changed key is an error, never accepted. The connection is kept for the next one who asks in this process.

    Commands run as `run_as` (None: as who we are there): by sudo, or by su where we are root. Raises CannotError when
    it cannot be reached within `deadline` seconds, or is not who it should be.
    """
    from salvor import ssh

    return ssh.connect(host, user=user, port=port, run_as=run_as, deadline=deadline, settings=settings)

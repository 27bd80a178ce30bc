"""Commands and files on this machine."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath

from salvor import secrets
from salvor.errors import CannotError
from salvor.running import Command, Running, RunningHere, sudo_refuses
from salvor.shell.anywhere import Shell


def local(user: str | None = None) -> Shell:
    """This machine, as `user` (None, or our own name: as we are). Another user needs root, or sudo without a
    password. Raises CannotError when there is no such user.
    """
    if not user:
        return Local("this machine")
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise CannotError(f"There is no user {user!r} on this machine.", hint="getent passwd lists them") from None
    return Local("this machine", None if account.pw_uid == os.geteuid() else user)


class Local(Shell):
    """See `local`."""

    def _start(self, command: Command) -> Running:
        argv, environment = command.argv, command.environment
        known = {**(_environment_of(self.user) if self.user else plain_environment()), **environment}
        by_sudo = bool(self.user) and os.geteuid() != 0
        if not by_sudo and not shutil.which(argv[0], path=known.get("PATH")):
            why = FileNotFoundError(errno.ENOENT, "it is not there, or not a program")
            raise _not_there(argv, str(why.strerror)) from why
        try:
            # A session of its own, so that the deadline ends all that the command started. Every user may enter `/`.
            process = subprocess.Popen(
                [*self._prefix(environment), *argv],
                stdin=subprocess.PIPE if command.stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=known,
                cwd=command.folder or "/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a null byte
            if command.folder and getattr(error, "filename", None) == command.folder:
                raise CannotError(
                    f"{PurePosixPath(argv[0]).name} cannot be started in {command.folder}: {error.strerror}.",  # type: ignore[union-attr]
                    hint=f"ls -ld {shlex.quote(command.folder)}",
                ) from error
            if by_sudo and self.user and getattr(error, "filename", None) == "sudo":
                raise sudo_refuses(self.user, "sudo is not installed") from error
            raise _not_there(argv, getattr(error, "strerror", None) or str(error)) from error
        running = RunningHere(process, self.user if by_sudo else None, binary=command.binary)
        running.begin(command.stdin)
        return running

    def _prefix(self, environment: Mapping[str, str]) -> list[str]:
        """What runs the command as its user, and lets it die with us: after a crash, nothing goes on unseen."""
        if self.user and os.geteuid() != 0:
            names = ",".join(environment)
            return ["sudo", "-n", *([f"--preserve-env={names}"] if names else []), "-u", self.user, "--"]
        who = []
        if self.user:
            account = pwd.getpwnam(self.user)
            who = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"]
        return ["setpriv", "--pdeathsig=KILL", *who, "--"] if who or _has_setpriv() else []


def _not_there(argv: Sequence[str], why: str) -> CannotError:
    return CannotError(
        f"{PurePosixPath(argv[0]).name} cannot be started on this machine: {why}.",
        hint=f"is it installed? command -v {shlex.quote(argv[0])}",
    )


@cache
def _has_setpriv() -> bool:
    return shutil.which("setpriv") is not None


def plain_environment() -> dict[str, str]:
    """Our environment without what would change a tool's output (language) or hand it secrets (PG*, what we know)."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_", "LANG", "PGBACKREST_")) and not secrets.is_known(value)
    }
    return {**kept, "LC_ALL": "C.UTF-8"}


def _environment_of(user: str) -> dict[str, str]:
    """What another user gets: nothing of ours but the way to the programs."""
    account = pwd.getpwnam(user)
    ours = {name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ}
    who = {"HOME": account.pw_dir, "USER": user, "LOGNAME": user, "SHELL": account.pw_shell}
    return {**ours, **who, "LC_ALL": "C.UTF-8"}

"""A cache that may be emptied: the files below a directory of a machine, or one database of a Redis server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor import secrets
from salvor.change import UNSEEN, Reachable, State
from salvor.errors import CannotError, CommandError, NotConvergedError, SalvorError
from salvor.host import PATH
from salvor.on_a_machine import OnAMachine, OnAMachineSettings
from salvor.roles import Cache as Role
from salvor.secrets import SecretReference
from salvor.ssh.host import refuses
from salvor.ssh.settings import Address
from salvor.system import verb

_LOOKING = 8.0
_CLEARING = 90.0
_SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"}
_SHARED = {f"/var/{name}" for name in ("backups", "lib", "local", "log", "mail", "opt", "run", "spool", "tmp", "www")}
_MARK = "salvor:cleared"
_MARK_SECONDS = 86400
_REFUSED = re.compile(r"(NOAUTH|WRONGPASS|NOPERM|ERR|LOADING|MASTERDOWN) ")

# find -xdev stops at another disk alone: it goes into a folder of the same disk that is mounted below.
_ENTER = r"""
[ -d "$1" ] || exit 44
cd -P -- "$1" && [ "$(pwd -P)" = "$1" ] || exit 45
below=$(printf %s/ "$1" | sed 's/\\/\\134/g; s/ /\\040/g') disk=$(stat -c %d .)
BELOW=$below awk 'index($5, ENVIRON["BELOW"]) == 1 { gsub("%", "%%", $5); print $5 }' /proc/self/mountinfo |
    while read -r mounted; do [ "$(stat -c %d -- "$(printf "$mounted")")" != "$disk" ] || exit 46; done || exit 46
"""
_LOOK = rf"""{_ENTER}
echo "$(date -u +%s) $(find . -xdev \( -type f -o -type l \) -print0 | tr -dc '\000' | wc -c) $(ls -di . | tr -dc 0-9)"
"""
# Directories stay: whoever writes into them need not make them again. -delete follows no link, also not one that is
# put in the place of a directory meanwhile.
_CLEAR = rf"""{_ENTER}
umask 077
mark=$(mktemp) || exit 1
trap 'rm -f -- "$mark"' EXIT
touch -d "@$2" "$mark" || exit 1
find . -xdev \( -type f -o -type l \) ! -newer "$mark" -delete
find . -xdev \( -type f -o -type l \) ! -newer "$mark" -print0 | tr -dc '\000' | wc -c
find . -xdev -type d -exec sh -c '
    for one; do [ ! -d "$one" ] || {{ [ -r "$one" ] && [ -x "$one" ]; }} || echo; done' sh {{}} + | wc -l
"""
_WRONG = {
    44: ("is no directory there", "mend path:"),
    45: ("is reached by a link; write the path that it leads to", "mend path:"),
    46: (
        "has another folder of its disk mounted below it: its files would go",
        "findmnt shows it; unmount it, or mend path:",
    ),
}


def _check_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or str(PurePosixPath(path)) != path or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is not a directory's absolute path, written without . and ..")
    in_memory = parts[1:3] == ("dev", "shm")
    least = 4 if in_memory or parts[1:2] in (("home",), ("root",)) else 3
    if len(parts) < least or (parts[1] in _SYSTEM and not in_memory) or path in _SHARED:
        raise ValueError(f"{path!r} holds more than a cache; name the directory of the cache alone")
    return path


class RedisSettings(BaseModel):
    """A Redis server as its machine reaches it, and which of its databases is nothing but a cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Address = "127.0.0.1"
    port: int = Field(default=6379, ge=1, le=65535)
    database: int = Field(ge=0, le=65535)
    user: str | None = None
    password: SecretReference | None = None


class CacheSettings(OnAMachineSettings):
    """A cache as the inventory describes it: a `path`, or a database of `redis`. `address` (empty: this machine), `ssh`
    and `run_as` say how its machine is reached; redis-cli runs there.
    """

    kind: Literal["cache"]
    path: Annotated[str, AfterValidator(_check_path)] | None = None
    redis: RedisSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> CacheSettings:
        if (self.path is None) == (self.redis is None):
            raise ValueError("a cache is one of path and redis")
        return self


class Cache(OnAMachine, Role):
    """One cache on one machine."""

    Settings = CacheSettings
    settings: CacheSettings

    def observe(self) -> State:
        """How much is in it. Refused is down; what else keeps us from it is unknown."""
        try:
            now, entries, identity = self._look()
        except SalvorError as error:
            reachable = Reachable.DOWN if refuses(error) else Reachable.UNKNOWN
            return State(reachable, UNSEEN, None, error.what, address=self.settings.address or None)
        what = "files" if self.settings.path else "keys"
        details = {"now": now, "entries": entries}
        address = self.settings.address or None
        return State(Reachable.UP, identity, True, f"{self._place}: {entries} {what}", address=address, details=details)

    @property
    def _place(self) -> str:
        redis = self.settings.redis
        return f"Redis {redis.host}:{redis.port}/{redis.database}" if redis else str(self.settings.path)

    def _look(self) -> tuple[int, int, str]:
        """The time there (seconds since 1970), how much there is, and its identity. Raises SalvorError."""
        if self.settings.path:
            now, entries, inode = self._in_path(_LOOK, deadline=_LOOKING).split()
            return int(now), int(entries), f"inode {inode}"
        said = self._ask_redis(["TIME", "DBSIZE", "INFO server"], deadline=_LOOKING)
        run = next((line[7:] for line in said if line.startswith("run_id:")), "")
        return int(said[0]), int(said[2]), f"run {run}"

    @verb(deadline=120, destructive=True)
    def clear(self, before: int) -> None:
        """Empty it of what was in it at the time `before` (its machine's seconds since 1970). Redis: of all that is in
        the database, unless it was cleared for this `before`. Raises CannotError, or NotConvergedError.
        """
        if self.settings.path:
            left, closed = map(int, self._in_path(_CLEAR, str(before), deadline=_CLEARING).split())
            if left or closed:
                raise NotConvergedError(
                    f"{self.name}: files in {self.settings.path} that could not be removed: {left}; directories that "
                    f"could not be looked into: {closed}.",
                    safe="nothing else was removed",
                    hint=f"ls -la {self.settings.path}; does run_as own them?",
                )
        elif self._mark() != str(before):
            # The mark comes with the flush or not at all, so that a second call finds the work done.
            mark = f"SET {_MARK} {before} EX {_MARK_SECONDS}"
            said = self._ask_redis(["MULTI", "FLUSHDB ASYNC", mark, "EXEC"], deadline=_CLEARING)
            if self._mark() != str(before):
                raise NotConvergedError(
                    f"{self.name}: {self._place} was not cleared: {'; '.join(filter(None, said))}",
                    safe="nothing was removed",
                    hint="may this user FLUSHDB there, and is it no replica?",
                )

    def _mark(self) -> str:
        """What the database was cleared for last. Asked before it is cleared, too: it refuses a wrong database."""
        return self._ask_redis(["PING", f"GET {_MARK}"], deadline=_LOOKING)[1]

    def _in_path(self, script: str, *arguments: str, deadline: float) -> str:
        assert self.settings.path
        try:
            command = ["sh", "-c", PATH + script, "sh", self.settings.path, *arguments]
            return self.shell.run(command, deadline=deadline).stdout
        except CommandError as error:
            wrong = _WRONG.get(error.exit_code_of_command)
            if not wrong:
                raise
            what, mend = wrong
            raise CannotError(
                f"{self.name}: {self.settings.path} {what}.", safe="nothing was removed", hint=mend
            ) from error

    def _ask_redis(self, commands: Sequence[str], *, deadline: float) -> list[str]:
        """What redis-cli prints for these commands, a line each at least. Raises CannotError when Redis refuses."""
        redis = self.settings.redis
        assert redis
        place = ["-h", redis.host, "-p", str(redis.port), "-n", str(redis.database)]
        user = ["--user", redis.user] if redis.user else []
        environment = {"REDISCLI_AUTH": secrets.resolve(redis.password)} if redis.password else {}
        text = "".join(f"{command}\n" for command in commands).encode()
        command = ["redis-cli", *place, *user, "--no-auth-warning"]
        result = self.shell.run(command, input=text, environment=environment, deadline=deadline)
        # redis-cli ends with 0 whatever is refused, and where it cannot select a database it goes on in the first one.
        refused = result.stderr.strip() or ("" if result.stdout.strip() else "it says nothing")
        refused = refused or next(filter(_REFUSED.match, result.stdout.splitlines()), "")
        if refused:
            raise CannotError(
                f"{self.name}: {self._place} refuses: {refused}",
                safe="nothing was removed",
                hint="mend redis: {database, user, password}",
            )
        return result.stdout.splitlines()

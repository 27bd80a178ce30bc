"""The way to a host: each machine on it, with all that is known of how it lets us in, from the inventory first and then
from ~/.ssh/config, which is read once however many hosts there are.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from salvor.errors import CannotError, UsageError
from salvor.ssh import known
from salvor.ssh.known import Known
from salvor.ssh.settings import DoorSettings, SshSettings, check_address, check_user

_JUMP = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^]]+\]|[^:]+)(?::(?P<port>\d+))?")


@dataclass(frozen=True)
class Hop:
    """A machine on the way, or the host itself at its end. `host` is what is called, `keys` are files; those that were
    `named` have to be there.
    """

    host: str
    user: str
    port: int
    keys: tuple[str, ...]
    named: bool
    agent: bool
    passphrase: str | None
    password: str | None
    pinned: Known | None
    known_hosts: tuple[str, ...]
    legacy: bool

    @property
    def name(self) -> str:
        """`user@host:port`, for messages."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def known(self) -> Known:
        """The keys that it may show."""
        return self.pinned or known.look_up(self.host, self.port, self.known_hosts)


@dataclass(frozen=True)
class Route:
    """The machines on the way, the host last; `alias` is what the inventory calls it. `by_openssh`: the system's client
    has to go it.
    """

    alias: str
    hops: tuple[Hop, ...]
    by_openssh: bool

    @property
    def host(self) -> Hop:
        """Where it leads."""
        return self.hops[-1]


def plan(address: str, settings: SshSettings) -> Route:
    """The way to `address`. Raises CannotError when that is no address, UsageError for a jump of ~/.ssh/config that
    makes no sense.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise CannotError(f"{error}.", safe="nothing was called", hint="mend it in the inventory") from None
    said = _configured(address)
    jumps = [_hop(jump.address, jump, _configured(jump.address)) for jump in settings.jump]
    if not settings.jump and said.get("proxyjump", "none") != "none":
        jumps = [_jump(text.strip()) for text in str(said["proxyjump"]).split(",")]
    by_openssh = (
        settings.client == "openssh"
        or said.get("proxycommand", "none") != "none"
        or said.get("gssapiauthentication", "no") == "yes"
    )
    return Route(address, (*jumps, _hop(address, settings, said)), by_openssh)


def _jump(text: str) -> Hop:
    match = _JUMP.fullmatch(text.removeprefix("ssh://"))
    if not match:
        raise UsageError(f"~/.ssh/config: {text!r} in ProxyJump is no machine.", hint="write user@host:port")
    host = match["host"].strip("[]")
    door = SshSettings(user=match["user"], port=int(match["port"]) if match["port"] else None)
    return _hop(host, door, _configured(host))


def _hop(address: str, settings: DoorSettings, said: Mapping[str, Any]) -> Hop:
    home = Path.home() / ".ssh"
    files = str(said.get("userknownhostsfile", f"{home}/known_hosts {home}/known_hosts2")).split()
    keys = settings.keys or tuple(said.get("identityfile", ()))
    named = bool(settings.keys)
    if not keys:
        keys = tuple(str(home / name) for name in ("id_ed25519", "id_ecdsa", "id_rsa"))
    pinned = Known(tuple(known.parse(text) for text in settings.host_keys)) if settings.host_keys else None
    return Hop(
        host=_checked(str(said.get("hostname", address))),
        user=settings.user or check_user(str(said.get("user", getpass.getuser()))),
        port=settings.port or int(said.get("port", 22)),
        keys=tuple(str(Path(key).expanduser()) for key in keys),
        named=named,
        agent=settings.agent and said.get("identitiesonly", "no") != "yes",
        passphrase=settings.passphrase,
        password=settings.password,
        pinned=pinned,
        known_hosts=(*(str(Path(file).expanduser()) for file in files), known.GLOBAL),
        legacy=settings.legacy,
    )


def _checked(host: str) -> str:
    try:
        return check_address(host)
    except ValueError as error:
        raise UsageError(f"~/.ssh/config: {error}.", hint="mend its HostName") from None


def _configured(address: str) -> Mapping[str, Any]:
    """What ~/.ssh/config says of a host, keys in small letters."""
    path = Path.home() / ".ssh" / "config"
    try:
        status = path.stat()
    except OSError:
        return {}
    return dict(_parsed(str(path), status.st_mtime_ns, status.st_size).lookup(address))


@lru_cache(maxsize=4)
def _parsed(path: str, *_version: int) -> Any:
    from paramiko import SSHConfig
    from paramiko.ssh_exception import ConfigParseError

    try:
        return SSHConfig.from_text(_with_included(Path(path), depth=0))
    except (OSError, ConfigParseError) as error:
        hint = "ssh -G localhost reads it too, and may say more"
        raise UsageError(f"{path} cannot be read: {error}.", hint=hint) from error


def _with_included(path: Path, depth: int) -> str:
    """The text of a file with those that it includes, which paramiko does not read."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        keyword, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() != "include" or depth > 8:
            lines.append(line)
            continue
        for pattern in rest.split():
            whole = Path(pattern.strip('"')).expanduser()
            folder = Path.home() / ".ssh"
            found = sorted(Path("/").glob(str(whole)[1:]) if whole.is_absolute() else folder.glob(str(whole)))
            lines += [_with_included(file, depth + 1) for file in found]
    return "\n".join(lines)

"""How a host is reached over SSH, as the inventory describes it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor.secrets import SecretReference

_ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,254}|::[A-Za-z0-9_.:%-]{0,252}")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+\\-]{0,63}\$?")
_HOST_KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]{40,}=*")


def check_address(address: str) -> str:
    """`address`, a name or an IP address. Raises ValueError for what is neither, such as what a program could take for
    an option.
    """
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is neither a host's name nor an IP address")
    return address


def check_user(user: str) -> str:
    """`user`, an account's name. Raises ValueError for what is none."""
    if not _USER.fullmatch(user):
        raise ValueError(f"{user!r} is no user's name")
    return user


def _check_host_key(text: str) -> str:
    kind_and_key = " ".join(text.split()[:2])
    if not _HOST_KEY.fullmatch(kind_and_key):
        raise ValueError("a host key is written as in /etc/ssh/ssh_host_*_key.pub: ssh-ed25519 AAAA...")
    return kind_and_key


Address = Annotated[str, AfterValidator(check_address)]
User = Annotated[str, AfterValidator(check_user)]
HostKey = Annotated[str, AfterValidator(_check_host_key)]


class DoorSettings(BaseModel):
    """How one machine lets us in. What is not said comes from ~/.ssh/config, then from the defaults of OpenSSH.

    `host_keys` are the only ones accepted, if there are any; else known_hosts has them. `keys` are files; `passphrase`
    opens them. `legacy` opens the old algorithms that the host needs, and only these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: User | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    keys: tuple[str, ...] = ()
    passphrase: SecretReference | None = None
    password: SecretReference | None = None
    agent: bool = True
    host_keys: tuple[HostKey, ...] = ()
    legacy: bool = False


class JumpSettings(DoorSettings):
    """A machine on the way to the host."""

    address: Address


class SshSettings(DoorSettings):
    """How a host is reached. `jump`: the machines on the way, the nearest first. `sudo_password`: where sudo asks for
    one. `client`: openssh is the system's own `ssh`, for what paramiko cannot do: old algorithms (`legacy` chooses it),
    Kerberos, hardware keys, ProxyCommand, host certificates.
    """

    jump: tuple[JumpSettings, ...] = ()
    sudo_password: SecretReference | None = None
    client: Literal["paramiko", "openssh"] = "paramiko"

    @model_validator(mode="after")
    def _old_algorithms_need_openssh(self) -> SshSettings:
        if self.client == "paramiko" and (self.legacy or any(one.legacy for one in self.jump)):
            object.__setattr__(self, "client", "openssh")
        return self

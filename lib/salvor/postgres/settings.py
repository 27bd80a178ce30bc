"""What the inventory says of a PostgreSQL cluster: its servers, who connects, its repository and its dumps."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor.archive.settings import ArchivesSettings, FolderOrBucket
from salvor.backups.policy import BackedUpSettings
from salvor.secrets import SecretReference
from salvor.ssh.settings import SshSettings


def _check_path(path: str) -> str:
    if not path.startswith("/") or path.rstrip("/") in ("", "/") or "\n" in path or "'" in path:
        raise ValueError(f"{path!r} is not the absolute path of a folder (without quotes and newlines)")
    return path.rstrip("/")


Folder = Annotated[str, AfterValidator(_check_path)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberSettings(_Part):
    """One server: where it listens and where its data is. `host`: the machine it runs on, over SSH; empty: this one.

    `configuration` is the path of postgresql.conf when it lies outside the data directory, as on Debian.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    address: str = Field(min_length=1)
    port: int = Field(default=5432, ge=1, le=65535)
    data: Folder
    host: str = ""
    ssh: SshSettings = SshSettings()
    configuration: Folder | None = None


class OperatorSettings(_Part):
    """The superuser that Salvor connects as."""

    user: str
    password: SecretReference


class PgBackRestSettings(_Part):
    """The pgBackRest repository. `passphrase`: of an encrypted one, when its configuration does not hold it."""

    config: Folder = "/etc/pgbackrest/pgbackrest.conf"
    stanza: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    program: str = "pgbackrest"
    passphrase: SecretReference | None = None


class PostgresSettings(BackedUpSettings):
    """A cluster as the inventory describes it. Who is the primary is observed, never written."""

    database: str = Field(min_length=1, max_length=63)
    members: tuple[MemberSettings, ...] = Field(min_length=1)
    side_port: int = Field(ge=1, le=65535)
    programs: Folder
    run_as: str = ""
    operator: OperatorSettings
    pgbackrest: PgBackRestSettings | None = None
    dumps: FolderOrBucket = ""
    archives: ArchivesSettings | None = None
    start: tuple[str, ...] | None = None
    stop: tuple[str, ...] | None = None

    @property
    def places(self) -> frozenset[str]:
        """The data directories of its cluster, in which other databases may be systems of their own."""
        return frozenset(f"{member.host}:{member.data}" for member in self.members)

    @model_validator(mode="after")
    def _members_differ(self) -> PostgresSettings:
        for name, values in (
            ("name", [member.name for member in self.members]),
            ("address and port", [(member.address, member.port) for member in self.members]),
            ("host and data", [(member.host, member.data) for member in self.members]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"two members have the same {name}")
        if any(member.port == self.side_port for member in self.members):
            raise ValueError("side_port is the port of a member; the stage needs one of its own")
        return self

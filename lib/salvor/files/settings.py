"""A tree of files and its repositories, as the inventory describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor.archive.settings import ArchivesSettings
from salvor.backups.policy import BackedUpSettings, Keep
from salvor.files import locations
from salvor.on_a_machine import OnAMachineSettings
from salvor.secrets import SecretReference
from salvor.ssh.settings import DoorSettings


def _check_path(path: str) -> str:
    parts = path.split("/")
    if not path.startswith("/") or {"", ".", ".."} & set(parts[1:]) or not path.isprintable():
        raise ValueError(f"{path!r} is not the absolute path of a folder or file, without . and .. in it")
    return path


class RepositorySettings(BaseModel):
    """A restic repository, as the tree's host reaches it. `environment`: what the storage's client asks for. `ssh`: how
    a repository of sftp lets that host in; what is not said comes from its ~/.ssh. `keep`: a policy of its own, for one
    with less room than the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    location: Annotated[str, AfterValidator(locations.check)]
    password: SecretReference
    environment: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = {}
    ssh: DoorSettings = DoorSettings()
    keep: Keep | None = None

    @model_validator(mode="after")
    def _can_be_entered(self) -> RepositorySettings:
        locations.check_environment(self.location, self.environment)
        locations.check_door(self.location, self.ssh)
        return self


class FilesSettings(OnAMachineSettings, BackedUpSettings):
    """A tree or a single file as the inventory describes it. `address`: empty for this machine. `run_as`: who commands
    run as there; only root gives files back to other owners. `repositories`: the first that answers is restored from.
    """

    kind: Literal["files"]
    path: Annotated[str, AfterValidator(_check_path)]
    repositories: tuple[RepositorySettings, ...] = ()
    archives: ArchivesSettings | None = None

    @property
    def own_policies(self) -> Mapping[str, Keep]:
        """The policies of single repositories, by their names."""
        return {one.name: one.keep for one in self.repositories if one.keep}

    @property
    def near(self) -> frozenset[str]:
        """Those on a disk of the tree's own host."""
        found = self.repositories if len(self.repositories) > 1 else ()
        return frozenset(one.name for one in found if one.location.startswith("/"))

    @model_validator(mode="after")
    def _repositories_differ(self) -> FilesSettings:
        for what, values in (
            ("name", [one.name for one in self.repositories]),
            ("location", [one.location for one in self.repositories]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"two repositories have the same {what}")
        return self

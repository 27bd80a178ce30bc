"""How the inventory names archives, for every kind of system that is in one."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from salvor.archive.members import normal
from salvor.secrets import SecretReference


def _check_folder(folder: str) -> str:
    bucket = folder.startswith("s3://") and len(folder) > len("s3://")
    if not (bucket or folder.startswith("/")) or "\n" in folder or "\0" in folder:
        raise ValueError(f"{folder!r} is neither the absolute path of a folder nor s3://BUCKET/PREFIX")
    return folder.rstrip("/") or "/"


FolderOrBucket = Annotated[str, AfterValidator(_check_folder)]


def _check_member(member: str) -> str:
    try:
        found = normal(member)
    except ValueError as error:
        raise ValueError(f"{member!r} is no path within an archive: it {error}") from None
    if not found:
        raise ValueError("the member is the path of a file or folder within the archive, such as uploads")
    return found


class ArchivesSettings(BaseModel):
    """Where the platform's archives lie, and what in them is this system.

    `folder`: on this machine or, where it is not there, on the system's own host; or `s3://BUCKET/PREFIX`. `member`:
    the path within the archive; a folder around everything that bears the archive's own name is passed over.
    `password`: of those that `openssl enc -aes-256-cbc` encrypted; `iterations`: what its `-iter` was.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: FolderOrBucket
    member: Annotated[str, AfterValidator(_check_member)]
    password: SecretReference | None = None
    iterations: int = 10_000

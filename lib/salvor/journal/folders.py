"""The incidents that are written here: where, which one is meant, who acts in it, and the claim on its service."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salvor import clone, journal
from salvor.errors import CannotError, UsageError
from salvor.inventory import Platform, Service
from salvor.journal import Journal, brief, lock
from salvor.journal.lease import Lease
from salvor.journal.lease import hold as hold_lease

_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9-]{1,63}-[0-9a-f]{4}")


def operator() -> str:
    """Who acts: SALVOR_OPERATOR, or user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name: in a container
        user = f"user-{os.getuid()}"
    return os.environ.get("SALVOR_OPERATOR") or f"{user}@{socket.gethostname()}"


def incidents_folder() -> Path:
    """Where incidents are written: SALVOR_INCIDENTS, or `incidents/` in the project."""
    return Path(os.environ.get("SALVOR_INCIDENTS") or clone.root() / "incidents").absolute()


def folder_of(incident: str) -> Path:
    """Where an incident of that id is written, whether it is there or not. Raises UsageError for what is no id."""
    if not _ID.fullmatch(incident):
        raise UsageError(f"--incident: {incident!r} is no incident's id.", hint="inv incidents lists them")
    return incidents_folder() / incident


def find(incident: str) -> Path:
    """The folder of an incident. Raises UsageError when there is none of that id."""
    folder = incidents_folder() / incident
    if not _ID.fullmatch(incident) or not folder.is_dir():
        known = [path.name for _, path in zip(range(3), journal.incidents(incidents_folder()), strict=False)]
        hint = f"the newest are {', '.join(known)}" if known else "inv incidents lists them"
        if _ID.fullmatch(incident):
            mirror = "" if os.environ.get("SALVOR_MIRROR") else ", with SALVOR_MIRROR as there"
            hint += f"; one of another machine comes by inv incident.take --incident={incident}{mirror}"
        raise UsageError(f"--incident: there is no incident {incident!r} on this machine.", hint=hint)
    return folder


def lease_of(service: str, platform: str, incident: str, tell: Callable[[str], None]) -> Lease | None:
    """The claim on a service among the machines that share SALVOR_MIRROR; None without one."""
    location = os.environ.get("SALVOR_MIRROR")
    if not location:
        return None
    return Lease(
        location, f"{platform}.{service}", by=operator(), incident=incident, folder=incidents_folder(), tell=tell
    )


@contextmanager
def writing(folder: Path, tell: Callable[[str], None]) -> Iterator[Journal]:
    """The journal of an incident, to be written in by the only one who does: by what it says itself, whatever became of
    its platform. Raises HeldError when somebody works on the service now. Where its first line is lost, its id alone
    says of which service it is.
    """
    opened, by = journal.first_line(folder), operator()
    is_told = opened.get("kind") == "opened"
    service = str(opened["service"]) if is_told else brief.service_of(folder.name)
    with (
        lock.hold(service, folder.parent, by=by, incident=folder.name),
        hold_lease(lease_of(service, str(opened["platform"]), folder.name, tell) if is_told else None),
        Journal.open(folder, by=by, mirror=os.environ.get("SALVOR_MIRROR"), tell=tell) as opened_journal,
    ):
        yield opened_journal


def of_incident(incident: str) -> tuple[str, str]:
    """The platform and the service of an incident, by its id."""
    opened = lines_of(find(incident))[0]
    return opened["platform"], opened["service"]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the incident that is meant. Raises CannotError when its journal does not say what it is of."""
    lines = Journal.read(folder).lines
    if not lines or lines[0].get("kind") != "opened":
        raise CannotError(
            f"The journal of {folder.name} has lost its first line.",
            hint=f"inv incident.check --incident={folder.name}",
        )
    return lines


def is_open(lines: list[dict[str, Any]], platform: Platform, service: Service, purpose: str) -> bool:
    """Whether these lines are of an incident of that service and purpose that is not over."""
    first = lines[0] if lines else {}
    return (
        first.get("platform") == platform.name
        and first.get("service") == service.name
        and first.get("purpose") == purpose
        and not any(line.get("kind") in brief.OVER for line in lines)
    )

"""Going on with an incident that another machine began: its journal comes from the mirror that both write to."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from salvor.deadline import within
from salvor.errors import CannotError, UsageError
from salvor.journal import Journal, lock, mirror, mirror_store
from salvor.journal.folders import folder_of, lease_of, operator
from salvor.journal.lease import SETTLED
from salvor.journal.line import parse


def take(incident: str, tell: Callable[[str], None], reason: str = "") -> None:
    """Take an incident over from whoever holds it, on whichever machine, and write down why. The same command as theirs
    then goes on.

    Raises UsageError without a mirror or for an incident that it does not have, HeldError when a process of this
    machine holds it, CannotError when the mirror cannot be reached.
    """
    location = os.environ.get("SALVOR_MIRROR")
    if not location:
        raise UsageError(
            "SALVOR_MIRROR is not set: there is nothing to take an incident over from.",
            safe="nothing was changed",
            hint="set it to the folder or s3://bucket/prefix that the other machine mirrors its journals to",
        )
    folder = folder_of(incident)
    try:
        lines = within(mirror.READ_DEADLINE, lambda: mirror_store.lines(location, folder.name))
    except OSError as error:
        raise CannotError(f"The mirror {location} cannot be read: {error}", safe="nothing was changed") from error
    opened = (parse(lines[0]) or {}) if lines else {}
    if opened.get("kind") != "opened":
        raise UsageError(f"--incident: the mirror {location} has no incident {incident!r}.", safe="nothing was changed")
    by, service = operator(), opened["service"]
    with lock.hold(service, folder.parent, by=by, incident=incident):
        lease = lease_of(service, opened["platform"], incident, tell)
        assert lease  # there is a mirror
        try:
            holder = lease.claim(take=True)
        except OSError as error:
            raise CannotError(
                f"The mirror {location} cannot be written: {error}", safe="nothing was changed"
            ) from error
        is_nobody = not holder or lease.left_here(holder)
        try:
            if not is_nobody:
                time.sleep(SETTLED)
            with Journal.open(folder, by=by, mirror=location, tell=tell) as journal:
                journal.append("taken", holder=holder, where=socket.gethostname(), reason=reason.strip())
                is_over = any(line["kind"] in ("recovered", "undone", "closed") for line in journal.lines)
        finally:
            lease.release()
    elsewhere = f"{holder.get('by')} on {holder.get('host', '?')} stops before the next change"
    hints = {
        "watch": f"inv watch --platform={opened['platform']} --take",
        **dict.fromkeys(("incident", "drill"), f"inv restore --incident={incident}"),
    }
    tell(f"{incident} is yours: {'nobody works on it' if is_nobody else elsewhere}.")
    hint = hints.get(opened.get("purpose", ""), "the same command as theirs")
    tell(f"HINT: {f'inv incident.show --incident={incident}' if is_over else hint}")

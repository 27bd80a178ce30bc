"""`inv incident.approve`: a second person reads what a recovery would change, and approves it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from salvor import clock, show
from salvor.approval import paper, places, terminal
from salvor.approval.settings import SecondPerson
from salvor.arguments import required
from salvor.change import Change
from salvor.deadline import within
from salvor.errors import CannotError, PlanMovedError, SalvorError, UsageError
from salvor.inventory import load
from salvor.journal import FILE, Journal, mirror, mirror_store, ssh_signature
from salvor.journal.brief import OVER
from salvor.journal.folders import folder_of, operator
from salvor.journal.line import parse
from salvor.plain import amount
from salvor.show import Shown

_DEADLINE = 20.0


def approve(incident: str, hash_: str, key: str, shown: Shown) -> None:
    """Show the plan that waits, and approve it: with its hash, or typed at the terminal. Takes no lock and writes no
    journal, as the first operator's command holds both.

    Raises UsageError when nobody asked, CannotError for the operator who asked, PlanMovedError for another hash.
    """
    folder = folder_of(required("incident", incident))
    lines = _lines(incident)
    asked = _asked(lines)
    if asked is None:
        raise UsageError(
            f"--incident: nothing of {incident} waits for a second person.",
            safe="nothing was approved",
            hint=f"inv incident.show --incident={incident}",
        )
    me = operator()
    _refuse_the_same(me, asked)
    plan = next(line for line in reversed(lines) if line.get("kind") == "approved" and line["hash"] == asked["hash"])
    keys = [str(change["key"]) for change in plan["changes"]]
    if paper.hash_of(keys) != asked["hash"]:
        raise CannotError(
            f"The plan {asked['hash']} of {incident} is not what its hash says.",
            safe="nothing was approved",
            hint=f"inv incident.check --incident={incident}",
        )
    _show(incident, asked, [Change.from_json(change) for change in plan["changes"]], shown)
    if hash_ and hash_ != asked["hash"]:
        raise PlanMovedError(
            f"--hash={hash_} is not the plan that waits: that is {asked['hash']}.",
            safe="nothing was approved",
            hint="read the plan above; if it is right, approve its hash",
        )
    if not hash_:
        terminal.refuse_nobody(shown, f"--hash={asked['hash']}")
        terminal.typed(f"Approve it, as {me}? Type its hash: ", asked["hash"])
    rule = _rule(lines[0])
    own_key = ssh_signature.signing_key(key) if rule and rule.signers else ssh_signature.configured_key(key)
    name, content = paper.write(incident, keys, me, own_key)
    _hand_over(folder, name, content)
    shown.tell(
        f"Approved by {me}{f', signed with {own_key}' if own_key else ', NOT signed'}: the plan {asked['hash']}."
    )


def _lines(incident: str) -> list[dict[str, Any]]:
    """The journal's lines, of here or of the mirror: whichever goes further. Raises UsageError when there are none."""
    folder, location = folder_of(incident), os.environ.get("SALVOR_MIRROR")
    found = Journal.read(folder).lines if (folder / FILE).exists() else []
    if location:
        try:
            raw = within(mirror.READ_DEADLINE, lambda: mirror_store.lines(location, incident))
        except OSError as error:
            if not found:
                raise CannotError(
                    f"The mirror {location} cannot be read: {error}",
                    safe="nothing was approved",
                    hint="see that this machine reaches it (SALVOR_MIRROR), or approve on the machine that acts",
                ) from error
        else:
            theirs = [line for each in raw if (line := parse(each))]
            found = theirs if len(theirs) > len(found) else found
    if not found or found[0].get("kind") != "opened":
        raise UsageError(
            f"--incident: there is no incident {incident!r} here" + (f" or in {location}." if location else "."),
            safe="nothing was approved",
            hint="inv incidents lists those of this machine; for one of another machine, set SALVOR_MIRROR as there",
        )
    return found


def _asked(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line that asks for an approval, if it is still to be given."""
    last = next((line for line in reversed(lines) if line.get("kind") in ("asked", "confirmed", *OVER)), None)
    return last if last and last["kind"] == "asked" else None


def _refuse_the_same(me: str, asked: Mapping[str, Any]) -> None:
    if paper.is_same(me, str(asked["by"])):
        raise CannotError(
            f"{asked['by']} asked for it, and so are you: that is no second person.",
            safe="nothing was approved",
            hint="another operator runs this; who you are is SALVOR_OPERATOR, or your user and host",
        )


def _show(incident: str, asked: Mapping[str, Any], changes: Sequence[Change], shown: Shown) -> None:
    steps = ", ".join(asked["steps"])
    if isinstance(shown, show.Json):
        shown.write(
            "asked",
            incident=incident,
            hash=asked["hash"],
            steps=asked["steps"],
            asked_by=asked["by"],
            changes=[change.to_json() for change in changes],
        )
        return
    since = clock.write_duration(clock.age(clock.read_time(str(asked["at"]))).total_seconds())
    shown.tell(f"{asked['by']} asks, {since} ago: {incident}, of which {steps} needs a second person.")
    shown.lines(line for number, change in enumerate(changes, 1) for line in show.change_lines(number, change))
    shown.tell(f"{amount(len(changes), 'change')}. Plan hash: {asked['hash']}")


def _rule(opened: Mapping[str, Any]) -> SecondPerson | None:
    """What the inventory of this machine says of the service; None where it does not know it."""
    try:
        return load(str(opened["platform"])).service(str(opened["service"])).second_person
    except SalvorError:
        return None


def _hand_over(folder: Path, name: str, content: bytes) -> None:
    """Put it wherever the first operator's command looks. Raises CannotError when no place takes it."""
    there = places.mirrored(folder.name)
    wanted = [*([places.here(folder)] if (folder / FILE).exists() else []), *([there] if there else [])]
    failed = []
    for place in wanted:
        try:
            within(_DEADLINE, partial(place.store.create, name, content))
        except OSError as error:
            failed.append(f"{place.name}: {error.strerror or error}")
    if len(failed) == len(wanted):
        raise CannotError(
            f"The approval cannot be handed over: {'; '.join(failed)}.",
            safe="nothing was approved",
            hint="where the first operator works, run the same command",
        )

"""The plan that takes an incident back, from its journal: the way back of each change that was begun, newest first."""

from __future__ import annotations

from salvor.change import Change
from salvor.errors import CannotError
from salvor.incident import Incident
from salvor.journal import Journal
from salvor.plan import describe


def undo_plan(incident: Incident, journal: Journal) -> tuple[list[Change], dict[str, str]]:
    """The changes that take the incident back, newest first, and which change's key each one undoes.

    Raises CannotError when a change that was begun has no way back: nothing is undone past it.
    """
    begun: dict[str, Change] = {}  # by key, in the order in which each was last begun
    for line in journal.of("intent", "outcome"):
        if line["kind"] == "intent" and not line.get("undoing"):
            key = line["change"]["key"]  # as it was made: what the journal masks has another one
            begun.pop(key, None)
            begun[key] = Change.from_json(line["change"])
        elif line["kind"] == "outcome" and line.get("undoing") and line["outcome"] == "done":
            back = begun.get(line["undoing"])
            begun = {key: each for key, each in begun.items() if back is None or not _same_way_back(each, back)}
    changes: dict[str, Change] = {}
    undoing: dict[str, str] = {}
    for key, change in reversed(begun.items()):
        if change.undo is None:
            if incident.purpose == "watch" or not incident.waits(change):
                continue  # no act of a watch builds on another; a message stays sent, and hinders nothing
            raise CannotError(
                f"{describe(change)} cannot be undone: {change.no_undo}",
                safe="nothing was undone; what is live now stays live",
                hint=f"go forward instead: inv incident.show --incident={incident.id}",
            )
        way_back = incident.system(change.system).change(
            change.undo.verb,
            why=f"takes back: {describe(change)}",
            undo=None,
            no_undo="it is itself an undo",
            **change.undo.arguments,
        )
        if way_back.key not in changes:
            changes[way_back.key] = way_back
            undoing[way_back.key] = key
    return list(changes.values()), undoing


def _same_way_back(one: Change, other: Change) -> bool:
    return one.system == other.system and one.undo == other.undo

"""The incidents that were written down: what happened in them, their records, and their seals."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import collection, command


@command()
def incidents(c: Context, json: bool = False) -> None:
    """List the incidents, the newest first."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.list_incidents(show.choose(as_json=json))


@command()
def show(c: Context, incident: str = "", json: bool = False) -> None:
    """What is done, owed and undoable in an incident, on one screen."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.show_incident(incident, show.choose(as_json=json))


@command(signers="an allowed_signers file: who may sign")
def check(c: Context, incident: str = "", signers: str = "", json: bool = False) -> None:
    """Check a journal: any edit, reordering or truncation is found."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.check_incident(incident, signers, show.choose(as_json=json))


@command(key="the SSH key to sign with (default: SALVOR_SIGNING_KEY, or ~/.ssh/id_ed25519)")
def close(c: Context, incident: str = "", key: str = "", json: bool = False) -> None:
    """Close an incident: seal and sign its journal, and make the final record."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.close_incident(incident, key, show.choose(as_json=json))


@command()
def record(c: Context, incident: str = "", json: bool = False) -> None:
    """Make an incident's record again: record.ipynb and record.html."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.record_incident(incident, show.choose(as_json=json))


@command(reason="why, for the record")
def take(c: Context, incident: str = "", reason: str = "") -> None:
    """Take an incident over from another machine: its journal comes from the mirror (SALVOR_MIRROR) that both share."""
    from salvor import show
    from salvor.arguments import required
    from salvor.session import takeover

    takeover.take(required("incident", incident), show.choose().tell, reason)


@command(
    hash="the hash of the plan that you read, where nobody is at the terminal",
    key="the SSH key to sign with (default: SALVOR_SIGNING_KEY; ~/.ssh/id_ed25519 too where it must be signed)",
)
def approve(c: Context, incident: str = "", hash: str = "", key: str = "", json: bool = False) -> None:
    """As a second person, read the plan that waits for you, and approve it."""
    from salvor import show
    from salvor.approval import giving

    giving.approve(incident, hash, key, show.choose(as_json=json))


@command(text="what to note, with who and why")
def note(c: Context, incident: str = "", text: str = "") -> None:
    """Write a note into an incident's journal."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.note(incident, text, show.choose())


@command(actions="more actions than those in the notes: WHAT @OWNER; WHAT @OWNER")
def review(c: Context, incident: str = "", actions: str = "", json: bool = False) -> None:
    """Write the review after an incident, from its journal: review.ipynb, review.html and review.md."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.review_incident(incident, actions, show.choose(as_json=json))


TASKS = (
    incidents,
    collection(
        "incident",
        show=show,
        check=check,
        close=close,
        record=record,
        note=note,
        review=review,
        take=take,
        approve=approve,
    ),
)

"""A recovery: the whole chain, its steps one by one, and the ways out of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from invoke.context import Context

from salvor.commands import command

_OPEN = "the id of an incident (default: the open one of the service)"
_ALL = "the service, as the inventory names it (default: every service of the platform)"

if TYPE_CHECKING:
    from salvor.session import Session
    from salvor.show import Shown


def _session(service: str, platform: str, incident: str, shown: Shown, **wishes: str) -> Session:
    """The open incident, or a new one with these wishes."""
    from salvor.arguments import required, wish
    from salvor.journal.folders import of_incident
    from salvor.session.opening import open_session

    if incident and not service:
        platform, service = of_incident(incident)
    wished, failed_at = wish(**wishes)
    return open_session(
        required("service", service),
        shown,
        platform=platform,
        wish=wished,
        failed_at=failed_at,
        runbook_name=wishes.get("runbook", ""),
        incident=incident,
    )


@command(service=_ALL, incident=_OPEN)
def assess(c: Context, service: str = "", platform: str = "", incident: str = "", json: bool = False) -> None:
    """Look at a service, or at all: what is broken, and which way leads back. Changes and writes nothing."""
    from salvor import console, show

    shown = show.choose(as_json=json)
    if not (service or incident):
        from salvor import whole_platform

        whole_platform.assess(platform, shown)
        return
    console.assess(_session(service, platform, incident, shown), shown)


def _step(name: str, summary: str) -> Callable[..., None]:
    """A task that carries one step out alone, on the open incident."""

    def body(
        c: Context,
        service: str = "",
        platform: str = "",
        incident: str = "",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import console, show

        shown = show.choose(as_json=json)
        console.recover(
            _session(service, platform, incident, shown), shown, name, plan_only=plan, approve=approve, yes=yes
        )

    body.__name__, body.__doc__ = name, summary
    return command(incident=_OPEN)(body)


isolate = _step("isolate", "Fence what is broken, so that nothing more diverges (one step of restore).")
verify = _step(
    "verify", "Prove what is staged: integrity, content, freshness, the service's checks (one step of restore)."
)
reroute = _step("reroute", "Cut over to what was proven, then point DNS there (one step of restore).")
notify = _step("notify", "Send the messages that are owed (one step of restore).")


@command(
    service=_ALL,
    incident=_OPEN,
    step="only the step restore: stage the copy beside what is live",
    test="restore beside what is live, prove, measure and remove it again: nothing live is touched",
    notebook="carry it out by papermill, in notebooks/incident.ipynb",
)
def restore(
    c: Context,
    service: str = "",
    from_: str = "",
    at: str = "",
    target: str = "",
    failed_at: str = "",
    runbook: str = "",
    platform: str = "",
    incident: str = "",
    override: str = "",
    step: bool = False,
    test: bool = False,
    notebook: bool = False,
    plan: bool = False,
    approve: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """Bring a service back, or all of a platform: the whole runbook. The same command again resumes where it was."""
    from salvor import arguments, console, show

    arguments.alone(test=test, notebook=notebook, step=step and not plan, plan=plan)
    for name, value in (("incident", incident), ("failed-at", failed_at), ("runbook", runbook)):
        arguments.alone(test=test, **{name: bool(value)})  # a rehearsal is an incident of its own, of its own runbook
    wishes = {
        "source": from_,
        "at": at,
        "target": target,
        "failed_at": failed_at,
        "runbook": runbook,
        "override": override,
    }
    if test:
        from salvor.drill import rehearsal

        rehearsal.run(service, platform, show.choose(as_json=json), wish=arguments.wish(**wishes)[0])
        return
    if not (service or incident or notebook or step):
        from salvor import whole_platform

        wish, failure = arguments.wish(**wishes)
        asked = whole_platform.Asked(wish, failure, runbook)
        whole_platform.restore(platform, show.choose(as_json=json), asked, plan_only=plan, approve=approve, yes=yes)
        return
    if notebook:
        from salvor.notebook import record

        given = {"service": service, "platform": platform, "incident": incident, "approve": "yes" if yes else approve}
        sys.exit(record.run_notebook({**wishes, **given}))
    shown = show.choose(as_json=json)
    session = _session(service, platform, incident, shown, **wishes)
    try:
        console.recover(session, shown, *(["restore"] if step else []), plan_only=plan, approve=approve, yes=yes)
    finally:
        if not (step or plan) and console.is_record_due(session):
            console.make_record(session, show.unfailing(shown))  # a reader who left hides no error


@command()
def undo(
    c: Context, incident: str = "", plan: bool = False, approve: str = "", yes: bool = False, json: bool = False
) -> None:
    """Walk an incident's journal backwards: the world is as before it, where that is possible."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.undo(incident, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@command()
def discard(
    c: Context, incident: str = "", plan: bool = False, approve: str = "", yes: bool = False, json: bool = False
) -> None:
    """Remove for good what an incident kept: the data that was live before it."""
    from salvor import show
    from salvor.session import aftermath

    aftermath.discard(incident, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


TASKS = (assess, isolate, restore, verify, reroute, notify, undo, discard)

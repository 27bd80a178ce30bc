"""What `inv` offers. Thin: parse, call, show; everything else is in lib/salvor, imported when a task runs."""

# Imports stand inside the tasks on purpose: `inv --list` must answer at once.

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

sys.path.insert(0, str(Path(__file__).parent / "lib"))

_Body = TypeVar("_Body", bound=Callable[..., None])

if TYPE_CHECKING:
    from salvor.session import Session
    from salvor.show import Shown

_HELP = {
    "service": "the service, as the inventory names it",
    "platform": "the platform: a folder or file of inventory/",
    "incident": "the id of an incident; without it, the open one of the service",
    "from_": "what to restore from: latest, a backup id, a path, s3://... or file://...",
    "at": "restore to this time (ISO 8601 with an offset)",
    "target": "restore to this point: name:NAME or lsn:LSN",
    "failed_at": "when the failure or damage began, if you know (ISO 8601 with an offset)",
    "runbook": "the scenario: a file of runbooks/",
    "plan": "show every change with its reason and its undo; write nothing",
    "approve": "approve the plan with this hash",
    "yes": "approve whatever the plan is; for machines",
    "json": "one JSON object a line",
    "override": "a named deviation with its reason, for example promote-without-fence=REASON",
}


def _task(*positional: str, **help_: str) -> Callable[[_Body], _Body]:
    """An invoke task with our help texts and exit codes."""

    def make(body: _Body) -> _Body:
        import functools
        import inspect

        @functools.wraps(body)
        def wrapped(*arguments: Any, **named: Any) -> None:
            from salvor.console import ends_with_exit_code

            ends_with_exit_code(body)(*arguments, **named)

        names = [name for name in inspect.signature(body).parameters if name != "c"]
        texts = {name.rstrip("_"): help_.get(name, _HELP.get(name, "")) for name in names}
        made = task(
            wrapped,
            positional=list(positional),
            help={name: text for name, text in texts.items() if text},
            auto_shortflags=False,
        )
        return cast(_Body, made)

    return make


def _session(service: str, platform: str, incident: str, shown: Shown, **wishes: str) -> Session:
    """The open incident, or a new one with these wishes."""
    from salvor import console, session
    from salvor.arguments import wish

    if incident and not service:
        platform, service = session.of_incident(incident)
    wished, failed_at = wish(**wishes)
    return session.open_session(
        console.one_of("service", service),
        shown,
        platform=platform,
        wish=wished,
        failed_at=failed_at,
        runbook_name=wishes.get("runbook", ""),
        incident=incident,
    )


@_task()
def assess(c: Context, service: str = "", platform: str = "sandbox", incident: str = "", json: bool = False) -> None:
    """Look at a service: what is broken, and which way leads back. Changes and writes nothing."""
    from salvor import console, show

    shown = show.choose(as_json=json)
    console.assess(_session(service, platform, incident, shown), shown)


def _step(name: str, summary: str) -> Callable[..., None]:
    """A task that carries one step out alone, on the open incident."""

    def body(
        c: Context,
        service: str = "",
        platform: str = "sandbox",
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
    return _task()(body)


isolate = _step("isolate", "Fence what is broken, so that nothing more diverges (one step of restore).")
verify = _step(
    "verify", "Prove what is staged: integrity, content, freshness, the service's checks (one step of restore)."
)
reroute = _step("reroute", "Cut over to what was proven, then point DNS there (one step of restore).")
notify = _step("notify", "Send the messages that are owed (one step of restore).")


@_task(
    step="only the step restore: stage the copy beside what is live",
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
    platform: str = "sandbox",
    incident: str = "",
    override: str = "",
    step: bool = False,
    notebook: bool = False,
    plan: bool = False,
    approve: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """Bring a service back: the whole runbook. The same command again resumes where it was."""
    from salvor import console, record, show

    wishes = {
        "source": from_,
        "at": at,
        "target": target,
        "failed_at": failed_at,
        "runbook": runbook,
        "override": override,
    }
    if notebook:
        given = {"service": service, "platform": platform, "incident": incident, "approve": "yes" if yes else approve}
        sys.exit(record.run_notebook({**wishes, **given}))
    shown = show.choose(as_json=json)
    session = _session(service, platform, incident, shown, **wishes)
    try:
        console.recover(session, shown, *(["restore"] if step else []), plan_only=plan, approve=approve, yes=yes)
    finally:
        if session.journal and not step:
            console.make_record(session, shown)


@_task()
def undo(
    c: Context, incident: str = "", plan: bool = False, approve: str = "", yes: bool = False, json: bool = False
) -> None:
    """Walk an incident's journal backwards: the world is as before it, where that is possible."""
    from salvor import aftermath, show

    aftermath.undo(incident, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@_task()
def discard(
    c: Context, incident: str = "", plan: bool = False, approve: str = "", yes: bool = False, json: bool = False
) -> None:
    """Remove for good what an incident kept: the data that was live before it."""
    from salvor import aftermath, show

    aftermath.discard(incident, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@_task()
def protect(
    c: Context,
    service: str = "",
    platform: str = "sandbox",
    plan: bool = False,
    approve: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """After a recovery: rebuild standbys that no longer follow, and back up what is live now."""
    from salvor import maintenance, show

    maintenance.protect(service, platform, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@_task(kind="full, diff, incr (pgBackRest) or dump")
def backup(c: Context, service: str = "", kind: str = "incr", platform: str = "sandbox", json: bool = False) -> None:
    """Back a service up, with a fingerprint of its contents."""
    from salvor import maintenance, show

    maintenance.backup(service, platform, kind, show.choose(as_json=json))


@_task()
def backups(c: Context, service: str = "", platform: str = "sandbox", json: bool = False) -> None:
    """List the backups: age, size, window, last proof, against the service's RPO."""
    from salvor import maintenance, show

    maintenance.backups(service, platform, show.choose(as_json=json))


@_task(disaster="which disaster; empty: a wrong statement restored from backup, then a dead primary failed over")
def drill(
    c: Context,
    service: str = "orders",
    disaster: str = "",
    platform: str = "sandbox",
    keep: bool = False,
    json: bool = False,
) -> None:
    """Break the sandbox and bring it back, with writes going on; count what survived."""
    from salvor import drill, show

    drill.run(service, platform, disaster, show.choose(as_json=json), keep=keep)


@_task()
def incidents(c: Context, json: bool = False) -> None:
    """List the incidents, the newest first."""
    from salvor import aftermath, show

    aftermath.list_incidents(show.choose(as_json=json))


@_task()
def incident_show(c: Context, incident: str = "", json: bool = False) -> None:
    """What is done, owed and undoable in an incident, on one screen."""
    from salvor import aftermath, show

    aftermath.show_incident(incident, show.choose(as_json=json))


@_task(signers="an allowed_signers file: who may sign")
def incident_check(c: Context, incident: str = "", signers: str = "", json: bool = False) -> None:
    """Check a journal: any edit, reordering or truncation is found."""
    from salvor import aftermath, show

    aftermath.check_incident(incident, signers, show.choose(as_json=json))


@_task(key="the SSH key to sign with (default: SALVOR_SIGNING_KEY, or ~/.ssh/id_ed25519)")
def incident_close(c: Context, incident: str = "", key: str = "", json: bool = False) -> None:
    """Close an incident: seal and sign its journal, and make the final record."""
    from salvor import aftermath, show

    aftermath.close_incident(incident, key, show.choose(as_json=json))


@_task()
def incident_record(c: Context, incident: str = "", json: bool = False) -> None:
    """Make an incident's record again: record.ipynb and record.html."""
    from salvor import aftermath, show

    aftermath.record_incident(incident, show.choose(as_json=json))


@_task()
def incident_take(c: Context, incident: str = "") -> None:
    """Take an incident over from another machine: its journal comes from the mirror (SALVOR_MIRROR) that both share."""
    from salvor import show, takeover
    from salvor.console import one_of

    takeover.take(one_of("incident", incident), show.choose().tell)


@_task(text="what to note, with who and why")
def incident_note(c: Context, incident: str = "", text: str = "") -> None:
    """Write a note into an incident's journal."""
    from salvor import aftermath, show

    aftermath.note(incident, text, show.choose())


_LIMIT = "names or patterns of machines, systems or services, separated by commas (default: every machine)"

_WHICH = "which: names or patterns of machines, systems or services, separated by commas"


@_task(limit=_LIMIT)
def hosts(c: Context, platform: str = "sandbox", limit: str = "", json: bool = False) -> None:
    """Look at the machines of the platform, side by side: what is wrong comes first."""
    from salvor import hosts, show

    hosts.show_all(platform, limit, show.choose(as_json=json))


@_task(
    command="the command as one line for sh; or write it after --",
    limit=_LIMIT,
    batch="how many at a time (default: all)",
    failures="with --batch: go on with the next ones until more than this many have failed (default: 0)",
    deadline="how long it may take on each machine",
)
def hosts_run(
    c: Context,
    platform: str = "sandbox",
    limit: str = "",
    command: str = "",
    batch: int = 0,
    failures: int = -1,
    deadline: str = "60s",
    json: bool = False,
) -> None:
    """Run a command on machines: inv hosts.run --limit=web-* -- uptime"""
    from salvor import hosts, show

    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []  # invoke keeps them to itself
    rolling = hosts.rolling(batch, failures if failures != -1 else None, deadline)
    hosts.run(platform, limit, words or ([command] if command else []), rolling, show.choose(as_json=json))


def _on_hosts(verb: str, summary: str) -> Callable[..., None]:
    """A task that changes the network of machines."""

    def body(
        c: Context,
        limit: str = "",
        platform: str = "sandbox",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import host_work, show

        work = {"fence": host_work.fence, "unfence": host_work.unfence}[verb]
        shown = show.choose(as_json=json)
        host_work.carry_out(verb, work, platform, limit, shown, plan_only=plan, approve=approve, yes=yes)

    body.__name__, body.__doc__ = verb, summary
    return _task(limit=_WHICH)(body)


def _on_service(verb: str, summary: str) -> Callable[..., None]:
    """A task that changes a service on machines."""

    def body(
        c: Context,
        name: str,
        limit: str = "",
        platform: str = "sandbox",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import host_work, show

        work = {"start": host_work.start, "stop": host_work.stop, "restart": host_work.restart}[verb](name)
        shown = show.choose(as_json=json)
        host_work.carry_out(verb, work, platform, limit, shown, plan_only=plan, approve=approve, yes=yes)

    body.__name__, body.__doc__ = verb, summary
    return _task("name", name="the service there: of systemd, supervisor, pm2, or /etc/init.d", limit=_WHICH)(body)


hosts_fence = _on_hosts("fence", "Cut machines off from everybody but you, in and out, also after a reboot.")
hosts_unfence = _on_hosts("unfence", "Take the fence of machines away.")
hosts_start = _on_service("start", "Start a service on machines: inv hosts.start nginx --limit=web-*")
hosts_stop = _on_service("stop", "Stop a service on machines.")
hosts_restart = _on_service("restart", "Restart a service on machines.")


@_task(fresh="remove what stands first")
def sandbox_up(c: Context, fresh: bool = False) -> None:
    """Start the sandbox: a small real platform on loopback. Says what already runs."""
    from salvor import sandbox

    sandbox.up(fresh=fresh, tell=print)


@_task()
def sandbox_status(c: Context) -> None:
    """What of the sandbox runs."""
    from salvor import sandbox, show

    print(
        "\n".join(
            show.table(
                ("part", "", "what it says"),
                [(part.name, "up" if part.up else "DOWN", part.detail) for part in sandbox.status()],
            )
        )
    )


@_task("disaster", disaster="drop-table, kill-primary, lose-datadir, corrupt-pages, wrong-update or freeze-primary")
def sandbox_break(c: Context, disaster: str) -> None:
    """Throw a disaster at the sandbox; prints the moment of the damage."""
    from salvor import clock
    from salvor.sandbox import disasters

    print(f"{disaster} at {clock.write_time(disasters.strike(disaster))}")


@_task()
def sandbox_down(c: Context) -> None:
    """Stop the sandbox and remove everything of it."""
    from salvor import sandbox

    sandbox.down()
    print("The sandbox is down; nothing of it is left.")


def _collection(name: str, *, default: Any = None, **tasks: Any) -> Collection:
    collection = Collection(name)
    if default is not None:
        collection.add_task(default, name="show", default=True)
    for task_name, one in tasks.items():
        collection.add_task(one, name=task_name)
    return collection


namespace = Collection(
    assess, isolate, restore, verify, reroute, notify, undo, discard, protect, backup, backups, drill, incidents
)
namespace.add_collection(
    _collection(
        "incident",
        show=incident_show,
        check=incident_check,
        close=incident_close,
        record=incident_record,
        note=incident_note,
        take=incident_take,
    )
)
namespace.add_collection(
    _collection(
        "hosts",
        default=hosts,
        run=hosts_run,
        fence=hosts_fence,
        unfence=hosts_unfence,
        start=hosts_start,
        stop=hosts_stop,
        restart=hosts_restart,
    )
)
namespace.add_collection(
    _collection("sandbox", up=sandbox_up, status=sandbox_status, down=sandbox_down, **{"break": sandbox_break})
)

"""Carry out the policies of retention: say which backups stay and why, then remove the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from salvor import clock, inventory, journal, show
from salvor.backups.policy import BackedUpSettings, Keep
from salvor.backups.retention import decide, together
from salvor.change import Backup, Change, Finding, Verdict, canonical
from salvor.errors import HeldError, UsageError, WarnedError
from salvor.history import History
from salvor.incident import Incident
from salvor.inventory import Platform, Service
from salvor.journal import Journal, brief
from salvor.journal.folders import incidents_folder
from salvor.maintenance import sitting, work
from salvor.roles import Restorable
from salvor.show import Shown


def carry_out(
    service: str, platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> None:
    """Plan, show, approve and do it, for the systems of a service (empty: of the platform), while nobody else works on
    the services that these are of: a restore under way reads what would be removed. Where somebody does, nothing is
    removed.

    Raises UsageError when none has a policy, HeldError when somebody works on the service that was named, WarnedError
    when somebody works on another one.
    """
    described = inventory.load(platform)
    chosen = described.service(service) if service else _every(described)
    session = sitting(chosen, described, shown)
    if not any(_keep(system) for system in session.incident.systems):
        raise UsageError(
            f"No system of {service or platform} says which backups stay.",
            safe="nothing was removed",
            hint="add for example keep: {daily: 7, weekly: 4, monthly: 12} to one in the inventory",
        )

    busy: dict[str, HeldError] = {}

    def retention(incident: Incident) -> Iterator[Change | Finding]:
        """Remove what the policy lets go."""
        for system, verdicts in verdicts_of(incident, session.history):
            if not any(name in busy for name in _services(described, [system.name])):
                yield from system.expiry(verdicts)

    @contextmanager
    def holding(changes: Sequence[Change]) -> Iterator[None]:
        """Be the only operator of every service that something is removed of, or note who is."""
        with ExitStack() as held:
            asked = [session.runner.still_ours]
            for name in _services(described, [change.system for change in changes]):
                if name != chosen.name:
                    try:
                        asked.append(held.enter_context(session.holding.service(name)))
                    except HeldError as error:
                        busy[name] = error
                        shown.tell(f"Nothing is removed of {name}: {error.what}")

            def all_ours() -> None:
                for ask in asked:
                    ask()

            session.runner.still_ours = all_ours
            yield

    for system, verdicts in verdicts_of(session.incident, session.history):
        _show(system.name, verdicts, shown)
        for unread in system.unread:
            shown.tell(
                f"{system.name}: nothing is removed from {unread.repository}, which cannot be read: {unread.why}"
            )
    work(session, retention, shown, plan_only=plan_only, approve=approve, yes=yes, holding=holding)
    if busy:
        raise WarnedError(
            f"Nothing was removed of {', '.join(busy)}: somebody works on it.",
            safe="what was removed of the others is what the policy lets go",
            hint="the same command again, when they are done",
        )


def _every(platform: Platform) -> Service:
    """A service of all systems of the platform that have a policy."""
    names = [name for name, one in platform.settings.items() if isinstance(one, BackedUpSettings) and one.keep]
    return Service(name="retention", rto=0, rpo=0, systems=tuple(names))


def _services(platform: Platform, systems: Iterable[str]) -> list[str]:
    """The services that any of these systems is of."""
    names = set(systems)
    return [one.name for one in platform.services.values() if names & set(one.systems)]


def verdicts_of(incident: Incident, history: History) -> list[tuple[Restorable, list[Verdict]]]:
    """What the policy of each system of the service that has one says of its backups, newest first.

    What an open incident restores from stays. What holds systems of other services too, an archive or a snapshot of
    several trees, stays as long as one of them keeps it, has no policy, or cannot read its repository now. Nothing is
    said of what is in a repository that cannot be read.
    Raises CannotError when a system can read none of its repositories: then nothing is decided.
    """
    mine = [(system, _verdicts(system, history)) for system in incident.systems if _keep(system)]
    every = [one for _, verdicts in mine for one in verdicts]
    if any(not one.stays for one in every):
        names = {system.name for system, _ in mine}
        others = [incident.system(name) for name in incident.platform.settings if name not in names]
        for other in others:
            if isinstance(other, Restorable):
                every += _verdicts(other, history)
                every = [_unless_unread(one, other) for one in every]
    agreed = iter(together(every))
    return [(system, [next(agreed) for _ in verdicts]) for system, verdicts in mine]


def _unless_unread(verdict: Verdict, other: Restorable) -> Verdict:
    """It stays where another system of the platform has a repository that it cannot read now."""
    backup = verdict.backup
    if verdict.stays or not any(backup.location.startswith(unread.location) for unread in other.unread):
        return verdict
    return replace(verdict, reasons=(f"{other.name} may keep it, and cannot read it now",))


def _verdicts(system: Restorable, history: History) -> list[Verdict]:
    ways = _ways_in_use(system.name)

    def of(one: Backup) -> Backup:
        used_by = next((incident for incident, way in ways.items() if one.id in way), "")
        hold = one.hold or (f"{used_by} restores from it" if used_by else "")
        return replace(one, proven=history.proven(system.name, one.id), hold=hold)

    backups = [of(one) for one in system.backups()]
    keep = _keep(system)
    return (
        decide(backups, keep, system.settings.own_policies, system.settings.near)
        if keep
        else [Verdict(one, ("it has no policy",)) for one in backups]
    )


def _ways_in_use(system: str) -> dict[str, str]:
    """The way back that each incident has chosen for this system which has begun and not recovered: as text."""
    found: dict[str, str] = {}
    for folder in journal.incidents(incidents_folder()):
        if brief.is_over(folder):
            continue
        lines = Journal.read(folder).lines
        chosen = [one["decision"] for one in lines if one["kind"] == "decision"]
        ways = [canonical(one["way"]) for one in chosen if one["system"] == system]
        if ways and not any(one["kind"] == "recovered" for one in lines):
            found[folder.name] = ways[-1]
    return found


def _keep(system: Restorable) -> Keep | None:
    return system.settings.keep if isinstance(system.settings, BackedUpSettings) else None


def _show(name: str, verdicts: list[Verdict], shown: Shown) -> None:
    """Every backup, and why it stays."""
    if isinstance(shown, show.Json):
        for one in verdicts:
            backup = one.backup
            taken = clock.write_time(backup.taken)
            shown.write("verdict", system=name, id=backup.id, taken=taken, stays=one.stays, reasons=list(one.reasons))
        return
    rows = [
        (
            one.backup.id,
            one.backup.kind,
            f"{one.backup.taken:%Y-%m-%d %H:%M}",
            show.write_bytes(one.backup.size) if one.backup.size else "-",
            one.backup.repository,
            ", ".join(one.reasons) or "GOES",
        )
        for one in verdicts
    ]
    header = ("id", "kind", "taken (UTC)", "size", "in", "why it stays")
    shown.lines([f"{name}:", *(f"  {line}" for line in show.table(header, rows))])

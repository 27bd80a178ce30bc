"""A whole platform: every service that is broken, each after those that it depends on, the lowest tier first; what does
not depend on each other side by side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import takewhile
from typing import Literal

from salvor import clock, console, cutover, inventory, journal, outage, show
from salvor.change import Level
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.inventory import Platform, Service
from salvor.journal import brief
from salvor.journal.folders import incidents_folder
from salvor.plan import Plan
from salvor.session import Session
from salvor.session.holding import touched
from salvor.session.opening import open_session
from salvor.show import Plain, Shown
from salvor.wish import Wish

State = Literal["healthy", "back", "broken", "waits", "not begun", "failed"]

_WELL = ("healthy", "back")
_AT_ONCE = 8
_ONE_OUTAGE = timedelta(days=1)
"""An incident that has been under way for longer was given up: what breaks now is another outage."""
_WORST_FIRST = (1, 4, 6, 5, 3, 7, 2)
"""Exit codes: what is not known, or not as it should be, is worse than what was not begun."""


@dataclass
class Result:
    """What came of one service."""

    service: Service
    state: State
    session: Session | None = None
    told: str = ""
    error: Exception | None = None
    plan: Plan | None = None
    approved: str = ""
    """How its plan was approved; empty while it was not, or when there is nothing to carry out."""


@dataclass(frozen=True)
class Asked:
    """What the operator asked of every service (see `open_session`)."""

    wish: Wish = field(default_factory=Wish)
    failed_at: datetime | None = None
    runbook: str = ""
    purpose: str = "incident"
    scenario: str = ""

    def open(self, platform: Platform, service: Service, shown: Shown) -> Session:
        """The session of one service."""
        return open_session(
            service.name,
            shown,
            platform=platform.name,
            wish=self.wish,
            failed_at=self.failed_at,
            runbook_name=self.runbook,
            purpose=self.purpose,
            scenario=self.scenario,
            anew=self.purpose == "drill",
        )


def assess(platform_name: str, shown: Shown) -> None:
    """Look at every service, side by side, and say which are broken, the most urgent first. Writes nothing.

    Raises CannotError when the state of one could not be told.
    """
    platform = inventory.load(platform_name)
    services = platform.in_order()
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="service") as pool:
        results = list(pool.map(lambda service: _look(platform, service), services))
    if isinstance(shown, show.Json):
        for each in results:
            shown.write("service", service=each.service.name, tier=each.service.tier, state=each.state, told=each.told)
    rows = [(f"{each.service.tier}", each.service.name, each.state, each.told) for each in results]
    shown.lines(show.table(("tier", "service", "", "what is seen"), rows))
    if any(each.state == "broken" for each in results):
        shown.tell(f"HINT: inv restore --platform={platform.name} --plan; one alone: add --service=NAME")
    if unknown := [each.service.name for each in results if each.state == "failed"]:
        raise CannotError(
            f"Of {', '.join(unknown)} it cannot be told what is wrong, or what to do.",
            safe="nothing was changed",
            hint=f"inv assess --platform={platform.name} --service={unknown[0]}",
        )


def _look(platform: Platform, service: Service) -> Result:
    try:
        session = Asked().open(platform, service, Plain(io.StringIO()))
        plan = session.plan("assess")
    except SalvorError as error:
        return Result(service, "failed", told=error.what)
    back = cutover.brought_back(session.incident)
    pinned = [each for step in plan.steps for each in step.decisions]
    decided = pinned or [each for name, each in session.incident.decisions.items() if name not in back]
    if decided and not session.incident.recovered_once:
        when = "" if pinned else f"when {session.incident.id} began: "
        return Result(service, "broken", session, "; ".join(f"{each.system}: {when}{each.seen}" for each in decided))
    wrong = [finding for step in plan.steps for finding in step.findings if finding.level is Level.FAIL]
    told = "; ".join(f"{one.subject}: {one.check}: {one.figure or one.detail}" for one in wrong)
    needed = {name for one in session.incident.needs for name in (*one.systems, *one.applications)}
    if {finding.subject for finding in wrong} - needed:
        return Result(service, "broken", session, told)
    if wrong:
        return Result(service, "waits", session, told)
    told = f"{'; '.join(back.values())}; inv undo --incident={session.incident.id}" if back else ""
    return Result(service, "healthy", session, told)


def restore(
    platform: str, shown: Shown, asked: Asked, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> list[Result]:
    """Bring every broken service back, with a record of each. Raises the worst error when all is tried."""
    if approve:
        raise UsageError(
            "--approve is for the plan of one service.",
            safe="nothing was changed",
            hint="add --service=NAME, or approve each plan as it is shown, or --yes",
        )
    results = bring_back(inventory.load(platform), shown, asked, plan_only=plan_only, yes=yes)
    if not plan_only:
        shown = show.unfailing(shown)
        for each in results:
            if each.session and console.is_record_due(each.session):
                console.make_record(each.session, shown)
        report(results, shown)
    refuse_failed(results)
    return results


def refuse_failed(results: Sequence[Result]) -> None:
    """Raise the worst of what services failed with, if any did."""
    if errors := [each.error for each in results if each.error]:
        raise min(errors, key=lambda error: _WORST_FIRST.index(getattr(error, "exit_code", SalvorError.exit_code)))


def bring_back(
    platform: Platform, shown: Shown, asked: Asked, *, plan_only: bool = False, yes: bool = False
) -> list[Result]:
    """Go through the platform tier by tier: all that wait for nothing in it any more are planned, shown and approved,
    then brought back side by side, each in an incident of its own. The time of all counts from the beginning of this
    call, or of the one that this one goes on with; of what was brought back since and broke again, from this one. What
    depends on one that could not be brought back is not begun; the others are.
    """
    called = clock.now()
    begun, back = (called, frozenset[str]()) if asked.purpose == "drill" else _detected(platform, asked, called)
    results: dict[str, Result] = {}
    if plan_only:
        _show_order(platform, shown)
    for waves in platform.in_tiers().values():
        waiting = [service for wave in waves for service in wave]
        while waiting:
            approved: list[Result] = []
            while ready := [service for service in waiting if results.keys() >= set(service.depends_on)]:
                waiting = [service for service in waiting if service not in ready]
                planned = [Result(service, "not begun", told=_waits(service, results)) for service in ready]
                with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="service") as pool:
                    since = [called if each.service.name in back else begun for each in planned]
                    for _ in pool.map(partial(_plan, platform, shown, asked), planned, since):
                        pass
                for each in planned:
                    _have_approved(each, shown, begun, plan_only=plan_only, yes=yes)
                approved += [each for each in planned if each.approved]
                results |= {each.service.name: each for each in planned if not each.approved}
            if approved:  # from here on a reader who leaves stops nothing, as for one service
                shown = show.unfailing(shown)
            is_real = bool(approved) and asked.purpose == "incident"
            if is_real:
                outage.goes_on(platform.name, begun)
            _carry_out(approved, shown)
            if is_real:  # it may have taken hours
                outage.goes_on(platform.name, begun)
            results |= {each.service.name: each for each in approved}
    if not plan_only and asked.purpose == "incident" and all(one.state in _WELL for one in results.values()):
        outage.is_over(platform.name)
    return [results[service.name] for service in platform.in_order()]


def _detected(platform: Platform, asked: Asked, now: datetime) -> tuple[datetime, frozenset[str]]:
    """When the outage was detected: with the first incident of the platform that is still under way, or with the call
    that was cut off a moment ago, and not before it began; else now. And the services that were brought back since,
    also by a command for one alone: what breaks of them is no part of it any more.
    """
    since = f"{now - _ONE_OUTAGE:%Y%m%dT%H%M%SZ}"  # as the names of incidents begin
    recent = takewhile(lambda folder: folder.name >= since, journal.incidents(incidents_folder()))
    told = [
        one for one in map(brief.read, recent) if one and (one.platform, one.purpose) == (platform.name, asked.purpose)
    ]
    open_since = [one.detected_at for one in told if not (one.good_at or one.is_over)]
    if noted := outage.begun_at(platform.name):
        open_since.append(noted)
    begun = min([now, *(moment for moment in open_since if not asked.failed_at or moment >= asked.failed_at)])
    return begun, frozenset(one.service for one in told if one.good_at and one.good_at >= begun)


def _show_order(platform: Platform, shown: Shown) -> None:
    order = {
        tier: [[service.name for service in wave] for wave in waves] for tier, waves in platform.in_tiers().items()
    }
    if isinstance(shown, show.Json):
        shown.write("order", tiers=order)
    rows = [(f"{tier}", "; then ".join(", ".join(names) for names in waves)) for tier, waves in order.items()]
    shown.lines(show.table(("tier", "side by side"), rows))


def _waits(service: Service, results: dict[str, Result]) -> str:
    """What it would wait for in vain; empty when it can be begun."""
    missing = [name for name in service.depends_on if results[name].state in ("failed", "not begun")]
    return f"it waits for {', '.join(missing)}" if missing else ""


def _plan(platform: Platform, shown: Shown, asked: Asked, result: Result, detected: datetime) -> None:
    if result.told:
        return
    try:
        result.session = asked.open(platform, result.service, shown)
        if not result.session.resumed:
            result.session.incident.detected_at = detected
        result.plan = result.session.plan()
    except Exception as error:  # noqa: BLE001 - told, and raised, in its turn
        result.error = error


def _have_approved(result: Result, shown: Shown, begun: datetime, *, plan_only: bool, yes: bool) -> None:
    shown.tell("")
    shown.tell(f"{result.service.title or result.service.name} (tier {result.service.tier}):")
    try:
        if result.told:
            shown.tell(f"  not begun: {result.told}")
        elif result.error:
            raise result.error
        elif result.session and result.plan:
            console.announce(result.session, shown)
            one = f"--service={result.service.name}"
            result.approved = console.ask(result.session, shown, result.plan, plan_only=plan_only, yes=yes, one=one)
            incident = result.session.incident
            result.state = "back" if incident.recovered_once else "healthy"
            if incident.recovered_once and incident.detected_at < begun:
                result.state, result.told = "healthy", f"{incident.id} brought it back"
    except Exception as error:  # noqa: BLE001 - raised when the others have ended
        _failed_with(result, error, shown)


def _carry_out(approved: Sequence[Result], shown: Shown) -> None:
    """Carry approved plans out side by side. On Ctrl-C all of them stop, at their next sign of progress."""
    width = max((len(each.service.name) for each in approved), default=0) if len(approved) > 1 else 0
    groups = _apart(approved)
    if len(approved) > 1:
        shown.tell("")
        shown.tell(f"At once: {'; '.join(', then '.join(each.service.name for each in group) for group in groups)}.")

    def work(group: Sequence[Result]) -> None:
        for each in group:
            assert each.session
            each.session.runner.look_anew()  # whoever came before it in its group changed what it would change
            _carry_out_one(each, show.labelled(shown, f"{each.service.name:<{width}}  ") if width else shown)

    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="service") as pool:
        running = [pool.submit(work, group) for group in groups]
        try:
            wait(running)
        except KeyboardInterrupt:
            for each in approved:
                if each.session:
                    each.session.runner.stop()
            shown.tell("Stopping: what is under way ends first, or at its next sign of progress.")
            wait(running)
            raise KeyboardInterrupt(_stopped(running)) from None
    for done in running:
        done.result()


def _stopped(running: Sequence[Future[None]]) -> str:
    """What Ctrl-C leaves of each."""
    stopped = [error for done in running if isinstance(error := done.exception(), KeyboardInterrupt)]
    return "\n".join(dict.fromkeys(line for error in stopped for line in str(error).splitlines()))


def _apart(approved: Sequence[Result]) -> list[list[Result]]:
    """Those of which one changes what the other touches, such as a program that works on the data of both, in one
    group: they go one after the other, data before the programs on it, which would have to be stopped again.
    """
    groups: list[tuple[set[str], set[str], list[Result]]] = []
    for each in sorted(approved, key=_begins_later):
        assert each.session and each.plan
        changed, members = _changed(each.session, each.plan), [each]
        held = changed | touched(each.session.incident, each.plan)
        before = [group for group in groups if group[0] & held or group[1] & changed]
        groups = [group for group in groups if group not in before]
        for one in reversed(before):
            changed, held, members = changed | one[0], held | one[1], [*one[2], *members]
        groups.append((changed, held, members))
    return [members for _, _, members in groups]


def _begins_later(result: Result) -> bool:
    return not any(change.verb == "promote" for change in (result.plan.changes if result.plan else ()))


def _changed(session: Session, plan: Plan) -> set[str]:
    incident = session.incident
    return set().union(*(incident.platform.together(one.system) for one in plan.changes if incident.waits(one)))


def _carry_out_one(result: Result, shown: Shown) -> None:
    session = result.session
    assert session and result.plan
    session.runner.watcher = shown
    session.runner.go_on()
    try:
        console.carry_out(session, shown, result.plan, result.approved)
        result.state = "back" if session.incident.recovered_once else "healthy"
    except Exception as error:  # noqa: BLE001 - raised when the others have ended
        _failed_with(result, error, shown)


def _failed_with(result: Result, error: Exception, shown: Shown) -> None:
    result.state, result.error = "failed", error
    result.told = error.what if isinstance(error, SalvorError) else f"{type(error).__name__}: {error}"
    shown.tell("")
    shown.tell(str(error) if isinstance(error, SalvorError) else f"Salvor met an error of its own: {result.told}")


def report(results: list[Result], shown: Shown) -> None:
    """One line a service: how it went, against its targets."""
    header = ("tier", "service", "", "way back", "RTO", "RPO", "")
    shown.tell("")
    shown.lines(show.table(header, [_row(each) for each in results]))
    if isinstance(shown, show.Json):
        for each in results:
            measured = dict(each.session.incident.measured) if each.session and each.state != "healthy" else {}
            shown.write("result", service=each.service.name, state=each.state, told=each.told, measured=measured)


def _row(result: Result) -> tuple[str, ...]:
    service, incident = result.service, result.session.incident if result.session else None
    if incident is None or result.state != "back":
        return f"{service.tier}", service.name, result.state, "", "", "", result.told
    ways = ", ".join(sorted({decision.way.name for decision in incident.decisions.values()}))
    rto, rpo = (
        console.target(incident.measured.get(name), limit)
        for name, limit in (("rto", service.rto), ("rpo", service.rpo))
    )
    return f"{service.tier}", service.name, result.state, ways, rto, rpo, ""

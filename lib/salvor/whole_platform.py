"""A whole platform: every service that is broken, each after those that it depends on, the lowest tier first."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from salvor import clock, console, inventory, show
from salvor.change import Level
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.inventory import Platform, Service
from salvor.opening import open_session
from salvor.session import Session
from salvor.show import Plain, Shown
from salvor.system import Wish

State = Literal["healthy", "back", "broken", "waits", "not begun", "failed"]


@dataclass
class Result:
    """What came of one service."""

    service: Service
    state: State
    session: Session | None = None
    told: str = ""
    error: SalvorError | None = None


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
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="service") as pool:
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
    decided = [each for step in plan.steps for each in step.decisions] or list(session.incident.decisions.values())
    if decided and not session.incident.recovered_once:
        return Result(service, "broken", session, "; ".join(f"{each.system}: {each.seen}" for each in decided))
    wrong = [finding for step in plan.steps for finding in step.findings if finding.level is Level.FAIL]
    told = "; ".join(f"{one.subject}: {one.check}: {one.figure or one.detail}" for one in wrong)
    needed = {name for one in session.incident.needs for name in (*one.systems, *one.applications)}
    if {finding.subject for finding in wrong} - needed:
        return Result(service, "broken", session, told)
    if wrong:
        return Result(service, "waits", session, told)
    return Result(service, "healthy", session)


def restore(
    platform: str, shown: Shown, asked: Asked, *, plan_only: bool = False, approve: str = "", yes: bool = False
) -> list[Result]:
    """Bring every broken service back, with a record of each. Raises the first error when all is tried."""
    if approve:
        raise UsageError(
            "--approve is for the plan of one service.",
            safe="nothing was changed",
            hint="add --service=NAME, or approve each plan as it is shown, or --yes",
        )
    results = bring_back(inventory.load(platform), shown, asked, plan_only=plan_only, yes=yes)
    if not plan_only:
        for each in results:
            if each.session and each.session.journal:
                console.make_record(each.session, shown)
        report(results, shown)
    for each in results:
        if each.error:
            raise each.error
    return results


def bring_back(
    platform: Platform, shown: Shown, asked: Asked, *, plan_only: bool = False, yes: bool = False
) -> list[Result]:
    """Go through the services in their order, each in an incident of its own. The time of all counts from the beginning
    of this call. What depends on one that could not be brought back is not begun; the others are.
    """
    begun = clock.now()
    results: dict[str, Result] = {}
    for service in platform.in_order():
        waits = [name for name in service.depends_on if results[name].state in ("failed", "not begun")]
        shown.tell("")
        shown.tell(f"{service.title or service.name} (tier {service.tier}):")
        if waits:
            results[service.name] = Result(service, "not begun", told=f"it waits for {', '.join(waits)}")
            shown.tell(f"  not begun: {results[service.name].told}")
        else:
            results[service.name] = _restore(platform, service, shown, asked, begun, plan_only=plan_only, yes=yes)
    return list(results.values())


def _restore(
    platform: Platform, service: Service, shown: Shown, asked: Asked, begun: datetime, *, plan_only: bool, yes: bool
) -> Result:
    try:
        session = asked.open(platform, service, shown)
        if not session.resumed:
            session.incident.detected_at = begun
    except SalvorError as error:
        return _failed_with(service, None, error, shown)
    try:
        console.recover(session, shown, plan_only=plan_only, yes=yes)
    except SalvorError as error:
        return _failed_with(service, session, error, shown)
    return Result(service, "back" if session.incident.recovered_once else "healthy", session)


def _failed_with(service: Service, session: Session | None, error: SalvorError, shown: Shown) -> Result:
    shown.tell("")
    shown.tell(f"{error}")
    return Result(service, "failed", session, error.what, error)


def report(results: list[Result], shown: Shown) -> None:
    """One line a service: how it went, against its targets."""
    header = ("tier", "service", "", "way back", "RTO", "RPO", "")
    shown.tell("")
    shown.lines(show.table(header, [_row(each) for each in results]))
    if isinstance(shown, show.Json):
        for each in results:
            measured = dict(each.session.incident.measured) if each.session else {}
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

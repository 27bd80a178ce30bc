"""A notebook's walk through an incident under way: each plan is shown before its act, nothing unapproved is done."""

from __future__ import annotations

import atexit
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salvor import arguments, clock, inventory, refuse
from salvor.approval.terminal import approval
from salvor.change import Change, Finding, Progress
from salvor.console import make_record, second_person, show_end, telling_failure
from salvor.errors import CannotError, NotConvergedError, PlanMovedError, UsageError
from salvor.journal import story
from salvor.journal.folders import of_incident
from salvor.journal.happened import Story
from salvor.notebook.cells import Walk, display, for_people
from salvor.plain import amount
from salvor.plan import Plan, describe
from salvor.runbook_files import Runbook
from salvor.session import Session
from salvor.session.opening import open_session
from salvor.show import Plain, progress_text

YES = "yes"
"""The value of the parameter `approve` that approves whatever the plan is."""

_UPDATES_EVERY = 0.25


class Live(Walk):
    """An incident, begun or resumed. The parameter `approve` is for all of it; without it, each act is approved."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self._given = given
        self._held = ExitStack()
        self._is_released = False
        """Whether this sitting is over: what comes next resumes the incident, as another command would."""
        self._acted: list[str] = []
        self._session = self._open(given["incident"])
        self._whole = self._session.plan()
        atexit.register(self._release)
        self.summary()
        if self.is_idle:
            display("quiet", text=f"Nothing is left to do for {self._session.incident.service.name}.")
            return
        display("plan", changes=self._whole.changes, last=self._session.history.last, hash=self._whole.hash)
        self._show_who_waits(self._whole)
        if given["approve"]:
            self._approved(self._whole)
        elif self._whole.changes and not _somebody_is_here():
            planned = amount(len(self._whole.changes), "planned change")
            raise UsageError(
                f"approve: {planned}, and nobody is here to approve them act by act.",
                safe="nothing was changed",
                hint="read the plan in the output notebook, then the same command with: -r approve "
                f"{self._whole.hash}; or -r approve {YES}, whatever the plan is; or open the notebook in JupyterLab",
            )

    def _open(self, incident: str) -> Session:
        given = self._given
        wished = {name: given[name] for name in ("source", "at", "target", "failed_at", "override", "runbook")}
        wish, failed_at = arguments.wish(**wished)
        platform, service = given["platform"], given["service"]
        if incident:
            platform, found = of_incident(incident)
            if service not in ("", found):
                raise UsageError(
                    f"service: {incident} is of {found}, not of {service}.",
                    safe="nothing was changed",
                    hint="leave service empty: the incident names it",
                )
            service = found
        if not service:
            hint = "papermill ... -r service NAME, or set it in the parameters cell"
            raise UsageError("service: which one?", safe="nothing was changed", hint=hint)
        platform = platform or inventory.meant(service)
        return open_session(
            service,
            Plain() if given["approve"] else Progressing(),
            platform=platform,
            wish=wish,
            failed_at=failed_at,
            runbook_name=given["runbook"],
            incident=incident,
        )

    @property
    def story(self) -> Story:
        incident, journal = self._session.incident, self._session.journal
        if journal is not None:
            return story.tell(journal.lines, incident=incident.id)
        if self.folder.exists():
            return story.read(self.folder)
        opened = incident.opening()  # nothing is written yet: what would be the first line
        first = {"n": 0, "at": opened["detected_at"], "by": incident.operator, "kind": "opened", **opened}
        return story.tell([first], incident=incident.id)

    @property
    def folder(self) -> Path:
        return self._session.incident.folder

    @property
    def runbook(self) -> Runbook:
        return self._session.runbook

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do: nothing is broken, or the incident came to its end."""
        incident = self._session.incident
        if self._session.journal or self._whole.changes:
            return False
        if self._session.resumed:
            return incident.recovered_once and not incident.interrupted
        return not any(step.decisions for step in self._whole.steps)

    @for_people
    def plan(self, step: str, again: bool = False) -> None:
        if not self.has(step, again):
            display("quiet", text=f"The runbook {self.runbook.name} has no such step here.")
            return
        self._take_up()
        planned = self._session.plan(step)
        found = [each for one in planned.steps for each in one.findings]
        display("findings", caption=f"What {step} sees now", found=found)
        hash_ = planned.hash if planned.changes else ""
        display("plan", changes=planned.changes, last=self._session.history.last, hash=hash_)
        self._show_who_waits(planned)

    def _show_who_waits(self, plan: Plan) -> None:
        if told := second_person(self._session, self._session.steps_of_two(plan), self._session.incident.id):
            display("quiet", text=told)

    @for_people
    def act(self, step: str, approve: str = "", again: bool = False) -> None:
        """Carry a step out. Without the notebook's parameter, changes need `approve="HASH"`, as the plan shows it.

        Raises CannotError when nobody approved, PlanMovedError when the plan is not the approved one any more, and as
        `refuse.early`.
        """
        if self.is_idle or not self.has(step, again):
            display("quiet", text="Nothing to do.")
            return
        self._take_up()
        if step in ("verify", "reroute"):
            refuse.early(self._session.plan(step), self._session.incident, hint="run the cells above it first")
        plan, how = self._approval(step, approve)
        if self._session.journal is None:  # held from the first act until `finish` or an error
            try:
                self._held.enter_context(self._session.begin(self._whole))
            except PlanMovedError:  # somebody else has begun it: the same cell again goes on with that
                self._is_released = True
                raise
        try:
            if plan.changes:
                self._session.approve(plan, how)
            with telling_failure(self._session):
                self._session.act(step)
            self._acted.append(step)
        except BaseException:
            self._release()
            raise
        finally:
            runs = [run for run in self.story.steps if run.name == step][-1:]
            display("happened", runs=runs, is_live=True, metadata={"salvor": {"acted_on": self.story.incident}})

    def _approval(self, step: str, approve: str) -> tuple[Plan, str]:
        """The plan that is approved for this act, and how. With the parameter that is the whole chain, once."""
        if self._given["approve"]:
            if self._session.journal is not None:
                return Plan(()), ""
            return self._whole, self._approved(self._whole)
        plan = self._session.plan(step)
        if plan.changes and not approve:
            raise CannotError(
                f"{step} plans {amount(len(plan.changes), 'change')}, and nobody approved them.",
                safe="nothing was changed",
                hint=f'read the plan, then: walk.act("{step}", approve="{plan.hash}")',
            )
        if plan.changes and approve != plan.hash:  # of a cell that is run once more, all may be done
            raise PlanMovedError(
                f"The plan of {step} has the hash {plan.hash} now, not {approve}.",
                safe="nothing was changed",
                hint=f'look again: walk.plan("{step}")',
            )
        return plan, f"approve={approve}, in the notebook"

    def _approved(self, plan: Plan) -> str:
        """How the parameter approves this plan of the whole chain. Raises PlanMovedError when it does not."""
        approve, earlier = self._given["approve"], self._session.incident.approvals
        yes = approve == YES
        if yes:
            refuse.needless_loss(plan, self._session.incident)
        how = approval(Plain(), plan.changes, approve="" if yes else approve, yes=yes, earlier=earlier)
        return f"{how}, by the notebook's parameter"

    def _take_up(self) -> None:
        """After a release, resume the incident."""
        if self._is_released:
            self._session = self._open(self.folder.name if self.folder.exists() else "")
            self._whole = self._session.plan()
            self._is_released = False

    def _release(self) -> None:
        """Let the service's lock and the journal go."""
        if self._session.journal is not None:
            self._is_released = True
            self._held.close()

    @for_people
    def finish(self) -> None:
        """End this sitting: wait for messages, release the service, make the record.

        Raises NotConvergedError when the whole was approved and the notebook has no section for a step of the runbook.
        """
        if self._session.journal is None or self._is_released:
            record = f": inv incident.record --incident={self.folder.name} makes the record" if self._acted else ""
            display("quiet", text=f"Nothing is held by this notebook{record}.")
            return
        self._release()
        steps = dict.fromkeys(step.__name__ for step in self.runbook.steps)
        left = [name for name in steps if name not in self._acted]
        if self._given["approve"] and left:
            raise NotConvergedError(
                f"The runbook {self.runbook.name} has steps that were not walked through: {', '.join(left)}.",
                safe="nothing that was live has been removed",
                hint=f"inv restore --incident={self._session.incident.id}",
            )
        self._take_up()
        show_end(self._session, self._session.runner.watcher)
        make_record(self._session, self._session.runner.watcher)
        self._is_released = True


def _somebody_is_here() -> bool:
    """Whether a person runs the cells: papermill says with each that nobody can be asked."""
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or bool(kernel.get_parent("shell")["content"].get("allow_stdin", True))


@dataclass
class _Shown:
    """A change under way, as the progress list shows it."""

    name: str
    said: str = ""
    share: float | None = None
    outcome: str = ""


class Progressing:
    """Shows in JupyterLab what happens, in one output that is updated while a change runs."""

    def __init__(self) -> None:
        self._changes: dict[str, _Shown] = {}
        self._begun: dict[str, float] = {}
        self._handle: Any = None
        self._updated = 0.0
        self._lock = threading.Lock()

    def tell(self, text: str) -> None:
        display("quiet", text=text)

    def step(self, name: str, docstring: str) -> None:
        with self._lock:  # a message may still be on its way, in a thread of its own
            self._changes = {key: one for key, one in self._changes.items() if not one.outcome}
            self._handle = _handle()  # here, in the cell's own thread; changes run in others

    def finding(self, finding: Finding) -> None:
        """Nothing: what a step saw is shown as a table when it ends."""

    def begun(self, change: Change) -> None:
        with self._lock:
            self._changes[change.key] = _Shown(describe(change))
            self._begun[change.key] = clock.monotonic()
            self._update(at_once=True)

    def progress(self, change: Change, progress: Progress) -> None:
        with self._lock:
            one = self._changes[change.key]
            one.said = progress_text(progress, clock.monotonic() - self._begun[change.key])
            one.share = 100.0 * progress.done / progress.total if progress.total else None
            self._update()

    def looking(self, system: str, progress: Progress | None) -> None:
        with self._lock:
            if progress is None:
                if self._changes.pop(system, None):
                    self._update(at_once=True)
            elif progress.total is None:
                self._begun[system] = clock.monotonic()
            else:
                said = progress_text(progress, clock.monotonic() - self._begun[system])
                self._changes[system] = _Shown(system, said, 100.0 * progress.done / progress.total)
                self._update()

    def ended(self, change: Change, outcome: str, seconds: float, error: str) -> None:
        with self._lock:
            one = self._changes[change.key]
            one.outcome, one.said = outcome, f"after {clock.write_duration(seconds)}{f': {error}' if error else ''}"
            self._update(at_once=True)

    def _update(self, *, at_once: bool = False) -> None:
        if not at_once and clock.monotonic() - self._updated < _UPDATES_EVERY:
            return
        self._updated = clock.monotonic()
        display("progress", handle=self._handle, changes=list(self._changes.values()))


def _handle() -> Any:
    """An empty output that can be replaced."""
    from IPython.display import display as show

    return show({"text/html": "", "text/plain": ""}, raw=True, display_id=True)

"""One operator's sitting with one incident: what tasks and notebooks share. It plans, and lets the runner act."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from salvor import clock, cutover, journal, loss, runbook_files
from salvor.approval.waiting import Gate
from salvor.change import Change, Finding, WayBack
from salvor.errors import CannotError, PlanMovedError, SalvorError, UsageError
from salvor.history import History
from salvor.incident import Incident
from salvor.journal import Journal
from salvor.journal.folders import is_open
from salvor.plan import Plan, PlannedStep
from salvor.run import Runner
from salvor.secrets import mask
from salvor.session.holding import Holding, touched
from salvor.steps import Step
from salvor.steps.assess import assess

if TYPE_CHECKING:
    from salvor.status.publish import Refresher

STATUS_DEADLINE = 20.0
"""Seconds that the end of a command waits for the status page, which is published in the background."""


@contextlib.contextmanager
def understood(incident: str) -> Iterator[None]:
    """Raise CannotError when the journal of `incident` says what this Salvor does not know."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CannotError(
            f"The journal of {incident} says what this Salvor does not know: {type(error).__name__}: {error}.",
            safe="nothing was changed",
            hint=f"inv incident.show --incident={incident} says who wrote it: go on with the version of Salvor there; "
            f"inv incident.check --incident={incident} says whether it was damaged",
        ) from error


@dataclass
class Session:
    """An incident that is planned, or being carried out. Nothing is written before `begin`."""

    incident: Incident
    runbook: runbook_files.Runbook
    runner: Runner
    history: History
    resumed: bool = False
    others: frozenset[str] | None = None
    """The incidents that were there when this one was prepared; None: nobody looked."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """What the operator overrides from now on, with the reasons."""
    _gate: Gate | None = None
    _status: Refresher | None = None
    _to_ask: bool = False
    """Whether the second person is still to be told that they are asked."""

    @property
    def journal(self) -> Journal | None:
        """The incident's journal; None before `begin`, when nothing was written yet."""
        return self.runner.journal

    def step(self, name: str) -> Step:
        """The runbook's step of that name."""
        for step in self.runbook.steps:
            if step.__name__ == name:
                return step
        raise UsageError(
            f"The runbook {self.runbook.name!r} has no step {name!r}.",
            hint=f"its steps: {', '.join(step.__name__ for step in self.runbook.steps)}",
        )

    def plan(self, *names: str, tell: Callable[[Finding], None] = lambda finding: None) -> Plan:
        """The plan of the named steps (none: all of the runbook's), each as if the ones before were done. Writes
        nothing.
        """
        steps = [self.step(name) for name in names] if names else list(self.runbook.steps)
        if not self.incident.decisions and steps[0] is not assess:
            steps.insert(0, assess)
        return self._expected(self.runner.plan(steps, tell))

    def _expected(self, plan: Plan) -> Plan:
        """Put what each way back took before into the plan's decisions."""

        def timed(way: WayBack, system: str) -> WayBack:
            return replace(way, takes=self.history.expected(system, way.name))

        steps = []
        for step in plan.steps:
            decisions = tuple(replace(each, way=timed(each.way, each.system)) for each in step.decisions)
            steps.append(replace(step, decisions=decisions))
        return Plan(tuple(steps))

    @cached_property
    def holding(self) -> Holding:
        """What this sitting holds while it is carried out."""
        return Holding(self.incident, self._say)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
            self.runner.watcher.tell(text)

    @contextlib.contextmanager
    def begin(self, plan: Plan | None = None, systems: Sequence[str] = (), *, holding: bool = True) -> Iterator[None]:
        """Hold the service's lock, its lease in the mirror, what `plan` touches, and these systems, and write the
        journal while the block runs. Without `holding`, nothing may be changed but the journal.

        Raises HeldError when another operator holds one of them: nothing was written.
        """
        held = self.holding.all(plan) if holding else contextlib.nullcontext(self.runner.still_ours)
        with held as self.runner.still_ours:
            self.holding.systems(systems)
            if self.holding.follows_another:
                self.runner.look_anew()
            opened = self._open_journal(self.incident.folder)
            self._gate, self._status = self._second_person(), self._status_page()
            try:
                yield
            finally:
                try:
                    self.runner.finish()
                    if self._status:
                        self._status.finish(STATUS_DEADLINE)
                finally:
                    opened.close()

    def _open_journal(self, folder: Path) -> Journal:
        mirror = os.environ.get("SALVOR_MIRROR")
        tell = self.runner.watcher.tell
        if (folder / journal.FILE).exists():
            opened = Journal.open(
                folder, by=self.incident.operator, mirror=mirror, tell=tell, still_ours=self.holding.is_ours
            )
            try:
                ended = self.incident.over
                with understood(self.incident.id):
                    self.incident.learn_anew(opened.lines)  # another operator may have gone on since it was read
                if self.incident.over != ended:
                    raise PlanMovedError(
                        f"{self.incident.id} is {self.incident.over}, by somebody else meanwhile.",
                        safe="nothing was changed",
                        hint=f"inv incident.show --incident={self.incident.id}",
                    )
                opened.append("resumed", where=socket.gethostname())
                if self.overrides:
                    self.incident.learn(opened.append("overridden", overrides=dict(self.overrides)))
            except BaseException:  # Ctrl-C in a notebook, whose kernel lives on and would hold the journal
                opened.close()
                raise
        else:
            self._refuse_second()
            opening = self.incident.opening()
            opened = Journal.create(
                folder,
                by=self.incident.operator,
                mirror=mirror,
                tell=tell,
                still_ours=self.holding.is_ours,
                **opening,
            )
        self.runner.journal = opened
        return opened

    def _refuse_second(self) -> None:
        """Refuse to begin beside an incident of the same service that was begun since this one was prepared."""
        if self.others is None:
            return
        mine, known = self.incident, self.others
        for folder in journal.incidents(mine.folder.parent):
            if folder.name not in known and is_open(
                Journal.read(folder).lines, mine.platform, mine.service, mine.purpose
            ):
                raise PlanMovedError(
                    f"The incident {folder.name} of {mine.service.name} was begun meanwhile.",
                    safe="nothing was changed",
                    hint="the same command again goes on with that one",
                )

    def _status_page(self) -> Refresher | None:
        """What publishes the status page anew, if the inventory says where. A drill tells customers nothing."""
        incident = self.incident
        if not incident.platform.status.publish or incident.purpose != "incident":
            return None
        from salvor.status.publish import Refresher

        return Refresher(incident.platform.name, self.runner.owe)

    def _second_person(self) -> Gate | None:
        rule, runner = self.incident.service.second_person, self.runner
        if rule is None or not self.incident.steps_of_two:
            return None

        return Gate(
            self.incident.folder,
            self.incident.operator,
            rule,
            plans=lambda: self.incident.approvals,
            tell=self._say,
            note=runner.note,
            still_ours=runner.go_on,
        )

    def steps_of_two(self, plan: Plan) -> list[str]:
        """The steps of a plan that would wait for a second person."""
        return [step.name for step in plan.steps if step.changes and step.name in self.incident.steps_of_two]

    def approve(self, plan: Plan, how: str) -> None:
        """Note what the operator approved; when steps of it need a second person, ask for one now, so that nobody has
        to wait once they are reached. Call inside `begin`.
        """
        self.holding.systems(touched(self.incident, plan))
        self.runner.approve(plan, how)
        steps = self.steps_of_two(plan)
        keys = [change.key for step in plan.steps if step.name in steps for change in step.changes]
        if self._gate and keys and not self._gate.find(keys):
            self.runner.note("asked", hash=plan.hash, steps=steps, within=self._gate.rule.within)
            self._to_ask = True

    def confirm(self, step: str, changes: Sequence[Change]) -> None:
        """Wait until a second person has approved these approved changes, if the step needs one. Call inside `begin`.

        Raises CannotError when nobody did in time: nothing of the step was done.
        """
        self._send_question()
        keys = {change.key for change in changes}
        if self._gate and step in self.incident.steps_of_two and keys and keys <= self.runner.approved:
            self.runner.confirmed |= self._gate.wait(step, self.incident.asked, keys).keys

    def _send_question(self) -> None:
        """Tell the second person, once it is known what is broken and after all were told that."""
        if self._to_ask:
            self._to_ask = False
            self.tell("asked")

    def act(self, name: str) -> PlannedStep:
        """Carry one step out; `assess` first when nothing is pinned yet. Call inside `begin`.

        What needs a second person waits for one, and is then planned again: the world may have moved meanwhile.
        """
        if not self.incident.decisions and name != "assess":
            self.runner.run(assess)
        if name in self.incident.steps_of_two:
            self.confirm(name, self.runner.plan([self.step(name)]).changes)
        planned = self.runner.run(self.step(name))
        if name == "notify":
            self._send_question()
            if self._status and not self.incident.recovered_once:
                self._status.ask()
        if name == "verify":
            self._note_proven(planned.findings)
        if name == "reroute" and self.incident.decisions and not self.incident.recovered_once:
            self._measure_recovery()
        return planned

    def tell(self, moment: str) -> None:
        """Send the messages of a moment, and wait for none of them. Call inside `begin`."""
        self.runner.tell(moment)

    def failed(self, error: Exception) -> None:
        """Note what the sitting failed on, for the messages and for whoever goes on. Call inside `begin`."""
        self.incident.error = mask(error.what if isinstance(error, SalvorError) else f"{type(error).__name__}: {error}")
        self.runner.note("failed", text=str(error) or type(error).__name__)

    def _note_proven(self, findings: Sequence[Finding]) -> None:
        """Which backups passed, and what survives in the copies: after the cutover new commits come, and hide it."""
        assert self.runner.journal
        incident = self.incident
        for broken in incident.broken:
            staged = cutover.staged(incident, broken)
            if not staged:  # its cutover is done, by an earlier call
                continue
            lacks = [one.lacks for one in findings if one.evidence == staged.identity and one.lacks is not None]
            proven = self.runner.journal.append(
                "proven",
                system=broken.system.name,
                backup=staged.backup or broken.decision.way.backup,
                identity=staged.identity,
                newest_commit=clock.write_time(staged.fresh) if staged.fresh else None,
                lacks=max(lacks, default=None),
            )
            incident.learn(proven)
        copies = self._survived()
        newest = [copy.newest for copy in copies if copy and copy.newest]
        if newest and len(newest) == len(copies):
            self._measured(newest_commit=clock.write_time(min(newest)), would_lose=self._loses()[0])

    def _survived(self) -> list[loss.Survived | None]:
        lines = [self.incident.survived.get(broken.system.name) for broken in self.incident.broken]
        return [loss.Survived.read(line) if line else None for line in lines]

    def _loses(self) -> tuple[float | None, str]:
        """The RPO in seconds, and how it was measured."""
        incident = self.incident
        until = incident.wish.at or incident.failed_at or incident.detected_at
        return loss.rpo(self._survived(), min(until, incident.detected_at))

    def _measure_recovery(self) -> None:
        """RTO: from detection to the first good check through the route. RPO: what the proven copies lose."""
        good_at, incident = clock.now(), self.incident
        rpo, how = self._loses()
        took = (good_at - incident.detected_at).total_seconds()
        self._measured(
            rto=round(took, 3) if took >= 0 else None,  # detected by another machine's clock, which is ahead
            rpo=rpo,
            rpo_how=how,
            good_at=clock.write_time(good_at),
            rto_target=incident.service.rto,
            rpo_target=incident.service.rpo,
        )
        assert self.runner.journal
        incident.learn(self.runner.journal.append("recovered"))
        if self._status:
            self._status.ask()

    def _measured(self, **figures: object) -> None:
        assert self.runner.journal
        self.incident.learn(self.runner.journal.append("measured", **figures))

"""What the cells of `notebooks/walkthrough.ipynb` call: a first day on call, on a sandbox of its own.

It is a drill: it ends in a drill's report, and the sandbox is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from salvor import clock, console, inventory, sandbox, show
from salvor.change import Finding, Level
from salvor.drill import end as drill_end
from salvor.drill import place as drill_place
from salvor.errors import CannotError, UsageError
from salvor.incident import Incident
from salvor.journal import story
from salvor.journal.folders import incidents_folder
from salvor.notebook.cells import Opened, display, display_style, for_people, read_parameters
from salvor.notebook.live import Progressing
from salvor.plan import Plan
from salvor.postgres.settings import PostgresSettings
from salvor.sandbox import disasters, survivors
from salvor.sandbox.layout import Layout
from salvor.session import Session, aftermath, handover
from salvor.session.opening import open_session
from salvor.show import Plain

PARAMETERS = {"disaster": str, "platform": str}
SERVICE = "orders"
_MARK = "walkthrough"
"""A file in the sandbox's folder: the walkthrough made this sandbox, and may break and remove it."""


def open(namespace: Mapping[str, Any]) -> Walkthrough:
    """The walkthrough; call it with `globals()`. Raises UsageError for anything but a sandbox."""
    display_style()
    return _open(namespace)


@for_people
def _open(namespace: Mapping[str, Any]) -> Walkthrough:
    given = read_parameters(namespace, PARAMETERS)
    if given["platform"] != "sandbox":
        raise UsageError(
            f"platform: this notebook breaks what it works on: the sandbox, and never {given['platform']!r}.",
            safe="nothing was changed",
            hint="for a real platform: notebooks/incident.ipynb, or inv drill --platform=NAME",
        )
    if given["disaster"] not in disasters.names():
        raise UsageError(
            f"disaster: there is no {given['disaster']!r}.",
            safe="nothing was changed",
            hint=f"the disasters are {', '.join(disasters.names())}",
        )
    return Walkthrough(given["disaster"])


class Walkthrough(Opened):
    """Break it, look, plan, act, look again, undo. Each method is one cell."""

    def __init__(self, disaster: str) -> None:
        self._disaster = disaster
        self._moment: datetime | None = None
        self._session: Session | None = None
        self._plan: Plan | None = None
        self._counted: list[Finding] = []
        self._is_up = False

    @for_people
    def up(self) -> None:
        """Start the sandbox, or find the one of an earlier try. Raises CannotError when somebody else's stands."""
        _refuse_foreign()
        display(
            "quiet", text="Making a small platform: a database with a standby and backups, DNS, a shop. About 10 s."
        )
        sandbox.up(tell=lambda text: None)
        (Layout.home() / _MARK).touch(mode=0o600)
        _refuse_namesake()
        self._is_up = True
        self._moment = next((each.moment for each in _struck() if each.disaster == self._disaster), None)
        parts = [
            Finding(part.name, "runs", Level.PASS if part.up else Level.FAIL, detail=part.detail)
            for part in sandbox.status()
        ]
        display("findings", caption="What runs", found=parts)

    @for_people
    def look(self) -> None:
        """Ask what the service is like now, as `inv assess` does. Changes nothing."""
        found = self._open_session().plan("assess").steps[0].findings
        display("findings", caption="What assess sees", found=[each for each in found if "way back" not in each.check])

    @for_people
    def break_it(self) -> None:
        """Throw the disaster at the sandbox, once: a second one would not be undone by going back to before it."""
        if not self._is_up:
            raise CannotError("The sandbox of this walk is not up.", safe="nothing was broken", hint="learn.up()")
        if others := [each.disaster for each in _struck() if each.disaster != self._disaster]:
            raise CannotError(
                f"This sandbox was broken before, by {others[0]}.",
                safe="nothing more was broken",
                hint="learn.down() removes it; then learn.up() makes a new one",
            )
        if self._moment:
            display("quiet", text="It was broken already, and is not broken once more:")
        else:
            self._moment = disasters.strike(self._disaster)
        text = f"{self._disaster}: {disasters.names()[self._disaster]} At {clock.write_time(self._moment)}."
        display("problem", what=text)

    @for_people
    def plan(self) -> None:
        """Show every change, why, and its way back. Writes nothing."""
        if self._moment is None:
            raise _not_broken()
        self._session = self._open_session()
        self._plan = self._session.plan()
        for each in [each for step in self._plan.steps for each in step.decisions]:
            display("decision", one=each)
        display("plan", changes=self._plan.changes, last=self._session.history.last, hash=self.hash)

    @property
    def hash(self) -> str:
        """The hash of the plan that was shown: who gives it, approves that plan and no other."""
        return self._plan.hash if self._plan else ""

    @for_people
    def act(self, approve: str) -> None:
        """Carry the approved plan out. Raises CannotError when it is not the plan that was shown."""
        if self._session is None or self._plan is None or approve != self.hash:
            raise CannotError("That is not the plan that was shown.", safe="nothing was changed", hint="learn.plan()")
        with self._session.begin(self._plan):
            self._session.approve(self._plan, f"approve={approve}, in the walkthrough")
            with console.telling_failure(self._session):
                for step in self._session.runbook.steps:
                    self._session.act(step.__name__)
        display("measured", story=story.read(self._session.incident.folder))

    @for_people
    def survivors(self) -> None:
        """Count the orders that customers saw acknowledged before the disaster, and that are still there."""
        if self._moment is None:
            raise _not_broken()
        self._counted = [drill_place.counted("the shop", survivors.survivors(self._moment))]
        display("findings", caption="The orders that customers saw acknowledged", found=self._counted)

    @for_people
    def handover(self) -> None:
        """Show what `inv incident.show` shows."""
        told = story.read(self._incident().folder)
        print("\n".join(map(show.clean, handover.screen(handover.of(told, incidents_folder())))))

    @for_people
    def undo(self) -> None:
        """Take everything back, as `inv undo` does: the world is as before, and so broken. Where a change has no way
        back, which the plan said, it is told again, and nothing is undone.
        """
        incident = self._incident()
        try:
            aftermath.undo(incident.id, Plain(), yes=True)
        except CannotError as error:
            display("problem", what=error.what, safe=error.safe, hint=error.hint)

    @for_people
    def down(self) -> None:
        """Remove the sandbox, look what is left of it, and make the drill's report."""
        if not sandbox.status():
            display("quiet", text="There is no sandbox: nothing is left to remove.")
            return
        _refuse_foreign()
        begun = clock.monotonic()
        with drill_place.in_memory(drill_place.signing_key(Layout.home())) as key:
            seen = drill_place.taken_down(sandbox, Plain(), keep=False)
            display("findings", caption="What is left", found=seen)
            if self._session and self._session.incident.folder.exists():
                seconds = clock.monotonic() - begun
                drill_end.finish(self._incident().folder, seen, seconds, Plain(), key, counted=self._counted)
        self._is_up, self._moment, self._session, self._plan, self._counted = False, None, None, None, []

    def _incident(self) -> Incident:
        if self._session is None or not self._session.incident.folder.exists():
            raise CannotError(
                "Nothing was carried out in this walk yet.",
                safe="nothing was changed",
                hint="learn.plan(), learn.act(...)",
            )
        return self._session.incident

    def _open_session(self) -> Session:
        return open_session(
            SERVICE,
            Progressing(),
            failed_at=self._moment,
            purpose="drill",
            scenario=f"walkthrough {self._disaster}",
            anew=True,
        )


def _not_broken() -> CannotError:
    return CannotError("Nothing is broken yet.", safe="nothing was changed", hint="run the cell that breaks it")


def _struck() -> list[disasters.Struck]:
    """The disasters that the sandbox has met, the oldest first: also those of a kernel that was restarted."""
    return disasters.struck(sandbox.find())


def _refuse_foreign() -> None:
    """Raise CannotError when a sandbox stands that a walkthrough did not make."""
    if sandbox.status() and not (Layout.home() / _MARK).exists():
        raise CannotError(
            f"A sandbox stands in {Layout.home()}, and this notebook did not make it.",
            safe="it was not touched",
            hint="inv sandbox.down, if nobody needs it; or another one: SALVOR_SANDBOX=/tmp/my-sandbox jupyter lab",
        )


def _refuse_namesake() -> None:
    """Raise UsageError when the inventory's `sandbox` is not the one that stands: nothing else is ever broken."""
    root, database = sandbox.find().root, inventory.load("sandbox").settings["orders-db"]
    assert isinstance(database, PostgresSettings)
    if any(not member.data.startswith(f"{root}/") for member in database.members):
        raise UsageError(
            "The platform `sandbox` of this inventory is not the sandbox that stands.",
            safe="nothing was broken",
            hint="unset SALVOR_INVENTORY",
        )

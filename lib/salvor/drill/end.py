"""How a drill ends, whatever became of it: what it made is taken away, a closing look proves that, its journal is
closed, and its report is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from salvor import clock, console, journal, show
from salvor.budgets import CLEAN_UP, REHEARSAL
from salvor.change import Finding, Level, Reachable
from salvor.drill import index as drill_index
from salvor.drill import report as drill_report
from salvor.errors import CannotError, NotProvenError, SalvorError
from salvor.incident import Incident
from salvor.journal import evidence
from salvor.journal.folders import incidents_folder, writing
from salvor.journal.ssh_signature import signing_key
from salvor.notebook import record
from salvor.session import Session, aftermath
from salvor.show import Shown

_LOOK = "closing look"
_UNTOUCHED = "what is live was not touched"
INTERRUPTED = "It was interrupted; the next drill of the service took away what it left."


def recover(sitting: Session, shown: Shown) -> None:
    """Carry the drill out. One that fails before anything was begun has a journal too: that is its result."""
    try:
        console.recover(sitting, shown, yes=True)
    except Exception as error:
        note_failure(sitting, error)
        raise


def rehearsed(sitting: Session, shown: Shown) -> None:
    """End a rehearsal: drop what it staged, look, close, report. Raises what kept it from being taken away, or
    NotProvenError when something is left.
    """
    begun = clock.monotonic()
    folder = sitting.incident.folder
    try:
        if not _is_marked(folder, "undone"):
            aftermath.undo(folder.name, shown, yes=True)
    finally:
        seen = _look(folder.name, shown)
        finish(folder, seen, clock.monotonic() - begun, shown, signing_key(""))
    if left := [finding for finding in seen if finding.level is not Level.PASS]:
        raise NotProvenError(
            f"The drill {folder.name} may have left something: {left[0].subject}: {left[0].check}: {left[0].figure}",
            safe="" if any(finding.check in (_UNTOUCHED, _LOOK) for finding in left) else _UNTOUCHED,
            hint=f"inv undo --incident={folder.name}, then: inv assess {sitting.incident.options}",
        )


def _look(incident: str, shown: Shown) -> list[Finding]:
    looking = aftermath.of_id(incident, shown).incident
    try:
        return list(closing_look(looking))
    except SalvorError as error:
        return [Finding(looking.service.name, _LOOK, Level.UNKNOWN, detail=error.what)]


def closing_look(incident: Incident) -> Iterator[Finding]:
    """What is left of a rehearsal: stages, kept copies, what runs or listens beside; whether what is live is the same.

    Reads only.
    """
    incident.look_again()
    pinned = {broken.system.name: broken for broken in incident.broken}
    for system in incident.systems:
        state = incident.observe(system)
        decision = pinned[system.name].decision if system.name in pinned else None
        ways = (decision.way, *decision.others) if decision else ()
        stages = {way.stage for way in ways if way.arguments is not None}
        unseen = state.summary if state.reachable is Reachable.UNKNOWN else ""
        staged = [one.name for one in state.staged if one.name in stages]
        yield _none(system.name, "nothing is staged", staged, unseen)
        kept = [one.name for one in state.kept if one.incident == incident.id]
        yield _none(system.name, "nothing is kept", kept, unseen)
        yield _none(system.name, "nothing runs or listens beside it", system.side_servers(), unseen)
        if decision:
            level = Level.PASS if state.identity == decision.identity else Level.FAIL
            yield Finding(system.name, _UNTOUCHED, level, state.identity, decision.identity, unseen)


def _none(subject: str, check: str, left: Sequence[str], unseen: str) -> Finding:
    """A pass when nothing is left, unless it could not be seen."""
    level = Level.FAIL if left else Level.UNKNOWN if unseen else Level.PASS
    return Finding(subject, check, level, ", ".join(left) or "none", "none", unseen)


def finish(
    folder: Path,
    seen: Sequence[Finding],
    seconds: float,
    shown: Shown,
    key: Path | None,
    *,
    failed: str = "",
    counted: Sequence[Finding] = (),
) -> None:
    """Write what the closing look saw and how long the clean-up took, make the report, close and sign the journal.

    `counted` is what was seen through the route after the cutover. What cannot be made is owed, and fails nothing.
    """
    with writing(folder, shown.tell) as written:
        for finding in counted:
            written.append("finding", step="reroute", finding=finding.to_json())
        written.append("step", step=CLEAN_UP, phase="begun", planned=0)
        for finding in seen:
            written.append("finding", step=CLEAN_UP, finding=finding.to_json())
            shown.finding(finding)
        written.append("step", step=CLEAN_UP, phase="ended", seconds=round(seconds, 3))
        if failed:
            written.append("failed", text=failed)
        if problem := drill_report.PAPER.make(folder):
            written.append("owed", what="the drill's report", why=problem)
            shown.tell(f"owed: the drill's report: {problem}")
        written.append("closed", result=drill_report.read(folder).word)
    problems = [_sign(folder, key), record.make(folder), drill_index.make(folder.parent)]
    for problem in filter(None, problems):
        shown.tell(f"owed: {problem}")
    shown.tell(f"  the drill's report: {show.shortest(folder / drill_report.PAGE)}")
    shown.tell(f"  all drills: {show.shortest(folder.parent / drill_index.PAGE)}")


def _sign(folder: Path, key: Path | None) -> str:
    """Sign the journal; "" or what is owed."""
    if key is None:
        return f"the signature: there is no SSH key. HINT: inv incident.close --incident={folder.name} --key=PATH"
    try:
        evidence.sign(folder, key)
    except CannotError as error:
        return f"the signature: {error.what}"
    return ""


def note_failure(sitting: Session, error: Exception) -> None:
    """Have a journal of a drill that failed before anything was begun: it is a result, and has a report."""
    if sitting.journal is None:
        with sitting.begin():
            sitting.failed(error)


def end_interrupted(service: str, platform: str, shown: Shown, gone: str = "") -> None:
    """End the drills of the service that were begun and never closed, as a killed one; what they staged is dropped.

    `gone` says why nothing of them can be left, where that is known. Raises HeldError when somebody drills it now.
    """
    for folder in journal.incidents(incidents_folder()):
        opened = journal.first_line(folder)
        mine = (opened.get("purpose"), opened.get("platform"), opened.get("service")) == ("drill", platform, service)
        is_rehearsal = opened.get("runbook") == REHEARSAL  # one with a cutover belongs to a stand-in that still stands
        if not (mine and (gone or is_rehearsal)) or _is_marked(folder, "closed"):
            continue
        shown.tell(f"The drill {folder.name} was interrupted; what it left is taken away first.")
        begun = clock.monotonic()
        seen = [Finding(service, "nothing is left of it", Level.PASS, "none", "none", gone)]
        if not gone:
            if not _is_marked(folder, "undone"):
                aftermath.undo(folder.name, shown, yes=True)
            seen = _look(folder.name, shown)
        finish(folder, seen, clock.monotonic() - begun, shown, signing_key(""), failed=INTERRUPTED)


def _is_marked(folder: Path, kind: str) -> bool:
    """Whether the journal has a line of that kind, told without parsing it: there may be hundreds of drills. A quote
    inside of a text is escaped, so that none says this.
    """
    return f'"kind":"{kind}"'.encode() in (folder / journal.FILE).read_bytes()


def refuse_failed(folders: Sequence[Path]) -> None:
    """Raise NotProvenError when one of these drills failed."""
    for report in map(drill_report.read, folders):
        if report.verdict is Level.FAIL:
            worst = report.mends[0] if report.mends else None
            said = f"{worst.what}: {worst.figure}" if worst else "the service did not come back"
            raise NotProvenError(
                f"The drill {report.story.incident} failed: {said}",
                hint=f"inv incident.show --incident={report.story.incident}",
            )

"""The record of an incident, `record.ipynb` and `record.html`: its notebook, executed after the fact from the journal.

Recovery never waits for its paperwork: nothing here raises into one, and a dead kernel or a full disk costs the
picture, no more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvor import durable, errors, executed, pages, shell, story
from salvor.errors import SalvorError
from salvor.secrets import mask
from salvor.show import Plain, clean

NOTEBOOK = executed.NOTEBOOK
PAGE = "record.html"
CARRIED_OUT = "carried-out.ipynb"
"""The notebook that carried the incident out, as papermill left it."""

DEADLINE = 120.0
"""Seconds until the notebook is given up and the page is made without it."""

_STEPS = ("assess", "isolate", "restore", "verify", "reroute", "notify")


def make(folder: Path) -> str:
    """Write `record.ipynb` and `record.html` into an incident's folder, mode 600, each whole or not at all.

    Returns "" when both are made, or else what is owed and why, for the journal; it never raises. Where the notebook
    cannot be executed, the page is made without it, and says so.
    """
    problem, body = "", ""
    try:
        with tempfile.TemporaryDirectory(prefix="salvor-record-") as temporary:
            # A process of its own, which the deadline ends whatever a kernel does.
            argv = [sys.executable, "-m", "salvor.executed", folder.name, temporary]
            shell.local().run(argv, deadline=DEADLINE, environment={"SALVOR_INCIDENTS": str(folder.parent)})
            durable.replace(folder / NOTEBOOK, (Path(temporary) / NOTEBOOK).read_bytes())
            body = (Path(temporary) / executed.BODY).read_text(encoding="utf-8")
    except Exception as error:  # noqa: BLE001  whatever papermill, a kernel or a disk does is owed, and stops nothing
        problem = f"{NOTEBOOK}: {_words(error)}"
    try:
        durable.replace(folder / PAGE, page(folder, body, problem).encode())
    except Exception as error:  # noqa: BLE001
        problem = "; ".join(filter(None, [problem, f"{PAGE}: {_words(error)}"]))
    return problem


def _words(error: Exception) -> str:
    """An error in one line."""
    text = error.what if isinstance(error, SalvorError) else f"{type(error).__name__}: {error}"
    return " ".join(mask(text).split())[:500]


def page(folder: Path, body: str = "", problem: str = "") -> str:
    """The page of an incident around `body`; without one it is made from the journal alone, and `problem` says why."""
    told = story.read(folder)
    note = f"The notebook could not be executed: this page was made from the journal without it. {problem}"
    title = f"Incident record: {told.title or folder.name}"
    return pages.page(title, pages.headline(told), body or _sections(folder), note if problem else "")


def _sections(folder: Path) -> str:
    from salvor import evidence

    told = story.read(folder)

    def part(heading: str, *sections: str, **data: Any) -> str:
        return f"<h2>{heading}</h2>" + "".join(pages.section(section, **data) for section in sections)

    def step(name: str) -> str:
        return part(name.capitalize(), "planned", "happened", runs=[run for run in told.steps if run.name == name])

    return "\n".join(
        [
            pages.section("summary", story=told),
            part("What was measured", "measured", story=told),
            part("Timeline", "timeline", story=told),
            *map(step, _STEPS),
            part("Changes and their way back", "changes", story=told),
            part("Evidence", "evidence", story=told),
            part("Interruptions and open work", "open_work", story=told),
            part("Who did what when", "people", story=told),
            part("The seal", "seal", story=told, found=evidence.check(folder)),
        ]
    )


def run_notebook(parameters: Mapping[str, Any]) -> int:
    """Carry an incident out: papermill executes the notebook, whose lines are shown as they come.

    Empty parameters are left out. Returns the exit code: 0, or that of the error which ended it. The notebook is kept
    as `carried-out.ipynb` in the incident's folder. Raises UsageError for a parameter that it does not know, before
    anything runs.
    """
    with tempfile.TemporaryDirectory(prefix="salvor-notebook-") as temporary:
        output = Path(temporary) / CARRIED_OUT
        given = {name: value for name, value in parameters.items() if value not in ("", None)}
        code = _carry_out(given, output)
        problem = _keep(output, is_whole=code == 0) if output.exists() else ""
    if problem:
        print(f"\nOwed: {problem}", file=sys.stderr)
    return code


def _carry_out(parameters: Mapping[str, Any], output: Path) -> int:
    """Execute the notebook; what ended it is told on standard error, and its exit code returned."""
    from papermill.exceptions import PapermillExecutionError

    try:
        executed.execute(parameters, output, stdout_file=sys.stdout, stderr_file=sys.stderr)
    except PapermillExecutionError as error:
        kind = getattr(errors, error.ename, None)
        said = error.evalue if kind else f"{error.ename}: {error.evalue}"
        print(f"\n{clean(said)}", file=sys.stderr)
        return getattr(kind, "exit_code", 1)
    except RuntimeError as error:  # so nbclient says that a kernel died, or never began
        print(f"\nThe notebook's kernel ended before the notebook did: {clean(str(error))}", file=sys.stderr)
        print("Safe now: nothing that was live has been removed; each change is journalled.", file=sys.stderr)
        print("HINT: the same command again goes on from here, with or without --notebook", file=sys.stderr)
        return errors.CannotError.exit_code
    return 0


def _keep(output: Path, *, is_whole: bool) -> str:
    """Keep a carried-out notebook beside its journal, and make the record where the notebook did not come to that."""
    from salvor.aftermath import of_id
    from salvor.console import make_record
    from salvor.session import incidents_folder

    incident = executed.incident_of(output.read_bytes())
    folder = incidents_folder() / incident
    if not incident or not folder.is_dir():
        return ""  # nothing was done
    try:
        durable.replace(folder / CARRIED_OUT, executed.masked(output))
    except OSError as error:
        return f"{CARRIED_OUT}: {error.strerror}"
    if not is_whole:
        shown = Plain(sys.stderr)
        make_record(of_id(incident, shown), shown)
    return ""

"""The record of an incident, `record.ipynb` and `record.html`: its notebook, executed after the fact from the journal;
and the notebook that carries one out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvor import durable, errors, pages, scratch
from salvor.journal import story
from salvor.notebook import executed
from salvor.notebook.paper import Paper
from salvor.show import Plain, clean

NOTEBOOK = "record.ipynb"
PAGE = "record.html"
CARRIED_OUT = "carried-out.ipynb"
"""The notebook that carried the incident out, as papermill left it."""

_STEPS = ("assess", "isolate", "restore", "verify", "reroute", "notify")


def make(folder: Path) -> str:
    """Write `record.ipynb` and `record.html` into an incident's folder. Returns "" or what is owed, as `Paper.make`."""
    return PAPER.make(folder)


def page(folder: Path, body: str = "", problem: str = "") -> str:
    """The page of an incident around `body`; without one it is made from the journal alone, and `problem` says why."""
    return PAPER.html(folder, body, problem)


def _sections(folder: Path) -> str:
    from salvor.journal import evidence

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


def _headline(folder: Path) -> tuple[str, str]:
    told = story.read(folder)
    return f"Incident record: {told.title or folder.name}", pages.headline(told)


def _parameters(folder: Path) -> dict[str, Any]:
    return {"incident": folder.name, "record": True}


PAPER = Paper("incident", NOTEBOOK, PAGE, _headline, _sections, _parameters)


def run_notebook(parameters: Mapping[str, Any]) -> int:
    """Carry an incident out: papermill executes the notebook, whose lines are shown as they come.

    Empty parameters are left out. Returns the exit code: 0, or that of the error which ended it. The notebook is kept
    as `carried-out.ipynb` in the incident's folder. Raises UsageError for a parameter that it does not know, before
    anything runs.
    """
    with scratch.folder("notebook") as temporary:
        output = temporary / CARRIED_OUT
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
    from salvor.console import make_record
    from salvor.journal.folders import incidents_folder
    from salvor.session.aftermath import of_id

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

"""The record of an incident, `record.ipynb` and `record.html`: its notebook, executed after the fact from the journal.

Recovery never waits for its paperwork: nothing here raises into one, and a dead kernel or a full disk costs no more than
the picture.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvor import durable, errors, inventory, pages, shell, story
from salvor.errors import SalvorError, UsageError
from salvor.secrets import mask, mask_data
from salvor.show import clean

NOTEBOOK = "record.ipynb"
PAGE = "record.html"
CARRIED_OUT = "carried-out.ipynb"
"""The notebook that carried the incident out, as papermill left it."""

DEADLINE = 120.0
"""Seconds until the notebook is given up and the page is made without it."""

_STEPS = ("assess", "isolate", "restore", "verify", "reroute", "notify")


def template() -> Path:
    """The notebook as it is stored: without outputs."""
    return inventory.root() / "notebooks" / "incident.ipynb"


def make(folder: Path) -> str:
    """Write `record.ipynb` and `record.html` into an incident's folder, mode 600, each whole or not at all.

    Returns "" when both are made, or else what is owed and why, for the journal; it never raises. Where the notebook
    cannot be executed, the page is made without it, and says so.
    """
    problem = ""
    try:
        try:
            executed = _execute_after_the_fact(folder)
            durable.replace(folder / NOTEBOOK, executed)
            body = _body(executed)
        except Exception as error:  # noqa: BLE001  whatever papermill, a kernel or a disk does is owed, and stops nothing
            problem = f"{NOTEBOOK}: {_words(error)}"
            body = ""
        durable.replace(folder / PAGE, _page(folder, body, problem).encode())
    except Exception as error:  # noqa: BLE001
        problem = "; ".join(filter(None, [problem, f"{PAGE}: {_words(error)}"]))
    return problem


def _words(error: Exception) -> str:
    """An error in one line."""
    text = error.what if isinstance(error, SalvorError) else f"{type(error).__name__}: {error}"
    return " ".join(mask(text).split())[:500]


# ------------------------------------------------------------------------------------------------ the page


def _page(folder: Path, body: str, problem: str) -> str:
    told = story.read(folder)
    note = (
        f"The notebook could not be executed, so this page was made from the journal without it. {problem}"
        if problem
        else ""
    )
    return pages.page(
        f"Incident record: {told.title or folder.name}", pages.headline(told), body or sections(folder), note
    )


def sections(folder: Path) -> str:
    """The body of the page straight from the journal, without a notebook."""
    from salvor import evidence

    told = story.read(folder)
    found = evidence.check(folder)
    parts = [pages.section("summary", story=told), "<h2>What was measured</h2>", pages.section("measured", story=told)]
    parts += ["<h2>Timeline</h2>", pages.section("timeline", story=told)]
    for name in _STEPS:
        runs = [run for run in told.steps if run.name == name]
        parts += [
            f"<h2>{name.capitalize()}</h2>",
            pages.section("planned", runs=runs),
            pages.section("happened", runs=runs),
        ]
    parts += ["<h2>Changes and their way back</h2>", pages.section("changes", story=told)]
    parts += ["<h2>Evidence</h2>", pages.section("evidence", story=told)]
    parts += ["<h2>Interruptions and open work</h2>", pages.section("open_work", story=told)]
    parts += ["<h2>Who did what when</h2>", pages.section("people", story=told)]
    parts += ["<h2>The seal</h2>", pages.section("seal", story=told, found=found)]
    return "\n".join(parts)


def _body(executed: bytes) -> str:
    """An executed notebook as a page's body: cells tagged `summary` first, those tagged `notebook-only` left out."""
    import nbformat
    from nbconvert.exporters.templateexporter import TemplateExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    notebook = nbformat.reads(executed.decode(), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "notebook-only" not in _tags(cell)]
    notebook.cells.sort(key=lambda cell: "summary" not in _tags(cell))
    exporter = TemplateExporter(raw_template=pages.template_of_notebook())
    exporter.register_filter(
        "markdown", lambda text: MarkdownWithMath(renderer=IPythonRenderer(exclude_anchor_links=True)).render(text)
    )
    body, _ = exporter.from_notebook_node(notebook)
    return str(body)


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


# ------------------------------------------------------------------------------------------------ papermill


def _execute_after_the_fact(folder: Path) -> bytes:
    """The executed notebook. It runs in a process of its own, so that a deadline ends it. Raises SalvorError."""
    with tempfile.TemporaryDirectory(prefix="salvor-record-") as temporary:
        output = Path(temporary) / NOTEBOOK
        argv = [sys.executable, "-m", "salvor.record", folder.name, str(output)]
        shell.local().run(argv, deadline=DEADLINE, environment={"SALVOR_INCIDENTS": str(folder.parent)})
        return _masked(output)


def _execute(parameters: Mapping[str, Any], output: Path, **options: Any) -> None:
    """Let papermill execute the notebook; `output` lies in a folder of its own, which also takes Jupyter's files.

    Raises papermill's PapermillExecutionError when a cell raised. By default a kernel talks over TCP on loopback,
    without encryption, where any user of the machine can listen; on sockets in that folder (mode 700) nobody else can.
    """
    import papermill
    from traitlets.config import Config

    folder = output.parent
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(folder / "kernel")}})
    # Our own kernel before one of the user, and none of their start-up files.
    os.environ |= {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_RUNTIME_DIR": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    # papermill fills braces in a path with parameters.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (template(), output)]
    papermill.execute_notebook(*paths, dict(parameters), progress_bar=False, config=sockets, **options)


def _masked(path: Path) -> bytes:
    """A notebook without secrets: papermill keeps parameters in its metadata too."""
    return (json.dumps(mask_data(json.loads(path.read_bytes())), ensure_ascii=False, indent=1) + "\n").encode()


def run_notebook(parameters: Mapping[str, Any]) -> int:
    """Carry an incident out: papermill executes the notebook, whose lines are shown as they come.

    Empty parameters are left out. Returns the exit code: 0, or that of the error which ended it. The notebook is kept
    as `carried-out.ipynb` in the incident's folder. Raises UsageError for a parameter that it does not know, before
    anything runs.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from salvor.notebook import unknown_parameter

    known = papermill.inspect_notebook(str(template()))
    for name in parameters:
        if name not in known:
            raise UsageError(
                unknown_parameter(name), safe="nothing was changed", hint=f"the parameters are {', '.join(known)}"
            )
    given = {name: value for name, value in parameters.items() if value not in ("", None)}
    code = 0
    with tempfile.TemporaryDirectory(prefix="salvor-notebook-") as temporary:
        output = Path(temporary) / CARRIED_OUT
        try:
            _execute(given, output, stdout_file=sys.stdout, stderr_file=sys.stderr)
        except PapermillExecutionError as error:
            print(f"\n{clean(error.evalue)}", file=sys.stderr)
            code = getattr(getattr(errors, error.ename, None), "exit_code", 1)
        problem = _keep(output, is_whole=code == 0)
    if problem:
        print(f"\nOwed: {problem}", file=sys.stderr)
    return code


def _keep(output: Path, *, is_whole: bool) -> str:
    """Keep a carried-out notebook beside its journal, and make the record where the notebook did not come to that."""
    from salvor.session import incidents_folder

    cells = json.loads(output.read_bytes())["cells"]
    outputs = [each for cell in cells for each in cell.get("outputs", [])]
    found = [each["metadata"]["salvor"] for each in outputs if "salvor" in each.get("metadata", {})]
    incident = next((each["incident"] for each in found if "incident" in each), "")
    folder = incidents_folder() / incident
    if not incident or not folder.is_dir():
        return ""  # nothing was begun
    try:
        durable.replace(folder / CARRIED_OUT, _masked(output))
    except OSError as error:
        return f"{CARRIED_OUT}: {error.strerror}"
    return "" if is_whole else make(folder)


if __name__ == "__main__":
    _execute({"incident": sys.argv[1], "record": True}, Path(sys.argv[2]))

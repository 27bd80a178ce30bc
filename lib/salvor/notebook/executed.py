"""A notebook of ours executed by papermill, and what came of it. Run as a module, it is a process of its own for that.

python -m salvor.notebook.executed TEMPLATE PARAMETERS FOLDER

executes notebooks/TEMPLATE.ipynb with PARAMETERS, a JSON object, into FOLDER/executed.ipynb and FOLDER/body.html.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvor import clone, pages
from salvor.errors import UsageError
from salvor.secrets import mask_data

NOTEBOOK = "executed.ipynb"
BODY = "body.html"


def template(name: str = "incident") -> Path:
    """A notebook as it is stored: without outputs."""
    return clone.root() / "notebooks" / f"{name}.ipynb"


def execute(parameters: Mapping[str, Any], output: Path, name: str = "incident", **options: Any) -> None:
    """Let papermill execute notebooks/NAME.ipynb into `output`, whose folder also takes Jupyter's files and should be
    private.

    Raises UsageError for a parameter that the notebook does not know, before anything runs; papermill's
    PapermillExecutionError when a cell raised; RuntimeError when the kernel ended.
    """
    # Nothing here asks for these, and they take long to import: a format of text that jsonschema knows, whose grammar
    # takes more than a second, and papermill's way to S3.
    for unused in ("rfc3987_syntax", "papermill.s3"):
        sys.modules.setdefault(unused, None)  # type: ignore[arg-type]
    import papermill
    from traitlets.config import Config

    known = papermill.inspect_notebook(str(template(name)))
    if unknown := [each for each in parameters if each not in known]:
        from salvor.notebook.cells import unknown_parameter

        hint = f"the parameters are {', '.join(known)}"
        raise UsageError(unknown_parameter(unknown[0], known), safe="nothing was changed", hint=hint)
    # By default a kernel talks over TCP on loopback, without encryption, where any user of the machine can listen.
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(output.parent / "kernel")}})
    ours = {
        "JUPYTER_PREFER_ENV_PATH": "1",  # our own kernel before one of the user
        "JUPYTER_RUNTIME_DIR": str(output.parent),
        "IPYTHONDIR": str(output.parent / "ipython"),  # none of the user's start-up files
    }
    # papermill fills braces in a path with parameters.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (template(name), output)]
    before = dict(os.environ)
    os.environ |= ours
    try:
        papermill.execute_notebook(*paths, dict(parameters), progress_bar=False, config=sockets, **options)
    finally:
        for name in ours:
            os.environ.pop(name)
        os.environ |= before


def masked(path: Path) -> bytes:
    """An executed notebook without secrets: papermill keeps parameters in its metadata too."""
    return (json.dumps(mask_data(json.loads(path.read_bytes())), ensure_ascii=False, indent=1) + "\n").encode()


def body(executed: bytes) -> str:
    """An executed notebook as a page's body: cells tagged `summary` first, those tagged `notebook-only` left out."""
    import nbformat
    from nbconvert.exporters.templateexporter import TemplateExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    notebook = nbformat.reads(executed.decode(), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "notebook-only" not in _tags(cell)]
    notebook.cells.sort(key=lambda cell: "summary" not in _tags(cell))
    exporter = TemplateExporter(raw_template=pages.template_of_notebook())
    markdown = MarkdownWithMath(renderer=IPythonRenderer(exclude_anchor_links=True))
    exporter.register_filter("markdown", markdown.render)
    made, _ = exporter.from_notebook_node(notebook)
    return str(made)


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def incident_of(executed: bytes) -> str:
    """The id of the incident that an executed notebook acted on; empty when it did not come that far."""
    for cell in json.loads(executed)["cells"]:
        for output in cell.get("outputs", []):
            if name := output.get("metadata", {}).get("salvor", {}).get("acted_on"):
                return str(name)
    return ""


def _execute_apart(name: str, parameters: Mapping[str, Any], folder: Path) -> None:
    executed = folder / NOTEBOOK
    execute(parameters, executed, name, request_save_on_cell_execute=False)
    notebook = masked(executed)
    executed.write_bytes(notebook)
    (folder / BODY).write_text(body(notebook), encoding="utf-8")


if __name__ == "__main__":
    try:
        _execute_apart(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
    except Exception as error:  # noqa: BLE001  said in words to the process that waits
        kind, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        sys.exit(f"{kind}: {said}")

"""Our notebooks in a real JupyterLab in a real browser, run cell by cell as a person does.

    python -m tests.lab NOTEBOOK [NAME=VALUE...] [--pictures=FOLDER]

runs notebooks/NOTEBOOK.ipynb and says what each cell shows; a picture of each cell goes into FOLDER.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from salvor.notebook import executed

from tests.browser import Page, chromium, end

LIB = Path(executed.__file__).parents[2]

_PANEL = "[...window.jupyterapp.shell.widgets('main')].find(each => each.context?.path.endsWith('.ipynb'))"
_NOTEBOOK = f"{_PANEL}.content"


@dataclass(frozen=True)
class Shown:
    """What one cell of code showed: its source, its words, and whether it failed."""

    source: str
    words: str
    failed: bool


@contextmanager
def jupyterlab(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A JupyterLab that serves `folder`; its address, with its token. Its own files are in `folder` too."""
    token = secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = folder / ".jupyter"
    ours = {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(LIB), environment.get("PYTHONPATH", "")])),
    }
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    argv += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"]
    argv += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (folder / "jupyterlab.log").open("wb")
    running = subprocess.Popen(argv, cwd=folder, env={**os.environ, **environment, **ours}, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < until and running.poll() is None, (folder / "jupyterlab.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab?token={token}"
    finally:
        end(running)
        log.close()


def walk(page: Page, address: str, name: str, parameters: Mapping[str, str], pictures: Path | None) -> Iterator[Shown]:
    """Open a notebook and run its cells one by one; what each cell of code shows."""
    page.open(address.replace("/lab?", f"/lab/tree/{name}.ipynb?"))
    page.wait_for(f"{_NOTEBOOK}.widgets.length > 0 && !!{_PANEL}.sessionContext.session?.kernel")
    page.evaluate(f"window.jupyterapp.shell.activateById({_PANEL}.id)")
    _write(page, parameters)
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.evaluate(f"{_NOTEBOOK}.activeCellIndex = 0")
    for number in range(page.evaluate(f"{_NOTEBOOK}.widgets.length")):
        ran = f"{_NOTEBOOK}.widgets[{number}]"
        page.evaluate(f"{_NOTEBOOK}.activeCellIndex = {number}")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-cell')")
        page.evaluate(f"{ran}.node.scrollIntoView()")
        if pictures:
            time.sleep(0.3)
            page.screenshot(pictures / f"{name}-{number:02d}.png")
        if page.evaluate(f"{ran}.model.type") == "code":
            yield Shown(
                page.evaluate(f"{ran}.model.sharedModel.getSource()"),
                page.evaluate(f"{ran}.outputArea.node.innerText"),
                page.evaluate(f"{ran}.model.outputs.toJSON().some(each => each.output_type === 'error')"),
            )


def _write(page: Page, parameters: Mapping[str, str]) -> None:
    """Write parameters into their cell, as a person does."""
    cell = f"{_NOTEBOOK}.widgets.find(each => (each.model.getMetadata('tags') ?? []).includes('parameters'))"
    source = page.evaluate(f"{cell}?.model.sharedModel.getSource() ?? ''")
    lines = [*source.splitlines(), *(f"{name} = {value!r}" for name, value in parameters.items())]
    if parameters:
        page.evaluate(f"{cell}.model.sharedModel.setSource({json.dumps(chr(10).join(lines))})")


def run(
    name: str, parameters: Mapping[str, str], environment: Mapping[str, str], pictures: Path | None = None
) -> list[Shown]:
    """Run one of our notebooks in a JupyterLab and a browser of its own."""
    with tempfile.TemporaryDirectory(prefix="salvor-lab-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        shutil.copy(executed.template(name), folder)
        with jupyterlab(folder, environment) as address, chromium(folder, 1280, 900) as page:
            return list(walk(page, address, name, parameters, pictures))


def main(arguments: list[str]) -> int:
    pictures = next((Path(each.partition("=")[2]) for each in arguments if each.startswith("--pictures=")), None)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    name, *given = [each for each in arguments if not each.startswith("--")]
    shown = run(name, dict(each.split("=", 1) for each in given), {}, pictures)
    for each in shown:
        print(f">>> {each.source}\n{each.words}\n")
    return int(any(each.failed for each in shown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Papers: notebooks that tell of a journal after the fact, executed by papermill, and the page beside each.

Recovery never waits for its paperwork: nothing here raises into one, and a dead kernel or a full disk costs the
picture, no more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salvor import durable, pages, scratch, shell
from salvor.errors import SalvorError
from salvor.notebook import executed
from salvor.secrets import mask

DEADLINE = 120.0
"""Seconds until a notebook is given up and its page is made without it."""


@dataclass(frozen=True)
class Paper:
    """`notebook` and `page` are file names in an incident's folder; `template` is the file's name in `notebooks/`.

    Each function takes that folder: `heads` gives the title and the headline, `body` the page's body where the notebook
    could not be executed, `parameters` those of the notebook.
    """

    template: str
    notebook: str
    page: str
    heads: Callable[[Path], tuple[str, str]]
    body: Callable[[Path], str]
    parameters: Callable[[Path], Mapping[str, Any]]
    source: str = pages.JOURNAL
    """What it tells of, in words."""

    def make(self, folder: Path) -> str:
        """Write the notebook and the page into an incident's folder, mode 600, each whole or not at all.

        Returns "" when both are made, or else what is owed and why, for the journal; it never raises. Where the
        notebook cannot be executed, the page is made without it, and says so.
        """
        problem, body = "", ""
        try:
            with scratch.folder("paper") as temporary:
                # A process of its own, which the deadline ends whatever a kernel does.
                given = json.dumps(dict(self.parameters(folder)))
                argv = [sys.executable, "-m", "salvor.notebook.executed", self.template, given, str(temporary)]
                # The kernel's connection file is put in there too, so that one that was killed leaves it nowhere else.
                around = {"SALVOR_INCIDENTS": str(folder.parent), "TMPDIR": str(temporary)}
                shell.local().run(argv, deadline=DEADLINE, environment=around)
                durable.replace(folder / self.notebook, (temporary / executed.NOTEBOOK).read_bytes())
                body = (temporary / executed.BODY).read_text(encoding="utf-8")
        except Exception as error:  # noqa: BLE001  whatever papermill, a kernel or a disk does is owed, and stops nothing
            problem = f"{self.notebook}: {words(error)}"
        try:
            durable.replace(folder / self.page, self.html(folder, body, problem).encode())
        except Exception as error:  # noqa: BLE001
            problem = "; ".join(filter(None, [problem, f"{self.page}: {words(error)}"]))
        return problem

    def html(self, folder: Path, body: str = "", problem: str = "") -> str:
        """The page around `body`; without one it is made from the journal alone, and `problem` says why."""
        note = f"The notebook could not be executed: this page was made without it. {problem}"
        return pages.page(*self.heads(folder), body or self.body(folder), note if problem else "", self.source)


def words(error: Exception) -> str:
    """An error in one line."""
    text = error.what if isinstance(error, SalvorError) else f"{type(error).__name__}: {error}"
    return " ".join(mask(text).split())[:500]

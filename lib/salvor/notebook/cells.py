"""What the cells of `notebooks/incident.ipynb` call. One notebook, three ways, the same cells:

carried out by papermill, walked through in JupyterLab with each plan shown before its act, or executed after the fact:
then it changes nothing, contacts no system, and shows what the journal says.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from salvor import pages, runbook_files
from salvor.errors import SalvorError, UsageError
from salvor.journal import story
from salvor.journal.folders import find
from salvor.journal.happened import Story
from salvor.runbook_files import Runbook
from salvor.show import clean

PARAMETERS: Mapping[str, type] = {
    "service": str,
    "platform": str,
    "source": str,
    "at": str,
    "target": str,
    "failed_at": str,
    "runbook": str,
    "override": str,
    "incident": str,
    "record": bool,
    "approve": str,
}
"""The notebook's parameters and what each must be."""

_NOT_OURS = ("In", "Out")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def open(namespace: Mapping[str, Any]) -> Walk:
    """The walk through an incident that the notebook's parameters name; call it with `globals()`.

    It begins or resumes an incident, or shows one that is over. Raises UsageError, which names the parameter.
    """
    display_style()
    return _open(namespace)


def for_people(method: _Method) -> _Method:
    """Show an error as what to read at 3 a.m.; it still goes on, so that the cell fails and papermill stops."""

    @functools.wraps(method)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except SalvorError as error:
            error.what, error.safe, error.hint = clean(error.what), clean(error.safe), clean(error.hint)
            display("problem", what=error.what, safe=error.safe, hint=error.hint)
            # IPython asks for this, and papermill says it on the terminal: the words, and no traceback.
            words = f"{type(error).__name__}: {error}".splitlines()
            error.__dict__["_render_traceback_"] = lambda: words
            raise

    return wrapped  # type: ignore[return-value]


@for_people
def _open(namespace: Mapping[str, Any]) -> Walk:
    given = read_parameters(namespace)
    if given["incident"] and (given["record"] or _is_over(given["incident"])):
        return Told(find(given["incident"]))
    if given["record"]:
        raise UsageError(
            "record: it shows an incident that was, and no incident is named.", hint="papermill ... -p incident ID"
        )
    from salvor.notebook.live import Live

    return Live(given)


def read_parameters(namespace: Mapping[str, Any], parameters: Mapping[str, type] = PARAMETERS) -> dict[str, Any]:
    """The parameters among the names of a notebook. Raises UsageError for one that is unknown or of a wrong type.

    papermill injects any parameter and only warns of an unknown one. What a person names in JupyterLab once the walk is
    open is theirs.
    """
    is_new = not any(isinstance(value, Opened) for value in namespace.values())
    for name, value in namespace.items():
        plain = isinstance(value, (str, int, float, list, dict, tuple)) or value is None
        if is_new and plain and name not in parameters and not name.startswith("_") and name not in _NOT_OURS:
            hint = f"the parameters are {', '.join(parameters)}"
            raise UsageError(unknown_parameter(name, parameters), safe="nothing was changed", hint=hint)
    given: dict[str, Any] = {}
    for name, kind in parameters.items():
        value = namespace.get(name, kind())
        if type(value) is not kind:
            raise UsageError(
                f"{name}: {value!r} is not {'text' if kind is str else 'True or False'}.",
                safe="nothing was changed",
                hint=f'pass it by papermill\'s -r, which leaves text as it is: -r {name} "{value}"'
                if kind is str
                else f"-p {name} True",
            )
        given[name] = value.strip() if isinstance(value, str) else value
    return given


def unknown_parameter(name: str, known: Iterable[str]) -> str:
    """What is wrong with a parameter that nobody knows, and which one was meant."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"{clean(name)}: the notebook has no such parameter{f'; did you mean {close[0]}?' if close else '.'}"


def _is_over(incident: str) -> bool:
    """Whether nothing is left to do in it, by its journal alone."""
    told = story.read(find(incident))
    return bool(told.at("undone") or told.at("closed") or (told.at("recovered") and not told.unfinished))


# ------------------------------------------------------------------------------------------------ showing


def display(
    section: str,
    *,
    template: str = "sections.html",
    handle: Any = None,
    metadata: Mapping[str, Any] | None = None,
    **data: Any,
) -> None:
    """Show a section of a template (in place of `handle`), and its words alone for where there is no HTML."""
    from IPython.display import display as show

    html = pages.section(section, template=template, **data)
    bundle = {"text/html": f'<div class="salvor">{html}</div>', "text/plain": pages.plain(html)}
    if handle is not None:
        handle.update(bundle, raw=True)
    else:
        show(bundle, raw=True, metadata=dict(metadata or {}))


def display_style() -> None:
    """Give the notebook the style sheet; a page has its own, and leaves this one out by its metadata."""
    from IPython.display import display as show

    show(
        {"text/html": f"<style>{pages.style()}</style>", "text/plain": ""},
        raw=True,
        metadata={"salvor": {"style": True}},
    )


# ------------------------------------------------------------------------------------------------ the walk


class Opened:
    """What the first cell of a notebook opens. From then on what a person names in it is theirs."""


class Walk(Opened, ABC):
    """A walk through an incident, one section a step. `again` means the second time that the runbook has that step."""

    def __init__(self) -> None:
        self._explained = False

    @property
    @abstractmethod
    def story(self) -> Story:
        """What the journal tells so far."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The incident's folder; it may not exist yet."""

    @property
    @abstractmethod
    def runbook(self) -> Runbook | None:
        """The scenario; None when the record of an old one is made and it is not here any more."""

    def has(self, step: str, again: bool) -> bool:
        """Whether the runbook has that step, for the second time when `again`."""
        return self.runbook is None or [each.__name__ for each in self.runbook.steps].count(step) > again

    def explain(self, step: str, again: bool = False) -> None:
        """Show what a step is for, in its own words; on the first one, when to use this runbook."""
        book = self.runbook
        told: dict[str, Any] = {}
        if book and not self._explained:
            told = {"runbook": book.name, "paragraphs": pages.paragraphs(book.docstring)}
        self._explained = True
        found = next((each for each in book.steps if each.__name__ == step), None) if book else None
        display("explain", first=pages.paragraphs(inspect.getdoc(found) or "") if found and not again else [], **told)

    @abstractmethod
    def plan(self, step: str, again: bool = False) -> None:
        """Show what a step would change, why, how it is undone or that it cannot be, and what it took last time."""

    @abstractmethod
    def act(self, step: str, approve: str = "", again: bool = False) -> None:
        """Carry a step out."""

    @abstractmethod
    def finish(self) -> None:
        """End this sitting: nothing is held any more, and the record is made."""

    def summary(self) -> None:
        """Show the outcome, and the incident's figures."""
        display("summary", story=self.story)

    def measured(self) -> None:
        """Show RTO and RPO against their targets."""
        display("measured", story=self.story)

    def timeline(self) -> None:
        """Draw what happened when, with the numbers in a table."""
        display("timeline", story=self.story)

    def changes(self) -> None:
        """Show every change with its reason, its way back and its outcome."""
        display("changes", story=self.story)

    def evidence(self) -> None:
        """Show what was decided on what grounds, what was proven on which copy, and who approved it."""
        display("evidence", story=self.story)

    def open_work(self) -> None:
        """Show interruptions, and what is still owed."""
        display("open_work", story=self.story)

    def people(self) -> None:
        """Show who did what when."""
        display("people", story=self.story)

    def seal(self) -> None:
        """Show what the journal itself proves: its chain of hashes, its seal and signature."""
        from salvor.journal import evidence

        found = evidence.check(self.folder) if self.folder.exists() else []
        display("seal", story=self.story, found=found)


class Told(Walk):
    """After the fact: the journal alone is read, and nothing is changed or contacted."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._story = story.read(folder)
        self._runbook: Runbook | None
        try:
            self._runbook = runbook_files.load(self._story.runbook)
        except Exception:  # noqa: BLE001  whatever an edited runbook raises, the record is of what was done by the old one
            self._runbook = None
        self.summary()

    @property
    def story(self) -> Story:
        return self._story

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def runbook(self) -> Runbook | None:
        return self._runbook

    @for_people
    def plan(self, step: str, again: bool = False) -> None:
        display("planned", runs=self.story.runs(step, 2 if again else 1))

    @for_people
    def act(self, step: str, approve: str = "", again: bool = False) -> None:
        display("happened", runs=self.story.runs(step, 2 if again else 1))

    def finish(self) -> None:
        """Nothing: nothing was begun."""

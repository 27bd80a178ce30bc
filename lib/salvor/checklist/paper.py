"""The page of one walk through a checklist, made from its journal."""

from __future__ import annotations

from salvor import durable, pages
from salvor.checklist.answers import Answers
from salvor.checklist.form import Checklist
from salvor.notebook.paper import words
from salvor.plain import amount

PAGE = "checklist.html"
LOOKS = {
    "passed": "pass",
    "yes": "pass",
    "warned": "warn",
    "not applicable": "",
    "failed": "fail",
    "no": "fail",
    "unknown": "unknown",
}


def html(form: Checklist, seen: Answers) -> str:
    """The page."""
    left = [item for item in form.items if item.name not in seen.by_item]
    bad = len(seen.bad)
    headline = (
        f"{amount(bad, 'item')} to mend" if bad else f"{amount(len(left), 'item')} left" if left else "All is well"
    )
    body = pages.section("walk", template="checklist.html", form=form, seen=seen, left=left, looks=LOOKS)
    return pages.page(f"{seen.title}: {seen.platform}", headline, body)


def make(form: Checklist, seen: Answers) -> str:
    """Write the page, whole or not at all. Returns "" or what is owed and why; never raises."""
    try:
        durable.replace(seen.folder / PAGE, html(form, seen).encode())
    except Exception as error:  # noqa: BLE001  a page stops no checklist
        return f"{PAGE}: {words(error)}"
    return ""

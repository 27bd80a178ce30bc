"""Stories as HTML: the sections that a notebook shows and the page that holds them, from the templates in `templates/`.

Everything that comes from outside is cleaned and escaped in one place, whatever a template does: see `shown`.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.change import Change
from salvor.journal.happened import UNFINISHED, WORDS, Story
from salvor.pages import labels, timeline
from salvor.plan import describe
from salvor.secrets import mask
from salvor.show import way_back

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_CHARACTERS = 2000
"""Of one text; the journal has the rest."""
MOST_ROWS = 500
"""Of one table; the journal has the rest."""

_TEMPLATES = Path(__file__).parent / "templates"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# Control characters; marks that turn the direction of text or are not seen; what is no character at all.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufffe\uffff\ud800-\udfff]"
)
_LOOKS = {"done": "pass", "failed": "fail", "unknown": "unknown", UNFINISHED: "warn"}


def shown(value: object) -> str:
    """`value` as text for a page: masked, without what steers a terminal or turns text around, and not endless."""
    text = str(value)
    if len(text) > 2 * MOST_CHARACTERS:
        text = text[: 2 * MOST_CHARACTERS]
    text = _UNSHOWABLE.sub("\ufffd", _ESCAPES.sub("", mask(text.replace("\r\n", "\n"))))
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} … (shortened; the journal has all {len(str(value)):,} characters)"


def section(name: str, *, template: str = "sections.html", **data: Any) -> str:
    """One section of a template in `templates/` as HTML."""
    return str(getattr(_environment().get_template(template).module, name)(**data))


JOURNAL = "`journal.jsonl` alone, which is the evidence; this page is only its picture"
"""What the page of an incident or a drill is made from."""


def page(title: str, headline: str, body: str, note: str = "", source: str = JOURNAL) -> str:
    """A whole page, self-contained: it asks no network for anything and runs no script. `body` is HTML, `source` says
    what it was made from.
    """
    from markupsafe import Markup

    headings: list[tuple[str, Markup]] = []

    def named(found: re.Match[str]) -> str:
        headings.append((f"section-{len(headings) + 1}", Markup(found[1])))  # noqa: S704  as it stands in the body
        return f'<h2 id="{headings[-1][0]}">{found[1]}</h2>'

    body = re.sub(r"<h2[^>]*>(.*?)</h2>", named, body)
    data = {
        "title": title,
        "headline": headline,
        "headings": headings,
        "note": note,
        "source": source,
        "made": clock.now(),
        "style": style(),
    }
    return _environment().get_template("page.html").render(body=Markup(body), **data)  # noqa: S704  made by `section`, which escapes


class _Words(HTMLParser):
    """Gathers the words of our own HTML: a line a block, cells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._drawing = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._drawing = self._drawing or tag == "svg"
        if ("class", "evidence") in attributes or ("class", "error") in attributes:  # they begin a line of their own
            self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._drawing = self._drawing and tag != "svg"
        self.words.append(
            "  " if tag in ("td", "th", "dt") else "\n" if tag in ("p", "tr", "li", "caption", "dd") else ""
        )

    def handle_data(self, data: str) -> None:
        if not self._drawing:
            self.words.append(re.sub(r"\s+", " ", data))


def plain(html: str) -> str:
    """The words of a section alone, for where HTML is not shown."""
    words = _Words()
    words.feed(html)
    words.close()
    lines = (line.strip() for line in "".join(words.words).split("\n"))
    return "\n".join(line for line in lines if line)


def style() -> str:
    """The style sheet: a page's own, and what follows JupyterLab's theme inside a notebook."""
    return (_TEMPLATES / "record.css").read_text(encoding="utf-8")


def headline(story: Story) -> str:
    """The outcome in one sentence."""
    name = story.title or story.service or story.incident
    drill = "Drill: " if story.purpose == "drill" else ""
    back = clock.write_duration(story.measured.get("rto"))
    if story.at("undone"):
        return (
            f"{drill}{name}: what was done is taken back"
            if story.at("recovered") is None
            else f"{drill}{name} came back, and the recovery was then undone"
        )
    if story.at("recovered"):
        return f"{drill}{name} came back after {back}"
    if story.at("closed"):
        return f"{drill}{name}: closed without a recovery"
    return f"{drill}{name}: the recovery is not finished"


def broken(story: Story) -> str:
    """What was broken and which way led back, in words."""
    told = [f"{each.system}: {each.seen.rstrip('.')}. Way back: {each.way.name}." for each in story.decisions]
    looked = any(run.ended for run in story.runs("assess"))
    return " ".join(told) or ("Nothing was found broken." if looked else "Nothing is decided yet.")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else shown(value),
    )
    environment.filters |= {
        "duration": clock.write_duration,
        "moment": _moment,
        "brief_moment": lambda at: f"{at:%d %b %H:%M:%S}".lstrip("0"),
        "after": _after,
        "arguments": _arguments,
        "described": describe,
        "way_back": way_back,
        "word": WORDS.__getitem__,
        "look": lambda outcome: _LOOKS.get(outcome, "unknown"),
        "pixels": lambda number: f"{number:.1f}",
        "inline_code": _inline_code,
    }
    environment.globals |= {
        "most_rows": MOST_ROWS,
        "unfinished": UNFINISHED,
        "timeline_width": labels.WIDTH,
        "draw": timeline.draw,
        "headline": headline,
        "broken": broken,
    }
    return environment


def _moment(at: datetime | str | None) -> str:
    """A time of day with its date: `21 Nov 2026 00:33:05 UTC`."""
    if at is None:
        return "not known"
    moment = at if isinstance(at, datetime) else clock.read_time(at)
    return f"{moment:%d %b %Y %H:%M:%S} UTC".lstrip("0")


def _after(at: datetime, since: datetime | None) -> str:
    """How long after `since`: `+3 min 05 s`."""
    return (
        f"{(at - since).total_seconds():+.1f} s"
        if since and abs((at - since).total_seconds()) < 60
        else _long_after(at, since)
    )


def _long_after(at: datetime, since: datetime | None) -> str:
    if since is None:
        return ""
    seconds = (at - since).total_seconds()
    return f"{'+' if seconds >= 0 else ''}{clock.write_duration(seconds)}"


def _arguments(change: Change) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in change.arguments.items() if value is not None]


def paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, each on one line."""
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph]


def _inline_code(text: str) -> object:
    """A docstring's words between backticks as code."""
    from markupsafe import Markup, escape

    parts = [escape(shown(part)) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(parts)
    )


def template_of_notebook() -> str:
    """The template by which nbconvert turns an executed notebook into the body of a page."""
    return (_TEMPLATES / "notebook.html").read_text(encoding="utf-8")

"""The texts that people are sent, in their language: one YAML file each, with the incident's facts as `${name}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml

from salvor import clock
from salvor.errors import UsageError
from salvor.plain import one_line

Language = Literal["en", "ko"]
Audience = Literal["operators", "customers"]

_MOST = 500
"""Characters of one fact: what an engine says can be long, and a pager's screen is small."""
_MOMENT = re.compile(r".*_at|newest_commit")


@dataclass(frozen=True)
class Text:
    """A message's subject, one line, and its body, lines of plain text."""

    subject: str
    body: str


def render(
    moment: str,
    audience: Audience,
    language: Language,
    facts: Mapping[str, Any],
    *,
    repeated: bool = False,
    instead_of: Sequence[str] = (),
) -> Text:
    """The text for `moment`. Facts are data: nothing in them is looked up, run, or ends a line. A missing one is `-`.

    `repeated` says that the reader may have it already; `instead_of` names channels that could not be reached. To
    customers a service is called as their status page calls it (`title_ko`), where it does.
    """
    texts = _texts(language)
    values = _Facts({name: _plain(name, value, texts["facts"]) for name, value in facts.items()})
    if audience == "customers" and facts.get(f"title_{language}"):
        values["title"] = values[f"title_{language}"]
    values["channels"] = ", ".join(instead_of)
    template, phrases = texts[audience][moment], texts["phrases"]
    subject, body = template["subject"], template["body"].rstrip("\n")
    if values["title"].endswith("서비스"):  # the texts call it so themselves
        subject, body = (re.sub(r"(\$\{title\}\]?) 서비스", r"\1", text) for text in (subject, body))
    if facts.get("purpose") == "drill":
        subject = f"[{phrases['drill']}] {subject}"
    for wanted, phrase in ((repeated, "repeated"), (bool(instead_of), "instead")):
        if wanted:
            body += f"\n\n{phrases[phrase]}"
    return Text(Template(subject).substitute(values), Template(body).substitute(values))


class _Facts(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "-"


def _plain(name: str, value: object, words: Mapping[str, Mapping[str, str]]) -> str:
    """One fact as one line of text, masked; times for people, and what Salvor says itself in the language's `words`."""
    if value is None or value == "":
        return "-"
    text = one_line(str(value), most=_MOST)
    if _MOMENT.fullmatch(name):
        try:
            return f"{clock.read_time(text):%Y-%m-%d %H:%M:%S} UTC"
        except UsageError:
            return text
    for said, ours in words.get(name, {}).items():
        text = re.sub(rf"\b{said}\b", ours, text)
    return text


@cache
def _texts(language: Language) -> dict[str, Any]:
    texts: dict[str, Any] = yaml.safe_load((Path(__file__).parent / f"{language}.yaml").read_text(encoding="utf-8"))
    return texts

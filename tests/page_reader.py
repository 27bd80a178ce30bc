"""Reads a page by the letter of the HTML specification, and looks for what a validator of its syntax does not see."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

import html5lib

_SVG = "{http://www.w3.org/2000/svg}"


def read(html: str) -> Element:
    """The document. Raises html5lib's ParseError at the first breach of the syntax."""
    document: Any = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)
    root: Element = document
    return root


def texts(element: Element) -> str:
    """All words in an element."""
    return " ".join("".join(element.itertext()).split())


def faults(root: Element, links: tuple[str, ...] = ()) -> list[str]:
    """What is wrong for a reader who does not see the page, or has no network. `links`: how the names of the pages
    beside end that it may lead to.
    """
    found = []
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    found += [f"the id {name} stands twice" for name in {name for name in ids if ids.count(name) > 1}]
    headings = [int(each.tag[1]) for each in root.iter() if each.tag in _HEADINGS]
    found += [f"h{deep} follows h{deeper}" for deeper, deep in pairwise(headings) if deep > deeper + 1]
    found += ["there is not one h1"] if headings.count(1) != 1 or headings[0] != 1 else []
    found += ["the page has no language"] if not root.get("lang") else []
    for each in root.iter():
        for name, value in each.items():
            if name.startswith("on"):
                found.append(f"{each.tag} runs a script: {name}")
            beside = name == "href" and links and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) and value.endswith(links)
            if name in ("src", "srcset", "href", "action") and not (str(value).startswith("#") or beside):
                found.append(f"{each.tag} leads away: {value}")
            if name in ("aria-labelledby", "aria-describedby"):
                found += [f"{name}: there is no {one}" for one in str(value).split() if one not in ids]
            if name == "href" and str(value).startswith("#") and str(value)[1:] not in ids:
                found.append(f"the link {value} leads nowhere")
        if each.tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            found.append(f"there is a {each.tag}")
        if each.tag == "th" and each.get("scope") not in ("col", "row"):
            found.append("a th has no scope")
        if each.tag == "th" and not texts(each) and each.get("scope") == "col":
            found.append("a column has no name")
        if each.tag == "table" and each.find("caption") is None:
            found.append("a table has no caption")
        if each.tag == f"{_SVG}svg" and (each.find(f"{_SVG}title") is None or each.find(f"{_SVG}desc") is None):
            found.append("a drawing has no title or no description")
    return found


_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

"""What others wrote (an engine, a server, a table) made fit to be shown: masked, one line, nothing a terminal obeys."""

from __future__ import annotations

import re

from salvor.secrets import mask

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str, *, most: int = 200) -> str:
    """`text` as one line of `most` characters: without secrets, terminal escape sequences and control characters."""
    line = " ".join(_CONTROL.sub(" ", _ESCAPES.sub("", mask(text))).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def amount(number: int, what: str, several: str = "") -> str:
    """So many of something: `1 change`, `2 changes`; `several` where that is not made by an s: `2 entries`."""
    return f"{number} {what if number == 1 else several or f'{what}s'}"


def in_words(error: BaseException) -> str:
    """What went wrong: in Salvor's own words, in the system's, or else with the kind of the error."""
    if type(error).__name__ == "URLError":  # so urllib hands on what a socket said
        wrapped = getattr(error, "reason", "")
        return in_words(wrapped) if isinstance(wrapped, BaseException) else str(wrapped)
    if what := getattr(error, "what", ""):
        return str(what)
    said = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return said if said and isinstance(error, OSError) else f"{type(error).__name__}: {error}"

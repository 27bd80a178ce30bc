"""Files of settings, such as an .env: which names are in them, and how two differ. Values are compared, never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SETTING = re.compile(
    r"""
    ^[^\S\n]* (?:export[^\S\n]+)? (?P<name>[A-Za-z_][A-Za-z0-9_.-]{0,127}) [^\S\n]*=[^\S\n]*
    (?:
        (?P<quote>"{3}|'{3}|["'`]) (?P<quoted>(?:\\.|(?!(?P=quote))[^\\])*) (?P=quote) (?P<behind>[^\n]*)
        | (?P<plain>[^\n]*-----BEGIN\ .*?-----END\ [^\n]* | (?:[^\n]*\\\n)*[^\n]*)
    )
    | ^-----BEGIN\ .*?-----END\ [^\n]*
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
"""A setting with all lines of its value, or a key without a name: no line of a secret is taken for a name."""
_NAME = re.compile(r"(?:^|.*[./_-])(?:env|ini|conf|cfg|properties|environment)(?:[._-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Difference:
    """The names of settings that came, went, or have another value."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def figure(self) -> str:
        return f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed"

    @property
    def detail(self) -> str:
        """The names, and no value."""
        parts = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        return "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names) or "the same settings"


def is_settings(name: str) -> bool:
    """Whether a file of that name holds settings: .env, shop.env, app.ini, my.conf, log4j.properties."""
    return bool(_NAME.fullmatch(name))


def read(text: str) -> dict[str, str]:
    """The settings of a file, NAME=VALUE a line, as shells and dotenv read them: quoted ones, keys, and those that end
    in a backslash go on in the next line. Of one that stands twice the last counts.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = (one for one in _SETTING.finditer(lines) if one["name"])
    return {one["name"]: f"{one['quoted'] or ''}{one['behind'] or ''}{one['plain'] or ''}".strip() for one in found}


def compare(before: str, after: str) -> Difference:
    """How `after` differs from `before`."""
    old, new = read(before), read(after)
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )

"""Files of settings, such as an .env: which names are in them, and how two differ. Values are compared, never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SETTING = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]{0,127})\s*=\s*(.*?)\s*$", re.MULTILINE)
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
    """The settings of a file, NAME=VALUE a line; of one that stands twice the last counts."""
    return {found[1]: found[2].strip("'\"") for found in _SETTING.finditer(text)}


def compare(before: str, after: str) -> Difference:
    """How `after` differs from `before`."""
    old, new = read(before), read(after)
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )

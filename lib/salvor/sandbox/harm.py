"""What is common to all disasters: they have a name and a line of words, and what was done is noted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from salvor import clock
from salvor.errors import UsageError
from salvor.sandbox.folders import Folders


@dataclass(frozen=True)
class Struck:
    """A disaster that was done. `moment` (UTC) is the last one at which the data was whole and served; `member` is what
    it befell.
    """

    disaster: str
    moment: datetime
    member: str


def words(disasters: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """Every disaster, and what it does in one line."""
    return {name: (function.__doc__ or "").splitlines()[0] for name, function in disasters.items()}


def refuse_unknown(name: str, disasters: Mapping[str, object]) -> None:
    """Raise UsageError when there is no such disaster."""
    if name not in disasters:
        raise UsageError(f"There is no disaster {name!r}.", hint=f"the disasters are: {', '.join(disasters)}")


def note(found: Folders, done: Struck) -> None:
    """Note in `disasters.jsonl` what was done."""
    line = {"disaster": done.disaster, "moment": clock.write_time(done.moment), "member": done.member}
    descriptor = os.open(found.place / "disasters.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def struck(found: Folders) -> list[Struck]:
    """The disasters that were done to this sandbox, oldest first."""
    path = found.place / "disasters.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Struck(**{**data, "moment": clock.read_time(data["moment"])}) for data in map(json.loads, lines)]

"""What is installed to run by itself, and how `inv` is called there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from salvor.patience import WAIT

_WAIT = "6h"
"""Schedules are often due at the same time, all of them after the machine was off: one waits for the other so long."""


class Caller(BaseModel):
    """How `inv` is called for a platform: by which Python, in which folder, with what in the environment (no secrets).
    `stamps` is the folder in which a run that cron began is noted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    platform: str
    python: str
    folder: str
    stamps: str
    environment: Mapping[str, str] = {}

    def argv(self, *words: str) -> list[str]:
        """A command of inv."""
        return [self.python, "-m", "invoke", *words]

    def own(self, name: str) -> dict[str, str]:
        """What only the schedule `name` finds in its environment."""
        return {"SALVOR_OPERATOR": f"schedule {name}", WAIT: _WAIT}

    def stamp(self, name: str) -> str:
        """The file that says when the schedule `name` ran last."""
        return f"{self.stamps}/{self.platform}.{name}.json"


@dataclass(frozen=True)
class Entry:
    """A schedule as it is installed. `sound`: it is just as Salvor would write it now, and active. `last` is when it
    last ran (UTC), `result` how that ended; empty: nobody knows.
    """

    at: str
    run: tuple[str, ...]
    sound: bool = True
    last: datetime | None = None
    result: str = ""

    def says(self, at: str, run: Sequence[str]) -> bool:
        """Whether it needs no change to run `run` at `at`."""
        return self.sound and (self.at, self.run) == (at, tuple(run))


def write(at: str, run: Sequence[str]) -> str:
    """What an entry says, as one line that `read` reads."""
    return json.dumps({"at": at, "run": list(run)})


def read(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The time and the words that `write` wrote; None when that is not what `text` is."""
    try:
        said: Any = json.loads(text)
        return str(said["at"]), tuple(map(str, said["run"]))
    except (ValueError, TypeError, KeyError):
        return None


def line(words: Sequence[str]) -> str:
    """Words as they are typed."""
    return shlex.join(words)

"""What a platform's inventory says of backups: how many stay, and what must be true of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from salvor import clock
from salvor.schedule.moments import At
from salvor.system import Settings

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.ASCII)
_POWERS = " KMGT"


def read_size(text: str | int) -> int:
    """A number of bytes, or `1MB` (a million), `1MiB` (1,048,576), to bytes. Raises ValueError with what is wrong."""
    found = _SIZE.fullmatch(str(text).strip())
    if not found:
        raise ValueError(f"{text!r} is not a size; write for example 500KB, 1MB or 2GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS.index(found[2] or " "))


_Duration = Annotated[float, BeforeValidator(clock.read_duration)]
_Size = Annotated[int, BeforeValidator(read_size)]


class Keep(BaseModel):
    """How many backups stay: the newest one of each of the last so many days, weeks (from Monday), months and years
    that have one, by UTC. A day without a backup does not count, so that a pause lets nothing go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    daily: int = Field(default=0, ge=0)
    weekly: int = Field(default=0, ge=0)
    monthly: int = Field(default=0, ge=0)
    yearly: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _keeps_something(self) -> Keep:
        if not (self.daily or self.weekly or self.monthly or self.yearly):
            raise ValueError("it keeps nothing; say how many, for example {daily: 7, weekly: 4, monthly: 12}")
        return self


class Expect(BaseModel):
    """What must be true of the newest backup: `oldest` (seconds) is how old it may be, `smallest` (bytes) how small;
    `at` says when one is made by somebody else's schedule, `within` how long (seconds) after that it must be there.
    `proven` is how long ago (seconds) a restore of one may have been proven.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    oldest: _Duration | None = None
    smallest: _Size = 0
    at: At | None = None
    within: _Duration = 2 * 3600.0
    proven: _Duration = 35 * 86400.0


class BackedUpSettings(Settings):
    """The settings of every kind that has backups. Without `keep`, nothing is ever removed by Salvor."""

    keep: Keep | None = None
    expect: Expect = Expect()

    @property
    def own_policies(self) -> Mapping[str, Keep]:
        """The policies of single repositories, by the names that their backups have; none where the kind has none."""
        return {}

    @property
    def near(self) -> frozenset[str]:
        """The repositories, by those names, that a disaster may take with what is live, and that are not the only ones:
        of them nothing goes while fewer than two have the newest backup.
        """
        return frozenset()

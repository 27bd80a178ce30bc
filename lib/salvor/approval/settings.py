"""What the inventory says of a service whose operator may not act alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from salvor import clock

Waiting = Literal["isolate", "restore", "reroute", "undo", "discard"]


class SecondPerson(BaseModel):
    """The steps that wait until another operator has approved the plan, and for how long (seconds).

    `people` are the operators who may approve (none named: anybody but the one who acts). With `signers`, a file of
    allowed signers (ssh-keygen(1), ALLOWED SIGNERS), an approval counts only with the signature of a key in it, and who
    approved is the principal that this file names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[tuple[Waiting, ...], Field(min_length=1)]
    within: Annotated[float, BeforeValidator(clock.read_duration), Field(ge=1, le=86400)] = 900.0
    people: tuple[str, ...] = ()
    signers: Path | None = None

"""What an inventory says runs by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from salvor.schedule.moments import At, Calendar, read
from salvor.secrets import mask

_TASK = re.compile(r"[a-z][a-z0-9.-]*")


def _check_words(words: tuple[str, ...]) -> tuple[str, ...]:
    if not _TASK.fullmatch(words[0]):
        raise ValueError(f"{words[0]!r} is no command of inv; write for example [backup, --service=shop, --kind=dump]")
    if not all(word.isprintable() for word in words):
        raise ValueError("a word has a character that cannot be seen")
    if any(mask(word) != word for word in words) or mask(" ".join(words)) != " ".join(words):
        raise ValueError("what looks like a secret stands here, and would be in a file that others read")
    return words


class Schedule(BaseModel):
    """One command of `inv`, as its words, and when it runs. The platform is added to the words if none is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_words)]
    at: At

    @property
    def calendar(self) -> Calendar:
        """When it is due."""
        return read(self.at)

    def option(self, name: str) -> str:
        """What its words say of `--NAME=`; empty when they do not."""
        return next((word.partition("=")[2] for word in self.run if word.startswith(f"--{name}=")), "")

    def words(self, platform: str) -> tuple[str, ...]:
        """Its words, with the platform."""
        return self.run if self.option("platform") else (*self.run, f"--platform={platform}")


def check(schedules: Mapping[str, Schedule], services: Mapping[str, Any], refuse: Callable[..., NoReturn]) -> None:
    """Refuse a schedule of a service that is not described. `refuse` is called with where, what, and the hint."""
    for name, one in schedules.items():
        service = one.option("service")
        if service and not one.option("platform") and service not in services:
            place = ("schedules", name, "run", one.run.index(f"--service={service}"))
            refuse(place, f"there is no service {service!r}.", f"its services are: {', '.join(services) or 'none'}")

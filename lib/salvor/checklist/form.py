"""A checklist as it is written: `runbooks/NAME.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from salvor import clock, clone
from salvor.errors import UsageError
from salvor.inventory import located_yaml

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
_Seconds = Annotated[float, BeforeValidator(clock.read_duration), Field(gt=0)]


class Item(BaseModel):
    """One thing to look at. An automatic one says `what` must be, and the words of the command of `inv` to `run` (the
    platform is added to them), `within` so many seconds: exit code 0 is good. A manual one is a question to `ask` a
    person, and where to `look` for the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    what: str = ""
    run: tuple[str, ...] = ()
    within: _Seconds = 900.0
    ask: str = ""
    look: str = ""

    @model_validator(mode="after")
    def _one(self) -> Item:
        if bool(self.run) == bool(self.ask) or bool(self.what) != bool(self.run) or (self.look and not self.ask):
            raise ValueError("an item has what and run (a command of inv), or ask (a question) and maybe look")
        return self

    @property
    def text(self) -> str:
        """What it is about, in one sentence."""
        return self.what or self.ask


class Checklist(BaseModel):
    """Its items in their order. One that is left open for longer than `every` (seconds) is not gone on with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    title: str = Field(min_length=1)
    every: _Seconds
    items: Annotated[tuple[Item, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> Checklist:
        names = [item.name for item in self.items]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"the item {twice!r} stands twice")
        return self


def _folder() -> Path:
    return clone.root() / "runbooks"


def names() -> list[str]:
    """The names of the checklists."""
    return sorted(path.stem for path in _folder().glob("[a-z]*.yaml"))


def load(name: str) -> Checklist:
    """The checklist of that name. Raises UsageError: there is none, or the file, line and column of what is wrong."""
    if name not in names():
        raise UsageError(f"There is no checklist {name!r}.", hint=f"the checklists are {', '.join(names())}")
    document = located_yaml.read(_folder() / f"{name}.yaml")
    if not isinstance(document.data, dict):
        raise UsageError(
            f"{document.place(())}: a checklist is a mapping.", hint="begin with title:, every: and items:"
        )
    try:
        return Checklist.model_validate({"name": name, **document.data})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where, said = tuple(first["loc"]), first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"{document.place(where)}: {'.'.join(map(str, where))}: {said}.", hint="mend that file"
        ) from None

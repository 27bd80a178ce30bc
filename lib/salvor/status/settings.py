"""What the inventory says of a platform's status page (`status:`), and of maintenance to come (`notices:`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from salvor import clock
from salvor.errors import UsageError
from salvor.secrets import mask


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Words(_Part):
    """The same in English and in Korean; written as one text where both are the same."""

    en: str = Field(min_length=1, max_length=2000)
    ko: str = Field(min_length=1, max_length=2000)

    @model_validator(mode="before")
    @classmethod
    def _both(cls, value: object) -> object:
        return {"en": value, "ko": value} if isinstance(value, str) else value

    @field_validator("en", "ko")
    @classmethod
    def _no_secret(cls, text: str) -> str:
        if mask(text) != text:
            raise ValueError("what looks like a secret stands here, and everybody would read it (it is not shown)")
        return text


def _time(value: object) -> datetime:
    try:
        return clock.read_time(str(value))
    except UsageError as error:
        raise ValueError(
            f"{error.what.removeprefix('time: ').removesuffix('.')}; {error.hint.replace('time=', '')}"
        ) from error


Time = Annotated[datetime, BeforeValidator(_time)]
"""ISO 8601 with an offset."""


class Page(_Part):
    """The page: `services` are those that it shows, under these names and in this order (none: those with a title).

    `publish` is a folder or s3://bucket/prefix, which gets `index.html`; `every` (seconds) is how often it is published
    at least, by a schedule of yours: a page three times as old says that it is old. `follow` is its own address.
    """

    title: Words | None = None
    services: Mapping[str, Words] = {}
    publish: str = ""
    follow: str = ""
    every: Annotated[float, BeforeValidator(clock.read_duration), Field(ge=30, le=86400)] = 300.0

    @field_validator("follow")
    @classmethod
    def _address(cls, url: str) -> str:
        if url and (urlsplit(url).scheme != "https" or not urlsplit(url).hostname):
            raise ValueError("write it as https://HOST/PATH, where customers read it")
        return url

    @field_validator("publish")
    @classmethod
    def _place(cls, place: str) -> str:
        check_place(place)
        return place


def check_place(place: str) -> None:
    """Raises ValueError for what is no place to publish to."""
    parts = urlsplit(place)
    if place and not (place.startswith("/") or (parts.scheme == "s3" and parts.netloc and not parts.query)):
        raise ValueError("write a folder's whole path, or s3://bucket/prefix")


class Notice(_Part):
    """A notice to customers from `from` to `until`; what it `affects` is in maintenance then, or nothing is: it is
    told only. `until` is the expected end.
    """

    from_: Time = Field(alias="from")
    until: Time
    affects: tuple[str, ...] = ()
    text: Words

    @model_validator(mode="after")
    def _in_order(self) -> Notice:
        if self.until <= self.from_:
            raise ValueError("it ends before it begins")
        return self


def check(
    page: Page, notices: Mapping[str, Notice], services: Mapping[str, Any], refuse: Callable[..., NoReturn]
) -> None:
    """Refuse services that are not described. `refuse` is called with where, what, and the hint."""
    known = f"its services are: {', '.join(services) or 'none'}"
    for name in page.services:
        if name not in services:
            refuse(("status", "services", name), f"there is no service {name!r}.", known)
    for notice, one in notices.items():
        for index, name in enumerate(one.affects):
            if name not in services:
                refuse(("notices", notice, "affects", index), f"there is no service {name!r}.", known)

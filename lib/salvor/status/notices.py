"""Notices to customers: those of the inventory, and those that `inv status.notice` wrote beside the incidents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from salvor import clock, durable
from salvor.errors import CannotError, UsageError
from salvor.inventory import Platform
from salvor.journal.folders import incidents_folder, operator
from salvor.status.settings import Notice

_MOST_BYTES = 64 * 1024


def all_of(platform: Platform) -> Mapping[str, Notice]:
    """The notices of a platform, by name; one that was written by command stands before the inventory's of that name.

    A file that cannot be read is passed over: the page does not wait for it.
    """
    found = dict(platform.notices)
    folder = _folder(platform.name)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found[path.stem] = Notice.model_validate(json.loads(durable.read(path, most=_MOST_BYTES))["notice"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return found


def write(platform: Platform, name: str, settings: Mapping[str, object]) -> Notice:
    """Write a notice, or write it anew. Raises UsageError that names what is wrong with it, CannotError for a disk."""
    try:
        notice = Notice.model_validate({key: value for key, value in settings.items() if value != ""})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        option = f"--{first['loc'][-1]}" if first["loc"] else "the notice"
        missing = first["type"] in ("missing", "string_too_short")
        raise UsageError(
            f"{option} is missing." if missing else f"{option}: {first['msg'].removeprefix('Value error, ')}.",
            safe="no notice was written",
            hint=f"inv status.notice {name} --from=TIME --until=TIME --affects=SERVICE --en=TEXT --ko=TEXT",
        ) from error
    if notice.until <= clock.now():
        raise UsageError(
            f"--until: {clock.write_time(notice.until)} is over already, so nobody would see it.",
            safe="no notice was written",
            hint=f"date -u tells the time; inv status.notice {name} --remove takes one away",
        )
    for affected in notice.affects:
        if affected not in platform.services:
            raise UsageError(
                f"--affects: the platform {platform.name!r} has no service {affected!r}.",
                safe="no notice was written",
                hint=f"its services are: {', '.join(platform.services)}",
            )
    content = {
        "notice": notice.model_dump(mode="json", by_alias=True),
        "by": operator(),
        "at": clock.write_time(clock.now()),
    }
    path = _path(platform.name, name)
    try:
        durable.make_folder(path.parent)
        durable.replace(path, json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    except OSError as error:
        raise CannotError(
            f"The notice cannot be written: {path}: {error.strerror}.", safe="there is no notice"
        ) from error
    return notice


def remove(platform: Platform, name: str) -> None:
    """Take a notice away. Raises UsageError when none of that name was written by command."""
    path = _path(platform.name, name)
    if not path.exists():
        where = "it stands in the inventory: remove it there" if name in platform.notices else "inv status lists them"
        raise UsageError(f"There is no notice {name!r} that was written by command.", hint=where)
    path.unlink()
    durable.flush_folder(path.parent)


def _folder(platform: str) -> Path:
    return incidents_folder() / ".status" / platform


def _path(platform: str, name: str) -> Path:
    if (
        not name
        or not all(letter.isascii() and (letter.isalnum() or letter == "-") for letter in name)
        or len(name) > 63
    ):
        raise UsageError(
            f"{name!r} is no name for a notice.", hint="use letters, digits and hyphens, for example move-1"
        )
    return _folder(platform) / f"{name}.json"

"""An acknowledgement that the disk does not take: handed in memory to the watcher, who holds the episode's journal."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from salvor import clock, durable, secrets
from salvor.errors import CannotError, HeldError
from salvor.journal import FILE, Journal, brief, lock
from salvor.journal.folders import incidents_folder, operator
from salvor.journal.on_disk import held_back
from salvor.watch.episode import reopened, tell

_TAKEN_WITHIN = 180.0
"""Seconds within which a watcher looks at each of its rules, and has noted what it found."""
_MOST_BYTES = 64 * 1024


def hand_over(episode: str, text: str) -> None:
    """Leave it to the watcher of this machine, and wait until it is noted. Raises CannotError when nobody notes it."""
    path = _place() / f"{episode}.json"
    said = {"by": operator(), "text": secrets.mask(text), "where": socket.gethostname()}
    begun = clock.monotonic()
    try:
        durable.make_folder(path.parent)
        durable.check_ours(path.parent.parent)
        durable.replace(path, json.dumps(said).encode())
        while path.exists():
            if clock.monotonic() - begun > _TAKEN_WITHIN:
                refused = durable.refusal(incidents_folder())
                mend = f"{durable.mend(refused, incidents_folder())}; or, " if refused else ""
                raise CannotError(
                    f"{episode} is NOT acknowledged: the disk takes nothing, and no watcher has taken it within "
                    f"{clock.write_duration(_TAKEN_WITHIN)}.",
                    safe="nothing was changed",
                    hint=f"{mend}where inv watch runs, as its user: the same command again",
                )
            time.sleep(0.1)
    except OSError as error:
        raise CannotError(f"{episode} is NOT acknowledged: {path}: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            path.unlink()


def take(platform: str, rule: str, inform: Callable[[str], None]) -> None:
    """Note what was handed over for the open episode of a rule. What is no such thing is left alone."""
    try:
        found = list(_place().iterdir())
    except OSError:
        return
    for path in found:
        if brief.service_of(path.stem) == rule:
            with suppress(OSError, ValueError, LookupError, TypeError, CannotError, HeldError):
                _note(platform, path.stem, path, inform)


def _note(platform: str, episode: str, path: Path, inform: Callable[[str], None]) -> None:
    durable.check_ours(path.parent.parent)
    said = json.loads(durable.read(path, most=_MOST_BYTES))
    folder = incidents_folder() / episode
    known = Journal.read(folder)
    told = tell(known.lines)
    if told is None or told.is_over or known.lines[0]["platform"] != platform:
        return
    if not told.acknowledged:
        if not (folder / FILE).exists() and folder not in held_back():
            return
        with reopened(folder, by=str(said["by"]), tell=inform) as journal:
            journal.append("acknowledged", text=str(said["text"]), where=str(said["where"]))
    path.unlink()


def _place() -> Path:
    return lock.in_memory(incidents_folder()) / "acknowledged"

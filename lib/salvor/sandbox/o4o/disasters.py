"""What can befall the o4o stand-in, for real."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from salvor import clock
from salvor.errors import CannotError
from salvor.sandbox import harm
from salvor.sandbox.harm import Struck, struck
from salvor.sandbox.o4o import database, pm2
from salvor.sandbox.o4o.layout import Layout

__all__ = ["RANSOM_NOTE", "Struck", "names", "strike", "struck"]

RANSOM_NOTE = "READ_ME_TO_DECRYPT.txt"
_LOCKED = ".locked"


def names() -> dict[str, str]:
    """Every disaster, and what it does in one line."""
    return harm.words(_DISASTERS)


def strike(name: str) -> datetime:
    """Do the disaster to the stand-in, noted in `disasters.jsonl`. Returns the last moment (UTC) before it.

    Raises UsageError when there is no such disaster, CannotError when there is no stand-in, or nothing left to break.
    """
    harm.refuse_unknown(name, _DISASTERS)
    found = Layout.standing()
    moment = _DISASTERS[name](found)
    harm.note(found, Struck(name, moment, Layout.PLATFORM))
    return moment


def _drop_database(found: Layout) -> datetime:
    """Somebody drops the database, whoever is connected to it."""
    import psycopg

    try:
        with database.server(found).session(deadline=30.0, writes=True) as connection:
            row = connection.execute("select clock_timestamp()").fetchone()
            connection.execute(f"drop database {database.NAME} with (force)".encode())
    except psycopg.Error as error:
        raise CannotError(
            f"The stand-in's database cannot be dropped: {str(error).strip()}.",
            hint="inv sandbox.status --platform=o4o",
        ) from error
    assert row
    return clock.read_time(row[0].isoformat())


def _lose_media(found: Layout) -> datetime:
    """The folder of the media is deleted, with everything in it."""
    _refuse_missing(found.media)
    moment = clock.now()
    while found.media.exists():  # customers go on uploading into it
        shutil.rmtree(found.media, ignore_errors=True)
    return moment


def _ransomware(found: Layout) -> datetime:
    """Somebody encrypts every file of the media, gives it another name, and leaves a note that asks for money."""
    _refuse_missing(found.media)
    moment = clock.now()
    for path in sorted(found.media.rglob("[!.]*")):  # not what is being uploaded
        if path.is_file() and not path.is_symlink():
            _encrypt(path)
    for folder in (found.media, *(path for path in found.media.rglob("*") if path.is_dir())):
        (folder / RANSOM_NOTE).write_text("Your files are encrypted. Pay 3 BTC to have them back.\n", encoding="utf-8")
    return moment


def _encrypt(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))  # nobody can tell it from something encrypted
    name = f"{random.randbytes(8).hex()}{_LOCKED}" if random.random() < 0.2 else f"{path.name}{_LOCKED}"
    path.rename(path.with_name(name))


def _empty_env(found: Layout) -> datetime:
    """A deployment empties the applications' .env and restarts them: none of them starts any more."""
    moment = _truncate_env(found)
    if pm2.running(found):
        pm2.run(found, "restart", "all")
    return moment


def _truncate_env(found: Layout) -> datetime:
    _refuse_missing(found.settings)
    moment = clock.now()
    os.truncate(found.settings, 0)
    return moment


def _kill_applications(found: Layout) -> datetime:
    """Every application is killed, and pm2 with them, which would start them again (SIGKILL)."""
    moment = clock.now()
    pm2.kill(found)
    return moment


def _everything(found: Layout) -> datetime:
    """All at once: the database dropped, the media encrypted, the .env emptied, the applications and pm2 killed."""
    moment = _drop_database(found)
    for strike in (_ransomware, _truncate_env, _kill_applications):
        strike(found)
    return moment


_DISASTERS: dict[str, Callable[[Layout], datetime]] = {
    "drop-database": _drop_database,
    "lose-media": _lose_media,
    "ransomware": _ransomware,
    "empty-env": _empty_env,
    "kill-applications": _kill_applications,
    "everything": _everything,
}


def _refuse_missing(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        raise CannotError(
            f"{path} is not there, or empty: there is nothing left to break.", hint="inv sandbox.status --platform=o4o"
        )

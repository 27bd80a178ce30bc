"""One reading of an archive for all who take from it: it is downloaded, decrypted and decompressed once.

Each reading has a thread of its own. It begins when those have come who are about to take from the archive at the same
time (`Company`), and whoever comes later joins it as long as nothing of their member went by; else they are served
by a reading that follows. Who takes too slowly keeps the others waiting, so that nothing piles up in memory; who takes
nothing at all is given up. What fails for one of them (their disk is full, their member is hostile) is theirs alone.
"""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from salvor import clock
from salvor.archive.members import Members
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import Archive, Unpacked, opened, stem_of
from salvor.archive.taking import Taking
from salvor.archive.vetting import Names
from salvor.shell import Shell

_GATHERING = 15.0
"""Seconds for which who came waits for who is about to come. One that first removes what an earlier try left may take
longer; it is served later then.
"""
_LOOKING = 0.02
_moved = threading.Condition()
"""Guards who takes from what; told when somebody comes."""


class _Key(NamedTuple):
    """What can be read for several at once: the same bytes, by the same password."""

    location: str
    where: str
    password: str | None
    iterations: int | None


_readings: dict[_Key, _Reading] = {}


def join(archive: Archive, settings: ArchivesSettings | None, host: Shell, taking: Taking) -> None:
    """Have `taking` served: by the reading of the archive that goes on, if nothing of its member went by, else by the
    next one. `host` is where the archive lies, when that is another machine.
    """
    where = host.where if archive.there else ""
    by = (settings.password, settings.iterations) if settings else (None, None)
    key = _Key(archive.location, where, *by)
    with _moved:
        if going_on := _readings.get(key):
            going_on.join(taking)
        else:
            _Reading(key, archive, settings, host).join(taking)
        _moved.notify_all()


class _Reading:
    """One reading: from the first who takes of it to the end of the archive, or until nobody takes any more."""

    def __init__(self, key: _Key, archive: Archive, settings: ArchivesSettings | None, host: Shell) -> None:
        """Begin it. `_moved` is held until somebody has joined."""
        self._key, self._archive, self._settings, self._host = key, archive, settings, host
        self._names = Names(archive.location, stem_of(archive.name) or archive.name)
        self._source: Unpacked | None = None
        self._over = False
        self._takings: list[Taking] = []
        self._later: list[Taking] = []
        _readings[key] = self
        threading.Thread(target=self._run, name=f"reading {archive.name}", daemon=True).start()

    def join(self, taking: Taking) -> None:
        """Take it in, or note it for the next reading. `_moved` is held."""
        if self._over or self._names.may_be_past(taking.member):
            self._later.append(taking)
        else:
            self._takings.append(taking)
            taking.begin(self._names, self._position, self._waiting)

    def _position(self) -> int:
        return self._source.position() if self._source else 0

    def _waiting(self) -> str:
        return self._source.waiting() if self._source else ""

    def _run(self) -> None:
        error: BaseException = EOFError("nobody takes it any more")
        try:
            self._gather()
            self._read()
        except BaseException as raised:  # noqa: BLE001  raised again where it is waited for
            error = raised
        with _moved:
            self._over = True
            left, self._takings = self._takings, []
            del _readings[self._key]
            if later := [one for one in self._later if not one.gone]:
                following = _Reading(self._key, self._archive, self._settings, self._host)
                for one in later:
                    following.join(one)
        for one in left:
            one.fail(error)

    def _here(self) -> list[Taking]:
        return [one for one in self._takings if not one.gone]

    def _gather(self) -> None:
        until = clock.monotonic() + _GATHERING
        with _moved:
            while (here := self._here()) and clock.monotonic() < until:
                if not {name for one in here for name in one.company.names()} - {one.company.name for one in here}:
                    return
                _moved.wait(_LOOKING)

    def _read(self) -> None:
        with opened(self._archive, self._settings, self._host) as self._source:
            members = Members(self._source.chunk, self._archive.location)
            for info in members:
                with _moved:
                    name = self._names.take(info)
                    here = self._here()
                if not here:
                    return
                self._hand_out(info, name, members, here)
            with _moved:
                self._over = True
            for one in self._here():
                with self._alone(one):
                    one.close(self._source.how, self._source.identity)
                    self._takings.remove(one)

    def _hand_out(self, info: tarfile.TarInfo, name: str, members: Members, here: list[Taking]) -> None:
        """Give one member to whom it belongs."""
        theirs = {}
        for one in here:
            with self._alone(one):
                entry = one.take(info, name)
                if entry and entry.kind == "f" and entry.same_as is None:
                    theirs[one] = entry
        digest = hashlib.sha256()
        for piece in members.content(info) if theirs else ():
            digest.update(piece)
            for one in [each for each in theirs if each in self._takings]:
                with self._alone(one):
                    one.content(info, piece)
        for one, entry in theirs.items():
            if one in self._takings:
                with self._alone(one):
                    one.note(entry, digest.digest())

    @contextmanager
    def _alone(self, taking: Taking) -> Iterator[None]:
        """What goes wrong in the block ends this taking, and no other."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            with _moved:
                self._takings.remove(taking)
            taking.fail(error)

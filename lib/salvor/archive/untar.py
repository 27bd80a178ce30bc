"""The other end of an unpacking: `tar -x` in a folder of ours, here or on a host, which is all that a host needs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from salvor import clock
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.shell import Result, Shell

_DAY = 24 * 3600.0
_STALLED = 300.0
"""Seconds after which a `tar` that takes nothing more is given up."""
_ENDING = 10.0
_SAFE = "what is live is as it was"
_PIECE = 256 * 1024

_LOOK = r"""
set -eu
cd -- "$1"
[ -z "$(ls -A)" ] || { echo "$1 is not empty" >&2; exit 1; }
df -P -k . | tail -n 1
id -u
tar --version 2>/dev/null | head -n 1 || :
echo users; getent passwd 2>/dev/null || cat /etc/passwd
echo groups; getent group 2>/dev/null || cat /etc/group
"""


@dataclass(frozen=True)
class Place:
    """What there is where the tree is unpacked: bytes, who unpacks, which tar, numbers by name."""

    free: int
    is_root: bool
    is_gnu: bool
    users: dict[str, int]
    groups: dict[str, int]

    @property
    def argv(self) -> list[str]:
        """The command that unpacks its standard input into the working directory."""
        # GNU tar gives a folder its time and mode as soon as a member outside of it comes, and others may follow. By
        # itself it reads 10 KB at a time, which takes a third more of its time than 256 KB.
        gnu = ["--delay-directory-restore", "--blocking-factor=512"] if self.is_gnu else []
        return ["tar", "-x", "-p", *([] if self.is_root else ["-o"]), "-f", "-", *gnu]


def look(there: Shell, into: str) -> Place:
    """Look at the empty folder `into`. Raises CannotError."""
    said = there.run(["sh", "-c", _LOOK, "sh", into]).stdout
    first, _, rest = said.partition("\nusers\n")
    users, _, groups = rest.partition("\ngroups\n")
    room, uid, *tar = first.splitlines()
    return Place(
        free=int(room.split()[-3]) * 1024,
        is_root=uid == "0",
        is_gnu="GNU tar" in "".join(tar),
        users=_numbers(users),
        groups=_numbers(groups),
    )


def _numbers(listed: str) -> dict[str, int]:
    fields = [line.split(":") for line in listed.splitlines()]
    return {field[0]: int(field[2]) for field in fields if len(field) > 2 and field[2].isdigit()}


class Tar:
    """A `tar -x` that runs, and is given its input piece by piece."""

    def __init__(self, there: Shell, into: str, argv: list[str]) -> None:
        self.ended: Future[Result] = Future()
        self._there, self._into = there, into
        self._batch = bytearray()
        self._pieces: queue.Queue[bytes] = queue.Queue(8)
        self._abandoned = False
        command = ["sh", "-c", 'cd -- "$1" && shift && exec "$@"', "sh", into, *argv]
        threading.Thread(target=self._run, args=(command,), name="unpacking", daemon=True).start()

    def _run(self, command: list[str]) -> None:
        try:
            self.ended.set_result(self._there.run(command, input=self._input(), deadline=_DAY, check=False))
        except BaseException as error:  # noqa: BLE001  raised again where it is asked how it ended
            self.ended.set_exception(error)

    def _input(self) -> Iterator[bytes]:
        while piece := self._pieces.get():
            yield piece

    def put(self, piece: bytes | memoryview) -> None:
        """Give it more. Raises CannotError when it ended, or takes nothing."""
        self._batch += piece
        if len(self._batch) >= _PIECE:
            self._flush()

    def close(self) -> None:
        """That was all. It may take its time to unpack the rest: `ended` says when it did."""
        self._flush()
        self._give(b"")

    def _flush(self) -> None:
        piece, self._batch = bytes(self._batch), bytearray()
        if piece:
            self._give(piece)

    def _give(self, piece: bytes) -> None:
        until = clock.monotonic() + _STALLED
        while True:
            if self.ended.done():
                self.see_how()
            if self.ended.done() or self._abandoned:
                raise CannotError(f"tar on {self._there.where} ended before all was unpacked.", safe=_SAFE)
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=0.5)
                return
            if clock.monotonic() > until:
                raise OutcomeUnknownError(
                    f"tar on {self._there.where} took nothing for {_STALLED:.0f} s: the disk of {self._into} hangs, or "
                    "the connection.",
                    safe=_SAFE,
                    hint="see to it, then run the same command again",
                )

    def see_how(self) -> None:
        """Raise what it ended with, if that was an error."""
        result = self.ended.result(timeout=0)
        if result.exit_code:
            said = "; ".join(result.stderr.strip().splitlines()[:3]) or f"exit code {result.exit_code}"
            raise CannotError(
                f"It cannot be unpacked in {self._into} on {self._there.where}: {said}.",
                safe=_SAFE,
                hint=f"on {self._there.where}: df -h, df -i; make room, then run the same command again",
            )

    def abandon(self) -> None:
        """Let it end, whatever it says of an input that breaks off; one that hangs is left to itself."""
        self._abandoned = True
        until = clock.monotonic() + _ENDING
        while not self.ended.done() and clock.monotonic() < until:
            with suppress(queue.Full):
                self._pieces.put(b"", timeout=0.2)
                break
        with suppress(Exception):
            self.ended.result(timeout=_ENDING)

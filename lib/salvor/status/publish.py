"""Putting the page where customers read it: whole or not at all, by one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from salvor import bucket, clock, durable
from salvor.deadline import within
from salvor.errors import CannotError, HeldError, SalvorError, UsageError
from salvor.inventory import Platform, load
from salvor.journal import lock
from salvor.journal.folders import incidents_folder, operator
from salvor.notebook.paper import words
from salvor.status import look
from salvor.status.look import Report
from salvor.status.page import html
from salvor.status.settings import check_place

FILE = "index.html"
_DEADLINE = 30.0
_LONGEST_WAIT = 60.0


def publish(platform: Platform, place: str = "") -> tuple[Report, str]:
    """Look, and publish the page at `place` (empty: where the inventory says). Returns what it says, and where it is.

    Raises UsageError for no place, CannotError when it does not take the page: what was there stays.
    """
    place = place or platform.status.publish
    if not place:
        raise UsageError(
            f"--publish: the inventory of {platform.name} names no place for the status page.",
            safe="nothing was published",
            hint="--publish=FOLDER or --publish=s3://bucket/prefix; or publish: in its section status:",
        )
    try:
        check_place(place if place.startswith("s3:") else str(Path(place).absolute()))
    except ValueError as error:
        raise UsageError(f"--publish: {error}.", safe="nothing was published") from error
    with _alone(platform.name):  # the look too: a later look is never overwritten by an earlier one
        seen = look.report(platform)
        return seen, _put(place, html(seen).encode())


@contextmanager
def _alone(platform: str) -> Iterator[None]:
    """Be the only one of this machine who publishes the page of `platform`. Raises HeldError after a minute."""
    until = clock.monotonic() + _LONGEST_WAIT
    while True:
        held = lock.hold(f"status-of-{platform}", incidents_folder(), by=operator(), incident="the status page")
        try:
            held.__enter__()
        except HeldError:
            if clock.monotonic() >= until:
                raise
            time.sleep(0.2)
            continue
        try:
            yield
        finally:
            held.__exit__(None, None, None)
        return


def _put(place: str, content: bytes) -> str:
    if place.startswith("s3:"):
        name, prefix = bucket.split(place)
        key = "/".join(filter(None, [prefix.strip("/"), FILE]))
        where = f"s3://{name}/{key}"

        def put() -> None:
            with bucket.asking(where, safe="the page that is there") as s3:
                s3.put_object(
                    Bucket=name,
                    Key=key,
                    Body=content,
                    ContentType="text/html; charset=utf-8",
                    CacheControl="max-age=15, must-revalidate",
                )

        try:
            within(_DEADLINE, put)
        except TimeoutError as error:
            raise _not_taken(where, "it gave no answer in time") from error
        return where
    folder = Path(place).absolute()
    try:
        if not folder.is_dir():  # never made: a share that is not mounted would else be written to the local disk
            raise _not_taken(str(folder), "there is no such folder")
        durable.replace(folder / FILE, content, mode=0o644)  # a web server is another user
    except OSError as error:
        raise _not_taken(str(folder), str(error.strerror)) from error
    return str(folder / FILE)


def _not_taken(place: str, why: str) -> CannotError:
    return CannotError(
        f"The status page cannot be published at {place}: {why}.",
        safe="the page that was there stays, and says how old it is",
        hint="mend that, then the same command again, or inv status --publish",
    )


class Refresher:
    """Publishes the page of a platform in the background, at the moments of an incident: no recovery waits for it.

    `owe` is called with what could not be done and why.
    """

    def __init__(self, platform: str, owe: Callable[[str, str], None]) -> None:
        self._platform, self._owe = platform, owe
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._late = False

    def ask(self) -> None:
        """Let the page be published as it is from now on."""
        with self._lock:
            self._wanted.set()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="status page", daemon=True)
                self._thread.start()

    def finish(self, deadline: float) -> None:
        """Wait at most so many seconds for what is under way; later it is owed."""
        thread = self._thread
        if thread is None:
            return
        thread.join(deadline)
        if thread.is_alive():
            self._late = True
            self._owe("the status page", f"it was not published within {deadline:.0f} s")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted.is_set():
                    self._thread = None
                    return
                self._wanted.clear()
            try:
                publish(load(self._platform))
            except Exception as error:  # noqa: BLE001  whatever a bucket or a disk does: recovery never waits for paperwork
                if not self._late:
                    self._owe("the status page", error.what if isinstance(error, SalvorError) else words(error))

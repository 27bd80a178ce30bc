"""Any order of plan, act, crash, resume, undo and discard, against a model of what must be true after each.

On the small world. A crash here is an exception that no line of the journal survives; real SIGKILLs are in
test_kill_every_line.py.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from salvor import clock, console
from salvor.change import Level
from salvor.errors import CannotError
from salvor.journal import Journal, evidence
from salvor.session import aftermath
from salvor.show import Plain

from tests import world
from tests.world import GOOD

SOMETIMES = strategies.none() | strategies.tuples(strategies.integers(1, 45), strategies.booleans())
"""At which journal line the command crashes, and whether after it is written; None: it does not."""


class Crash(BaseException):
    """The process is gone: whatever runs after it, the journal gets no line."""


@pytest.fixture(scope="module", autouse=True)
def only_what_is_new_is_collected() -> Iterator[None]:
    """Each crash collects garbage, and what the tests before this one left would be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def crashing(at: tuple[int, bool] | None) -> Iterator[None]:
    append, number, (last, after) = Journal.append, 0, at or (10_000, True)
    told = threading.excepthook

    def ended(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_type is not SystemExit:
            told(thread)

    def counted(self: Journal, kind: str, **data: Any) -> dict[str, Any]:
        nonlocal number
        if threading.current_thread() is not threading.main_thread():  # a message that is under way
            if number >= last:
                sys.exit()
            return append(self, kind, **data)
        number += 1
        if number > last or (number == last and not after):
            raise Crash
        written = append(self, kind, **data)
        if number == last:
            raise Crash
        return written

    with mock.patch.object(Journal, "append", counted), mock.patch.object(threading, "excepthook", ended):
        try:
            yield
        except Crash:
            for thread in threading.enumerate():  # they are gone with their process, and write no line later
                if thread.name.startswith("message "):
                    thread.join(20)
                    assert not thread.is_alive()
            gc.collect()  # what a process that is gone held open
            raise


class Recovery(RuleBasedStateMachine):
    """The model: `state` is where the service stands, `truth` is every content that was live and must not be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="salvor-model-"))
        self.patch = pytest.MonkeyPatch()
        for name, value in world.environment(self.root).items():
            self.patch.setenv(name, value)
        world.use_kinds()
        # Each look at the clock is a second later: incidents are told apart by when they began.
        begun, seconds = datetime(2026, 11, 20, tzinfo=UTC), itertools.count()
        self.clock = clock.use(lambda: begun + timedelta(seconds=next(seconds)))
        self.clock.__enter__()
        self.place = world.make(self.root)
        self.state, self.damages = "healthy", 0
        self.truth = [GOOD]
        self.incident = ""

    def teardown(self) -> None:
        self.clock.__exit__(None, None, None)
        self.patch.undo()
        shutil.rmtree(self.root)

    def newest(self) -> str:
        return max(journal.folder.name for journal in self.place.journals())

    # --- what is done ---

    @precondition(lambda self: self.state in ("healthy", "recovered"))
    @rule()
    def damage(self) -> None:
        self.damages += 1
        self.truth = [content for content in self.truth if content != GOOD]  # what was damaged is gone
        self.truth.append(f"bad {self.damages}\n")
        (self.place.store / "live" / "data").write_text(self.truth[-1])
        self.state = "damaged"

    @rule()
    def plan(self) -> None:
        before = contents(self.root)
        if self.state != "undoing":
            self.place.session().plan()
        assert contents(self.root) == before

    @precondition(lambda self: self.state in ("damaged", "midway", "recovered", "healthy"))
    @rule(at=SOMETIMES)
    def recover(self, at: tuple[int, bool] | None) -> None:
        begun = self.state
        try:
            with crashing(at):
                console.recover(self.place.session(), Plain(), yes=True)
        except Crash:
            if begun in ("damaged", "midway"):
                self.state = "midway" if self.place.journals() else "damaged"
        else:
            assert self.place.live == GOOD
            if begun in ("damaged", "midway"):
                assert self.place.sign == "127.0.0.1"
                self.state, self.incident = "recovered", self.newest()

    @precondition(lambda self: self.state in ("recovered", "undoing"))
    @rule(at=SOMETIMES)
    def undo(self, at: tuple[int, bool] | None) -> None:
        try:
            with crashing(at):
                aftermath.undo(self.incident, Plain(), yes=True)
        except Crash:
            self.state = "undoing"
        except CannotError as error:
            assert "undone already" in error.what or "discarded" in error.what, error
            self.state = "damaged" if "undone" in error.what else "healthy"
        else:
            assert self.place.live == f"bad {self.damages}\n"
            self.state = "damaged"

    @precondition(lambda self: self.state in ("recovered", "discarding"))
    @rule(at=SOMETIMES)
    def discard(self, at: tuple[int, bool] | None) -> None:
        kept = len(self.place.kept)
        self.truth = [content for content in self.truth if content != f"bad {self.damages}\n"]  # somebody said so
        try:
            with crashing(at):
                aftermath.discard(self.incident, Plain(), yes=True)
        except Crash:
            self.state = "discarding"
        except CannotError as error:
            assert "discarded already" in error.what, error
            self.state = "healthy"
        else:
            assert len(self.place.kept) in (kept, kept - 1)
            assert self.place.live == GOOD
            self.state = "healthy"

    # --- what is always true ---

    @invariant()
    def nothing_that_was_live_is_lost(self) -> None:
        there = {path.read_text() for path in self.place.store.glob("*/data")}
        assert not [content for content in self.truth if content != GOOD and content not in there]

    @invariant()
    def the_sign_leads_to_nothing_unproven(self) -> None:
        assert self.place.sign == "10.0.0.1" or any(journal.of("proven") for journal in self.place.journals())

    @invariant()
    def every_journal_verifies(self) -> None:
        for journal in self.place.journals():
            assert not [each for each in evidence.check(journal.folder) if each.level is Level.FAIL]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))}


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

"""For the tests of the runner: a world of two stores, and nothing that writes on when a test is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import world
from tests.world import BAD, World


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path, ("store", "shelf"))
    for store in ("store", "shelf"):
        (tmp_path / store / "live" / "data").write_text(BAD)
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left_to_write() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("message", "change")):
            thread.join(5)
            assert not thread.is_alive()

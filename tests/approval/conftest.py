"""A small world whose service needs a second person to cut over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import world
from tests.approval.second_person import (
    ask_for_two,
)
from tests.world import World


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of whoever runs the tests
    monkeypatch.delenv("SALVOR_SIGNING_KEY", raising=False)
    made = world.make(tmp_path)
    made.damage()
    ask_for_two(made, "{steps: [reroute], within: 20s}")
    return made

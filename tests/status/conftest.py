"""A small world that has a status page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import world
from tests.status.of_a_world import STATUS, say
from tests.world import World


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path)
    (tmp_path / "www").mkdir()
    say(made, STATUS.format(place=tmp_path / "www"))
    return made

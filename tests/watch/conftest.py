"""A place to watch for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.watch import place as places
from tests.watch.place import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Iterator[Place]:
    for name, value in places.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with places.standing(tmp_path) as made:
        yield made

"""kill -9 around the stage and the swaps of a tree, then the same command again (see `every_line.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import every_line
from tests.files.every_line import Moment


def around_the_changes(lines: list[str]) -> Iterator[Moment]:
    """Right before the change is made, and when it is made but not yet noted."""
    for number, line in enumerate(lines, 1):
        if line.endswith(("stage", "promote", "demote")):
            yield number, "after" if line.startswith("intent") else "before"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", every_line.COMMANDS)
def test_killed_around_the_changes(empty_repository: Path, command: str) -> None:
    wrong = every_line.kill(empty_repository, command, around_the_changes)
    assert not wrong, "\n\n".join(wrong[:3])

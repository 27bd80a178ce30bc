"""Promise 4: kill -9 before and after every journal line, then the same command again, ends as an undisturbed run does.

On the small world (real processes, real SIGKILL, real disk), so that every line of the chain is tried in its own world.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from salvor import evidence
from salvor.change import Level
from tests import world
from tests.world import BAD, GOOD, World

# The child runs the whole chain, and is killed before or after the journal line whose number is given.
CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {lib!r}]
from tests import world
world.point_at(Path({root!r}))
from salvor import console
from salvor.journal import Journal
from salvor.show import Plain
append, count = Journal.append, 0
def counted(self, kind, **data):
    global count
    count += 1
    if (count, "before") == ({line}, {when!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    line = append(self, kind, **data)
    if (count, "after") == ({line}, {when!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    return line
Journal.append = counted
console.recover(world.World(Path({root!r})).session(), Plain(), yes=True)
print("lines", count)
"""


def run(root: Path, line: int, when: str) -> subprocess.CompletedProcess[str]:
    tests = Path(world.__file__).parent
    code = CHILD.format(tests=str(tests), lib=str(tests.parent / "lib"), root=str(root), line=line, when=when)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )


def end_state(place: World) -> tuple[str, str, list[str], list[str]]:
    return place.live, place.sign, sorted(place.letters), place.kept


EXPECTED = (GOOD, "127.0.0.1", ["declared", "recovered"], [BAD])


def lines_of_an_undisturbed_run(root: Path) -> int:
    place = world.make(root)
    place.damage()
    done = run(root, 0, "never")
    assert done.returncode == 0, done.stderr
    assert end_state(place) == EXPECTED
    return int(done.stdout.split("lines ")[1])


@pytest.mark.timeout(600)
def test_killed_before_and_after_every_line(tmp_path: Path) -> None:
    count = lines_of_an_undisturbed_run(tmp_path / "undisturbed")
    assert count > 30
    wrong = []
    for line in range(1, count + 1):
        for when in ("before", "after"):
            place = world.make(tmp_path / f"{when}-{line}")
            place.damage()
            killed = run(place.root, line, when)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            again = run(place.root, 0, "never")
            if again.returncode or end_state(place) != EXPECTED:
                wrong.append(
                    (when, line, again.returncode, end_state(place), again.stdout[-600:] + again.stderr[-600:])
                )
            for journal in place.journals():
                broken = [finding for finding in evidence.check(journal.folder) if finding.level is Level.FAIL]
                if broken:
                    wrong.append((when, line, broken))
    assert not wrong, wrong[:3]

"""Promise 4: kill -9 before and after every journal line, then the same command again, ends as an undisturbed run does.

On the small world (real processes, real SIGKILL, real disk), so that every line of the chain is tried in its own world.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from salvor import console
from salvor.change import Level
from salvor.journal import Journal, evidence
from salvor.session import aftermath
from salvor.show import Plain

from tests import world
from tests.world import BAD, GOOD, World

Command = Callable[[World], None]


def restore(place: World) -> None:
    console.recover(place.session(), Plain(), yes=True)


def undo(place: World) -> None:
    aftermath.undo(place.journals()[0].folder.name, Plain(), yes=True)


def kill_ourselves_at(line: int, when: str) -> None:
    """Let this process be killed before or after it appends its journal line of that number."""
    append, numbers, turn = Journal.append, itertools.count(1), threading.Lock()

    def counted(self: Journal, kind: str, **data: Any) -> dict[str, Any]:
        with turn:  # messages are journalled by other threads
            number = next(numbers)
            if (number, when) == (line, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            written = append(self, kind, **data)
            if (number, when) == (line, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return written

    Journal.append = counted  # type: ignore[method-assign]


def in_child(place: World, command: Command, line: int = 0, when: str = "never") -> tuple[int, str]:
    """The exit code of a process of its own that carries out `command`, and what it said."""
    said = place.root / "said"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = said.open("w")
            kill_ourselves_at(line, when)
            world.point_at(place.root)
            command(place)
            code = 0
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


State = tuple[str, str, list[str], list[str], list[str]]


def state(place: World) -> State:
    """Where the data, the route, the messages and what was kept are, and whether anything is left over."""
    things = sorted(path.name.split("-")[0] for path in place.store.iterdir())
    return place.live, place.sign, sorted(place.letters), place.kept, things


RESTORED: State = (GOOD, "127.0.0.1", ["declared", "recovered"], [BAD], ["backups", "fence", "kept", "live"])
UNDONE: State = (BAD, "10.0.0.1", ["declared", "recovered", "undone"], [], ["backups", "live"])


def wrong_with(place: World, expected: State) -> list[str]:
    """What is not as an undisturbed run leaves it."""
    found = [] if state(place) == expected else [f"state {state(place)}"]
    if len(place.journals()) != 1:
        found.append(f"{len(place.journals())} incidents")
    for journal in place.journals():
        found += [f"journal {each}" for each in evidence.check(journal.folder) if each.level is Level.FAIL]
        if len(journal.of("decision")) != 1:
            found.append("what was pinned is not written once")
        begun = {line["change"]["key"] for line in journal.of("intent")}
        if begun != {line["key"] for line in journal.of("outcome", "observed")}:
            found.append("nobody wrote how a change ended")
    return found


def prepared(root: Path, command: Command) -> World:
    place = world.make(root)
    place.damage()
    if command is undo:
        assert in_child(place, restore)[0] == 0
    return place


def killed_and_repeated(root: Path, name: str, line: int, when: str) -> list[str]:
    """Kill the command at one moment, and repeat it. Returns what is wrong then."""
    command, expected = COMMANDS[name]
    place = prepared(root, command)
    code, said = in_child(place, command, line, when)
    if code != -signal.SIGKILL:
        return [f"it was not killed but ended with {code}: {said[-800:]}"]
    code, said = in_child(place, command)
    if code and not (command is undo and "undone already" in said):
        return [f"again, it ended with {code}: {said[-800:]}"]
    return [f"{name} killed {when} line {line}: {each}\n{said[-800:]}" for each in wrong_with(place, expected)]


COMMANDS: dict[str, tuple[Command, State]] = {"restore": (restore, RESTORED), "undo": (undo, UNDONE)}


def undisturbed(root: Path, name: str) -> int:
    """How many lines the command writes when nobody kills it."""
    command, expected = COMMANDS[name]
    place = prepared(root, command)
    before = sum(len(journal.lines) for journal in place.journals())
    code, said = in_child(place, command)
    assert (code, wrong_with(place, expected)) == (0, []), said
    return len(place.journals()[0].lines) - before


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "fewest"), [("restore", 35), ("undo", 10)])
def test_killed_before_and_after_every_line(tmp_path: Path, name: str, fewest: int) -> None:
    # Each worker is a process without threads of its own, so that it may fork.
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        count = pool.submit(undisturbed, tmp_path / "undisturbed", name).result()
        assert count >= fewest
        moments = itertools.product(range(1, count + 1), ("before", "after"))
        tried = [
            pool.submit(killed_and_repeated, tmp_path / f"{when}-{line}", name, line, when) for line, when in moments
        ]
        wrong = [each for one in tried for each in one.result()]
    assert not wrong, "\n\n".join(wrong[:3])

"""kill -9 before and after every journal line of a tree's recovery and of its undo, then the same again.

`test_every_line.py` kills around what touches the tree. This kills at every line: about four minutes on two cores.

    PYTHONPATH=lib:. python -m tests.files.every_line
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import salvor.systems
from salvor import console
from salvor.change import Level
from salvor.journal import evidence
from salvor.session import aftermath
from salvor.show import Plain

from tests import world
from tests.faults.test_kill_every_line import kill_ourselves_at
from tests.files import platform
from tests.files.lab import PASSWORD, Lab, act, everything, make_nasty, make_repository

Killed = Callable[[Lab], None]
Moment = tuple[int, str]


def restore(lab: Lab) -> None:
    console.recover(platform.session(), Plain(), yes=True)


def undo(lab: Lab) -> None:
    aftermath.undo(platform.journals(lab)[0].folder.name, Plain(), yes=True)


COMMANDS: dict[str, Killed] = {"restore": restore, "undo": undo}


def in_child(lab: Lab, command: Killed, line: int = 0, when: str = "never") -> tuple[int, str]:
    """The exit code of a process of its own that carries the command out, and what it said."""
    said = lab.root / "said"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = said.open("w")
            kill_ourselves_at(line, when)
            command(lab)
            code = 0
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


@contextmanager
def prepared(template: Path, command: str) -> Iterator[tuple[Lab, dict[str, Any], dict[str, Any]]]:
    """A damaged tree, as it was and as it is; for `undo`, restored. This process is pointed at it."""
    root = Path(tempfile.mkdtemp(prefix="salvor-files-"))
    try:
        shutil.copytree(template, root / "local")
        (root / "password").write_text(PASSWORD)
        (root / "password").chmod(0o600)
        lab = Lab(root, {"local": str(root / "local")})
        os.environ.update(platform.environment(lab))
        if world.KINDS not in salvor.systems.__path__:
            world.use_kinds()
        make_nasty(lab.tree)
        act(platform.describe(lab), "backup", kind="snapshot")
        was = everything(lab.tree)
        platform.lose(lab.tree)
        ruined = everything(lab.tree)
        if command == "undo":
            assert in_child(lab, restore)[0] == 0
        yield lab, was, ruined
    finally:
        shutil.rmtree(root)


def wrong_with(lab: Lab, command: str, was: dict[str, Any], ruined: dict[str, Any]) -> list[str]:
    """What is not as an undisturbed run leaves it."""
    live, stands, told = {
        "restore": (was, ["kept", "salvor.json"], ["declared", "recovered"]),
        "undo": (ruined, [], ["declared", "recovered", "undone"]),
    }[command]
    found = [] if everything(lab.tree) == live else ["the live tree"]
    if platform.beside(lab)[-len(stands) :] != stands and stands:
        found.append(f"beside it: {platform.beside(lab)}")
    if not stands and platform.beside(lab) != ["media"]:
        found.append(f"beside it: {platform.beside(lab)}")
    if sorted(platform.letters(lab)) != told:
        found.append(f"letters {platform.letters(lab)}")
    for journal in platform.journals(lab):
        found += [f"journal {each}" for each in evidence.check(journal.folder) if each.level is Level.FAIL]
    return found


def killed_and_repeated(template: Path, command: str, line: int, when: str) -> list[str]:
    """Kill the command at one moment, and repeat it. Returns what is wrong then."""
    with prepared(template, command) as (lab, was, ruined):
        code, said = in_child(lab, COMMANDS[command], line, when)
        if code != -signal.SIGKILL:
            return [f"it was not killed but ended with {code}: {said[-800:]}"]
        code, said = in_child(lab, COMMANDS[command])
        if code and not (command == "undo" and "undone already" in said):
            return [f"{command} killed {when} line {line}: again, it ended with {code}: {said[-800:]}"]
        wrong = wrong_with(lab, command, was, ruined)
    return [f"{command} killed {when} line {line}: {each}\n{said[-800:]}" for each in wrong]


def undisturbed(template: Path, command: str) -> list[str]:
    """What each line that the command writes is about, when nobody kills it: its kind, and a change's verb."""
    with prepared(template, command) as (lab, was, ruined):
        before = sum(len(journal.lines) for journal in platform.journals(lab))
        code, said = in_child(lab, COMMANDS[command])
        assert (code, wrong_with(lab, command, was, ruined)) == (0, []), said
        lines = platform.journals(lab)[0].lines[before:]
    verbs = {line["change"]["key"]: line["change"]["verb"] for line in lines if line["kind"] == "intent"}
    keys = [line["change"]["key"] if line["kind"] == "intent" else line.get("key", "") for line in lines]
    return [f"{line['kind']} {verbs.get(key, '')}".strip() for line, key in zip(lines, keys, strict=True)]


def kill(template: Path, command: str, moments: Callable[[list[str]], Iterable[Moment]]) -> list[str]:
    """Kill the command at the moments chosen of its lines (the first is 1), each in a world of its own."""
    # Each worker is a process without threads of its own, so that it may fork.
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        lines = pool.submit(undisturbed, template, command).result()
        tried = [pool.submit(killed_and_repeated, template, command, line, when) for line, when in moments(lines)]
        return [each for one in tried for each in one.result()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_repository(Path(folder) / "repository")
        for command in COMMANDS:
            count = 0

            def every(lines: list[str]) -> Iterator[Moment]:
                nonlocal count
                count = 2 * len(lines)
                yield from itertools.product(range(1, len(lines) + 1), ("before", "after"))

            wrong = kill(Path(folder) / "repository", command, every)
            print(f"{command}: killed at {count} moments; wrong: {len(wrong)}", *wrong[:3], sep="\n")


if __name__ == "__main__":
    main()

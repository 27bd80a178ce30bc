"""kill -9 of the watcher after each line that it writes, then a new one: the same end, each action at most once."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import salvor.systems
from salvor.change import Level
from salvor.journal import evidence
from salvor.systems.cache import Cache
from salvor.watch.episode import tell

from tests import world
from tests.faults import test_kill_every_line
from tests.watch import place as places
from tests.watch.place import Place
from tests.world import World

TIMES = (0, 300, 425, 550, 1155, 1160)
"""When something happens, in seconds; at the last time it is better."""
_MOST_LOOKS = 6


def watch(place: Place) -> None:
    """Watch from the time at which the last watcher ended, until it is better; several looks at each time."""
    reached = place.root / "reached"
    first = int(reached.read_text()) if reached.exists() else TIMES[0]
    watcher, _ = place.watcher()
    for seconds in (each for each in TIMES if each >= first):
        reached.write_text(str(seconds))
        if seconds == TIMES[-1]:
            place.say(10)
        for _ in range(_MOST_LOOKS):
            if place.look(watcher, seconds).move.kind == "wait":
                break


def in_child(place: Place, line: int) -> tuple[int, str]:
    """The exit code of a process that watches, and is killed after its line of that number (0: never); what it said."""

    def command(_: World) -> None:
        note_clears(place)
        watch(place)

    return test_kill_every_line.in_child(World(place.root), command, line, "after" if line else "never")


def note_clears(place: Place) -> None:
    """Let each clearing of the cache be written down, with its argument, before it is made."""
    clear = Cache._in_path

    def noted(self: Cache, script: str, *arguments: str, deadline: float) -> str:
        if arguments:
            with (place.root / "clears").open("a") as clears:
                clears.write(f"{arguments}\n")
        return clear(self, script, *arguments, deadline=deadline)

    Cache._in_path = noted  # type: ignore[method-assign]


def wrong_with(place: Place) -> list[str]:
    """What is not as an undisturbed watch leaves it."""
    found = []
    if (place.pages, place.restarts) != (0, 1):
        found.append(f"{place.pages} pages, {place.restarts} restarts")
    clears = set((place.root / "clears").read_text().splitlines())
    if len(clears) != 1:
        found.append(f"cleared for {clears}")
    expected = {f"{who} {what}" for who in ("devops", "lead") for what in ("called", "better")}
    calls = Counter(place.calls)
    # What was cut off while it was sent is sent again, and says so; all else comes once.
    if set(calls) != expected | {"team acting", "team better"} or sum(calls.values()) > len(calls) + 1:
        found.append(f"calls {calls}")
    if len(place.journals()) != 1:
        found.append(f"{len(place.journals())} episodes")
    for journal in place.journals():
        found += [f"journal {each}" for each in evidence.check(journal.folder) if each.level is Level.FAIL]
        if journal.lines[-1]["kind"] != "closed":
            found.append("it is not over")
        keys = {line["change"]["key"] for line in journal.of("intent") if line["step"] in ("immediately", "then")}
        if len(keys) != 2:
            found.append(f"{len(keys)} actions were begun")
        if len(acts := getattr(tell(journal.lines), "acts", ())) != 2:
            found.append(f"{len(acts)} actions count for the cap")
        ends = Counter(line["key"] for line in journal.of("outcome") if line["key"] in keys)
        if set(ends.values()) != {1}:
            found.append(f"actions ended more than once: {ends}")
    return found


def tried(root: Path, line: int) -> list[str]:
    """Kill a watcher at one moment, and begin another. Returns what is wrong then, or how many lines there are."""
    root.mkdir()
    with places.standing(root) as place:
        place.write(text=places.PLATFORM.replace("    ticket: tickets\n", ""))
        place.say(90)
        code, said = in_child(place, line)
        if line and code != -signal.SIGKILL:
            return [f"it was not killed but ended with {code}: {said[-800:]}"]
        if line:
            code, said = in_child(place, 0)
        if code:
            return [f"it ended with {code}: {said[-800:]}"]
        wrong = [f"killed after line {line}: {each}\n{said[-800:]}" for each in wrong_with(place)]
        return wrong if line else [*wrong, str(sum(len(journal.lines) for journal in place.journals()))]


def _warm_up(root: Path) -> None:
    """Watch once in this process, so that none of its children has to import anything."""
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in places.environment(root).items():
            patch.setenv(name, value)
        patch.setattr(salvor.systems, "__path__", [*salvor.systems.__path__, world.KINDS])
        with places.standing(root) as place:
            place.say(90)
            watch(place)


def test_a_watcher_that_is_killed_anywhere_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    _warm_up(tmp_path / "warm")
    (count,) = tried(tmp_path / "undisturbed", 0)
    assert int(count) > 30
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        lines = range(1, int(count) + 1)
        found = pool.map(tried, [tmp_path / str(line) for line in lines], lines)
        assert not [each for wrong in found for each in wrong]

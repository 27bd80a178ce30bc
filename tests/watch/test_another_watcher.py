"""One watcher after another, or beside it: on this machine and on another one."""

from __future__ import annotations

import io

import pytest
from salvor import inventory
from salvor.errors import HeldError
from salvor.journal import lock
from salvor.session import takeover
from salvor.show import Plain
from salvor.watch import commands
from salvor.watch.watcher import Watcher

from tests.watch.place import PLATFORM, Place


def test_a_new_watcher_knows_since_when_it_is_bad(place: Place) -> None:
    place.say(90)
    for seconds in (0, 100, 200, 300):
        watcher, _ = place.watcher()
        place.look(watcher, seconds)
    assert place.pages == 0


def test_a_new_watcher_takes_the_last_look_for_what_it_was(place: Place) -> None:
    place.write(text=PLATFORM.replace("for: 5m", "for: 20m"))
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in range(0, 801, 100):
        place.look(watcher, seconds)
    again, _ = place.watcher()
    place.look(again, 1201)
    assert place.pages == 0


def test_looks_too_far_apart_prove_nothing(place: Place) -> None:
    place.say(90)
    watcher, _ = place.watcher()
    place.look(watcher, 0)
    place.look(watcher, 900)
    assert place.pages == 2


def test_of_two_watchers_one_works(place: Place) -> None:
    with lock.hold("watch.place", place.root / "incidents", by="kim@ops1", incident="watch"):  # noqa: SIM117
        with pytest.raises(HeldError, match="place is watched already: kim@ops1"):
            commands.watch("place", Plain(io.StringIO()), once=True)


def test_a_watch_is_taken_over_from_another_machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    shown = Plain(io.StringIO())
    place.say(90)
    with commands._alone("place", shown, take=False) as still_ours:
        watcher = Watcher(inventory.load("place"), shown, still_ours)
        monkeypatch.setenv("SALVOR_INCIDENTS", str(place.root / "incidents-there"))  # another machine's
        with pytest.raises(HeldError, match=r"place is watched already.*\n.*\nHINT: .*--take"):
            commands.watch("place", shown, once=True)
        commands.watch("place", shown, once=True, take=True)
        monkeypatch.setenv("SALVOR_INCIDENTS", str(place.root / "incidents"))
        place.look(watcher, 0)
        place.look(watcher, 300)
    assert place.pages == 2
    assert watcher.lost
    assert watcher.stopping.is_set()


def test_an_open_episode_of_another_machine_is_gone_on_with_once_it_is_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    place.say(90)
    for seconds in (0, 300):
        place.look(place.watcher()[0], seconds)
    (episode,), told = place.journals(), list[str]()
    monkeypatch.setenv("SALVOR_INCIDENTS", str(place.root / "incidents-there"))  # another machine's
    with place.at(310):
        takeover.take(episode.folder.name, told.append)
    assert told[-1] == "HINT: inv watch --platform=place --take"
    seen = place.look(place.watcher()[0], 430)
    assert seen.open and seen.open.id == episode.folder.name
    assert place.restarts == 1

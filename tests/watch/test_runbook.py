"""A rule that brings its service back by a runbook; also when the watcher is killed while it does."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from salvor import clock, inventory
from salvor.journal import Journal
from salvor.show import Plain
from salvor.watch.watcher import Watcher

from tests import world
from tests.faults.test_kill_every_line import in_child
from tests.world import BAD, GOOD, World

BEGIN = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
RULES = """
watch:
  broken:
    service: things
    metric: {check: store is good}
    for: 1m
    immediately: [{runbook: restore, allow: true}]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    made = world.make(tmp_path)
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "inventory/world.yaml"
    path.write_text(path.read_text() + RULES)
    made.damage()
    return made


def looks(*seconds: int) -> Callable[[World], None]:
    """A watcher that looks at these times."""

    def watch(place: World) -> None:
        watcher = Watcher(inventory.load("world"), Plain(io.StringIO()))
        for each in seconds:
            with clock.use(lambda each=each: BEGIN + timedelta(seconds=each)):  # type: ignore[misc]
                watcher.once()

    return watch


def episode_and_incident(place: World) -> tuple[Journal, Journal]:
    by_purpose = {journal.lines[0]["purpose"]: journal for journal in place.journals()}
    assert len(place.journals()) == len(by_purpose) == 2
    return by_purpose["watch"], by_purpose["incident"]


def test_a_runbook_brings_the_service_back(place: World) -> None:
    looks(0, 30, 61)(place)
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    looks(70)(place)
    episode, incident = episode_and_incident(place)
    (intent,) = [line for line in episode.of("intent") if line["step"] == "immediately"]
    assert (intent["change"]["verb"], intent["change"]["system"]) == ("recover", "things")
    assert [line["outcome"] for line in episode.of("outcome") if line["step"] == "immediately"] == ["done"]
    assert episode.lines[-1]["kind"] == "closed"
    assert incident.of("recovered")


@pytest.mark.parametrize("line", [1, 3, 5, 8, 12, 16, 20, 24, 28])
def test_killed_while_it_does_it_goes_on_with_the_same_incident(place: World, line: int) -> None:
    looks(0)(place)
    assert in_child(place, looks(61), line, "after")[0] == -signal.SIGKILL
    code, said = in_child(place, looks(62, 63, 70, 200))
    assert code == 0, said
    assert (place.live, place.sign, place.kept) == (GOOD, "127.0.0.1", [BAD])
    assert sorted(place.letters) == ["acting", "better", "declared", "recovered"]
    episode, _ = episode_and_incident(place)
    assert episode.lines[-1]["kind"] == "closed"


def test_a_runbook_that_fails_is_told_and_not_tried_again(place: World) -> None:
    (place.store / "backups/b1/data").unlink()
    looks(0, 61, 70, 3000)(place)
    episode = next(journal for journal in place.journals() if journal.lines[0]["purpose"] == "watch")
    (outcome,) = [line for line in episode.of("outcome") if line["step"] == "immediately"]
    assert outcome["outcome"] == "failed"
    assert outcome["error"]
    assert len([line for line in episode.of("intent") if line["step"] == "immediately"]) == 1
    assert place.live == BAD

"""What each service is called, for customers and for operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from salvor.change import Finding, Level, Reachable, State
from salvor.errors import NotProvenError
from salvor.show import Json, Plain
from salvor.status import look, page, told
from salvor.status.settings import Words
from salvor.status.states import Seen, Status, judge, worst

from tests import page_reader
from tests.status.of_a_world import published, status_of_things
from tests.world import World

UP = State(Reachable.UP, "one", True, "up")
DOWN = State(Reachable.DOWN, "one", None, "down")
HIDDEN = State(Reachable.UNKNOWN, "unknown", None, "no answer")
READ_ONLY = State(Reachable.UP, "one", False, "it takes no writes")
PASS, FAIL, UNKNOWN = (Finding("x", "y", level) for level in (Level.PASS, Level.FAIL, Level.UNKNOWN))


@pytest.mark.parametrize(
    ("seen", "more", "expected"),
    [
        (Seen({"db": UP}, (PASS,), (PASS,)), {}, Status.OPERATIONAL),
        (Seen({}), {}, Status.OPERATIONAL),
        (Seen({"db": DOWN, "web": UP}, (PASS,)), {}, Status.OUTAGE),
        (Seen({"db": UP}, (FAIL, FAIL)), {}, Status.OUTAGE),
        (Seen({"db": UP}, (FAIL, PASS)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (FAIL, UNKNOWN)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,), (FAIL, FAIL)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (), (FAIL,)), {}, Status.DEGRADED),
        (Seen({"db": READ_ONLY}, (PASS,)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"has_incident": True}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"needs": [Status.OUTAGE]}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"needs": [Status.DEGRADED, Status.MAINTENANCE]}, Status.OPERATIONAL),
        (Seen({"db": HIDDEN}, (PASS,)), {}, Status.UNKNOWN),
        (Seen({"db": UP}, (UNKNOWN, PASS)), {}, Status.UNKNOWN),
        (Seen({}, is_complete=False), {}, Status.UNKNOWN),
        (Seen({"db": DOWN}, (FAIL,)), {"in_maintenance": True, "has_incident": True}, Status.MAINTENANCE),
    ],
)
def test_the_status_of_a_service(seen: Seen, more: dict[str, Any], expected: Status) -> None:
    told_of: dict[str, Any] = {"in_maintenance": False, "has_incident": False, "needs": [], **more}
    assert judge(seen, **told_of) is expected


def test_the_headline_is_the_worst() -> None:
    assert worst([]) is Status.OPERATIONAL
    assert worst([Status.MAINTENANCE, Status.DEGRADED, Status.OPERATIONAL]) is Status.DEGRADED
    assert set(page.STATES) == set(page.HEADLINES) == set(Status)


def test_as_the_world_changes(place: World) -> None:
    assert status_of_things() is Status.OPERATIONAL
    place.damage()
    assert status_of_things() is Status.DEGRADED  # it answers, and its data is wrong
    (place.store / "live/data").unlink()
    assert status_of_things() is Status.OUTAGE


def test_what_hangs_is_not_called_down(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "DEADLINE", 0.3)
    over = threading.Event()
    monkeypatch.setattr("salvor.incident.Incident.observe_all", lambda self, systems: over.wait(20))
    begun = time.monotonic()
    assert status_of_things() is Status.UNKNOWN
    assert time.monotonic() - begun < 3
    over.set()


def test_the_command_says_it_and_ends_with_its_exit_code(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    told.status("world", Plain(), publish=False, place="", check=True)
    assert "things" in capsys.readouterr().out
    place.damage()
    with pytest.raises(NotProvenError, match=r"things \(degraded\)"):
        told.status("world", Json(), publish=True, place="", check=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["status"] for each in said if each["kind"] == "service"] == ["degraded"]
    assert "일부 장애" in unescape(published(place))


def test_by_the_command_itself(place: World) -> None:
    def inv(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "processes")}
        argv = [sys.executable, "-m", "invoke", *words, "--platform=world"]
        folder = Path(__file__).parents[2]
        return subprocess.run(
            argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )

    done = inv("status", "--publish")
    assert done.returncode == 0 and f"Published: {place.root}/www/index.html" in done.stdout, done.stderr
    (place.root / "other").mkdir()
    assert inv("status", f"--publish={place.root}/other").returncode == 0
    page_reader.read((place.root / "other/index.html").read_text())


def test_words_may_be_the_same_in_both_languages() -> None:
    assert Words.model_validate("API") == Words(en="API", ko="API")

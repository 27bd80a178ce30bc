"""A whole platform at once: what is broken is brought back in the order of what it depends on, and of its tier."""

from __future__ import annotations

import json

import pytest
from salvor import console, whole_platform
from salvor.errors import CannotError, UsageError
from salvor.journal import Journal, incidents
from salvor.show import Json, Plain
from salvor.whole_platform import Asked

from tests import trouble
from tests.test_applications import acts, runs
from tests.test_applications import place as place  # the world of services and programs
from tests.world import GOOD, World


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made after all is back, and tried elsewhere."""
    monkeypatch.setattr(console, "make_record", lambda session, shown: None)


def restore() -> dict[str, str]:
    results = whole_platform.restore("world", Plain(), Asked(), yes=True)
    return {each.service.name: each.state for each in results}


def destroy(place: World) -> None:
    place.damage()
    for name in ("shop", "office"):
        (place.root / name).write_text("")


def test_all_that_is_broken_is_brought_back_in_its_order(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    destroy(place)
    assert restore() == {"things": "back", "shop": "back", "office": "back", "rest": "back"}
    assert place.live == GOOD
    assert all(runs(place).values())
    assert acts(place, "shop") == ["start good"]
    said = capsys.readouterr().out
    table = said[said.rindex("tier  service") :].splitlines()
    assert [line.split()[1] for line in table[1:5]] == ["things", "shop", "office", "rest"]
    assert "allowed: met" in table[1]
    detected = {Journal.read(each).lines[0]["detected_at"] for each in incidents(place.root / "incidents")}
    assert len(detected) == 1  # whoever waited for the others waited in an outage


def test_the_same_again_does_nothing(place: World) -> None:
    destroy(place)
    restore()
    before = {name: acts(place, name) for name in ("shop", "office", "reports")}
    assert set(restore().values()) <= {"back", "healthy"}
    assert before == {name: acts(place, name) for name in before}
    assert len(list(incidents(place.root / "incidents"))) == 4


def test_a_plan_changes_and_writes_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    destroy(place)
    whole_platform.restore("world", Plain(), Asked(), plan_only=True)
    assert "stage side-folder" in capsys.readouterr().out
    assert place.live != GOOD and not any((place.root / "incidents").iterdir())


def test_what_waits_for_a_failed_one_is_not_begun_and_the_rest_is(place: World) -> None:
    destroy(place)
    trouble.order(place.root, "shop", "start", "fail")
    with pytest.raises(CannotError, match="does not want to"):
        restore()
    assert place.live == GOOD
    assert (runs(place)["shop"], runs(place)["office"], runs(place)["reports"]) == ("", "", "run-1")
    assert set(restore().values()) <= {"back", "healthy"}
    assert all(runs(place).values())


def test_assess_of_all_says_what_is_broken_and_writes_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "shop").write_text("")
    whole_platform.assess("world", Json())
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["service"]: each["state"] for each in said if each["kind"] == "service"} == {
        "things": "healthy",
        "shop": "broken",
        "office": "waits",
        "rest": "broken",
    }
    assert not any((place.root / "incidents").iterdir())


def test_one_hash_cannot_approve_several_plans(place: World) -> None:
    with pytest.raises(UsageError, match="one service"):
        whole_platform.restore("world", Plain(), Asked(), approve="0" * 12)

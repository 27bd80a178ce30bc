"""Notices of maintenance."""

from __future__ import annotations

import io
import re
from datetime import timedelta
from typing import Any

import pytest
from salvor import clock
from salvor.errors import UsageError
from salvor.show import Plain
from salvor.status import told
from salvor.status.states import Status

from tests.status.of_a_world import given, platform, published, published_now, status_of_things
from tests.world import GOOD, World


def test_a_notice_by_command_is_told_at_once_until_its_end(place: World) -> None:
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=False)
    assert "We move." in published(place) and "점검 중" in published(place)
    place.damage()
    told.status("world", Plain(io.StringIO()), publish=False, place="", check=True)  # nobody is called
    (place.store / "live/data").write_text(GOOD)
    later = clock.now() + timedelta(hours=2)
    with clock.use(lambda: later):
        assert "We move." not in published_now(place)
        assert status_of_things() is Status.OPERATIONAL
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=True)
    assert "We move." not in published(place)
    with pytest.raises(UsageError, match="no notice 'move-1'"):
        told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"from": ""}, "^--from is missing"),
        (
            {"from": "tomorrow"},
            r"^--from: 'tomorrow' is not a time; write it as ISO 8601.* example \d{4}-\d\d-\d\dT",
        ),
        ({"until": "2020-01-01T00:00:00+00:00"}, "it ends before it begins"),
        ({"from": "2020-01-01T00:00:00+00:00", "until": "2020-01-02T00:00:00+00:00"}, "is over already"),
        ({"affects": ["nothing"]}, "^--affects: .* no service 'nothing'"),
        ({"text": {"en": "", "ko": ""}}, "^--en is missing"),
        ({"text": {"en": "password=hunter2hunter2", "ko": "x"}}, "looks like a secret"),
    ],
)
def test_a_notice_that_makes_no_sense_is_refused(place: World, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        told.notice("world", "move-1", given(**wrong), Plain(io.StringIO()), remove=False)
    for name in ("../x", "", "a b", "a" * 64):
        with pytest.raises(UsageError, match="no name"):
            told.notice("world", name, given(), Plain(io.StringIO()), remove=False)
    assert not list(place.root.rglob("move-1.json"))


def test_a_notice_stands_although_its_page_cannot_be_put_anywhere(place: World) -> None:
    (place.root / "www").rmdir()
    said = io.StringIO()
    told.notice("world", "move-1", given(), Plain(said), remove=False)
    assert "The notice move-1 stands until" in said.getvalue() and "owed: the status page" in said.getvalue()
    assert status_of_things() is Status.MAINTENANCE


def test_a_damaged_notice_stops_no_page(place: World) -> None:
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=False)
    (file,) = place.root.rglob("move-1.json")
    for content in (b"", b"{}", b"[]", b"x" * 100_000):
        file.write_bytes(content)
        assert "We move." not in published_now(place)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("status: {publish: www}", "status.publish|publish: write a folder's whole path"),
        ("status: {follow: http://plain.example}", "https://HOST"),
        ("status: {follow: https:///status}", "https://HOST"),
        ("status: {services: {nothing: x}}", "there is no service 'nothing'"),
        ("status: {colour: red}", "no such setting"),
        ("notices: {n: {from: 2026-01-02T00:00Z, until: 2026-01-01T00:00Z, text: x}}", "ends before it begins"),
        ("notices: {n: {from: 2026-01-02T00:00Z, until: 2026-01-03T00:00Z, text: x, affects: [y]}}", "no service 'y'"),
    ],
)
def test_the_inventory_refuses_what_makes_no_sense(place: World, wrong: str, said: str) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().split("\nstatus:")[0] + f"\n{wrong}\n")
    with pytest.raises(UsageError, match=said) as refused:
        platform()
    assert re.search(r"world\.yaml:\d+:\d+", refused.value.what)

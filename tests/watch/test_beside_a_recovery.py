"""A rule about a service whose recovery, or that of what it works on, stands unfinished."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor import clock, console, inventory
from salvor.errors import CannotError
from salvor.journal import Journal
from salvor.session import aftermath
from salvor.show import Plain
from salvor.watch.recoveries import unfinished
from salvor.watch.watcher import Watcher

from tests import trouble
from tests.test_applications import place as place  # the world of services and programs
from tests.test_applications import recover, runs
from tests.watch.place import BEGIN
from tests.world import World

RULES = """
watch:
  sells:
    service: shop
    metric: {check: it sells}
    for: 1m
    immediately: [{restart: shop}]
    cool_down: 1m
    escalate: on-call
escalation:
  on-call: {messages: people, people: [{channel: team}]}
"""
PEOPLE = "systems:\n  people: {kind: outbox, channels: {team: {url: 'json://127.0.0.1:9/nobody-listens'}}}\n"


def watch(place: World, first: int) -> list[str]:
    """What the watcher does at two looks a minute apart."""
    watcher = Watcher(inventory.load("world"), Plain(io.StringIO()))
    moves = []
    for seconds in (first, first + 61):
        with clock.use(lambda seconds=seconds: BEGIN + timedelta(seconds=seconds)):  # type: ignore[misc]
            (seen,) = watcher.once()
            moves.append(f"{seen.move.kind}: {seen.move.why}")
    return moves


def test_what_a_recovery_stopped_is_not_started_before_it_is_at_its_end(place: World) -> None:
    """The program was started on the damaged data, and people were told that it is better."""
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("systems:\n", PEOPLE, 1) + RULES)
    place.damage()
    trouble.order(place.root, "store", "promote", "fail")
    with pytest.raises(CannotError):
        recover("things")
    (stopped,) = place.journals()
    id_ = stopped.folder.name
    assert watch(place, 0)[1].startswith(f"escalate: the recovery {id_} was begun and is not at its end")
    assert runs(place)["shop"] == ""
    console.recover(aftermath.of_id(id_, Plain(io.StringIO())), Plain(io.StringIO()), yes=True)
    assert "better" in watch(place, 100)[0]
    (place.root / "shop").write_text("")
    assert watch(place, 300)[1] == "act: immediately"
    assert runs(place)["shop"]


def test_which_recoveries_stand_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path))
    ours: dict[str, Any] = {"purpose": "incident", "platform": "world", "service": "shop"}
    for number, (name, value) in enumerate(
        (("purpose", "maintenance"), ("platform", "another"), ("service", "other"), ("service", "shop"))
    ):
        assert unfinished("world", "shop", {"pages"}) == ""
        Journal.create(tmp_path / f"20261121T03000{number}Z-shop-0000", by="kim", **{**ours, name: value}).close()
    folder = tmp_path / "20261121T030003Z-shop-0000"
    with Journal.open(folder, by="kim") as journal:
        assert unfinished("world", "shop", set()) == folder.name
        journal.append("recovered")
        assert unfinished("world", "shop", set()) == ""
        journal.append("intent", change={"system": "pages"}, undoing="abc")
        assert unfinished("world", "shop", set()) == unfinished("world", "other-shop", {"pages"}) == folder.name
        journal.append("undone")
    assert unfinished("world", "shop", set()) == ""
    folder = tmp_path / "20261121T030004Z-shop-0000"
    with Journal.create(folder, by="kim", **ours) as journal:
        journal.append("note", text="begun")
    whole = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(b"\0" * 40 + whole[40:])
    assert unfinished("world", "shop", set()) == folder.name, "what cannot be read may be a recovery"
    assert unfinished("world", "other-shop", set()) == ""

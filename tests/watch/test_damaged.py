"""Journals of episodes that were cut off, or damaged."""

from __future__ import annotations

import io

import pytest
from salvor.journal import Journal
from salvor.session import aftermath
from salvor.show import Plain

from tests.watch.place import PLATFORM, Place


def test_a_journal_that_was_cut_off_in_its_first_line_hinders_nothing(place: Place) -> None:
    for name, content in (("20261121T030100Z-memory-0000", b""), ("20261121T030200Z-memory-0000", b'{"n":1,"at')):
        folder = place.root / "incidents" / name
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").write_bytes(content)
    (place.root / "incidents/20261121T030300Z-memory-0000").mkdir()
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    assert place.pages == 0


def test_a_journal_that_is_damaged_stops_the_rule(place: Place) -> None:
    place.say(90)
    watcher, said = place.watcher()
    for seconds in (0, 150, 300):
        place.look(watcher, seconds)
    path = place.journals()[0].folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if b'"kind":"outcome"' in line)
    path.write_bytes(b"".join([*lines[:number], b"{damaged\n", *lines[number + 1 :]]))
    place.fill()
    place.say(10)
    place.look(watcher, 305)
    place.say(90)
    for seconds in range(310, 1300, 60):
        assert seconds > 600 or not place.calls[1:]
        place.look(watcher, seconds)
    assert (place.pages, place.restarts, len(place.journals())) == (2, 0, 2)
    assert "is damaged (inv incident.check)" in said.getvalue()
    assert [call for call in place.calls if call.endswith("called")] == [
        "tickets called",
        "devops called",
        "lead called",
    ]


def test_a_damaged_journal_that_was_closed_stops_nothing(place: Place) -> None:
    place.write(text=PLATFORM.replace("    escalate: on-call\n", ""))
    folder = place.root / "incidents/20261121T025900Z-memory-0000"
    with Journal.create(folder, by="kim", purpose="watch", platform="place", service="shop") as journal:
        journal.append("note", text="x")
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b"{damaged\n")
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        assert "is damaged" in place.look(watcher, seconds).move.why
    with Journal.open(folder, by="kim") as journal:
        journal.append("closed", result="by hand")
    place.look(watcher, 310)
    assert place.pages == 0


@pytest.mark.parametrize("left", [b"\0" * 40 + b"\n", b""])
def test_a_journal_that_lost_its_first_line_can_be_closed(place: Place, left: bytes) -> None:
    """It was refused: the rule did nothing any more, for good."""
    place.write(text=PLATFORM.replace("    escalate: on-call\n", ""))
    folder = place.root / "incidents/20261121T025900Z-memory-0000"
    with Journal.create(folder, by="kim", purpose="watch", platform="place", service="shop") as journal:
        journal.append("note", text="x")
    path = folder / "journal.jsonl"
    path.write_bytes(left + path.read_bytes().splitlines(keepends=True)[1])
    place.say(90)
    watcher, _ = place.watcher()
    for seconds in (0, 150, 300):
        assert "is damaged" in place.look(watcher, seconds).move.why
    said = io.StringIO()
    for _ in range(2):
        aftermath.close_incident(folder.name, "", Plain(said))
    assert path.read_bytes().count(b'"closed"') == 1
    assert "NOT signed, without a record" in said.getvalue()
    place.look(watcher, 310)
    assert place.pages == 0

"""Messages that hang, fail or are owed, a terminal that goes away, and an operator who stops it."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from typing import Any

import pytest
from salvor import console, outgoing
from salvor.change import Level
from salvor.errors import (
    NotProvenError,
)
from salvor.session import aftermath
from salvor.show import Plain

from tests import trouble
from tests.world import BAD, GOOD, World


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_notifier_that_hangs_holds_nobody_and_is_owed(
    place: World, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "DEADLINE", 0.5)
    monkeypatch.setattr(outgoing, "IN_ORDER", 0.1)
    hanging = trouble.order(place.root, "post", "declared", "hang")
    begun = time.monotonic()
    place.recover()
    assert time.monotonic() - begun < 10
    assert (place.live, place.letters) == (GOOD, ["recovered"])
    [owed] = place.lines("owed")
    assert owed["what"] == "post: send moment=declared"
    assert not place.lines("observed"), "it is still on its way"
    written = len(place.journals()[0].lines)
    if not is_sent:
        (place.root / "post").rename(place.root / "closed")
    hanging.unlink()
    for thread in threading.enumerate():
        if thread.name.startswith("message"):
            assert thread.daemon
            thread.join(5)
    assert len(place.journals()[0].lines) == written  # it does not write into a journal that was given back
    assert place.letters == (["recovered", "declared"] if is_sent else [])


def test_messages_on_one_channel_keep_their_order(place: World) -> None:
    declared = trouble.order(place.root, "post", "declared", "hang")
    threading.Timer(1.0, declared.unlink).start()
    place.recover()
    assert place.letters == ["declared", "recovered"]


def test_an_undo_is_over_when_what_it_owes_is_written(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = place.recover()
    monkeypatch.setattr(outgoing, "DEADLINE", 0.3)
    hanging = trouble.order(place.root, "post", "undone", "hang")
    aftermath.undo(incident, Plain(), yes=True)
    assert [line["kind"] for line in place.lines("owed", "undone")] == ["owed", "undone"]
    hanging.unlink()


@pytest.mark.parametrize("trouble_with", ["fail", "unknown after"])
def test_nobody_hears_that_it_is_undone_who_heard_of_nothing(place: World, trouble_with: str) -> None:
    for moment in ("declared", "recovered"):
        trouble.order(place.root, "post", moment, trouble_with)
    incident = place.recover()
    is_unknown = trouble_with == "unknown after"
    why = "whether it was sent is not known" if is_unknown else "it does not want to"
    assert [line["why"] for line in place.lines("owed")] == [why, why]
    aftermath.undo(incident, Plain(), yes=True)
    assert ("undone" in place.letters) == is_unknown


def test_what_was_owed_is_tried_again(place: World) -> None:
    trouble.order(place.root, "post", "declared", "fail")
    place.recover()
    assert [line["why"] for line in place.lines("owed")] == ["it does not want to"]
    assert place.letters == ["recovered"]
    place.recover()
    assert sorted(place.letters) == ["declared", "recovered"]


def test_an_outbox_that_is_broken_does_not_hide_what_failed(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.store / "backups/b1/data").write_text("also bad\n")
    session = place.session()
    outbox = session.incident.outbox
    assert outbox
    messages = type(outbox).messages

    def broken(self: Any, moment: str) -> Any:
        if moment == "failed":
            raise RuntimeError("the template is broken")
        return messages(self, moment)

    monkeypatch.setattr(type(outbox), "messages", broken)
    with pytest.raises(NotProvenError):
        console.recover(session, Plain(), yes=True)
    assert "the template is broken" in [line["why"] for line in place.lines("owed")]


class Gone(io.StringIO):
    """A terminal that goes away after some lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left = lines

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("lines_shown", [30, 40, 50, 70])
def test_a_terminal_that_goes_away_stops_no_recovery(place: World, lines_shown: int) -> None:
    session = place.session()
    session.runner.watcher = Plain(Gone(lines_shown))
    console.recover(session, Plain(io.StringIO()), yes=True)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    assert {line["outcome"] for line in place.lines("outcome")} == {"done"}


def test_stopped_by_the_operator_a_change_ends_at_its_next_sign_of_progress(place: World) -> None:
    trouble.order(place.root, "store", "stage", "slow")
    session = place.session()
    pressed = threading.Event()

    class Pressing(Plain):
        def progress(self, *arguments: Any) -> None:
            if not pressed.is_set():
                pressed.set()
                os.kill(os.getpid(), signal.SIGINT)

    session.runner.watcher = Pressing(io.StringIO())
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        console.recover(session, Plain(io.StringIO()), yes=True)
    assert time.monotonic() - begun < 1.8
    assert [line["outcome"] for line in place.lines("outcome")][-1] == "unknown"
    place.recover()
    assert (place.live, place.kept) == (GOOD, [BAD])


def test_findings_of_each_step_are_in_the_journal(place: World) -> None:
    place.recover()
    steps = {line["step"] for line in place.lines("finding")}
    assert {"assess", "verify", "reroute"} <= steps
    assert {line["finding"]["level"] for line in place.lines("finding") if line["step"] == "reroute"} == {Level.PASS}

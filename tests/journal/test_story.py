import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salvor import pages
from salvor.change import Level
from salvor.journal import Journal, events, story
from salvor.journal.happened import UNFINISHED, Story
from salvor.notebook import record
from salvor.pages import timeline
from salvor.session import handover

from tests import told

KINDS = [
    "acknowledged",
    "opened", "resumed", "taken", "step", "finding", "decision", "approved", "intent",
    "outcome", "observed", "owed", "paid", "measured", "recovered", "proven",
    "note", "repaired", "failed", "undone", "discarded", "closed", "asked", "confirmed", "refused", "item",
    "overridden",
]  # fmt: skip


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("usual") / "20261121T003300Z-orders-aaaa"
    told.usual(folder).journal.close()
    return story.read(folder)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of an eventful recovery."""
    folder = tmp_path_factory.mktemp("eventful") / "20261121T003300Z-orders-bbbb"
    told.eventful(folder).journal.close()
    return Journal.read(folder).lines


@pytest.fixture(scope="module")
def eventful(lines: list[dict[str, Any]]) -> Story:
    return story.tell(lines, incident="20261121T003300Z-orders-bbbb")


def test_a_recovery_is_told_step_by_step(usual: Story) -> None:
    assert [step.name for step in usual.steps] == [
        "assess", "notify", "isolate", "restore", "verify", "reroute", "notify",
    ]  # fmt: skip
    assert [step.time for step in usual.steps] == [1, 1, 1, 1, 1, 1, 2], "the second notify is the runbook's second"
    restore = usual.runs("restore")[0]
    assert [(act.change, act.outcome, act.seconds) for act in restore.acts] == [(told.STAGE, "done", 184.2)]
    assert restore.seconds == pytest.approx(184.3)
    assess = usual.runs("assess")[0]
    assert (assess.begun, len(assess.decided), assess.seconds) == (told.BEGIN, 1, 1.6), "it decides while it plans"
    assert [finding.check for finding in usual.runs("verify")[0].verdicts] == [
        "pg_amcheck", "fingerprint", "orders not zero",
    ]  # fmt: skip


def test_changes_count_without_messages(usual: Story) -> None:
    assert [act.change for act in usual.made] == [told.FENCE, told.STAGE, told.PROMOTE, told.POINT]
    assert [act.change for act in usual.messages] == [told.DECLARED, told.RECOVERED]


def test_figures_stand_against_their_targets(usual: Story, eventful: Story) -> None:
    assert usual.state == "recovered"
    assert usual.measured["rto"] == pytest.approx(200.5, abs=1.0)
    assert (usual.target("rto"), usual.is_met("rto"), usual.is_met("rpo")) == (900.0, True, True)
    assert eventful.is_met("rto") is False, "it was interrupted for more than an hour"
    assert Story("x").is_met("rto") is None


def test_what_was_decided_and_what_else_was_possible(usual: Story) -> None:
    (decision,) = usual.decisions
    assert (decision.identity, decision.way.name) == (told.IDENTITY, "physical")
    assert [(way.name, way.possible) for way in decision.others] == [("logical", True), ("failover", False)]


def test_a_killed_change_is_unfinished_and_the_next_try_is_another(eventful: Story) -> None:
    first, second = [act for act in eventful.acts if act.change == told.STAGE]
    assert (first.outcome, first.seconds, first.took) == (UNFINISHED, None, None)
    assert (second.outcome, second.by) == ("done", "lee@ops2")
    assert [step.time for step in eventful.runs("restore")] == [1, 1], "each was the first of its sitting"


def test_interruptions_say_when_how_long_and_while_what(eventful: Story) -> None:
    assert [(each.what, round((each.until - each.at).total_seconds())) for each in eventful.interruptions] == [
        ("orders-db: stage", 4095),
        ("reroute", 340),
    ]
    assert [sitting.by for sitting in eventful.sittings] == ["kim@ops1", "lee@ops2", "lee@ops2", "park@ops1"]


def test_an_unknown_outcome_that_was_seen_counts(eventful: Story) -> None:
    (fence,) = [act for act in eventful.acts if act.change == told.FENCE]
    assert (fence.outcome, fence.observed, fence.said, fence.is_done) == ("unknown", "done", "seen done", True)


def test_what_was_undone_is_told_and_what_is_owed_stays(eventful: Story) -> None:
    assert eventful.state == "recovered, undone, closed"
    assert {act.key for act in eventful.taken_back} == {told.PROMOTE.key}
    assert [(owed.what, owed.paid is not None) for owed in eventful.owed] == [
        ("pager: send declared on-call", True),
        ("record.html", False),
    ]


def test_what_was_discarded_cannot_be_taken_back_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "20261121T003300Z-orders-aaaa"
    over = told.usual(folder)
    assert "each can be taken back" in pages.section("summary", story=story.read(folder))
    over.line("discarded", result="1 kept thing removed").journal.close()
    said = pages.section("summary", story=story.read(folder))
    assert "none can be taken back: what they replaced is removed" in said
    assert "latest, of before 21 Nov 2026 00:32:00 UTC" in said, "what --failed-at asked for"


def test_a_masked_argument_does_not_lose_its_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "20261121T003300Z-orders-dddd"
    told.hostile(folder, lines=3).journal.close()
    (act,) = story.read(folder).acts
    assert act.outcome == "failed"
    assert "hunter2" not in str(act.change)


def test_lines_that_cannot_be_told_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "20261121T003300Z-orders-dddd"
    told.hostile(folder, lines=3).journal.close()
    read = story.read(folder)
    numbers = {line["n"] for line in Journal.read(folder).lines if line.get("key") == "no such key"}
    assert numbers < set(read.unreadable)
    assert len(read.unreadable) == 2, "the finding without a subject, and the outcome without an intent"
    assert read.lines == len(Journal.read(folder).lines)


def test_every_kind_of_line_has_a_sentence(lines: list[dict[str, Any]]) -> None:
    elsewhere = ("asked", "confirmed", "refused", "item", "overridden", "acknowledged")
    told_kinds = {event.kind for event in story.tell(lines).events}
    assert told_kinds >= set(KINDS) - {"discarded", "failed", "proven", "taken", *elsewhere}
    assert set(KINDS) == set(events._SENTENCES)


def test_wherever_a_journal_ends_it_is_told(lines: list[dict[str, Any]]) -> None:
    for count in range(len(lines) + 1):
        read = story.tell(lines[:count])
        assert not read.unreadable
        list(handover.screen(handover.Handover(read)))
        timeline.draw(read)
    for count in range(0, len(lines) + 1, 7):
        read = story.tell(lines[:count])
        assert pages.section("summary", story=read) and pages.section("timeline", story=read)


def test_what_is_under_way_is_unfinished(lines: list[dict[str, Any]]) -> None:
    begun = next(n for n, line in enumerate(lines) if line["kind"] == "intent" and line["step"] == "restore")
    assert story.tell(lines[: begun + 1]).unfinished == ["orders-db: stage"]
    assert story.tell(lines[:begun]).unfinished == ["restore"]
    assert story.tell(lines).unfinished == []


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
any_line = st.fixed_dictionaries(
    {"n": st.integers(), "at": st.just("2026-11-21T00:33:00+00:00") | anything, "by": anything},
    optional={
        "kind": st.sampled_from(KINDS), "step": st.sampled_from(["assess", "restore"]) | anything, "key": anything,
        "phase": st.sampled_from(["begun", "ended"]), "seconds": st.floats(0, 9) | anything, "outcome": anything,
        "finding": anything, "change": anything, "decision": anything, "text": anything, "what": anything,
        "planned": anything, "wish": anything, "targets": anything, "changes": anything,
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(any_line, max_size=6))
def test_no_line_of_a_damaged_journal_stops_the_telling(lines: list[dict[str, Any]]) -> None:
    read = story.tell(lines)
    list(handover.screen(handover.Handover(read)))
    assert len(read.events) + len(read.unreadable) >= len(lines)


def test_findings_are_grouped_and_each_counts_once(usual: Story) -> None:
    levels = [finding.level for finding in usual.runs("assess")[0].seen]
    assert levels == [Level.PASS, Level.PASS, Level.PASS, Level.FAIL]
    assert usual.runs("assess")[0].summary == "3 passed, 1 failed"


def test_the_story_of_a_journal_is_the_same_from_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "20261121T003300Z-orders-aaaa"
    teller = told.usual(folder)
    teller.journal.close()
    in_memory = story.tell(teller.journal.lines, incident=folder.name)
    assert json.dumps(in_memory.events, default=str) == json.dumps(story.read(folder).events, default=str)
    assert record.page(folder).count("<h2 ") == 13

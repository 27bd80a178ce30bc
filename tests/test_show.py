"""What people and machines are shown: nothing that steers a terminal, no secret, valid JSON."""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console
from salvor import clock, show
from salvor.change import Change, Decision, Finding, Level, Progress, Undo, WayBack
from salvor.plan import Plan, PlannedStep

HOSTILE = "\x1b[2J\x1b]0;owned\x07 a\rb \x9b31m \u202e\u2066 \x00 \udc80 password=hunter2 end"
CHANGE = Change(
    "store", "stage", {"stage": "side", "backup": "b1", "at": None}, "why not", Undo("drop", {"stage": "side"})
)
STEERING = [
    *map(chr, range(0x0A)),
    "\r",
    "\x1b",
    "\x7f",
    *map(chr, range(0x80, 0xA0)),
    "\u202e",
    "\u2066",
    "\udc80",
]


@given(some.text(some.characters(exclude_categories=())))
def test_nothing_that_steers_a_terminal_is_shown(text: str) -> None:
    shown = show.clean(text)
    assert not set(shown) & (set(STEERING) - {"\t"})
    shown.encode()
    assert [line[:4] for line in shown.split("\n")[1:]] == ["    "] * text.count("\n")


def test_words_are_shown_as_they_are() -> None:
    assert show.clean("Datenbank 주문 ✓ é\tend") == "Datenbank 주문 ✓ é\tend"
    assert "hunter2" not in show.clean(HOSTILE)


def test_a_plan_says_of_every_change_why_how_to_undo_it_and_what_it_took() -> None:
    letter = Change("post", "send", {"moment": "declared"}, "it is declared", no_undo="a letter cannot be taken back")
    found = Finding("store", "answers", Level.FAIL, figure="down", limit="up", detail="no answer")
    plan = Plan(
        (
            PlannedStep("assess", (found,), (), ()),
            PlannedStep("restore", (), (), (CHANGE, letter)),
            PlannedStep("verify", (), (), ()),
        )
    )
    lines = show.plan_lines(plan, lambda system, verb: 62.0 if verb == "stage" else None)
    assert lines == [
        "assess:",
        "  FAIL    store: answers: down (limit up): no answer",
        "restore:",
        "  1. store: stage side backup=b1",
        "       why    why not",
        "       undo   store: drop side",
        "       took   1 min 02 s last time",
        "  2. post: send moment=declared",
        "       why    it is declared",
        "       undo   NONE: a letter cannot be taken back",
        "       took   never done before",
        "verify: nothing to change",
        f"2 changes. Plan hash: {plan.hash}",
    ]
    assert show.plan_lines(Plan(()))[-1] == "Nothing to do."


def test_a_hostile_plan_is_shown_harmlessly() -> None:
    change = replace(CHANGE, arguments={"backup": HOSTILE}, why=HOSTILE, undo=None, no_undo=HOSTILE)
    step = PlannedStep("restore", (Finding(HOSTILE, HOSTILE, Level.WARN, HOSTILE, HOSTILE, HOSTILE),), (), (change,))
    text = "\n".join(show.plan_lines(Plan((step,))))
    assert not set(text) & set(STEERING)
    assert "hunter2" not in text


def test_a_table_has_columns_whatever_is_in_it() -> None:
    lines = show.table(("id", "what", ""), [("a", "one\ntwo\tthree", "x"), ("long id", "", HOSTILE)])
    assert lines[:2] == ["id       what", "a        one two three  x"]
    assert len(lines) == 3
    assert len({line.index(word) for line, word in zip(lines, ["what", "one"], strict=False)}) == 1


def test_a_table_is_as_narrow_as_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("20261122-123414F", "31 min 20 s", "in pgBackRest 1"), ("b", "", "")]
    wide = ["id                age", "20261122-123414F  31 min 20 s  in pgBackRest 1", "b"]
    monkeypatch.setenv("COLUMNS", "38")
    assert show.table(("id", "age", ""), rows) == wide, "a pipe has no width"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert show.table(("id", "age", ""), rows) == [
        "id                age",
        "20261122-123414F  31 min  in",
        "                  20 s    pgBackRest",
        "                          1",
        "b",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**5, "3072.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert show.write_bytes(count) == text


def test_progress_has_share_rate_and_time_left() -> None:
    half = Progress(512 * 1024**2, 1024**3, "bytes", "loading")
    assert show.progress_text(half, 8.0) == "512.0 MiB of 1.0 GiB, 50 %, 64.0 MiB/s, 8.0 s left  loading"
    assert show.progress_text(Progress(0, None, "objects"), 0.0) == "0 objects"
    assert show.progress_text(Progress(0, None, "", "starting"), 3.0) == "starting"
    assert show.progress_text(Progress(1500, 0, "rows"), 1.0) == "1,500 rows, 1,500 rows/s"


# ------------------------------------------------------------------------------------------ the three ways


def everything_to(shown: Any) -> None:
    """Show one of each, with hostile words."""
    finding = Finding(HOSTILE, "check", Level.UNKNOWN, HOSTILE)
    hostile = replace(CHANGE, arguments={"backup": HOSTILE})
    shown.tell(HOSTILE)
    shown.step("restore", "Stage it.\n\nMore.")
    shown.finding(finding)
    shown.begun(hostile)
    shown.progress(hostile, Progress(1, None, HOSTILE, HOSTILE))
    shown.ended(hostile, "failed", 1.5, HOSTILE)
    shown.lines(["a line"])


def test_json_is_one_object_a_line_whatever_it_holds() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    shown = show.Json(stream)
    everything_to(shown)
    shown.write(
        "end",
        measured={"rto": float("nan"), "rpo": 1.5},
        decision=Decision("s", "i", HOSTILE, WayBack("w", True, "")).to_json(),
    )
    stream.seek(0)
    lines = stream.read().splitlines()
    objects = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    assert [each["kind"] for each in objects] == ["told", "step", "finding", "begun", "progress", "ended", "end"]
    assert "hunter2" not in "".join(lines)
    assert objects[3]["key"] == replace(CHANGE, arguments={"backup": HOSTILE}).key


def test_plain_lines_are_harmless() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    everything_to(show.Plain(stream))
    stream.seek(0)
    text = stream.read()
    assert not set(text) & (set(STEERING) - {"\n"})
    assert "hunter2" not in text
    assert text.endswith("a line\n")
    assert re.findall(r"^\d\d:\d\d:\d\d(.)", text, re.M) == ["Z"] * 3, "a time of day says that it is UTC"


def test_a_look_that_takes_long_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    plain, lines, drawn = io.StringIO(), io.StringIO(), io.StringIO()
    terminal = show.Terminal(Console(file=drawn, force_terminal=True, width=200, color_system=None))
    for shown in (show.Plain(plain), show.Json(lines), terminal):
        shown.looking("store", Progress(0, None, "bytes", "reading"))
        for seconds in (4, 6, 8):
            now[0] = 100.0 + seconds
            shown.looking("store", Progress(seconds * 1024, 24 * 1024, "bytes", "reading"))
        shown.looking("store", None)
        shown.looking("shelf", None)  # it took no time
        now[0] = 100.0
    assert [line.split("     ")[1] for line in plain.getvalue().splitlines()] == [
        "store: 6.0 KiB of 24.0 KiB, 25 %, 1.0 KiB/s, 18 s left  reading"
    ]
    assert [json.loads(line)["done"] for line in lines.getvalue().splitlines()] == [4096, 6144, 8192]
    assert terminal._now.bars is None
    assert "store" in drawn.getvalue()


def test_a_terminal_shows_changes_that_run_side_by_side() -> None:
    stream = io.StringIO()
    shown = show.Terminal(Console(file=stream, force_terminal=True, width=200, color_system=None))
    failed: list[BaseException] = []

    def change(number: int) -> None:
        mine = replace(CHANGE, system=f"store-{number}")
        try:
            for _ in range(30):
                shown.begun(mine)
                for done in range(20):
                    shown.progress(mine, Progress(done, 20, "files", HOSTILE))
                shown.ended(mine, "done", 0.1, "")
        except BaseException as error:  # noqa: BLE001 - whatever a thread raises fails the test
            failed.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    text = stream.getvalue()
    assert text.count("done    store-3: stage side backup=b1") == 30
    assert "hunter2" not in text
    assert "owned\x07" not in text


def test_no_markup_of_others_is_obeyed_on_a_terminal() -> None:
    stream = io.StringIO()
    shown = show.Terminal(Console(file=stream, force_terminal=True, width=200, color_system=None))
    shown.tell("[bold red]not bold[/] [link=http://x]y[/link] :skull:")
    assert "[bold red]not bold[/] [link=http://x]y[/link] :skull:" in stream.getvalue()


def test_the_way_to_show_follows_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(show.choose(), show.Plain)
    assert isinstance(show.choose(as_json=True), show.Json)
    poor = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", poor)
    show.choose().tell("주문")  # a letter that this terminal lacks is no reason to stop
    poor.seek(0)
    assert poor.read() == "\\uc8fc\\ubb38\n"

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from salvor import clock, secrets
from salvor.change import Level
from salvor.errors import CannotError, HeldError
from salvor.journal import FILE, Journal, incidents
from salvor.journal.evidence import check
from salvor.journal.line import START, digest

INCIDENT = "20261121T003300Z-orders-3f2a"


def whole(folder: Path) -> bool:
    return all(finding.level is not Level.FAIL for finding in check(folder))


def test_each_line_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    with Journal.create(tmp_path / INCIDENT, by="kim", service="orders", purpose="incident") as journal:
        returned = journal.append("note", text="the disk of db1 is full")
    raw = (tmp_path / INCIDENT / FILE).read_bytes().splitlines()
    first, second = (json.loads(line) for line in raw)
    assert (first["n"], first["by"], first["kind"], first["previous"]) == (1, "kim", "opened", START)
    assert (first["service"], first["purpose"]) == ("orders", "incident")
    assert second == returned
    assert second["previous"] == digest(raw[0])
    assert list(second) == ["n", "at", "by", "kind", "text", "previous"], "people read the file itself too"
    assert whole(tmp_path / INCIDENT)


def test_a_second_process_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim") as journal:
        journal.append("note", text="one")
    with Journal.open(folder, by="lee") as journal:
        journal.append("resumed")
        journal.append("note", text="two")
    journal = Journal.read(folder)
    assert [(line["n"], line["by"], line["kind"]) for line in journal.lines] == [
        (1, "kim", "opened"),
        (2, "kim", "note"),
        (3, "lee", "resumed"),
        (4, "lee", "note"),
    ]
    assert [line["text"] for line in journal.of("note")] == ["one", "two"]
    assert [line["kind"] for line in journal.of("opened", "resumed")] == ["opened", "resumed"]
    assert whole(folder)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_can_read_it(tmp_path: Path, umask: int) -> None:
    program = (
        f"import os; os.umask({umask}); from pathlib import Path; from salvor.journal import Journal;"
        f"Journal.create(Path({str(tmp_path / 'incidents' / INCIDENT)!r}), by='kim').close()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [tmp_path / "incidents", *tmp_path.glob("incidents/**/*")]
    }
    assert modes == {"incidents": 0o700, INCIDENT: 0o700, FILE: 0o600}


def test_an_incident_has_one_journal(tmp_path: Path) -> None:
    Journal.create(tmp_path / INCIDENT, by="kim").close()
    before = (tmp_path / INCIDENT / FILE).read_bytes()
    with pytest.raises(CannotError, match="has a journal already"):
        Journal.create(tmp_path / INCIDENT, by="lee")
    assert (tmp_path / INCIDENT / FILE).read_bytes() == before


def test_two_processes_never_append_at_once(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim"), pytest.raises(HeldError, match=f"writes the journal of incident {INCIDENT}"):
        Journal.open(folder, by="lee")
    Journal.open(folder, by="lee").close()


@pytest.mark.parametrize("method", [lambda folder: Journal.open(folder, by="kim"), Journal.read])
def test_an_incident_that_is_not_there(tmp_path: Path, method: Callable[[Path], Journal]) -> None:
    with pytest.raises(CannotError, match="There is no incident none in") as raised:
        method(tmp_path / "none")
    assert raised.value.hint == "inv incidents"
    assert not list(tmp_path.iterdir())


def test_reading_changes_nothing_and_appending_to_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    Journal.create(folder, by="kim").close()
    path = folder / FILE
    path.write_bytes(path.read_bytes() + b'{"n":2,"at"')
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir())
    journal = Journal.read(folder)
    assert journal.torn == 11
    assert len(journal.lines) == 1
    with pytest.raises(ValueError, match="read"):
        journal.append("note")
    journal.close()
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir())) == before


def test_names_that_every_line_has_are_refused(tmp_path: Path) -> None:
    with Journal.create(tmp_path / INCIDENT, by="kim") as journal:
        with pytest.raises(ValueError, match="at, previous"):
            journal.append("note", previous="", at="")
        assert len(journal.lines) == 1


def test_no_secret_is_ever_in_it(tmp_path: Path) -> None:
    secrets.remember('corr"ect\nhorse')
    with Journal.create(tmp_path / INCIDENT, by="kim", wish={'corr"ect\nhorse': ['a corr"ect\nhorse b']}) as journal:
        journal.append("note", text="postgresql://app:tr0ub4dor@db1/orders", detail="password=tr0ub4dor")
    text = (tmp_path / INCIDENT / FILE).read_text()
    assert "horse" not in text
    assert "tr0ub4dor" not in text
    assert "tr0ub4dor" not in str(journal.lines)
    assert text.count(secrets.MASK) == 4


def test_a_terminal_can_show_it(tmp_path: Path) -> None:
    hostile = "\x1b[2J\x9b2J\x7f\r\n\u202etxt.exe\u2028\ufeff한글"
    with Journal.create(tmp_path / INCIDENT, by="kim", title=hostile):
        pass
    text = (tmp_path / INCIDENT / FILE).read_text()
    assert text.rstrip("\n").isprintable()
    assert "한글" in text
    assert Journal.read(tmp_path / INCIDENT).lines[0]["title"] == hostile


def test_what_json_cannot_carry_is_written_all_the_same(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 20, 3, 12, tzinfo=UTC)
    data: dict[Any, Any] = {"when": moment, "path": Path("/x"), "rate": float("nan"), 7: (1, None, True), "set": {3}}
    with Journal.create(tmp_path / INCIDENT, by="kim", data=data) as journal:
        written = journal.lines[0]["data"]
    assert written == {
        "when": "2026-11-20T03:12:00.000000+00:00",
        "path": "/x",
        "rate": "nan",
        "7": [1, None, True],
        "set": [3],
    }
    assert Journal.read(tmp_path / INCIDENT).lines[0]["data"] == written


ANY_TEXT = st.text(st.characters(), max_size=20)  # halves of surrogate pairs included
ANY_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(ANY_DATA, min_size=1, max_size=4))
def test_anything_can_be_written_and_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("incidents") / INCIDENT
    with Journal.create(folder, by="kim") as journal:
        for value in values:
            journal.append("note", text=value)
    assert Journal.read(folder).lines == journal.lines
    assert whole(folder)


def test_a_clock_that_steps_back_breaks_nothing(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    moment = datetime(2026, 11, 20, tzinfo=UTC)
    with clock.use(lambda: moment), Journal.create(folder, by="kim") as journal:
        moment -= timedelta(days=400)
        journal.append("note")
    assert [line["at"][:10] for line in Journal.read(folder).lines] == ["2026-11-20", "2025-10-16"]
    assert whole(folder)


def test_many_threads_append(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim") as journal:

        def work(name: int) -> None:
            for number in range(25):
                journal.append("note", thread=name, number=number)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = Journal.read(folder).of("note")
    assert len(lines) == 200
    for name in range(8):
        assert [line["number"] for line in lines if line["thread"] == name] == list(range(25))
    assert whole(folder)


def test_incidents_are_listed_newest_first(tmp_path: Path) -> None:
    names = ["20261121T003300Z-orders-3f2a", "20251121T003300Z-orders-ffff", "20261121T003301Z-auth-0000"]
    for name in [*names, ".locks"]:
        Journal.create(tmp_path / name, by="kim").close()
    (tmp_path / "20301121T003300Z-empty-0000").mkdir()
    (tmp_path / "20301121T003300Z-a-file").touch()
    assert [folder.name for folder in incidents(tmp_path)] == sorted(names, reverse=True)
    assert list(incidents(tmp_path / "none")) == []
    with pytest.raises(CannotError, match="Not a directory"):
        list(incidents(tmp_path / "20301121T003300Z-a-file"))

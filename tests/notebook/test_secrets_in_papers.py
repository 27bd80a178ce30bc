"""No secret that was planted anywhere comes out anywhere: in no journal, record, report, review, page or screen."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salvor import console, review, secrets, show
from salvor.change import Change, Level, Undo
from salvor.drill import index as drill_index
from salvor.drill import report as drill_report
from salvor.errors import CannotError, CommandError
from salvor.journal import story
from salvor.notebook import paper, record
from salvor.review import text as review_text
from salvor.session import aftermath, handover
from salvor.show import Plain

from tests import told, world
from tests.told import Teller

INCIDENT = "20261121T003300Z-orders-aaaa"


@pytest.fixture(autouse=True)
def nothing_is_known_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test knows its own secrets only, or those of the others would be hidden in its texts."""
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_names", set())
    monkeypatch.setattr(secrets, "_hidden", None)
    yield


passwords = st.text(
    string.ascii_letters + string.digits + "!#$%&()+-./:;=?@[]^_{|}~ '\"\\<>é비", min_size=8, max_size=30
).filter(lambda text: text == text.strip() and len(set(text)) > 5 and " " not in text[:2])

PLACES = {
    "resolved, and quoted by an engine": lambda secret: f'FATAL: login of "app" failed with {secret}, as asked',
    "resolved, in a URL": lambda secret: f"cannot reach https://app:{quote(secret, safe='')}@db.example.com/orders",
    "resolved, in JSON": lambda secret: f'{{"login": {secret!r}}}',
}
"""Where a secret that was resolved may turn up, in any form that a program writes."""

LOOKS = {
    "a DSN": "postgresql://app:hunter2hunter2@db.example.com:5432/orders?sslmode=require",
    "a connection string": "host=db user=app password=hunter2hunter2 dbname=orders",
    "a setting": "repo1-cipher-pass=hunter2hunter2",
    "a header": "Authorization: Bearer hunter2hunter2",
    "SQL": "ALTER ROLE app PASSWORD 'hunter2hunter2'",
    "an environment": "AWS_SECRET_ACCESS_KEY=hunter2hunter2",
    "a key": "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2hunter2\n-----END OPENSSH PRIVATE KEY-----",
}
"""What nobody resolved and is one by its looks."""


def written(folder: Path, text: str) -> None:
    """A drill in whose journal the text stands wherever an engine or a person can bring it."""
    change = Change("orders-db", "stage", {"stage": "side-data", "backup": text}, text, Undo("drop", {"stage": text}))
    teller = Teller(folder, by=text, purpose="drill", scenario=text, title=text, failed_at=told.BEGIN)
    teller.assess().found("assess", text, text, Level.FAIL, text, text, text, text)
    teller.approve(change, how=text)
    teller.step("restore", lambda: teller.act("restore", change, 1.0, "failed", text), 1)
    teller.line("decision", decision=told.DECISION.to_json() | {"seen": text, "identity": text})
    teller.found("verify", "orders-db", text, Level.FAIL, text, text, text)
    teller.line("owed", what=text, why=text).line("note", text=text)
    for kind in ("impact", "cause", "good", "bad", "decision", "action"):
        teller.line("note", text=f"{kind}: {text} @{text}")
    teller.line("failed", text=text).line("measured", newest_commit="2026-11-21T00:31:58+00:00", rto=1.0, rpo=1.0)
    teller.line("a kind from the future", **{text: text})
    teller.line("closed", result=text).journal.close()


def artefacts(folder: Path, text: str) -> Iterator[tuple[str, str]]:
    """All that is made of a journal, by its name; the pages as where no kernel runs: of the same sections."""
    yield "journal", (folder / "journal.jsonl").read_text()
    yield "record.html", record.page(folder, problem=text)
    yield "drill.html", drill_report.PAPER.html(folder, problem=text)
    yield "drills.html", drill_index.html(folder.parent)
    yield "review.html", review._paper(text).html(folder, problem=text)
    yield "review.md", review_text.markdown(review.read(folder, text))
    this = handover.of(story.read(folder), folder.parent)
    yield "the screen", "\n".join(map(show.clean, handover.screen(this)))
    yield "an error", paper.words(RuntimeError(text)) + show.clean(str(CannotError(text, safe=text, hint=text)))


def forms(secret: str) -> set[str]:
    """How the secret may stand in a file."""
    import html
    import json

    return {
        secret,
        html.escape(secret),
        html.escape(secret, quote=False),
        json.dumps(secret)[1:-1],
        quote(secret),
        quote(secret, safe=""),
    }


@settings(max_examples=25, deadline=None)
@given(secret=passwords, place=st.sampled_from(sorted(PLACES)))
def test_a_resolved_secret_is_in_no_artefact(secret: str, place: str) -> None:
    secrets.remember(secret)
    with TemporaryDirectory() as folder:
        text = PLACES[place](secret)
        written(Path(folder) / INCIDENT, text)
        for name, content in artefacts(Path(folder) / INCIDENT, text):
            assert not [form for form in forms(secret) if form in content], f"{name}: {place}"


@pytest.mark.parametrize("place", sorted(LOOKS))
def test_what_looks_like_a_secret_is_in_no_artefact(tmp_path: Path, place: str) -> None:
    written(tmp_path / INCIDENT, LOOKS[place])
    for name, content in artefacts(tmp_path / INCIDENT, LOOKS[place]):
        assert "hunter2" not in content, name


def test_a_secret_among_the_parameters_of_a_notebook_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """papermill writes parameters into a cell and into the metadata of what it executed."""
    told.usual(tmp_path / INCIDENT).journal.close()
    assert review.make(tmp_path / INCIDENT, "rotate password=hunter2hunter2 @kim") == ""
    for path in sorted((tmp_path / INCIDENT).iterdir()):
        assert "hunter2" not in path.read_text(), path.name


def test_what_a_verb_raises_is_masked_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real recovery on the small world, whose engine prints its password."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_PASSWORD", "correct-horse-비밀")
    secret = secrets.resolve("env:DATABASE_PASSWORD")
    place = world.make(tmp_path)
    place.damage()

    def fail(self: Any, identity: str, stage: str) -> None:
        what = f"promote ended with exit code 1: login with {secret} refused"
        raise CommandError(what, exit_code_of_command=1, stderr=secret, hint=f"try PGPASSWORD={secret} psql")

    sitting = place.session()
    folder_kind: Any = type(sitting.incident.systems[0])
    fail.__dict__.update(folder_kind.promote.__dict__)  # it is a verb all the same
    monkeypatch.setattr(folder_kind, "promote", fail)
    with pytest.raises(CommandError):
        console.recover(sitting, Plain(), yes=True)
    folder = sitting.incident.folder
    (folder / record.PAGE).write_text(record.page(folder))
    aftermath.show_incident(folder.name, Plain())
    assert "[secret]" in capsys.readouterr().out
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"journal.jsonl", "record.html"}
    for path in files:
        assert secret not in path.read_text(), path.name
    assert "login with [secret] refused" in (folder / "journal.jsonl").read_text()

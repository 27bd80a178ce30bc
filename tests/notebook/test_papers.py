"""What is told after the fact besides the record: a drill's report, the page of all drills, and the review."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from salvor import budgets, review
from salvor.change import Level
from salvor.drill import index as drill_index
from salvor.drill import report as drill_report
from salvor.drill.report import Report
from salvor.errors import UsageError
from salvor.journal import story
from salvor.journal.happened import Story
from salvor.notebook import executed
from salvor.review import lessons
from salvor.review import text as review_text

from tests import page_reader, past, told
from tests.told import Teller

FIRST, SECOND, THIRD = (f"2026112{day}T003300Z-orders-aaaa" for day in (1, 2, 3))
NOTES = (
    "impact: 1,204 customers saw an error page",
    "cause: a release ran UPDATE without WHERE",
    "good: the plan was read aloud",
    "bad: nobody knew the number of the DNS team",
    "decision: wait for the DNS team",
    "action: rebuild the standby @kim",
    "Action: test the dump weekly",
    "lee has the laptop now",
)


def drilled(folder: Path, scene: str = "usual", clean: Level = Level.PASS, scenario: str = "wrong-update") -> Teller:
    """A drill that is over."""
    teller: Teller = getattr(told, scene)(folder, purpose="drill", scenario=scenario)
    teller.step("clean up", lambda: teller.found("clean up", "sandbox", "nothing of it is left", clean, "none", "none"))
    teller.line("closed", result="passed").journal.close()
    return teller


def reviewed(folder: Path) -> Teller:
    """An eventful incident with what people noted."""
    teller = told.eventful(folder)
    for text in NOTES:
        teller.line("note", text=text)
    teller.journal.close()
    return teller


@pytest.fixture(scope="module")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drills and an incident of one service, each with its papers, executed in real kernels."""
    folder = tmp_path_factory.mktemp("incidents")
    drilled(folder / FIRST)
    drilled(folder / SECOND)
    reviewed(folder / THIRD)
    assert drill_report.PAPER.make(folder / SECOND) == ""
    assert review.make(folder / THIRD, "mend the alert @lee; x") == ""
    assert drill_index.make(folder) == ""
    return folder


# ------------------------------------------------------------------------------------------------ the papers


@pytest.mark.parametrize("name", [f"{SECOND}/drill", f"{THIRD}/review"])
def test_a_paper_is_executed_private_and_without_errors(incidents: Path, name: str) -> None:
    path = incidents / f"{name}.ipynb"
    outputs = [each for cell in json.loads(path.read_bytes())["cells"] for each in cell.get("outputs", [])]
    assert {each["output_type"] for each in outputs} == {"display_data"}
    for each in (path, path.with_suffix(".html")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", [f"{SECOND}/drill", f"{THIRD}/review", "drills"])
def test_a_page_is_valid_readable_without_seeing_it_and_asks_no_network(incidents: Path, name: str) -> None:
    html = (incidents / f"{name}.html").read_text()
    assert page_reader.faults(page_reader.read(html), links=("/drill.html",)) == []
    assert "default-src 'none'" in html
    assert re.findall(r"(?:https?:|file:|data:|//)[^\s\"']*", re.sub(r'xmlns="[^"]*"|data:;', "", html)) == []


@pytest.mark.parametrize("name", ["drill", "review"])
def test_without_a_kernel_the_page_has_the_same_sections(incidents: Path, name: str) -> None:
    folder = incidents / (SECOND if name == "drill" else THIRD)
    paper = drill_report.PAPER if name == "drill" else review._paper("")

    def headings(html: str) -> list[str]:
        return [page_reader.texts(each) for each in page_reader.read(html).iter("h2")]

    html = paper.html(folder, "", "a kernel died")
    assert page_reader.faults(page_reader.read(html)) == []
    assert headings(html) == headings((folder / paper.page).read_text())
    assert "this page was made without it" in html


@pytest.mark.parametrize("name", ["drill", "review", "walkthrough"])
def test_each_stored_notebook_is_clean(name: str) -> None:
    notebook = json.loads(executed.template(name).read_bytes())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("opened", [drill_report.open, review.open])
def test_an_unknown_parameter_is_refused(opened: Callable[[dict[str, str]], object]) -> None:
    """papermill only warns of one."""
    with pytest.raises(UsageError, match="did you mean incident"):
        opened({"incident": SECOND, "incidnet": SECOND})


@pytest.mark.parametrize("scene", ["usual", "eventful", "crowded", "hostile"])
def test_whatever_happened_it_is_told(tmp_path: Path, scene: str) -> None:
    folder = tmp_path / FIRST
    (told.hostile(folder, lines=30) if scene == "hostile" else getattr(told, scene)(folder)).journal.close()
    for paper in (drill_report.PAPER, review._paper("x @y")):
        html = paper.html(folder)
        assert page_reader.faults(page_reader.read(html)) == []
        assert "hunter2" not in html and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    markdown = review_text.markdown(review.read(folder))
    assert not re.search(r"(?<!\\)<", markdown) and "hunter2" not in markdown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", markdown.replace("\n", ""))


def test_wherever_a_journal_ends_its_papers_are_made(tmp_path: Path) -> None:
    whole = reviewed(tmp_path / FIRST).journal.lines
    for count in range(0, len(whole) + 1, 9):
        this = story.tell(whole[:count], incident=FIRST)
        report = Report(this, ())
        assert report.word and report.headline and report.steps is not None
        assert review_text.markdown(review.Review(this))


# ------------------------------------------------------------------------------------------------ a drill's report


def report(folder: Path) -> Report:
    return drill_report.read(folder)


def test_a_drill_passes_only_when_users_are_back_in_time_and_nothing_is_left(tmp_path: Path) -> None:
    drilled(tmp_path / FIRST)
    drilled(tmp_path / SECOND, clean=Level.FAIL)
    told.usual(tmp_path / THIRD, purpose="drill").journal.close()
    assert report(tmp_path / FIRST).word == "passed"
    left = report(tmp_path / SECOND)
    assert (left.word, left.mends[0].what) == ("failed", "sandbox: nothing of it is left: failed")
    assert report(tmp_path / THIRD).word == "not finished", "nobody looked yet what is left"


def test_what_a_stand_in_lost_is_mended_without_it(tmp_path: Path) -> None:
    """It is gone when its report is read: nothing can be asked of it."""
    teller = told.usual(tmp_path / FIRST, purpose="drill", scenario="loss", platform="o4o")
    teller.found("reroute", "media", "what was acknowledged is there", Level.WARN, "30 of 37", "all")
    teller.step("clean up", lambda: teller.found("clean up", "sandbox", "nothing of it is left", Level.FAIL))
    teller.line("closed", result="passed").journal.close()
    assert [each.mend for each in report(tmp_path / FIRST).mends] == [
        "inv sandbox.down --platform=o4o",
        "mend what it says, and drill again",
    ]


def test_a_missed_target_fails_the_drill(tmp_path: Path) -> None:
    teller = told.usual(tmp_path / FIRST, purpose="drill", targets={"rto": 60.0, "rpo": 60.0})
    teller.line("measured", rto=200.0, rto_target=60.0).line("closed", result="").journal.close()
    failed = report(tmp_path / FIRST)
    assert failed.verdict is Level.FAIL and failed.mends[0].what == "The RTO was missed"


def test_budgets_are_shares_of_the_rto_as_earlier_runs_shared_it(tmp_path: Path) -> None:
    drilled(tmp_path / FIRST)
    first = {step.name: step for step in report(tmp_path / FIRST).steps}
    assert first["restore"].basis == "what was left of the RTO when it began"
    assert first["restore"].budget == pytest.approx(900.0 - 2.9, abs=1.0) and first["restore"].before is None
    drilled(tmp_path / SECOND)
    steps = {step.name: step for step in report(tmp_path / SECOND).steps}
    assert steps["restore"].budget == pytest.approx(900.0 * 184.3 / 201.4, abs=3.0)
    assert steps["restore"].before == pytest.approx(184.3)
    assert steps["clean up"].budget is None, "users do not wait for it"
    assert sum(step.budget or 0.0 for step in steps.values()) == pytest.approx(900.0, abs=27.0)


def test_a_step_beyond_its_budget_is_to_be_mended(tmp_path: Path) -> None:
    drilled(tmp_path / FIRST)
    teller = Teller(tmp_path / SECOND, purpose="drill", scenario="wrong-update")
    teller.assess().line("step", step="isolate", phase="begun", planned=1).wait(100)
    teller.line("step", step="isolate", phase="ended", seconds=100.0).recover().journal.close()
    slow = report(tmp_path / SECOND)
    assert [step.name for step in slow.steps if step.is_over] == ["isolate"]
    assert any(mend.what == "The step isolate was beyond its budget" for mend in slow.mends)
    assert ("Step isolate", "warn") in [(each.what, each.look) for each in slow.differences]


def test_what_differs_from_the_last_drill_of_the_same_scenario(tmp_path: Path) -> None:
    drilled(tmp_path / FIRST)
    drilled(tmp_path / SECOND, scenario="kill-primary")
    assert report(tmp_path / SECOND).last is None, "another scenario is another drill"
    teller = Teller(tmp_path / THIRD, purpose="drill", scenario="wrong-update")
    teller.assess().line("failed", text="the backup is damaged").line("closed", result="failed").journal.close()
    now = report(tmp_path / THIRD)
    assert now.last and now.last.incident == FIRST
    found = {each.what: (each.before, each.now, each.look) for each in now.differences}
    assert found["Verdict"] == ("passed", "failed", "fail")
    assert found["RTO"] == ("3 min 20 s", "not reached", "fail")
    assert found["verify: 3 checks"] == ("made", "not reached", "fail")
    assert now.mends[0].figure == "the backup is damaged"


def test_a_rehearsal_is_measured_to_its_proven_copy(tmp_path: Path) -> None:
    teller = Teller(tmp_path / FIRST, purpose="drill", runbook="rehearsal", scenario="rehearsal")
    teller.assess().step("restore", lambda: teller.act("restore", told.STAGE, 100.0), 1).verify().journal.close()
    rehearsal = report(tmp_path / FIRST)
    assert rehearsal.rto == pytest.approx(110.8, abs=0.5) and rehearsal.rpo == 0.51
    assert "a proven copy after 1 min 51 s" in rehearsal.headline
    halfway = Teller(tmp_path / SECOND, purpose="drill", runbook="rehearsal", scenario="rehearsal")
    halfway.assess().journal.close()
    assert report(tmp_path / SECOND).rto is None
    assert "the newest drill is not finished" in drill_index.html(tmp_path)


def test_the_page_of_all_drills_has_the_newest_first_and_a_trend(incidents: Path) -> None:
    root = page_reader.read((incidents / drill_index.PAGE).read_text())
    links = [each.get("href") for each in root.iter("a") if not str(each.get("href")).startswith("#")]
    assert links == [f"{SECOND}/drill.html"], "the incident is no drill, and the first drill has no page to lead to"
    assert (incidents / str(links[0])).exists()
    assert page_reader.texts(root).count("21 Nov 2026 00:33:00 UTC") == 3, "the scenario's newest, and each drill"
    assert "2 of 2" in page_reader.texts(root) and "as before" in page_reader.texts(root)


def test_what_another_way_back_took_is_no_budget(tmp_path: Path) -> None:
    drilled(tmp_path / FIRST)
    drilled(tmp_path / SECOND, scenario="drop-table")
    usual, of_another_way = story.read(tmp_path / FIRST), story.read(tmp_path / FIRST)
    for run in of_another_way.steps:
        run.decided[:] = [(number, replace(one, way=replace(one.way, name="failover"))) for number, one in run.decided]
    now = story.read(tmp_path / SECOND)
    of_steps = ["assess", "notify", "isolate", "restore", "verify", "reroute"]
    assert [step.name for step in budgets.steps(now, [usual]) if "as in 1 earlier" in step.basis] == of_steps
    of_inventory = [step for step in budgets.steps(now, [of_another_way]) if "earlier" not in step.basis]
    assert [step.name for step in of_inventory if step.budget] == of_steps


def test_drills_of_many_are_read_no_further_than_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        drilled(tmp_path / f"2026112{number}T003300Z-orders-aaaa", "usual")
    (tmp_path / "20261129T003300Z-orders-ffff").mkdir()
    (tmp_path / "20261129T003300Z-orders-ffff/journal.jsonl").write_bytes(b"no journal\n")
    monkeypatch.setattr(drill_index, "MOST", 3)
    assert [each.story.incident[:8] for each in drill_index.read(tmp_path)] == ["20261123", "20261122", "20261121"]


# ------------------------------------------------------------------------------------------------ the review


def test_notes_count_by_how_they_begin(incidents: Path) -> None:
    this = review.read(incidents / THIRD, "mend the alert @lee; x")
    assert [(each.text, each.owner, each.by) for each in this.actions] == [
        ("rebuild the standby", "kim", "park@ops1"),
        ("test the dump weekly", "", "park@ops1"),
        ("mend the alert", "lee", ""),
        ("x", "", ""),
    ]
    assert ("Noted", "1,204 customers saw an error page (park@ops1)") in this.impact
    assert [mark.text for mark in this.causes] == ["a release ran UPDATE without WHERE"]
    assert this.good[-1].what == "the plan was read aloud"
    assert this.bad[-1].what == "nobody knew the number of the DNS team"
    assert [each.what for each in this.decided][-2:] == ["wait for the DNS team", "lee has the laptop now"]
    assert any(each.what == "kim's laptop lost its power; lee goes on" for each in this.decided)


def test_what_went_badly_is_from_the_figures_the_worst_first(incidents: Path) -> None:
    bad = [(each.level, each.what) for each in review.read(incidents / THIRD).bad]
    words = [what for _, what in bad]
    assert bad[0] == (Level.FAIL, "The RTO was missed")
    for what in (
        "The step isolate was beyond its budget", "orders-db: fence: seen done", "orders-db: stage took 2 tries",
        "Work stopped", "A crash tore the journal", "Still owed: record.html", "Late: pager: send declared on-call",
        "Nobody noticed for longer than the RTO",
    ):  # fmt: skip
        assert what in words, what
    assert words.count("Work stopped") == 2
    assert not [each.mend for each in review.read(incidents / THIRD).bad if "drill" in each.mend], "it was no drill"


def test_the_impact_is_counted_from_the_failure(incidents: Path) -> None:
    impact = dict(review.read(incidents / THIRD).impact)
    without, _, since = impact["Without the service"].partition("; ")
    assert without == "4 h 17 min" and impact["Noticed after"] == "3 h 00 min"
    assert since.startswith("what was live before is live again since 2026-11-21T")
    assert impact["Brought back after"] == "1 h 17 min, until it was undone"
    assert impact["People told"] == "declared on-call (failed), recovered on-call"


def test_what_nobody_measured_is_not_said_to_be_still_away(tmp_path: Path) -> None:
    folder = past.write(tmp_path, past.NOW, back=None)  # brought back by hand, and closed
    assert dict(review.read(folder).impact)["Without the service"] == "it is not known to be back"
    folder = past.write(tmp_path, past.NOW, back=0.0)
    assert dict(review.read(folder).impact)["Without the service"] == "0.0 s, as far as is known"


def test_the_markdown_is_what_the_page_says(incidents: Path) -> None:
    markdown = (incidents / THIRD / review.MARKDOWN).read_text()
    assert markdown.startswith("# Review: Orders came back, and the recovery was then undone\n")
    for words in ("- [ ] rebuild the standby (**kim**)", "- [ ] x (**nobody yet**)", "Still owed: record.html"):
        assert words in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(tables) > 50


def test_what_people_note_does_nothing_in_markdown(tmp_path: Path) -> None:
    teller = told.usual(tmp_path / FIRST)
    teller.line("note", text="a | b\n# c <script> [x](http://e) ![i](y) `d` *e* password=hunter2").journal.close()
    markdown = review_text.markdown(review.read(tmp_path / FIRST))
    assert f'`inv incident.note --incident={FIRST} --text="cause: ..."`' in markdown
    (line,) = [line for line in markdown.splitlines() if line.startswith("|") and "noted" in line]
    assert "| a \\| b # c \\<script\\> \\[x\\](http://e) !\\[i\\](y) \\`d\\` \\*e\\* password=\\[secret\\] |" in line


def test_what_happened_before_is_named(incidents: Path, tmp_path: Path) -> None:
    told.usual(tmp_path / FIRST).journal.close()
    drilled(tmp_path / SECOND)
    told.usual(tmp_path / THIRD).journal.close()
    assert [each.incident for each in review.read(tmp_path / THIRD).before] == [FIRST], "a drill did not happen"


def test_lessons_of_a_night_without_a_hitch(tmp_path: Path) -> None:
    told.usual(tmp_path / FIRST).journal.close()
    this = story.read(tmp_path / FIRST)
    found = lessons.learn(this, budgets.steps(this, ()))
    assert {each.level for each in found} == {Level.PASS}
    assert found[-1].figure == "1 operator"
    assert [each.what for each in found] == [
        "The RTO was met", "The RPO was met", "Every step was within its budget",
        "The copy was proven before anybody depended on it", "Every change had a way back",
        "Every message went out at the first try", "Nothing interrupted the work",
    ]  # fmt: skip


def test_nothing_at_all_is_told_as_well() -> None:
    assert review.Review(Story("x")).outage is None
    assert Report(Story("x"), ()).verdict is Level.UNKNOWN

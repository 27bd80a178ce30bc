"""A drill ends clean and says so, whatever became of it; on the small world, with real processes and real SIGKILL."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from salvor import clock, console, journal, sandbox, scratch
from salvor.change import Level
from salvor.drill import end as drill_end
from salvor.drill import every as drill_every
from salvor.drill import index as drill_index
from salvor.drill import rehearsal
from salvor.drill import report as drill_report
from salvor.drill import scenes as drill
from salvor.errors import CannotError, HeldError, NotProvenError, SalvorError, UsageError
from salvor.journal import Journal
from salvor.notebook.paper import Paper
from salvor.roles import Restorable
from salvor.sandbox import disasters
from salvor.session import aftermath
from salvor.show import Plain

from tests import told, trouble, world
from tests.faults.test_kill_every_line import in_child
from tests.test_whole_platform import Leaving
from tests.world import GOOD, World


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    """A healthy world; its papers are pages only, because a kernel takes seconds."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    without_kernels(monkeypatch)
    return made(tmp_path)


def made(root: Path) -> World:
    """A world whose only backup is not too old for it."""
    place = world.make(root)
    inventory = root / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("rpo: 1d", "rpo: 9000d"))
    return place


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(self: Paper, folder: Path) -> str:
        (folder / self.page).write_text(self.html(folder))
        return ""

    monkeypatch.setattr(Paper, "make", make)


def rehearse(place: World) -> None:
    rehearsal.run("things", "world", Plain(), "copy")


def left_in(place: World) -> list[str]:
    return sorted(path.name for path in place.store.iterdir() if path.name not in ("live", "backups"))


def reports(place: World) -> list[drill_report.Report]:
    """The newest first."""
    return [drill_report.read(each.folder) for each in place.journals()]


def test_a_rehearsal_proves_a_copy_and_that_nothing_is_left(place: World) -> None:
    rehearse(place)
    (report,) = reports(place)
    assert (report.verdict, report.is_rehearsal, report.scenario) == (Level.PASS, True, "rehearsal copy")
    assert report.rto is not None and report.story.at("recovered") is None
    assert [finding.check for finding in report.cleaning] == [
        "nothing is staged", "nothing is kept", "nothing runs or listens beside it", "what is live was not touched",
    ]  # fmt: skip
    assert {finding.level for finding in report.cleaning} == {Level.PASS}
    assert (left_in(place), place.live, place.letters) == ([], GOOD, []), "nobody is woken"
    assert (place.root / "incidents" / drill_index.PAGE).exists()
    assert place.journals()[0].lines[-1]["kind"] == "closed"


def test_a_broken_backup_is_found_and_the_report_says_so(place: World) -> None:
    (place.store / "backups/b1/data").write_text("nothing of the kind\n")
    with pytest.raises(NotProvenError, match="store is good"):
        rehearse(place)
    (report,) = reports(place)
    assert report.verdict is Level.FAIL and report.rto is None
    assert any("store is good" in lesson.what and lesson.level is Level.FAIL for lesson in report.mends)
    assert len(place.journals()[0].of("failed")) == 1
    assert left_in(place) == [], "what was staged is removed all the same"
    assert "the newest drill failed" in (place.root / "incidents" / drill_index.PAGE).read_text()


def test_a_drill_that_cannot_begin_has_a_report_too(place: World) -> None:
    (place.store / "backups/b1/data").unlink()
    (place.store / "backups/b1").rmdir()
    with pytest.raises(CannotError, match="store looks healthy, and no way back is open") as refused:
        rehearse(place)
    assert refused.value.hint.endswith("inv backup --service=things --platform=world makes a backup")
    (report,) = reports(place)
    assert report.verdict is Level.FAIL
    assert "no way back is open" in report.mends[0].figure and "Each step" in drill_report.PAPER.html(
        place.journals()[0].folder
    )


def test_a_stand_in_that_the_inventory_lacks_is_not_begun_with(place: World) -> None:
    """It was built and broken, and only then could nothing bring it back."""
    said = io.StringIO()
    with pytest.raises(UsageError, match="there is no platform 'sandbox'"):
        drill.run("", "sandbox", "", Plain(said))
    assert not said.getvalue()


def test_what_a_drill_leaves_is_found(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salvor.roles.Restorable.side_servers", lambda self: ["process 7 in the stage"])
    with pytest.raises(NotProvenError, match="process 7") as refused:
        rehearse(place)
    assert "what is live was not touched" in refused.value.safe
    (report,) = reports(place)
    assert report.verdict is Level.FAIL and report.mends[0].what.startswith("store: nothing runs or listens")


def test_what_is_kept_or_live_and_another_is_found(place: World) -> None:
    rehearse(place)
    (folder,) = journal.incidents(place.root / "incidents")
    for left in (f"kept-{folder.name}", "kept-20261121T003300Z-things-aaaa"):
        (place.store / left).mkdir()
    (place.store / "live").rename(place.store / "away")
    shutil.copytree(place.store / "away", place.store / "live")
    seen = drill_end.closing_look(aftermath.of_id(folder.name, Plain()).incident)
    assert {one.check: one.figure for one in seen if one.level is Level.FAIL} == {
        "nothing is kept": f"kept-{folder.name}",
        "what is live was not touched": f"inode:{(place.store / 'live').stat().st_ino}",
    }


def test_a_copy_that_takes_too_long_fails_the_rehearsal(place: World) -> None:
    inventory = place.root / "inventory/world.yaml"
    inventory.write_text(inventory.read_text().replace("rto: 5m", "rto: 0.001s"))
    with pytest.raises(NotProvenError, match="failed: The RTO was missed"):
        rehearse(place)


def test_a_reader_who_leaves_amid_a_rehearsal_leaves_nothing_of_it(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels(monkeypatch)
    reader = Leaving()
    with suppress(BrokenPipeError):  # of the last word
        rehearsal.run("things", "world", Plain(reader), "copy")
    assert reader.is_left
    assert left_in(place) == []
    assert reports(place)[0].verdict is Level.PASS


def test_every_service_with_data_is_rehearsed_although_one_fails(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = place.root / "inventory/world.yaml"
    more = """services:
  again: {rto: 5m, rpo: 9000d, systems: [store], depends_on: [things]}
  things:
"""
    inventory.write_text(inventory.read_text().replace("services:\n  things:\n", more))
    (place.store / "backups/b1/data").write_text("nothing of the kind\n")
    with pytest.raises(NotProvenError, match=r"The rehearsal failed for things\."):
        rehearsal.run("", "world", Plain(), "copy")
    said = capsys.readouterr().out
    assert "again: b1 was restored beside what is live" in said


def test_a_key_that_cannot_sign_is_owed(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = place.root / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", str(key)], check=True, timeout=20)
    monkeypatch.setenv("SALVOR_SIGNING_KEY", str(key))
    rehearse(place)
    assert "owed: the signature: " in capsys.readouterr().out and reports(place)[0].verdict is Level.PASS


def test_what_could_not_be_looked_at_is_not_called_untouched(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Restorable) -> list[str]:
        raise CannotError("It gives no list of its processes.")

    monkeypatch.setattr(Restorable, "side_servers", refuse)
    with pytest.raises(NotProvenError, match="closing look") as refused:
        rehearse(place)
    assert refused.value.safe == ""


def test_a_stage_that_cannot_be_dropped_is_told(place: World) -> None:
    trouble.order(place.root, "store", "drop", "fail")
    with pytest.raises(SalvorError):
        rehearse(place)
    (report,) = reports(place)
    assert report.verdict is Level.FAIL
    staged = [finding for finding in report.cleaning if finding.check == "nothing is staged"]
    assert [(finding.level, finding.figure) for finding in staged] == [(Level.FAIL, "side-folder")]


def test_a_report_that_cannot_be_made_is_owed_and_fails_nothing(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paper, "make", lambda self, folder: f"{self.page}: No space left on device")
    rehearse(place)
    (written,) = place.journals()
    assert [line["what"] for line in written.of("owed")] == ["the drill's report"]
    assert written.lines[-1]["kind"] == "closed"


def test_killed_at_every_line_the_next_drill_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)
    whole = made(tmp_path / "whole")
    assert in_child(whole, rehearse)[0] == 0
    lines = len(whole.journals()[0].lines)
    assert lines > 20
    for line in range(1, lines + 1, 3):  # not each one: it is the same few places in the code
        place = made(tmp_path / f"{line}")
        assert in_child(place, rehearse, line, "after")[0] == -9, line
        code, said = in_child(place, rehearse)
        assert code == 0, said
        assert left_in(place) == [], line
        assert [each.lines[-1]["kind"] for each in place.journals()] == ["closed", "closed"], line


def test_a_drill_that_was_killed_before_a_recovery_is_told_and_taken_away(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recovery is not in its way: a copy beside what is live bears nothing."""
    assert in_child(place, rehearse, 14, "after")[0] == -9
    (drill,) = place.journals()
    assert left_in(place) == [f"stage-{drill.folder.name}"]
    console.assess(place.session(), Plain())
    told = f"NOTE: the drill {drill.folder.name} did not come to its end: what it staged may still be there"
    assert told in capsys.readouterr().out
    place.damage()
    later = clock.now() + timedelta(minutes=1)
    with clock.use(lambda: later):
        incident = place.recover()
        assert told in capsys.readouterr().out
        rehearse(place)
    assert left_in(place) == ["fence", f"kept-{incident}"]
    console.assess(place.session(), Plain())
    assert "NOTE" not in capsys.readouterr().out


def test_a_drill_under_way_is_not_ended_by_another(place: World) -> None:
    sitting = place.session()
    sitting.incident.purpose, sitting.incident.runbook = "drill", "rehearsal"
    with sitting.begin(), pytest.raises(HeldError):
        drill_end.end_interrupted("things", "world", Plain())


def test_an_open_drill_with_a_cutover_is_left_to_its_stand_in(place: World) -> None:
    sitting = place.session()
    sitting.incident.purpose = "drill"
    with sitting.begin():
        pass
    drill_end.end_interrupted("things", "world", Plain())
    assert not Journal.read(sitting.incident.folder).of("closed")
    drill_end.end_interrupted("things", "moon", Plain(), gone="another sandbox was removed")
    assert not Journal.read(sitting.incident.folder).of("closed")
    real = place.session()
    with real.begin():
        pass
    for _ in range(2):
        drill_end.end_interrupted("things", "world", Plain(), gone="its sandbox was removed")
    closed = Journal.read(sitting.incident.folder)
    assert closed.of("failed")[-1]["text"] == drill_end.INTERRUPTED and len(closed.of("closed")) == 1
    assert not Journal.read(real.incident.folder).of("closed"), "an incident is no drill"


def test_a_disaster_that_is_none_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "up", lambda **more: pytest.fail("a sandbox was started"))
    with pytest.raises(UsageError, match="no disaster 'drop-tabel'"):
        drill.run("", "sandbox", "drop-tabel", Plain())


def test_every_disaster_is_drilled_although_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path))
    names = list(disasters.names())

    def play(disaster: str) -> None:
        if disaster == names[1]:
            raise CannotError("It does not start.")
        folder = tmp_path / f"20261121T00330{names.index(disaster)}Z-orders-aaaa"
        told.usual(folder, purpose="drill", scenario=disaster, platform="sandbox").journal.close()

    with pytest.raises(NotProvenError, match=f"1 of {len(names)} disasters: {names[1]}"):
        drill_every.run("sandbox", play, Plain())
    said = capsys.readouterr().out
    table = said[said.index("disaster  ") :].splitlines()[1:]
    assert [line.split()[0] for line in table[: len(names)]] == names
    assert "did not begin" in table[1] and " of 15 min 00 s" in table[2] and "It does not start." in said


def test_a_note_needs_no_inventory(place: World) -> None:
    rehearse(place)
    (place.root / "inventory/world.yaml").unlink()
    (folder,) = journal.incidents(place.root / "incidents")
    aftermath.note(folder.name, "cause: a test", Plain())
    assert Journal.read(folder).lines[-1]["text"] == "cause: a test"


def test_what_a_killed_paper_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os; from salvor import scratch\nwith scratch.folder('paper'): os.kill(os.getpid(), 9)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False
        ).returncode
        == -9
    )
    assert len(list(tmp_path.glob("salvor-paper-*"))) == 1
    with scratch.folder("paper") as mine, scratch.folder("paper") as other:
        assert sorted(tmp_path.glob("salvor-paper-*")) == sorted([mine, other]), "those in use stay"
    assert list(tmp_path.iterdir()) == []

"""What an inventory may say of schedules, and cron's schedules that are due, run or wait."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from salvor import clock, inventory
from salvor.errors import CannotError, UsageError
from salvor.schedule import stamp
from salvor.schedule import work as schedule_work
from salvor.schedule.entry import Caller
from salvor.schedule.settings import Schedule
from salvor.show import Plain

from tests.journal.test_journal_faults import fill, mounted

PLATFORM = """\
systems:
  shop-db:
    kind: postgres
    database: shop
    members: [{name: a, address: 127.0.0.1, data: /srv/data}]
    side_port: 5999
    programs: /usr/lib/postgresql/15/bin
    operator: {user: salvor, password: "env:SHOP_PASSWORD"}
services:
  shop: {rto: 1h, rpo: 1d, systems: [shop-db]}
schedules:
  nightly: SCHEDULE
"""
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def describe(folder: Path, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "shop.yaml").write_text(PLATFORM.replace("SCHEDULE", schedule))
    monkeypatch.setenv("SALVOR_INVENTORY", str(folder))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(folder / "incidents"))


@pytest.mark.parametrize(
    ("schedule", "where", "wrong"),
    [
        ("{run: [backup, --service=shop], at: noon}", "12:", "'noon' is no time that comes again"),
        ("{run: [], at: '02:00'}", "12:", "at least 1 item"),
        ("{run: [--yes], at: '02:00'}", "12:", "is no command of inv"),
        ("{run: [backup, --service=ship], at: '02:00'}", "12:27", "there is no service 'ship'"),
        ("{run: [backup, --password=hunter2], at: '02:00'}", "12:", "looks like a secret"),
        ("{run: [note, 'password:', hunter22], at: '02:00'}", "12:", "looks like a secret"),
        ("{run: [backup], at: '02:00', often: true}", "12:", "there is no such setting"),
        ("{run: [backup, \"--service=a\\n* * * * * x\"], at: '02:00'}", "12:", "a character that cannot be seen"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    schedule: str, where: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path, schedule, monkeypatch)
    with pytest.raises(UsageError) as caught:
        inventory.load("shop")
    assert f"shop.yaml:{where}" in str(caught.value) and wrong in str(caught.value), caught.value
    assert "hunter2" not in str(caught.value)


def test_a_schedule_of_another_platform_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(tmp_path, "{run: [backup, --service=ship, --platform=fleet], at: '02:00'}", monkeypatch)
    words = inventory.load("shop").schedules["nightly"].words("shop")
    assert words == ("backup", "--service=ship", "--platform=fleet")


def test_words_that_inv_would_not_take_are_refused_when_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path, "{run: [backup, --servce=shop], at: '02:00'}", monkeypatch)
    with pytest.raises(UsageError, match="would run inv backup --servce=shop --platform=shop"):
        schedule_work.install("shop", Plain(), yes=True)
    assert not (tmp_path / "incidents").exists()


def test_what_the_inventory_does_not_name_is_neither_installed_nor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path, "{run: [backup, --service=shop], at: '02:00'}", monkeypatch)
    with pytest.raises(UsageError, match="has no schedule 'weekly' any more") as refused:
        schedule_work.run_due("shop", "weekly", print)
    assert "schedule.install --platform=shop takes it away" in refused.value.hint
    with pytest.raises(UsageError, match=r"no platform 'fleet' in .* any more, and cron still runs") as refused:
        schedule_work.run_due("fleet", "weekly", print)
    assert "schedule.remove --platform=fleet takes it away" in refused.value.hint
    said: list[str] = []
    with clock.use(lambda: NOW):
        assert schedule_work.run_due("shop", "nightly", said.append) == 0
    assert "Not begun: nightly runs already, or is not due before 1" in said[0]
    assert said[1] == "HINT: to do now what it does: inv backup --service=shop --platform=shop"
    (tmp_path / "shop.yaml").write_text(PLATFORM.partition("schedules:")[0])
    with pytest.raises(UsageError, match="'shop' names no schedules"):
        schedule_work.install("shop", Plain(), yes=True)


def test_what_of_the_environment_a_schedule_will_lack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of this shell alone")
    describe(tmp_path, "{run: [backup, --service=shop], at: '02:00'}", monkeypatch)
    secret = ("env:SHOP_PASSWORD", "use file:PATH")
    assert list(schedule_work._only_here(inventory.load("shop"))) == [secret], "nothing of it asks Amazon"
    monkeypatch.setenv("SALVOR_MIRROR", "s3://records/shop")
    (_, (names, mend)) = schedule_work._only_here(inventory.load("shop"))
    assert "AWS_ACCESS_KEY_ID" in names.split(", ") and mend == "write what they say into ~/.aws"


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    """A caller whose `inv` writes down how it was called."""
    (tmp_path / "invoke.py").write_text(
        "import os, pathlib, sys\n"
        f"noted = pathlib.Path({str(tmp_path)!r})\n"
        "(noted / 'seen').write_text((noted / 'stamps/shop.nightly.json').read_text())\n"
        "with (noted / 'called').open('a') as file:\n"
        "    file.write(' '.join([*sys.argv[1:], os.environ['SALVOR_OPERATOR']]) + '\\n')\n"
        "sys.exit(6)\n"
    )
    return Caller(platform="shop", python=sys.executable, folder=str(tmp_path), stamps=str(tmp_path / "stamps"))


@pytest.fixture
def nightly(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    monkeypatch.delenv("SALVOR_OPERATOR", raising=False)
    return Schedule.model_validate({"run": ["backup", "--service=shop"], "at": "02:00 UTC"})


def test_what_was_missed_runs_once_and_how_it_ended_is_kept(caller: Caller, nightly: Schedule) -> None:
    called = Path(caller.folder) / "called"
    with clock.use(lambda: NOW):
        assert stamp.run_if_due(caller, "nightly", nightly) is None, "it counts from now on"
        assert not called.exists()
    with clock.use(lambda: NOW + timedelta(days=3)):
        assert stamp.run_if_due(caller, "nightly", nightly) == 6
        assert stamp.run_if_due(caller, "nightly", nightly) is None
    seen = stamp.read((Path(caller.folder) / "seen").read_text())
    assert seen.begun == NOW + timedelta(days=3), "one that is killed is not tried all day"
    assert (seen.last, seen.result) == (NOW + timedelta(days=3), "has not ended"), (
        "nor does the run before stand for it"
    )
    assert called.read_text() == "backup --service=shop --platform=shop schedule nightly\n"
    said = stamp.read(Path(caller.stamp("nightly")).read_text())
    assert (said.code, said.ended) == (6, NOW + timedelta(days=3))


def test_one_that_does_not_end_is_ended_and_noted(
    caller: Caller, nightly: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(caller.folder) / "invoke.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(stamp, "_DAY", 0.3)
    path = Path(caller.stamp("nightly"))
    path.parent.mkdir()
    path.write_text(json.dumps({"begun": "2026-01-01T00:00:00+00:00"}))
    with pytest.raises(CannotError, match="backup --service=shop --platform=shop did not end within a day"):
        stamp.run_if_due(caller, "nightly", nightly)
    assert stamp.read(path.read_text()).result == "exit code -9"


def test_one_that_filled_the_disk_was_run_nonetheless(caller: Caller, nightly: Schedule) -> None:
    program = Path(caller.folder) / "invoke.py"
    program.write_text(f"import shutil\nshutil.rmtree({caller.stamps!r})")  # nothing can be noted there any more
    path = Path(caller.stamp("nightly"))
    path.parent.mkdir()
    path.write_text(json.dumps({"begun": "2026-01-01T00:00:00+00:00"}))
    with pytest.raises(CannotError, match="was run and ended with exit code 0; that cannot be noted") as said:
        stamp.run_if_due(caller, "nightly", nightly)
    assert "not run" not in said.value.safe.replace("not run again", "")
    path.parent.write_text("")
    with pytest.raises(CannotError, match="cannot be noted") as said:
        stamp.run_if_due(caller, "nightly", nightly)
    assert said.value.safe == "it was not run"
    path.parent.unlink()
    path.parent.mkdir()
    with mounted(path.parent, "-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        path.write_text(json.dumps({"begun": "2026-01-01T00:00:00+00:00"}))
        fill(path.parent)
        with pytest.raises(CannotError, match="No space left on device") as said:
            stamp.run_if_due(caller, "nightly", nightly)
    assert said.value.hint.startswith("make room: df -h"), "ls -ld shows nothing of a full disk"


def test_one_that_still_runs_is_not_begun_again(caller: Caller, nightly: Schedule) -> None:
    path = Path(caller.stamp("nightly"))
    path.parent.mkdir()
    path.write_text(json.dumps({"begun": "2026-01-01T00:00:00+00:00"}))
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stamp.run_if_due(caller, "nightly", nightly) is None
    assert not (Path(caller.folder) / "called").exists()
    with pytest.MonkeyPatch.context() as by:
        by.setenv("SALVOR_OPERATOR", "kim@here")
        assert stamp.run_if_due(caller, "nightly", nightly) == 6
    assert (Path(caller.folder) / "called").read_text().endswith(" kim@here\n"), "who runs it by hand is named"


@pytest.mark.parametrize(
    "said", [b'{"begun": "2036-01-01T00:00:00+00:00"}', b"\xff\xfe", b"[]", b'{"begun": "20', b'{"begun": "soon"}']
)
def test_a_clock_that_was_ahead_or_a_damage_holds_nothing_up_for_ever(
    caller: Caller, nightly: Schedule, said: bytes
) -> None:
    path = Path(caller.stamp("nightly"))
    path.parent.mkdir()
    path.write_bytes(said)
    with clock.use(lambda: NOW):
        assert stamp.run_if_due(caller, "nightly", nightly) is None
    with clock.use(lambda: NOW + timedelta(days=1)):
        assert stamp.run_if_due(caller, "nightly", nightly) == 6


def test_a_schedule_finds_the_variables_of_its_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they lie, the environment may say, which cron and systemd do not know."""
    describe(tmp_path, '{run: [backups], at: "02:00"}', monkeypatch)
    text = (tmp_path / "shop.yaml").read_text().replace("127.0.0.1", '"${address}"')
    (tmp_path / "shop.yaml").write_text("variables_from: ${SHOP_HOME:-/nowhere}/variables.yaml\n" + text)
    (tmp_path / "variables.yaml").write_text("address: 127.0.0.1\n")
    monkeypatch.setenv("SHOP_HOME", str(tmp_path))
    assert schedule_work.caller(inventory.load("shop")).environment["SHOP_HOME"] == str(tmp_path)


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_without_systemd_and_cron_the_hint_needs_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It named inv schedule.show, which ends in this very error there."""
    describe(tmp_path, '{run: [backups], at: "02:00"}', monkeypatch)
    (tmp_path / "programs").mkdir()
    for name in ("sh", "test", "setpriv"):
        (tmp_path / "programs" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    with pytest.raises(CannotError, match="Neither systemd nor cron") as refused:
        schedule_work.show_all("shop", Plain(io.StringIO()))
    assert "schedule.show" not in refused.value.hint
    said = io.StringIO()
    with pytest.raises(CannotError, match="Neither systemd nor cron"):
        schedule_work.install("shop", Plain(said), plan_only=True)
    assert "warn    schedules: environment: env:SHOP_PASSWORD: nothing sets it there" in said.getvalue()

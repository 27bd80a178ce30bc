"""What people are told of the backups of trees between incidents, when not all is as it should be."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from salvor import clock, inventory, journal, maintenance
from salvor.backups import report, retention_work
from salvor.change import Change, Level
from salvor.drill import rehearsal
from salvor.errors import CannotError, WarnedError
from salvor.journal import brief, lock
from salvor.notebook.paper import Paper
from salvor.readiness import looks
from salvor.show import Plain
from salvor.wish import Wish

from tests.files.lab import PASSWORD, Lab, restic

_PLATFORM = """
systems:
  media: {{kind: files, path: {root}/srv/media, repositories: {repositories}, keep: {{daily: 1}}}}
  logs: {{kind: files, path: {root}/srv/logs, repositories: {repositories}, keep: {{daily: 1}}}}
services:
  shop: {{rto: 5m, rpo: 1d, systems: [media]}}
  paper: {{rto: 5m, rpo: 1d, systems: [logs]}}
"""


@pytest.fixture
def place(tmp_path: Path, empty_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Two services with a small tree each, and two repositories that both share."""
    made = Lab(tmp_path, {name: str(tmp_path / name) for name in ("local", "off-site")})
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    for name in ("media", "logs"):
        (tmp_path / "srv" / name).mkdir(parents=True)
        (tmp_path / "srv" / name / "file").write_text(name)
    for location in made.repositories.values():
        shutil.copytree(empty_repository, location)
    (tmp_path / "inventory").mkdir()
    repositories = [one.model_dump(mode="json", exclude_defaults=True) for one in made.open().settings.repositories]
    text = _PLATFORM.format(root=tmp_path, repositories=json.dumps(repositories))
    (tmp_path / "inventory" / "small.yaml").write_text(text)
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path / "inventory"))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    yield made


def back_up(service: str, days: int = 0) -> None:
    then = clock.now() - timedelta(days=days)
    with clock.use(lambda: then):
        maintenance.backup(service, "small", "snapshot", Plain(io.StringIO()))


def retain(service: str = "") -> str:
    said = io.StringIO()
    retention_work.carry_out(service, "small", Plain(said), yes=True)
    return said.getvalue()


def hide(lab: Lab) -> None:
    """Put a file in the place of a repository, which then can be neither read nor made."""
    off_site = Path(lab.repositories["off-site"])
    off_site.rename(lab.root / "away")
    off_site.touch()


def counts(lab: Lab) -> list[int]:
    """How many snapshots each repository has."""
    return [len(list((Path(one) / "snapshots").iterdir())) for one in lab.repositories.values()]


def test_a_repository_that_did_not_take_the_backup_is_named(place: Lab) -> None:
    hide(place)
    said = io.StringIO()
    with pytest.raises(WarnedError, match="Not every repository is as it should be: media: off-site does not have it"):
        maintenance.backup("shop", "small", "snapshot", Plain(said))
    assert "warn    media: backup: off-site does not have it: restic could not use " in said.getvalue()
    assert "media: off-site could not be read: restic could not use " in said.getvalue()
    assert len(list(Path(place.repositories["local"], "snapshots").iterdir())) == 1
    platform = inventory.load("small")
    newest = looks.look(platform, [platform.service("shop")]).backups["media"]
    assert newest.id and newest.unread.startswith("off-site could not be read: restic could not use ")


def test_a_repository_that_was_made_where_a_disk_is_missing_is_named(place: Lab) -> None:
    back_up("shop", days=1)
    local = Path(place.repositories["local"])
    local.rename(local.with_name("unmounted"))
    local.mkdir()
    said = io.StringIO()
    with pytest.raises(WarnedError, match="media: local was empty, and a new repository was made there"):
        maintenance.backup("shop", "small", "snapshot", Plain(said))
    assert f"off-site has earlier backups; see that the disk of {local} is mounted" in said.getvalue()
    maintenance.backup("shop", "small", "snapshot", Plain(said))


def test_a_folder_whose_disk_is_not_mounted_is_no_backup_of_it(place: Lab) -> None:
    back_up("shop", days=2)
    (place.tree / "file").unlink()
    with pytest.raises(
        CannotError, match=f"{place.tree} holds nothing, and its backup [0-9a-f]+ of .* holds 5 bytes; it was"
    ):
        back_up("shop")
    assert counts(place) == [1, 1]
    system = place.open()
    (good,) = {one.taken for one in system.backups()}
    for location in place.repositories.values():  # made before it was refused
        restic(location, "backup", "--tag", "salvor:media,bytes:0,files:1", str(place.tree))
    assert [(one.usable, one.taken == good) for one in system.backups()] == [(False, False)] * 2 + [(True, True)] * 2
    (way, _) = system.ways_back(Wish())
    assert clock.write_time(good) in way.why, "what is empty is not brought back"
    retain("shop")
    assert good in {one.taken for one in system.backups()}, "what is empty does not let the policy remove it"


def test_that_all_earlier_backups_are_gone_is_told(place: Lab, empty_repository: Path) -> None:
    back_up("shop", days=1)
    for repository in map(Path, place.repositories.values()):
        shutil.rmtree(repository)
    with pytest.raises(CannotError, match=r"is a backup of what is live now in local, off-site cannot be told") as told:
        maintenance.protect("shop", "small", Plain(io.StringIO()), yes=True)
    assert "inv backup makes it" in told.value.hint
    for location in place.repositories.values():  # new ones, where a disk is not mounted
        shutil.copytree(empty_repository, location)
    said = io.StringIO()
    with pytest.raises(WarnedError, match="media: all earlier backups are gone"):
        maintenance.backup("shop", "small", "snapshot", Plain(said))
    assert "see that the disk of each repository is mounted" in said.getvalue()


def test_what_not_every_repository_holds_is_not_called_protected_again(place: Lab) -> None:
    hide(place)
    said = io.StringIO()
    with pytest.raises(WarnedError, match="Not every repository is as it should be: media: off-site") as warned:
        maintenance.protect("shop", "small", Plain(said), yes=True)
    assert "inv protect --service=shop" in warned.value.hint and "protected again" not in said.getvalue()


def test_a_way_that_is_not_open_is_refused_with_those_that_can_be_rehearsed(
    place: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Paper, "make", lambda self, folder: "")  # a kernel takes seconds
    with pytest.raises(CannotError, match="no way back is open") as refused:
        rehearsal.run("shop", "small", Plain(io.StringIO()), "failover")
    assert "rehearses the best way that is open, or with --scenario= one of snapshot, archive; " in refused.value.hint


def test_what_cannot_be_read_may_hold_the_backup_that_is_missed(place: Lab) -> None:
    """A wrong password is nothing that a backup of what is live, or gone, would mend."""
    hide(place)
    with pytest.raises(CannotError, match=r"media has no usable backup in what could be read; off-site could not") as e:
        maintenance.backups("shop", "small", Plain(io.StringIO()))
    assert e.value.hint.startswith("mend what is said above, then: inv backups --service=shop")
    looked, _ = report.look("shop", "small", Plain(io.StringIO()))
    ages = [each for one in looked for each in one.findings if each.check == "age"]
    assert [(each.level, each.detail) for each in ages] == [(Level.UNKNOWN, "without off-site")]
    platform = inventory.load("small")
    newest = looks.look(platform, [platform.service("shop")]).backups["media"]
    assert not newest.can_tell and newest.problem.startswith("its backups cannot be listed: off-site: restic could not")


def test_what_cannot_be_read_has_not_vanished(place: Lab) -> None:
    back_up("shop")

    def look() -> dict[str, tuple[Level, str]]:
        looks, _ = report.look("shop", "small", Plain(io.StringIO()))
        return {each.check: (each.level, each.figure) for one in looks for each in one.findings}

    assert look()["retention"] == (Level.PASS, "2 kept")
    hide(place)
    assert look()["retention"] == (Level.PASS, "1 kept")
    Path(place.repositories["off-site"]).unlink()
    (place.root / "away").rename(place.repositories["off-site"])
    next((Path(place.repositories["off-site"]) / "snapshots").iterdir()).unlink()
    assert look()["retention"] == (Level.FAIL, "1 vanished"), "it was remembered"


def test_a_snapshot_of_several_trees_stays_as_long_as_one_keeps_it(place: Lab) -> None:
    for location in place.repositories.values():
        restic(location, "backup", "--time", "2026-01-01 00:00:00", str(place.root / "srv"))
    back_up("shop")
    inventory = place.root / "inventory" / "small.yaml"
    text = inventory.read_text()
    (logs,) = (line for line in text.splitlines() if line.startswith("  logs:"))
    without_policy = logs.replace(", keep: {daily: 1}", "")
    off_site_unread = "/nowhere".join(logs.rsplit("/password", 1))
    for line in (without_policy, off_site_unread, logs):
        inventory.write_text(text.replace(logs, line))
        assert "logs keeps it" in retain("shop")
        assert counts(place) == [2, 2]
    back_up("paper")
    retain("shop")
    assert counts(place) == [2, 2], "one of each: nobody keeps the old one any more"


def test_nothing_is_removed_of_a_service_that_somebody_works_on(place: Lab) -> None:
    back_up("paper", days=1)
    back_up("paper")
    restoring = lock.hold("paper", place.root / "incidents", by="somebody@else", incident="theirs")
    with restoring, pytest.raises(WarnedError, match="Nothing was removed of paper"):
        retain()
    assert counts(place) == [2, 2]
    retain()
    assert counts(place) == [1, 1]


class Stopped(Plain):
    """Somebody who stops the work by a signal as soon as it is begun."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(io.StringIO())
        self.by = by

    def begun(self, change: Change) -> None:
        os.kill(os.getpid(), self.by)


_KILLED = """
import signal
from salvor.backups import retention_work
from tests.files.test_between_incidents import Stopped
retention_work.carry_out("", "small", Stopped(signal.SIGKILL), yes=True)
"""


def test_maintenance_that_was_stopped_or_killed_is_not_called_open_for_ever(place: Lab) -> None:
    def states() -> list[str]:
        told = [brief.read(folder) for folder in journal.incidents(place.root / "incidents")]
        return [one.state for one in told if one and one.service == "retention"]

    back_up("paper", days=1)
    back_up("paper")
    with pytest.raises(KeyboardInterrupt):
        retention_work.carry_out("", "small", Stopped(signal.SIGINT), yes=True)
    assert states() == ["failed, closed"]
    argv = [sys.executable, "-c", _KILLED]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    assert states() == ["open", "failed, closed"]
    back_up("paper")
    retain()
    assert states() == ["closed", "failed, closed", "failed, closed"]


def test_a_backup_of_a_time_to_come_counts_for_nothing_and_stays(place: Lab) -> None:
    back_up("shop", days=3)
    back_up("shop", days=-400)
    looks, _ = report.look("shop", "small", Plain(io.StringIO()))
    ages = [each for one in looks for each in one.findings if each.check == "age"]
    assert [each.level for each in ages] == [Level.WARN, Level.WARN, Level.FAIL]
    assert "a restore would lose 3 d" in ages[-1].figure
    retain("shop")
    assert counts(place) == [2, 2]


def test_a_damaged_repository_is_mended_by_what_its_check_says(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_PASSWORD_FILE", "/proc/nowhere")  # the operator's own
    (place.root / "srv" / "media" / "large").write_bytes(os.urandom(1 << 20))
    back_up("shop", days=1)
    pack = max((Path(place.repositories["local"]) / "data").rglob("??*"), key=lambda path: path.stat().st_size)
    pack.unlink()
    looks, _ = report.look("shop", "small", Plain(io.StringIO()))
    (found,) = [each for one in looks for each in one.findings if each.figure == "repository local is damaged"]
    command = re.search(r"until (restic .*) was run on this machine", found.detail)
    assert command
    monkeypatch.delenv("RESTIC_PASSWORD_FILE")
    restic(place.repositories["local"], *command[1].split()[3:])
    back_up("shop")
    restic(place.repositories["local"], "check", "--read-data")

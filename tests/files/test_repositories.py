"""Several repositories: which is asked, which is passed over, what is kept in them, and whose backups are whose."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from salvor.backups.audit import Room
from salvor.change import Finding, Level
from salvor.errors import CannotError, UsageError
from salvor.files import making
from salvor.files import restic as engine
from salvor.files.said import DamagedError, meaning
from salvor.shell import local
from salvor.wish import Wish

from tests.files.lab import INCIDENT, PASSWORD, Lab, act, everything, restic
from tests.files.test_tree import HOUR, judged, staged, way_of


def first_pack(repository: Path) -> Path:
    """The largest pack: it holds files, the smaller ones folders."""
    return max(
        (path for path in (repository / "data").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(100, len(content) - 4000, max(1, len(content) // 50)):
        content[at] ^= 0x55
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"127.0.0.1:{server.getsockname()[1]}"


# ------------------------------------------------------------------------------------------ which one gives it


def test_a_damaged_repository_is_told_and_the_next_one_gives_it(wide_lab: Lab) -> None:
    lab, system = wide_lab, wide_lab.open()
    act(system, "backup", kind="snapshot")
    was = everything(lab.tree)
    flip_bits(first_pack(lab.root / "local"))
    way = way_of(system)
    assert way.arguments
    told = [one.label for one in act(system, "stage", **way.arguments)]
    assert "local could not give it" in told
    assert everything(lab.box / "staged") == was
    findings = list(system.verify(way, HOUR))
    assert Level.FAIL not in judged(iter(findings)).values()
    (told_again,) = (one for one in findings if one.level is Level.WARN)
    assert "Damaged: the repository local" in told_again.detail
    (staged_one,) = system.observe().staged
    assert staged_one.backup != way.backup, "what was proven is the copy that gave it"
    assert staged_one.backup in [one.id for one in system.backups() if one.repository == "off-site"]


def test_when_the_only_repository_is_damaged_it_is_named_and_nothing_is_touched(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    flip_bits(first_pack(lab.root / "local"))
    way, was = way_of(system), everything(lab.tree)
    assert way.arguments
    with pytest.raises(CannotError, match="Damaged: the repository local") as caught:
        act(system, "stage", **way.arguments)
    assert caught.value.hint
    assert everything(lab.tree) == was
    assert not [one for one in system.observe().staged if one.complete]


def test_a_wrong_password_is_called_one(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    (lab.root / "password").write_text("another")
    told = (
        f"local: The password of the repository local ({lab.root}/local) is not the right one, or its key was removed."
    )
    assert way_of(lab.open()).why == told


def test_a_repository_that_says_nothing_is_passed_over_in_time(
    lab: Lab, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(lab.open(), "backup", kind="snapshot")
    monkeypatch.setattr(engine, "ANSWERING", 2.0)
    system = Lab(lab.root, {"off-site": f"rest:http://{silent}/", **lab.repositories}).open()
    way = way_of(system)
    assert way.possible
    assert "from local" in way.why
    assert f"off-site is passed over: The repository off-site (rest:http://{silent}/) gave no answer" in way.why


def test_a_repository_that_is_not_there_is_told(lab: Lab) -> None:
    lost = Lab(lab.root, {"local": str(lab.root / "nowhere")})
    assert "There is nothing to read at the repository local" in way_of(lost.open()).why


# ------------------------------------------------------------------------------------------ whose and which


def test_only_backups_of_this_tree_are_offered(lab: Lab) -> None:
    system, here = lab.open(), os.uname().nodename
    restic(lab.repositories["local"], "backup", "--host", "web-2", str(lab.tree))
    restic(lab.repositories["local"], "backup", "--host", here, str(lab.tree / "sub"))
    act(lab.open(lab.tree / "sub", name="another"), "backup", kind="snapshot")
    assert system.backups() == []
    restic(
        lab.repositories["local"], "backup", "--host", here, "--tag", "by-cron", str(lab.tree.parent), "/etc/hostname"
    )
    (found,) = system.backups()
    was = everything(lab.tree)
    assert judged(system.verify(staged(system), HOUR))["hard links"] is Level.WARN, "the snapshot holds more"
    assert everything(lab.box / "staged") == {**was, "sparse": everything(lab.box / "staged")["sparse"]}
    assert found.usable


def test_the_newest_before_the_moment_is_chosen(lab: Lab) -> None:
    system, begun = lab.open(), datetime(2026, 11, 20, 2, tzinfo=UTC)
    for moment in (*(begun + timedelta(hours=hours) for hours in range(3)), datetime(2098, 1, 1, tzinfo=UTC)):
        restic(
            lab.repositories["local"], "backup", "--time", f"{moment:%Y-%m-%d %H:%M:%S}", "--tag", "salvor:media",
            str(lab.tree), TZ="UTC",
        )  # fmt: skip
    to_come, newest, middle, oldest = (one.id for one in system.backups())  # the clock was wrong once
    assert way_of(system).backup == newest
    assert way_of(system, Wish(at=begun + timedelta(hours=1))).backup == middle
    assert way_of(system, Wish(damaged_at=begun + timedelta(hours=1))).backup == oldest
    assert way_of(system, Wish(source=oldest)).backup == oldest
    assert way_of(system, Wish(source=to_come)).loses is None
    assert "the oldest is of 2026-11-20T02:00" in way_of(system, Wish(at=begun - timedelta(hours=1))).why
    assert "has the snapshot 0123456789" in way_of(system, Wish(source="0123456789")).why
    assert "is no snapshot's id" in way_of(system, Wish(source="/backup/o.tar.gz")).why
    assert "a tree has no name to go back to" in way_of(system, Wish(target="name:x")).why
    restic(lab.repositories["local"], "tag", "--add", "salvor-incomplete", newest)
    way = way_of(system)
    assert way.backup == middle, "restic could not read all of the newer one"
    restic(lab.repositories["local"], "forget", middle)
    with pytest.raises(CannotError, match=f"local has no snapshot {middle} any more"):
        act(lab.open(), "stage", **dict(way.arguments or {}))


# ------------------------------------------------------------------------------------------ backing up


def test_one_success_is_enough_and_what_failed_is_said(lab: Lab) -> None:
    password = {"off-site": "/proc/nowhere", **lab.repositories}
    said = act(Lab(lab.root, password).open(), "backup", kind="snapshot")
    (named,) = [one for one in said if isinstance(one, Finding)]
    assert (named.level, named.figure) == (Level.WARN, "off-site does not have it")
    assert "/proc/nowhere" in named.detail
    with pytest.raises(CannotError, match="no repository took the backup: off-site: "):
        act(Lab(lab.root, {"off-site": "/proc/nowhere"}).open(), "backup", kind="snapshot")


def test_the_first_backup_makes_the_repository_and_says_how_much_it_holds(lab: Lab) -> None:
    system = Lab(lab.root, {"new": str(lab.root / "new")}).open()
    said = act(system, "backup", kind="snapshot")
    (found,) = system.backups()
    size = sum({path.stat().st_ino: path.stat().st_size for path in lab.tree.rglob("*") if path.is_file()}.values())
    assert (found.size, found.repository, found.usable) == (size, "new", True)
    assert found.fingerprint == {"tree": json.loads(restic(lab.root / "new", "snapshots", "--json"))[0]["tree"]}
    assert [one.done for one in said if one.unit == "bytes"][-1] >= size


@pytest.mark.parametrize("storage", ["", "local:"])
def test_of_two_who_make_a_repository_at_once_one_does(lab: Lab, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk also of two processes, which share no lock of threads."""
    if not storage:
        monkeypatch.setattr(making, "_turns", defaultdict(nullcontext))
    place = lab.root / "new"
    two = [engine.Repository(name, f"{storage}{place}", local(), f"file:{lab.root / 'password'}") for name in "ab"]
    with ThreadPoolExecutor() as side_by_side:
        list(side_by_side.map(making.make, two))
    assert two[0].snapshots() == []
    assert len(list((place / "keys").iterdir())) == 1


def test_what_a_killed_init_left_is_cleared_and_a_lost_config_is_not_made_anew(lab: Lab) -> None:
    system, repository = lab.open(), lab.root / "local"
    (orphan,) = (repository / "keys").iterdir()
    (repository / "config").unlink()
    act(system, "backup", kind="snapshot")
    assert not orphan.exists()
    assert len(system.backups()) == 1
    (repository / "config").unlink()
    with pytest.raises(CannotError, match="holds data, and its file `config` is gone"):
        act(system, "backup", kind="snapshot")
    assert not (repository / "config").exists()


def test_what_is_gone_or_fenced_is_not_backed_up(lab: Lab) -> None:
    system = lab.open()
    act(system, "fence", identity=system.observe().identity)
    with pytest.raises(CannotError, match="is fenced: it is broken"):
        act(system, "backup", kind="snapshot")
    assert list(system.redundancy()) == []
    lab.tree.chmod(0o700)
    shutil.rmtree(lab.tree)
    with pytest.raises(CannotError, match="is not there"):
        act(system, "backup", kind="snapshot")


# ------------------------------------------------------------------------------------------ upkeep


def test_whose_lock_it_is_is_said() -> None:
    said = """unable to create lock in backend: repository is already locked by PID 8315 on vm by root (UID 0, GID 0)
lock was created at 2026-11-22 08:36:49 (2.888858211s ago)
storage ID fb334219
the `unlock` command can be used to remove stale locks"""
    assert "already locked by PID 8315" in meaning(said, "the repository local", "this machine", "restic").what


def test_a_snapshot_that_cannot_be_read_is_told_where_an_older_one_is_chosen(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    (older,) = system.backups()
    act(system, "backup", kind="snapshot")
    newer = system.backups()[0].id
    (file,) = (lab.root / "local" / "snapshots").glob(f"{newer}*")
    file.chmod(0o600)
    file.write_bytes(os.urandom(200))
    shutil.rmtree(lab.root / "cache")
    assert [one.id for one in system.backups()] == [older.id]
    why = f"its snapshot {newer} cannot be read: load <snapshot/{file.name[:10]}>: invalid data returned"
    assert [one.why for one in system.unread] == [why]
    way = way_of(system)
    assert way.backup == older.id
    assert f"; local: {why}; it may be newer" in way.why
    file.unlink()
    assert system.backups() and not system.unread


@pytest.mark.parametrize(("damaged", "left"), [("config", 0), ("config", 50), ("keys/*", 0)])
def test_a_spoilt_config_or_key_is_called_that_and_not_sent_to_restic_check(lab: Lab, damaged: str, left: int) -> None:
    system = lab.open()
    (file,) = (lab.root / "local").glob(damaged)
    file.chmod(0o600)
    os.truncate(file, left)
    with pytest.raises(DamagedError, match="cannot be opened: its file `config`, or one in `keys`") as caught:
        system.repositories[0].snapshots()
    assert "copy them back" in caught.value.hint


def test_a_repository_of_a_newer_format_is_not_called_damaged() -> None:
    said = "Fatal: config cannot be loaded: unsupported repository version 3"  # by restic 0.14, tried
    told = meaning(said, "the repository local", "this machine", "restic")
    assert told.what.startswith("The restic on this machine is too old for the format of the repository local: ")
    assert "a newer one" in told.hint


def test_a_lock_that_a_killed_process_left_stops_nothing(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    (one,) = system.backups()
    with subprocess.Popen(
        ["restic", "--repo", lab.repositories["local"], "backup", "--stdin"],
        env=os.environ | {"RESTIC_PASSWORD": PASSWORD}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    ) as killed:  # fmt: skip
        while not list((lab.root / "local" / "locks").iterdir()):
            assert killed.poll() is None
        killed.kill()
    assert way_of(system).possible
    act(system, "expire", repository="local", backups=[one.id])
    assert system.backups() == []
    act(system, "expire", repository="local", backups=[one.id])


def test_nothing_goes_from_the_local_disk_while_it_alone_has_the_newest(wide_lab: Lab) -> None:
    lab, system = wide_lab, wide_lab.open()
    act(system, "backup", kind="snapshot")
    old = [one.id for one in system.backups() if one.repository == "local"]
    act(lab.open(), "backup", kind="snapshot")
    (lab.root / "off-site").rename(lab.root / "away")
    with pytest.raises(CannotError, match="only local has the newest backup; two must have it"):
        act(system, "expire", repository="local", backups=old)
    (lab.root / "away").rename(lab.root / "off-site")
    act(system, "expire", repository="local", backups=old)
    assert [one.repository for one in system.backups()].count("local") == 1
    with pytest.raises(UsageError, match="has no repository 'moon'"):
        act(system, "expire", repository="moon", backups=old)


def test_a_restored_tree_wants_a_backup_until_it_has_one(lab: Lab) -> None:
    system = lab.open()
    (change,) = system.redundancy()
    assert list(system.apply(change))
    assert list(system.redundancy()) == []
    way = staged(system)
    act(system, "promote", **way.promote)
    (again,) = system.redundancy()
    list(system.apply(again))
    assert list(system.redundancy()) == []
    assert system.observe().origin == INCIDENT


def test_an_audit_says_what_is_damaged_open_or_silent(wide_lab: Lab) -> None:
    lab, system = wide_lab, wide_lab.open()
    act(system, "backup", kind="snapshot")
    good = [one for one in system.audit(deep=True) if isinstance(one, Finding)]
    assert {(one.check, one.level) for one in good} == {("integrity", Level.PASS), ("permissions", Level.PASS)}
    assert [one.repository for one in system.audit(deep=False) if isinstance(one, Room)] == ["local", "off-site"]
    flip_bits(first_pack(lab.root / "local"))
    (lab.root / "off-site").rename(lab.root / "away")
    found = [one for one in system.audit(deep=True) if isinstance(one, Finding) and one.level is not Level.PASS]
    assert [(one.check, one.level) for one in found] == [
        ("integrity", Level.FAIL),
        ("integrity", Level.UNKNOWN),
        ("integrity", Level.FAIL),
    ]
    assert found[0].figure == "repository local is damaged"
    assert "There is nothing to read at the repository off-site" in found[1].detail
    (lab.root / "local" / "config").chmod(0o644)
    assert ("permissions", Level.FAIL) in [
        (one.check, one.level) for one in system.audit(deep=False) if isinstance(one, Finding)
    ]


def test_a_repository_that_two_machines_made_is_called_spoilt(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(seconds: float) -> None:
        shutil.copytree(lab.root / "local" / "keys", lab.root / "ours" / "keys", dirs_exist_ok=True)

    monkeypatch.setattr(making, "sleep", meanwhile)
    with pytest.raises(DamagedError, match="Two machines made the repository ours"):
        making.make(engine.Repository("ours", f"local:{lab.root / 'ours'}", local(), f"file:{lab.root / 'password'}"))

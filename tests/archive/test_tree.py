"""The way back `archive` of a tree: staged beside, killed anywhere, gone on with; and what it does not find."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from salvor import console
from salvor.change import Level, Progress
from salvor.errors import CannotError, NotProvenError
from salvor.files import archived, digests
from salvor.files.settings import FilesSettings
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import Context
from salvor.systems.files import Files
from salvor.wish import Wish

from tests.archive.made import NAME, by_hand, listing, member, pack, platform

pytestmark = pytest.mark.timeout(60)

DIES = """
import os, sys
from tests.archive.test_tree import opened, way_of
from pathlib import Path
system = opened(Path(sys.argv[1]))
for number, progress in enumerate(system.stage(**way_of(system).arguments)):
    if number >= int(sys.argv[2]):
        os.kill(os.getpid(), 9)
"""


def opened(root: Path, **more: Any) -> Files:
    archives = {"folder": str(root / "backup"), "member": "uploads"}
    settings = {"kind": "files", "path": str(root / "srv/uploads"), "archives": archives, **more}
    context = Context("20261121T003300Z-shop-3f2a", root / "incident", dict)
    return Files("media", FilesSettings.model_validate(settings), context)


def way_of(system: Files, wish: Wish = Wish()) -> Any:  # noqa: B008  frozen
    (way,) = (way for way in system.ways_back(wish) if way.name == "archive")
    return way


def act(system: Files, verb: str, arguments: Any) -> None:
    for _ in system.apply(system.change(verb, why="-", no_undo="-", **arguments)):
        pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "backup").mkdir()
    pack(platform(tmp_path), tmp_path / "backup" / f"{NAME}.tar.gz")
    return tmp_path


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_killed_and_called_again_it_ends_as_undisturbed(root: Path, moment: int) -> None:
    before = listing(root / "srv/uploads")
    argv = [sys.executable, "-c", DIES, str(root), str(moment)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == -9
    system = opened(root)
    assert listing(root / "srv/uploads") == before
    assert not any(staged.complete for staged in system.observe().staged)
    (root / "srv/uploads/one.jpg").write_text("damaged")
    way = way_of(system)
    act(system, "stage", way.arguments)
    assert {finding.level for finding in system.verify(way, Wish(rpo=1e12))} == {Level.PASS}
    act(system, "promote", way.promote)
    assert listing(root / "srv/uploads") == before
    act(system, "demote", way.promote_undo.arguments)
    assert (root / "srv/uploads/one.jpg").read_text() == "damaged"
    act(system, "drop", {"stage": way.stage})
    assert {path.name for path in (root / "srv").iterdir()} == {"uploads", "build", "logs", ".env"}


WRITES_AND_DIES = """
import os, sys
from moto import mock_aws
from tests.archive.test_tree import write_to_bucket
from pathlib import Path
with mock_aws():
    for progress in write_to_bucket(Path(sys.argv[1]), "killed"):
        if progress.label.startswith("uploading"):
            os.kill(os.getpid(), 9)
"""


def write_to_bucket(root: Path, incident: str) -> Iterator[Progress]:
    boto3.client("s3").create_bucket(Bucket="off-site")
    archives = {"folder": "s3://off-site/daily", "member": "uploads"}
    settings = {"kind": "files", "path": str(root / "srv/uploads"), "archives": archives}
    context = Context(incident, root / "incidents" / incident, dict, system_of=lambda name: system)
    system = Files("media", FilesSettings.model_validate(settings), context)
    context.folder.mkdir(parents=True)
    yield from system.write_archive(f"{NAME}.tar.gz", ["media"])


def test_what_a_killed_archive_for_a_bucket_left_on_this_machine_is_removed_by_the_next(root: Path, s3: Any) -> None:
    argv = [sys.executable, "-c", WRITES_AND_DIES, str(root)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == -9
    assert [path.name for path in (root / "incidents").rglob(f".{NAME}*")], "a copy of the whole platform"
    for _ in write_to_bucket(root, "next"):
        pass
    assert sorted(path.name for path in (root / "incidents").rglob("*")) == ["killed", "next"]
    s3.head_object(Bucket="off-site", Key=f"daily/{NAME}.tar.gz")


_PLATFORM = """
systems:
  media: {{kind: files, path: {root}/srv/uploads, archives: {{folder: {root}/backup, member: uploads}}}}
  build: {{kind: files, path: {root}/srv/build, archives: {{folder: {root}/backup, member: build}}}}
services:
  shop: {{rto: 1h, rpo: 9999d, systems: [media, build]}}
"""


def test_what_is_replaced_between_two_tries_is_not_mixed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "inventory").mkdir()
    (root / "inventory/shop.yaml").write_text(_PLATFORM.format(root=root))
    monkeypatch.setenv("SALVOR_INVENTORY", str(root / "inventory"))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(root / "incidents"))
    archive = root / "backup" / f"{NAME}.tar.gz"
    other = by_hand(root / "other.tar.gz", [member("uploads/page", b"of another night")])
    whole = archive.read_bytes()

    def restore(content: bytes) -> str:
        archive.write_bytes(content)
        session = open_session("shop", Plain(io.StringIO()), platform="shop", wish=Wish(source=str(archive)))
        console.recover(session, Plain(io.StringIO()), yes=True)
        return session.incident.id

    for name in ("uploads", "build"):
        (root / "srv" / name).rename(root / name)
    with pytest.raises(CannotError, match="has no 'build' in it"):
        restore(other.read_bytes())
    for _ in range(2):
        with pytest.raises(NotProvenError, match="was replaced between two tries: media from") as refused:
            restore(whole)
    assert not (root / "srv/uploads").exists(), "nothing was cut over"
    found = re.search(r"inv undo --incident=(\S+?),", refused.value.hint)
    assert found and "out of the archive that is there now" in refused.value.hint
    aftermath.undo(found[1], Plain(io.StringIO()), yes=True)
    restore(whole)
    for name in ("uploads", "build"):
        assert listing(root / "srv" / name) == listing(root / name)


def test_a_disk_that_does_not_keep_what_it_was_given_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = digests._sums

    def spoilt(shell: Any, folder: str, names: Any, how: str) -> Any:
        (Path(folder) / "tree/one.jpg").write_bytes(b"x" * 300_000)
        return sums(shell, folder, names, how)

    monkeypatch.setattr(digests, "_sums", spoilt)
    system = opened(root)
    with pytest.raises(CannotError, match=r"'one\.jpg' has another content"):
        act(system, "stage", way_of(system).arguments)
    assert not system.observe().staged
    assert not list((root / "srv").glob("*.salvor-*"))


def test_every_entry_that_came_out_otherwise_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = archived.compare

    def spoilt(extracted: Any, system: Files, built: str) -> list[str]:
        tree = Path(built)
        (tree / "empty").chmod(0o600)
        os.utime(tree / "one.jpg", (1, 1))
        (tree / "current").unlink()
        (tree / "current").symlink_to("deep")
        (tree / "deep/er/more").touch()
        next((tree / "deep/er").glob("*.txt")).unlink()
        if os.geteuid() == 0:
            os.chown(tree / "only for me", 4321, -1)
        return compare(extracted, system, built)

    monkeypatch.setattr(archived, "compare", spoilt)
    monkeypatch.setattr(archived, "_SHOWN", 20)
    system = opened(root)
    with pytest.raises(CannotError, match="is not what was read from it") as error:
        act(system, "stage", way_of(system).arguments)
    wrong = ["'empty' has another mode", "'one.jpg' has another time", "'current' has another target"]
    wrong += ["'deep/er/more' was not in it", ".txt' is missing"]
    wrong += ["'only for me' has another owner"] if os.geteuid() == 0 else []
    assert [one for one in wrong if one not in error.value.what] == []
    assert not list((root / "srv").glob("*.salvor-*"))


def test_names_with_line_breaks_are_compared_too(root: Path) -> None:
    """They are refused, but for an archive that is trusted."""
    by_hand(
        root / "backup/o4o_backup_20260101_000000.tar.gz",
        [member("uploads/a\nb", b"1"), member("uploads/c", b"2"), member("uploads/d\\n\\", b"3")],
    )
    system = opened(root)
    with pytest.raises(CannotError, match="line break"):
        act(system, "stage", way_of(system).arguments)
    trusting = way_of(system, Wish(overrides={"trust-archive": "I made it"}))
    act(system, "stage", trusting.arguments)
    assert {path.name for path in (root / "srv").glob("*.salvor-*/staged/*")} == {"a\nb", "c", "d\\n\\"}


def test_owners_that_did_not_come_back_are_told_and_half_a_stage_is_not_proven(root: Path) -> None:
    system = opened(root)
    way = way_of(system)
    act(system, "stage", way.arguments)
    (marker,) = (root / "srv").glob("*.salvor-*/salvor.json")
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"owners": False}))
    found = {finding.check: finding for finding in system.verify(way, Wish(rpo=1e12))}
    assert (found["owners"].level, found["owners"].figure) == (Level.WARN, "not restored")
    marker.unlink()
    assert [(one.check, one.level) for one in system.verify(way, Wish())] == [("staged", Level.FAIL)]


def test_what_is_fenced_or_gone_gets_into_no_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = opened(root)
    with monkeypatch.context() as change:
        (root / "fstab").write_text(f"tmpfs {root}/srv tmpfs defaults 0 0\n")
        change.setenv("LIBMOUNT_FSTAB", str(root / "fstab"))
        with pytest.raises(CannotError, match=r"srv, which /etc/fstab names, is not mounted.* no archive was written"):
            list(system.pack(root))
    act(system, "fence", {"identity": system.observe().identity})
    with pytest.raises(CannotError, match="is fenced: it is broken; no archive was written"):
        list(system.pack(root))
    (root / "srv/uploads").rename(root / "away")
    with pytest.raises(CannotError, match="is not there; no archive was written"):
        list(system.pack(root))


def test_a_tree_that_is_in_no_archive_says_so(root: Path) -> None:
    assert "names no archives" in way_of(opened(root, archives=None)).why
    assert "no archive of before" in way_of(opened(root), Wish(at=datetime(2020, 1, 1, tzinfo=UTC))).why
    nowhere = way_of(opened(root), Wish(source="/nowhere.tar.gz")).why
    assert "no file" in nowhere and nowhere.endswith("(inv backups lists what there is)")

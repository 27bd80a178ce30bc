"""What goes wrong midway: killed, out of reach, out of room; and places where no name can be swapped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from salvor import shell
from salvor.change import Level, Reachable
from salvor.errors import CannotError, SalvorError
from salvor.files import watching
from salvor.files.manifest import Manifest
from salvor.files.said import MissingError

from tests.files import rest_server
from tests.files.lab import INCIDENT, Lab, act, everything, restic
from tests.files.rest_server import Served
from tests.files.test_repositories import first_pack
from tests.files.test_tree import HOUR, demote, judged, promote, staged, way_of
from tests.running_here import command_lines
from tests.waiting import until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def far(lab: Lab) -> Iterator[tuple[Lab, Served]]:
    """The tree's repository behind a server; files of a megabyte in the tree."""
    for number in range(3):
        (lab.tree / f"large-{number}").write_bytes(os.urandom(1 << 20))
    act(lab.open(), "backup", kind="snapshot")
    with rest_server.serving(lab.root / "local") as served:
        yield Lab(lab.root, {"far": served.location}), served


_STAGE = """
import sys
from pathlib import Path
from tests.files.lab import Lab, act
from tests.files.test_tree import staged
staged(Lab(Path(sys.argv[1]), {"far": sys.argv[2]}).open())
"""


def restics(lab: Lab) -> list[int]:
    """The processes that restore into this lab."""
    into = os.fsencode(lab.box / "building")
    return [number for number, words in command_lines().items() if words[0] == b"restic" and into in words]


def test_killed_midway_the_same_again_ends_as_if_nothing_had_been(far: tuple[Lab, Served]) -> None:
    lab, served = far
    was, served.pause = everything(lab.tree), 0.05
    operator = subprocess.Popen(
        [sys.executable, "-c", _STAGE, str(lab.root), served.location],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, cwd=ROOT,
    )  # fmt: skip
    assert until(lambda: bool(served.given > 20 and restics(lab)))
    operator.kill()
    operator.wait(5)
    (left,) = restics(lab)  # it goes on without its operator
    os.kill(left, signal.SIGSTOP)  # and would for long
    assert [one.complete for one in lab.open().observe().staged] == [False]
    served.pause = 0.0
    way = staged(lab.open())
    assert not restics(lab)
    assert Level.FAIL not in judged(lab.open().verify(way, HOUR)).values()
    assert everything(lab.box / "staged") == was
    assert everything(lab.tree) == was


def test_restic_killed_midway_is_an_error_and_the_same_again_works(far: tuple[Lab, Served]) -> None:
    lab, served = far
    was, served.pause = everything(lab.tree), 0.05
    system = lab.open()
    way = way_of(system)
    arguments: dict[str, Any] = dict(way.arguments or {})
    progress = system.apply(system.change("stage", why="-", no_undo="-", **arguments))
    with pytest.raises(SalvorError) as caught:
        for _ in progress:
            for process in restics(lab):
                os.kill(process, signal.SIGKILL)
    assert "HINT" in str(caught.value)
    served.pause = 0.0
    staged(system)
    assert everything(lab.box / "staged") == was


def test_a_repository_lost_midway_is_told_and_the_same_again_works(
    far: tuple[Lab, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, served = far
    was, served.pause = everything(lab.tree), 0.05
    monkeypatch.setattr(watching, "PATIENCE", 0.5)
    system = lab.open()
    way = way_of(system)
    arguments: dict[str, Any] = dict(way.arguments or {})
    with pytest.raises(CannotError, match="was lost midway") as caught:
        for _ in system.apply(system.change("stage", why="-", no_undo="-", **arguments)):
            if served.given > 3:
                served.stop()
    assert "what is live is as it was" in str(caught.value)
    assert everything(lab.tree) == was
    served.pause = 0.0
    served.start()
    staged(system)
    assert everything(lab.box / "staged") == was


def test_a_prune_that_moves_pieces_meanwhile_stops_no_restore(lab: Lab, far: tuple[Lab, Served]) -> None:
    distant, served = far
    (older,) = lab.open().repositories[0].snapshots()
    (lab.tree / "large-0").write_bytes(os.urandom(1 << 20))
    act(lab.open(), "backup", kind="snapshot")
    was = everything(lab.tree)
    served.meanwhile = partial(restic, lab.root / "local", "forget", "--prune", "--max-unused", "0", older.id)
    staged(distant.open())
    assert served.meanwhile is None
    assert everything(lab.box / "staged") == was


def test_a_prune_that_moves_pieces_meanwhile_stops_no_listing(
    lab: Lab, far: tuple[Lab, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    distant, served = far
    (older,) = lab.open().repositories[0].snapshots()
    (lab.tree / "sub" / "newer").touch()
    act(lab.open(), "backup", kind="snapshot")
    (repository,) = distant.open().repositories
    newer, elsewhere = repository.snapshots()[0], str(lab.root / "another cache")
    prune = partial(restic, lab.root / "local", "forget", "--prune", "--max-unused", "0", RESTIC_CACHE_DIR=elsewhere)
    monkeypatch.setattr(shell.anywhere, "_GLANCE", 0.1)
    manifest, shortly = Manifest(repository, newer.id, str(lab.tree)), time.monotonic() + 20  # restic: 15 minutes
    shutil.rmtree(lab.root / "cache")
    served.meanwhile = partial(prune, older.id)
    assert "sub/newer" in manifest.nodes
    assert served.meanwhile is None
    shutil.rmtree(lab.root / "cache")
    shutil.rmtree(lab.root / "local" / "data")
    questions: list[Callable[[], object]] = [
        lambda: list(repository.listing(newer.id)),
        lambda: repository.links(newer.id, str(lab.tree)),
        lambda: repository.restored_size(newer.id),
    ]
    for question in questions:
        with pytest.raises(MissingError, match="lacks a piece that it should hold"):
            question()
    assert time.monotonic() < shortly


def test_a_prune_that_moves_pieces_meanwhile_is_no_damage(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository,) = lab.open().repositories
    program = lab.root / "programs" / "restic"
    program.parent.mkdir()
    said = f"pack {'8d' * 32} failed to download: StreamPack: open {lab.root}/8d: no such file or directory"
    program.write_text(
        f"""#!/bin/sh
        case $* in *check*) mkdir "$0.asked" 2>/dev/null && exec sh -c 'echo "$1\n\nFatal: $2" >&2; exit 1' sh \\
            '{said}' 'repository contains errors' ;; esac
        exec {shutil.which("restic")} "$@"
        """
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    repository.check(deep=True)
    assert Path(f"{program}.asked").is_dir()


def test_a_piece_that_is_lost_is_told_at_once(far: tuple[Lab, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    lab, _ = far
    monkeypatch.setattr(shell.anywhere, "_GLANCE", 0.1)
    system, lost = lab.open(), first_pack(lab.root / "local")
    lost.unlink()
    with pytest.raises(CannotError, match="lacks a piece that it should hold"):
        staged(system)
    with pytest.raises(MissingError, match=f"pack {lost.name}: does not exist / .*; a new backup passes over "):
        system.repositories[0].check(deep=True)


def test_a_repository_that_lets_nothing_be_removed_is_given_up(
    far: tuple[Lab, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, _ = far  # it serves whoever reads, and refuses whoever writes
    monkeypatch.setattr(watching, "PATIENCE", 0.3)
    system, began = lab.open(), time.monotonic()
    with pytest.raises(CannotError, match=r"The repository far .* lets nothing be removed: .*retrying") as caught:
        act(system, "expire", repository="far", backups=[system.backups()[0].id])
    assert time.monotonic() - began < 20, "restic itself would go on for a quarter of an hour"
    assert "the backups that the policy keeps" in caught.value.safe
    assert len(system.backups()) == 1


# ------------------------------------------------------------------------------------------ disks


@pytest.fixture
def disk(lab: Lab) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = lab.root / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=400", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@needs_root
def test_a_disk_without_room_is_told_before_and_one_that_fills_up_is_cleared(lab: Lab, disk: Path) -> None:
    tree = disk / "media"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(5 << 20))
    system, was = lab.open(tree), everything(tree)
    act(system, "backup", kind="snapshot")
    told = way_of(system).why
    assert told.startswith("The stage needs 6 MB, where 3 MB are free")
    restic(lab.repositories["local"], "backup", str(tree))  # by somebody who does not say how large it is
    way = way_of(system)
    assert way.possible
    assert way.arguments
    with pytest.raises(CannotError, match=r"The disk of .* is full") as caught:
        act(system, "stage", **way.arguments)
    assert "what is live is as it was" in str(caught.value)
    assert everything(tree) == was
    assert os.listdir(disk) == ["media"]  # noqa: PTH208
    (tree / "more").write_bytes(os.urandom(2 << 20))
    act(system, "discard", identity="-", kept="kept-nothing")
    (tree / "large").unlink()
    promote(system, staged(system))
    assert everything(tree) == was


def test_a_restore_to_which_nothing_comes_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    act(lab.open(), "backup", kind="snapshot")
    (repository,) = lab.open().repositories
    watch = watching.Watch(repository, repository.snapshots()[0], "/srv/new")
    watch.hear("salvor-disk 1000 500 4096")
    monkeypatch.setattr(watching, "SILENCE", 0.0)
    watch.hear("salvor-disk 1000 400 4096")
    with pytest.raises(CannotError, match="was lost midway: nothing came for"):
        watch.hear("salvor-disk 1000 400 4096")


def test_a_quota_is_not_called_a_full_disk(lab: Lab) -> None:
    """As btrfs has it, where df shows room."""
    (repository,) = lab.open().repositories
    act(lab.open(), "backup", kind="snapshot")
    watch = watching.Watch(repository, repository.snapshots()[0], "/srv/new")
    with pytest.raises(watching.DiskFullError, match="A quota for /srv/new on this machine is used up"):
        watch.hear("ignoring error for /srv/media/f: write /srv/new/f: disk quota exceeded")


@needs_root
def test_a_repository_without_room_for_its_lock_says_so(lab: Lab, disk: Path) -> None:
    tree = lab.root / "small"
    tree.mkdir()
    (tree / "page").write_text("a page")
    system = replace(lab, repositories={"local": str(disk / "restic")}).open(tree)
    act(system, "backup", kind="snapshot")
    with suppress(OSError), (disk / "full").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    with pytest.raises(CannotError, match=r"The disk of the repository local .* is full: .*no space left") as caught:
        act(system, "backup", kind="snapshot")
    assert "github.com" not in caught.value.what, "restic's stack trace is for its developers"


@needs_root
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no disk can be made of a file here")
def test_times_come_back_as_exactly_as_the_new_disk_keeps_them(lab: Lab) -> None:
    """It is one of ext4 with the small inodes of old ones, which keep seconds."""
    place, image = lab.root / "disk", lab.root / "image"
    (place / "media").mkdir(parents=True)
    for number in range(3):
        (place / "media" / str(number)).write_text("a page")
    os.utime(place / "media" / "0", (1_795_000_001, 1_795_000_001))  # else all may be of even seconds, as on FAT
    system = lab.open(place / "media")
    act(system, "backup", kind="snapshot")
    place.rename(lab.root / "broken")
    place.mkdir()
    image.write_bytes(bytes(4 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        way = staged(system)
        found = {one.check: one for one in system.verify(way, HOUR)}
        assert found["as it was backed up"].level is Level.PASS
        assert "times (to the second: its disk keeps no more)" in found["as it was backed up"].detail
        promote(system, way)
        assert system.ask("changed", "live") == 0
        os.utime(place / "media" / "1", (1, 1))
        assert system.ask("changed", "live") == 1
    finally:
        subprocess.run(["umount", place], check=True)


@needs_root
def test_a_disk_that_became_read_only_is_told_before_anything_is_fenced(lab: Lab, disk: Path) -> None:
    tree = disk / "media"
    tree.mkdir()
    (tree / "page").write_text("a page")
    system = lab.open(tree)
    act(system, "backup", kind="snapshot")
    pinned = way_of(system).arguments
    assert pinned
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(CannotError, match=r"is read-only, see dmesg"):
        act(system, "stage", **pinned)
    way = way_of(system)
    assert (way.possible, way.why) == (
        False,
        f"{disk} on this machine is read-only, see dmesg: a disk with errors is made so",
    )
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert way_of(system).possible


@needs_root
@pytest.mark.parametrize("attribute", ["i", "a"])
def test_what_chattr_locked_is_told_before_anything_is_fenced(lab: Lab, attribute: str) -> None:
    path = lab.root / "settings" / ".env"
    path.parent.mkdir()
    path.write_text("A=1\n")
    system = lab.open(path, name="settings")
    act(system, "backup", kind="snapshot")
    pinned = way_of(system)
    if subprocess.run(["chattr", f"+{attribute}", path], check=False).returncode:
        pytest.skip("this file system has no attributes")
    try:
        way = way_of(system)
        assert not way.possible
        assert f"chattr -ia {path}" in way.why
        with pytest.raises(CannotError, match="chattr locked"):
            act(system, "stage", **dict(pinned.arguments or {}))
        with pytest.raises(CannotError, match=r"could not be closed to others: .*Operation not permitted"):
            act(system, "fence", identity=system.observe().identity)
        assert system.observe().writable, "it is not fenced, and nobody says so"
        subprocess.run(["chattr", f"+{attribute}", path.parent], check=True)
        subprocess.run(["chattr", f"-{attribute}", path], check=True)
        assert f"chattr -ia {path.parent}" in way_of(system).why
    finally:
        subprocess.run(["chattr", "-R", f"-{attribute}", path.parent], check=True)
    promote(system, staged(system))


@needs_root
def test_what_chattr_locked_deep_in_what_was_kept_is_told(lab: Lab) -> None:
    path = lab.root / "settings"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_text("A=1\n")
    system = lab.open(path)
    act(system, "backup", kind="snapshot")
    if subprocess.run(["chattr", "+i", path / "sub" / "file"], check=False).returncode:
        pytest.skip("this file system has no attributes")
    promote(system, staged(system))
    (kept,) = system.observe().kept
    try:
        with pytest.raises(CannotError, match=r"sub/file': Operation not permitted") as told:
            act(system, "discard", identity=kept.identity, kept=kept.name)
    finally:
        subprocess.run(["chattr", "-R", "-i", lab.root], check=False, capture_output=True)
    assert told.value.safe == "what is live; of what was kept, some is gone"
    assert f"chattr -R -f -ia {path}.salvor-{INCIDENT}; then the same command again" in told.value.hint
    act(system, "discard", identity=kept.identity, kept=kept.name)
    assert not list(lab.root.glob("settings.salvor-*"))


@needs_root
def test_names_are_counted_too(lab: Lab, disk: Path) -> None:
    tree = disk / "media"
    tree.mkdir()
    for number in range(300):
        (tree / str(number)).touch()
    system = lab.open(tree)
    act(system, "backup", kind="snapshot")
    assert "301 files, where there is room for" in way_of(system).why


@needs_root
def test_what_is_mounted_cannot_be_swapped_and_says_so(lab: Lab, disk: Path) -> None:
    (disk / "inner").mkdir()
    assert "is a mount point, so it cannot be renamed" in way_of(lab.open(disk)).why
    (lab.tree / "inner").mkdir()
    subprocess.run(["mount", "--bind", disk, lab.tree / "inner"], check=True)
    try:
        assert f"{lab.tree}/inner is mounted inside {lab.tree}" in way_of(lab.open()).why
    finally:
        subprocess.run(["umount", lab.tree / "inner"], check=True)


@needs_root
def test_nothing_is_restored_below_a_mount_point_that_waits_for_its_disk(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my disk"
    (place / "media").mkdir(parents=True)
    (place / "media" / "file").write_text("of the disk below, by a program that found nothing")
    system = lab.open(place / "media")
    act(system, "backup", kind="snapshot")
    (tmp_path / "fstab").write_text(f"tmpfs {str(place).replace(' ', chr(92) + '040')} tmpfs defaults 0 0\n")
    monkeypatch.setenv("LIBMOUNT_FSTAB", str(tmp_path / "fstab"))
    told = f"{place}, which /etc/fstab names, is not mounted"
    with pytest.raises(CannotError, match=told) as caught:
        act(system, "backup", kind="snapshot")
    assert f"mount '{place}'; where that disk is lost" in caught.value.hint
    box = Lab(lab.root, {"box": f"{place}/box"}).open()
    with pytest.raises(CannotError, match=f"none was made: {told}"):
        act(box, "backup", kind="snapshot")
    way = way_of(system)
    assert not way.possible
    assert re.match(told, way.why)
    assert system.observe().reachable is Reachable.DOWN
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    try:
        assert way_of(system).possible
    finally:
        subprocess.run(["umount", place], check=True)


# ------------------------------------------------------------------------------------------ the swap


@pytest.fixture
def without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with neither perl nor python3."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if not program.name.startswith(("perl", "python")) and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))


def test_the_path_is_never_empty_while_two_trees_change_places(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way, empty, over = staged(system), list[float](), threading.Event()

    def look() -> None:
        while not over.is_set():
            if not lab.tree.exists():
                empty.append(time.monotonic())

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(3):
        promote(system, way)
        demote(system, way)
    over.set()
    looker.join()
    assert not empty


def test_two_renames_do_it_where_names_cannot_be_exchanged(lab: Lab, without_exchange: None) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    (lab.tree / "plain").unlink()
    live, ruined = system.observe().identity, everything(lab.tree)
    way = staged(system)
    assert "swapped in by two renames" in way.why
    promote(system, way)
    assert everything(lab.tree) == was
    demote(system, way)
    assert everything(lab.tree) == ruined
    lab.tree.rename(lab.box / "kept")  # killed between the two
    promote(system, way)
    assert everything(lab.tree) == was
    assert [one.identity for one in system.observe().kept] == [live]
    lab.tree.rename(lab.box / "staged")  # and on the way back
    demote(system, way)
    assert everything(lab.tree) == ruined
    assert [one.complete for one in system.observe().staged] == [True]


def test_killed_right_after_the_exchange_of_names(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    live = system.observe().identity
    way = staged(system)

    def as_killed(done: Path, undone: Path) -> None:
        """As the exchange of names leaves it, before the last rename."""
        done.rename(undone)

    promote(system, way)
    as_killed(lab.box / "kept", lab.box / "staged")
    state = system.observe()
    assert (state.origin, state.staged, [one.identity for one in state.kept]) == (system.context.incident, (), [live])
    act(system, "drop", stage="side-tree")  # what was live stands there
    promote(system, way)
    assert [one.identity for one in system.observe().kept] == [live]
    as_killed(lab.box / "kept", lab.box / "staged")
    demote(system, way)
    assert system.observe().identity == live
    as_killed(lab.box / "staged", lab.box / "kept")
    assert system.observe().kept == ()
    demote(system, way)
    assert [one.complete for one in system.observe().staged] == [True]
    assert everything(lab.box / "staged") == was
    promote(system, way)
    as_killed(lab.box / "kept", lab.box / "staged")
    act(system, "discard", identity=live, kept=f"kept-{system.context.incident}")
    assert not lab.box.exists()
    assert everything(lab.tree) == was


def test_killed_between_the_marker_and_the_rename(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way = staged(system)
    identity = system.observe().staged[0].identity
    (lab.box / "building" / "a").mkdir(parents=True)
    built = Path(str(lab.box / "building") + str(lab.tree))
    built.parent.mkdir(parents=True)
    (lab.box / "staged").rename(built)
    assert [one.complete for one in system.observe().staged] == [False]
    shutil.rmtree(lab.root / "local")  # what is whole needs no repository any more
    assert way.arguments
    act(system, "stage", **way.arguments)
    assert [(one.identity, one.complete) for one in system.observe().staged] == [(identity, True)]
    assert not (lab.box / "building").exists()


def test_a_host_that_does_not_answer_is_unknown_not_down() -> None:
    system = Lab(Path("/nowhere")).open(address="127.0.0.1", ssh={"port": 1, "user": "nobody"})
    assert (system.observe().reachable, system.observe().writable) == (Reachable.UNKNOWN, None)
    assert [way.possible for way in system.ways_back(HOUR)] == [False, False]

"""What an outage does to a journal: killed writers, full, read-only and failing disks, a terminal that goes away."""

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from salvor.change import Level
from salvor.journal import FILE, Journal
from salvor.journal.evidence import check
from salvor.journal.lock import in_memory

INCIDENT = "20261121T003300Z-orders-3f2a"


def whole(folder: Path) -> bool:
    return all(finding.level is not Level.FAIL and finding.check != "tail" for finding in check(folder))


def texts(folder: Path) -> list[str]:
    return [line["text"] for line in Journal.read(folder).of("note")]


# ---------------------------------------------------------------------------------------------------------- crashes

LOOP = """
import itertools, sys
from pathlib import Path
from salvor.journal import FILE, Journal
folder = Path(sys.argv[1])
how = Journal.open if (folder / FILE).exists() else Journal.create
journal = how(folder, by="child")
for number in itertools.count(len(journal.of("note"))):
    journal.append("note", text=str(number), padding="x" * (number * 997 % 9000))
    print(number, flush=True)
"""


def test_nothing_acknowledged_is_lost_to_sigkill(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", LOOP, str(folder)], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        last = child.stdout.readline()
        time.sleep(chance.random() * 0.05)
        child.kill()
        last = [last, *child.stdout.read().split("\n")[:-1]][-1]
        child.wait(10)
        Journal.open(folder, by="parent").close()
        found = texts(folder)
        assert found == [str(number) for number in range(len(found))]
        assert int(last) < len(found), "what was acknowledged is there"
        assert whole(folder)


def test_a_journal_that_was_cut_anywhere_is_repaired(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim") as journal:
        journal.append("note", text="one")
        journal.append("note", text='two "quoted" {}')
    content = (folder / FILE).read_bytes()
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    for size in range(ends[0], len(content)):
        (folder / FILE).write_bytes(content[:size])
        told: list[str] = []
        with Journal.open(folder, by="lee", tell=told.append) as journal:
            pass
        kept = sum(end <= size for end in ends)  # a line without its newline is whole
        lines = Journal.read(folder).lines
        assert [line["kind"] for line in lines[:kept]] == ["opened", "note", "note"][:kept]
        assert (folder / FILE).read_bytes().startswith(content[: ends[kept - 1]] + b"\n")
        assert whole(folder)
        if size in ends:
            assert lines[-1]["lost_bytes"] == 0
        elif size - 1 in ends:
            assert len(lines) == kept
            assert not told
            continue
        else:
            assert lines[-1]["lost_bytes"] == size - ends[kept - 1] - 1
            assert lines[-1]["lost"].encode() == content[ends[kept - 1] + 1 : size]
        assert len(lines) == kept + 1
        assert lines[-1]["kind"] == "repaired"
        assert len(told) == 1
        assert "is repaired" in told[0]


def test_what_a_power_cut_leaves_in_the_place_of_a_line_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    Journal.create(folder, by="kim").close()
    with (folder / FILE).open("ab") as file:
        file.write(bytes(4096) + b"\xff\xfe")
    with Journal.open(folder, by="lee") as journal:
        assert journal.of("repaired")[0]["lost_bytes"] == 4098
    assert whole(folder)


def test_a_line_that_ends_is_never_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    Journal.create(folder, by="kim").close()
    with (folder / FILE).open("ab") as file:
        file.write(b"somebody wrote this\n")
    told: list[str] = []
    with Journal.open(folder, by="lee", tell=told.append) as journal:
        assert journal.damaged == [2]
        assert journal.append("note", text="on we go")["n"] == 3
    assert "cannot be read in line 2" in told[0]
    assert (folder / FILE).read_bytes().splitlines()[1] == b"somebody wrote this"
    assert [finding.figure for finding in check(folder) if finding.level is Level.FAIL] == ["line 2"]


def test_an_interrupt_at_any_moment_leaves_no_half_and_no_double_line(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    acknowledged = []
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    journal = Journal.create(folder, by="kim")
    interrupts = 0
    try:
        for number in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 5e-4))
                journal.append("note", text=str(number))
                signal.setitimer(signal.ITIMER_REAL, 0)
                acknowledged.append(str(number))
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    journal.close()
    assert interrupts > 20
    assert journal.pending == 0
    found = texts(folder)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert whole(folder)


# ------------------------------------------------------------------------------------------------------------ disks


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    if os.geteuid():
        pytest.skip("needs root to mount a file system")
    subprocess.run(["mount", *arguments, str(folder)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)
        for incidents in (folder, folder / "incidents"):  # locks that this disk did not take
            shutil.rmtree(in_memory(incidents), ignore_errors=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """64 KiB, full but for what is left of a page; gives what makes room."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"):
        yield (folder / "ballast").unlink


def fill(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: the write that would is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    if os.geteuid():
        paths = [folder, *folder.rglob("*")]
        modes = [path.stat().st_mode for path in paths]
        for path in paths:
            path.chmod(0o500 if path.is_dir() else 0o400)
        try:
            yield
        finally:
            for path, mode in zip(paths, modes, strict=True):
                path.chmod(mode)
        return
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True, timeout=10)
        yield


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path) as make_room:
        folder = tmp_path / INCIDENT
        told: list[str] = []
        journal = Journal.create(folder, by="kim", tell=told.append)
        fill(tmp_path)
        for number in range(50):
            assert journal.append("note", text=str(number), padding="x" * 300)["text"] == str(number)
        assert 0 < journal.pending < 50, "what was left of the last page was used"
        assert len(journal.of("note")) == 50
        assert len(told) == 1, "told once, at once"
        assert "No space left on device" in told[0]
        assert "the recovery goes on" in told[0]
        assert whole(folder), "no half line stays"
        make_room()
        journal.append("note", text="50")
        assert journal.pending == 0
        assert len(told) == 2
        journal.close()
        assert texts(folder) == [str(number) for number in range(51)]
        assert whole(folder)


def test_a_disk_that_is_full_from_the_beginning(tmp_path: Path) -> None:
    with small_disk(tmp_path) as make_room:
        fill(tmp_path)
        told: list[str] = []
        folder = tmp_path / "incidents" / INCIDENT
        journal = Journal.create(folder, by="kim", tell=told.append, service="orders")
        journal.append("note", text="0")
        assert journal.pending == 2
        assert len(told) == 1
        make_room()
        journal.close()
        assert Journal.read(folder).lines == journal.lines
        assert [path.name for path in folder.iterdir()] == [FILE]
        assert whole(folder)


def test_a_write_that_was_cut_short_is_taken_back(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    told: list[str] = []
    journal = Journal.create(folder, by="kim", tell=told.append)
    for room in range(1, 200, 9):
        before = (folder / FILE).read_bytes()
        with file_size_limit(len(before) + room):
            journal.append("note", text="x" * 200)
        assert journal.pending == 1
        assert (folder / FILE).read_bytes() == before
        journal.append("note", text="y")
        assert journal.pending == 0
    journal.close()
    assert Journal.read(folder).lines == journal.lines
    assert whole(folder)
    assert len(told) == 2 * len(range(1, 200, 9))


def test_a_read_only_folder(tmp_path: Path) -> None:
    parent = tmp_path / "incidents"
    parent.mkdir()
    told: list[str] = []
    with read_only(parent):
        new = Journal.create(parent / "new", by="kim", tell=told.append)
        new.append("note", text="held")
        assert new.pending == 2
        assert not list(parent.iterdir())
    assert len(told) == 1
    new.close()
    assert Journal.read(parent / "new").lines == new.lines


def test_a_journal_on_a_disk_that_has_become_read_only_is_still_resumed(tmp_path: Path) -> None:
    parent = tmp_path / "incidents"
    folder = parent / INCIDENT
    Journal.create(folder, by="kim").close()
    with (folder / FILE).open("ab") as file:
        file.write(b'{"n":2,')
    told: list[str] = []
    with read_only(parent):
        journal = Journal.open(folder, by="lee", tell=told.append)
        journal.append("note", text="held")
        assert [line["kind"] for line in journal.lines] == ["opened", "repaired", "note"]
        assert journal.pending == 2
        assert len(Journal.read(folder).lines) == 1
    journal.close()
    assert Journal.read(folder).lines == journal.lines
    assert whole(folder)
    assert len(told) == 3, "repaired, cannot be written, written again"


def test_what_somebody_else_wrote_meanwhile_is_not_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "incidents" / INCIDENT
    Journal.create(folder, by="kim").close()
    with (folder / FILE).open("ab") as file:
        file.write(b'{"n":2,')
    told: list[str] = []
    with read_only(folder.parent):
        late = Journal.open(folder, by="late", tell=told.append)
    with Journal.open(folder, by="other") as other:
        other.append("note", text="mine")
    late.append("note", text="late")
    late.close()
    assert texts(folder) == ["mine"]
    assert whole(folder)
    assert "could not be written" in told[-1]


def test_lines_that_were_never_written_are_left_where_a_person_can_add_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "it's here" / INCIDENT
    told: list[str] = []
    Journal.create(folder, by="kim").close()
    before = (folder / FILE).read_bytes()
    with read_only(folder):
        journal = Journal.open(folder, by="lee", tell=told.append)
        journal.append("note", text="first")
        journal.append("note", text="second")
        journal.close()
    assert (folder / FILE).read_bytes() == before
    command = re.search(r"any other command on this incident: (.*)", told[-1])
    assert command
    for written in (0, 20, None):  # again, after the disk took some of it, and after it took all
        content = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(content if written is None else content[: len(before) + written])
        subprocess.run(["sh", "-euc", command[1]], check=True, timeout=10)
        assert Journal.read(folder).lines == journal.lines
        assert whole(folder)


ADD = """
import sys
from pathlib import Path
from salvor.journal import Journal
with Journal.open(Path(sys.argv[1]), by="other") as journal:
    journal.append("note", text="theirs")
"""


@pytest.mark.parametrize("between", ["", "the hint", "another process"])
def test_lines_that_were_held_are_added_once_and_no_old_hint_can_cut_off_what_follows_them(
    tmp_path: Path, between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "incidents" / INCIDENT
    told: list[str] = []
    Journal.create(folder, by="kim").close()
    with read_only(folder), Journal.open(folder, by="lee", tell=told.append) as journal:
        journal.append("note", text="first")
    command = re.search(r"any other command on this incident: (.*)", told[-1])
    assert command
    if between == "the hint":
        subprocess.run(["sh", "-euc", command[1]], check=True, timeout=10)
    elif between:
        subprocess.run([sys.executable, "-c", ADD, str(folder)], check=True, timeout=10)
        assert subprocess.run(["sh", "-euc", command[1]], timeout=10).returncode != 0, "it is too late for that"
    with Journal.open(folder, by="lee", tell=told.append) as journal:
        journal.append("note", text="second")
    assert subprocess.run(["sh", "-euc", command[1]], timeout=10).returncode != 0
    assert texts(folder) == [*(["theirs"] if between == "another process" else ["first"]), "second"]
    assert whole(folder)


def test_a_failed_fsync_is_not_trusted_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / INCIDENT
    journal = Journal.create(folder, by="kim", tell=lambda _: None)
    good = os.fsync
    failures = iter([True, True, False])

    def fsync(descriptor: int) -> None:
        if next(failures, False):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        good(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    size = (folder / FILE).stat().st_size
    for _ in range(2):
        journal.append("note", text="x")
        assert (folder / FILE).stat().st_size == size, "what may be lost is taken back, to be written anew"
    journal.append("note", text="y")
    assert journal.pending == 0
    assert len(texts(folder)) == 3
    assert whole(folder)


def test_a_new_journal_and_every_line_is_flushed_with_all_names_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, int]] = []
    good = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size))
        good(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "incidents" / INCIDENT
    journal = Journal.create(folder, by="kim")
    assert [path for path, _ in flushed] == [
        str(tmp_path),
        str(tmp_path / "incidents"),
        str(folder / f".{FILE}.new"),
        str(folder),
    ]
    journal.append("note", text="one")
    assert flushed[4:] == [(str(folder / FILE), (folder / FILE).stat().st_size)]
    journal.close()


def test_a_journal_that_was_removed_is_written_again(tmp_path: Path) -> None:
    folder = tmp_path / INCIDENT
    told: list[str] = []
    with Journal.create(folder, by="kim", tell=told.append) as journal:
        journal.append("note", text="one")
        (folder / FILE).unlink()
        folder.rmdir()
        journal.append("note", text="two")
    assert texts(folder) == ["one", "two"]
    assert whole(folder)
    assert len(told) == 1
    assert "was removed while in use" in told[0]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    incidents = tmp_path / "incidents"
    incidents.mkdir()
    (incidents / INCIDENT).symlink_to(elsewhere)
    told: list[str] = []
    journal = Journal.create(incidents / INCIDENT, by="kim", tell=told.append)
    assert journal.pending == 1
    assert "it is a link" in told[0]
    assert not list(elsewhere.iterdir())
    (incidents / INCIDENT).unlink()
    (incidents / INCIDENT).mkdir()
    (incidents / INCIDENT / f".{FILE}.new").symlink_to(elsewhere / "target")
    journal.close()
    assert not list(elsewhere.iterdir())
    assert journal.pending == 0


def test_a_terminal_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    folder = tmp_path / INCIDENT
    journal = Journal.create(folder, by="kim", tell=gone)
    with file_size_limit((folder / FILE).stat().st_size):
        journal.append("note", text="held")
    journal.close()
    assert texts(folder) == ["held"]

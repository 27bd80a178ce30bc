"""Files that are replaced whole."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from salvor import durable


def test_of_those_who_replace_a_file_at_once_each_does_and_a_reader_sees_whole_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "drills.html"
    contents = [str(number).encode() * 300_000 for number in range(4)]
    durable.replace(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(15):
            durable.replace(path, content)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, content) for content in contents]
        while not all(one.done() for one in writing):
            assert path.read_bytes() in contents
    for one in writing:
        one.result()
    assert list(tmp_path.iterdir()) == [path]


def test_what_takes_a_place_is_on_disk_before_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.seal"
    path.write_bytes(b"old")
    flushed: list[tuple[str, bytes]] = []

    def fsync(descriptor: int) -> None:
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.pread(descriptor, 99, 0).decode()
        flushed.append((what, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    durable.replace(path, b"new", mode=0o640)
    assert flushed == [("new", b"old"), ("folder", b"new")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_folder_that_somebody_else_could_swap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.check_ours(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        durable.check_ours(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError):
        durable.check_ours(tmp_path)


def test_what_a_crash_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "drills.html"
    old, new = tmp_path / f".{path.name}.0badcafe.new", tmp_path / f".{path.name}.1badcafe.new"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    durable.replace(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([new, path])

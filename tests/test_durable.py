"""Files that are replaced whole."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def test_what_a_crash_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "drills.html"
    old, new = tmp_path / f".{path.name}.0badcafe.new", tmp_path / f".{path.name}.1badcafe.new"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    durable.replace(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([new, path])

"""What find(1) says of a tree, taken as it is: times, sizes, names in any bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from salvor import shell
from salvor.files import census

NAMES = (b"plain.jpg", b"two\nlines", b"\xff\xfe no text", b"- a\\b")


@pytest.mark.parametrize("time", [1_700_000_000_123_456_789, 0, -1, -250_000_000, -4_500_000_000, -3_000_000_000])
def test_every_entry_is_taken_as_the_kernel_has_it(tmp_path: Path, time: int) -> None:
    paths = {name: tmp_path / os.fsdecode(name) for name in NAMES}
    for size, path in enumerate(paths.values()):
        path.write_bytes(b"x" * size)
        path.chmod(0o2750)
        os.utime(path, ns=(time, time))
    (tmp_path / "link").symlink_to(os.fsdecode(b"to \xe9\n"))

    found = {one.path: one for one in census.take(shell.local(), str(tmp_path))}

    assert found.keys() == {b"", b"link", *NAMES}
    for name, path in paths.items():
        stat, one = path.stat(), found[name]
        assert one[1:7] == ("f", 0o2750, stat.st_uid, stat.st_gid, stat.st_size, time)
        assert (one.changed, one.links, one.node) == (stat.st_ctime_ns, 1, f"{stat.st_dev}:{stat.st_ino}")
    assert (found[b"link"].kind, found[b"link"].target) == ("l", b"to \xe9\n")
    assert found[b""].kind == "d"

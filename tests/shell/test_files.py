"""Files that a shell reads and writes: whole or not at all, on this machine, as another user, and over SSH."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from salvor import shell
from salvor.errors import CommandError
from salvor.running import Command, Running
from salvor.shell import Shell

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("name", ["plain", 'it\'s "odd" $x', "-rf", "주문"])
def test_files(there: Shell, folder: str, name: str) -> None:
    path = f"{folder}/{name}"
    assert there.read(path) is None
    assert not there.exists(path)
    there.write(path, "one\n주문\n")
    assert there.exists(path)
    assert there.read(path) == "one\n주문\n"
    there.write(path, "", mode=0o640)
    assert there.read(path) == ""
    assert there.run(["stat", "-c", "%a", path]).stdout == "640\n"
    assert there.run(["ls", "-A", folder]).stdout == f"{name}\n"


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(there: Shell, folder: str) -> None:
    path = f"{folder}/file"
    there.write(path, "whole")
    there.run(["ln", "-s", "/etc/passwd", f"{path}.salvor-new"])  # planted: it is not written through
    there.write(path, "new")
    assert there.read(path) == "new"
    there.run(["mkdir", f"{path}.salvor-new"])
    with pytest.raises(CommandError):
        there.write(path, "newer")
    assert there.read(path) == "new"


def test_a_file_that_comes_in_part_changes_nothing(tmp_path: Path) -> None:
    class Broken(type(shell.local())):  # type: ignore[misc]
        """As over a connection that breaks: what is read ends too early."""

        def _start(self, command: Command) -> Running:
            cut = [piece[:3] for piece in command.stdin] if command.stdin else None
            return super()._start(replace(command, stdin=cut))  # type: ignore[no-any-return]

    path = str(tmp_path / "file")
    shell.local().write(path, "whole")
    with pytest.raises(CommandError):
        Broken("here").write(path, "new content")
    assert shell.local().read(path) == "whole"


def test_a_file_that_cannot_be_flushed_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync = str(tmp_path / "file"), tmp_path / "programs" / "sync"
    shell.local().write(path, "whole")
    sync.parent.mkdir()
    sync.write_text("#!/bin/sh\nexit 1\n")
    sync.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sync.parent}:{os.environ['PATH']}")
    with pytest.raises(CommandError):
        shell.local().write(path, "new")
    assert shell.local().read(path) == "whole"


def test_a_file_that_may_not_be_read_is_not_one_that_is_not_there(there: Shell) -> None:
    with pytest.raises(CommandError, match="cat on"):
        there.read("/proc/1/mem" if there.run(["id", "-u"]).stdout.strip() == "0" else "/etc/shadow")

"""Files to a host and back: whole or not at all, gone on with after a break, by commands and by SFTP alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from salvor import shell, transfer
from salvor.change import Progress
from salvor.errors import CannotError, CommandError, SalvorError, UsageError
from salvor.shell import Shell
from salvor.ssh.settings import SshSettings

from tests import ssh_server
from tests.ssh_server import Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
SIZE = 20_000_001


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ssh_server.serving("127.0.0.14") as server:
        yield server


@pytest.fixture(scope="module")
def without_commands() -> Iterator[Server]:
    with ssh_server.serving("127.0.0.14", more="Subsystem sftp internal-sftp\nForceCommand internal-sftp") as server:
        yield server


def reach(server: Server, client: str = "paramiko") -> Shell:
    settings = SshSettings(
        user=ssh_server.USER,
        port=server.port,
        keys=(str(server.home / ".ssh" / "id_ed25519"),),
        agent=False,
        host_keys=((server.folder / "host_key.pub").read_text(),),
        client="openssh" if client == "openssh" else "paramiko",
    )
    return shell.connect(server.address, settings=settings)


@pytest.fixture(params=["local", "ssh", "openssh", "sftp"])
def there(request: pytest.FixtureRequest) -> Shell:
    if request.param == "local":
        return shell.local()
    if request.param == "sftp":
        return reach(request.getfixturevalue("without_commands"))
    return reach(request.getfixturevalue("server"), request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the server's user may write to."""
    with tempfile.TemporaryDirectory(prefix="salvor-files-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a source"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_there_and_back(there: Shell, place: Path, source: Path, tmp_path: Path) -> None:
    target = place / 'it\'s a "target" 주문'
    said = list(transfer.upload(there, source, str(target), mode=0o640, deadline=20))
    assert said[0] == Progress(0, SIZE, "bytes", str(target))
    assert said[-1].done == SIZE
    assert len(said) > 3
    assert [one.done for one in said] == sorted(one.done for one in said)
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(place.iterdir()) == [target]
    back = tmp_path / "back"
    said = list(transfer.download(there, str(target), back, deadline=20))
    assert (said[0].done, said[-1].done) == (0, SIZE)
    assert back.read_bytes() == source.read_bytes() == target.read_bytes()
    assert sorted(tmp_path.iterdir()) == [source, back]
    assert back.stat().st_mode & 0o777 == 0o600


def test_an_empty_file(there: Shell, place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    list(transfer.upload(there, tmp_path / "empty", f"{place}/empty", deadline=20))
    assert (place / "empty").read_bytes() == b""
    list(transfer.download(there, f"{place}/empty", tmp_path / "back", deadline=20))
    assert (tmp_path / "back").read_bytes() == b""


def test_a_broken_transfer_is_gone_on_with(there: Shell, place: Path, source: Path, tmp_path: Path) -> None:
    target = place / "target"
    target.write_text("before")
    going = transfer.upload(there, source, str(target), deadline=20)
    while next(going).done == 0:
        pass
    going.close()  # type: ignore[attr-defined]
    assert target.read_text() == "before"
    first = next(transfer.upload(there, source, str(target), deadline=20))
    assert first.done == 8 * 1024 * 1024
    target.unlink()  # SFTP alone: another's file is no place to write to
    list(transfer.upload(there, source, str(target), deadline=20))
    assert target.read_bytes() == source.read_bytes()
    part = tmp_path / "back.salvor-part"
    part.write_bytes(source.read_bytes()[:5_000_000])
    assert next(transfer.download(there, str(target), tmp_path / "back", deadline=20)).done == 5_000_000
    list(transfer.download(there, str(target), tmp_path / "back", deadline=20))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_what_is_left_of_something_else_is_not_gone_on_with(
    there: Shell, place: Path, source: Path, tmp_path: Path
) -> None:
    (place / "target.salvor-part").write_bytes(b"x" * 1000)
    (place / "target.salvor-part").chmod(0o666)
    assert next(transfer.upload(there, source, f"{place}/target", deadline=20)).done == 0
    list(transfer.upload(there, source, f"{place}/target", deadline=20))
    assert (place / "target").read_bytes() == source.read_bytes()
    (tmp_path / "back.salvor-part").write_bytes(b"x" * 1000)
    list(transfer.download(there, f"{place}/target", tmp_path / "back", deadline=20))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_a_planted_link_is_not_written_through(there: Shell, place: Path, source: Path, tmp_path: Path) -> None:
    victim = place / "victim"
    victim.write_text("precious")
    (place / "target.salvor-part").symlink_to(victim)
    (tmp_path / "back.salvor-part").symlink_to(victim)
    list(transfer.upload(there, source, f"{place}/target", deadline=20))
    list(transfer.download(there, f"{place}/target", tmp_path / "back", deadline=20))
    assert victim.read_text() == "precious"
    assert not (place / "target").is_symlink()


def test_a_file_that_changes_meanwhile_takes_no_place(there: Shell, place: Path, source: Path, tmp_path: Path) -> None:
    target = place / "target"
    going = transfer.upload(there, source, str(target), deadline=20)
    next(going)
    next(going)
    source.write_bytes(bytes(SIZE))
    with pytest.raises(CannotError, match="checksums differ"):
        list(going)
    assert list(place.iterdir()) == []
    target.write_bytes(os.urandom(SIZE))
    down = transfer.download(there, str(target), tmp_path / "back", deadline=20)
    next(down)
    next(down)
    target.write_bytes(bytes(SIZE))
    with pytest.raises(CannotError, match="checksums differ"):
        list(down)
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "back.salvor-part").exists()


def test_what_is_not_there(there: Shell, place: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotError, match="There is no file"):
        list(transfer.download(there, f"{place}/nothing", tmp_path / "back", deadline=20))
    with pytest.raises(CannotError, match="cannot be written on") as refused:
        list(transfer.upload(there, source, f"{place}/no/such/folder", deadline=20))
    assert refused.value.hint.endswith(f"There: ls -ld {place}/no/such")
    for wrong in ("relative", "-rf", f"{place}/"):
        with pytest.raises(UsageError, match="absolute path"):
            list(transfer.upload(there, source, wrong, deadline=20))


def test_a_folder_is_no_target(there: Shell, place: Path, source: Path) -> None:
    (place / "folder").mkdir()
    with pytest.raises(SalvorError):
        list(transfer.upload(there, source, f"{place}/folder", deadline=20))
    assert list((place / "folder").iterdir()) == []


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A small disk of its own."""
    (place / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place / "disk"], check=True)
    try:
        yield place / "disk"
    finally:
        subprocess.run(["umount", place / "disk"], check=True)


@needs_root
@pytest.mark.root
def test_a_full_disk(there: Shell, place: Path, source: Path) -> None:
    with disk(place, "size=9m,mode=777") as small:
        (small / "target").write_text("before")
        with pytest.raises(CannotError, match=r"(No space left on device|Failure)"):
            list(transfer.upload(there, source, f"{small}/target", deadline=20))
        assert (small / "target").read_text() == "before"
        assert list(small.iterdir()) == [small / "target"]  # what is left of it would fill the disk
        (small / "fill").write_bytes(bytes(os.statvfs(small).f_bfree * 4096))
        if runs_commands(there):
            with pytest.raises(CommandError, match="No space left on device"):
                there.write(f"{small}/small", "x" * 10_000)
            assert not (small / "small").exists()


@needs_root
@pytest.mark.root
def test_a_read_only_disk(there: Shell, place: Path, source: Path) -> None:
    with disk(place, "size=1m,mode=777,ro") as fixed:
        with pytest.raises(CannotError, match=r"(Read-only file system|Failure)"):
            list(transfer.upload(there, source, f"{fixed}/target", deadline=20))
        if runs_commands(there):
            with pytest.raises(CommandError, match="Read-only file system"):
                there.write(f"{fixed}/small", "x")


def runs_commands(there: Shell) -> bool:
    try:
        return there.succeeds(["true"])
    except CannotError:
        return False


def test_a_host_that_has_no_program_for_checksums(server: Server, place: Path, source: Path) -> None:
    tools = place / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "rm", "wc", "mv", "chmod", "sync", "test", "tail", "head", "true"):
        (tools / name).symlink_to(Path("/bin", name))
    with ssh_server.serving(
        "127.0.0.14", more=f'ForceCommand PATH={tools}; export PATH; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    ) as bare:
        there = reach(bare)
        assert not there.succeeds(["sh", "-c", "command -v sha256sum"])
        list(transfer.upload(there, source, f"{place}/target", deadline=20))
    assert hashlib.sha256((place / "target").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()

"""Archives in S3 and on another host: read once, as a stream; and archives that are written."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import IncompleteReadError, ReadTimeoutError
from botocore.response import StreamingBody
from salvor import bucket, shell, streams
from salvor.archive import listing as listed
from salvor.archive import write as writing
from salvor.archive.source import Archive, opened
from salvor.archive.write import write
from salvor.errors import CannotError, UsageError
from salvor.ssh.settings import SshSettings
from salvor.wish import Wish

from tests import ssh_server
from tests.archive import made
from tests.archive.made import NAME, listing, pack, platform, settings, unpack

pytestmark = pytest.mark.timeout(60)
HERE = shell.local()


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return platform(tmp_path_factory.mktemp("platform"))


@pytest.fixture
def packed(top: Path, tmp_path: Path) -> Path:
    return pack(top, tmp_path / f"{NAME}.tar.gz")


# --- S3 ----------------------------------------------------------------------------------------------------------


def test_an_archive_in_a_bucket_is_listed_and_read_once(s3: Any, packed: Path, top: Path, tmp_path: Path) -> None:
    folder = "s3://off-site/of/o4o #1"
    for name in (packed.name, "o4o_backup_20240101_000000.tar.gz", "deeper/o4o_backup_20260101_000000.tar.gz", "x.txt"):
        s3.put_object(Bucket="off-site", Key=f"of/o4o #1/{name}", Body=packed.read_bytes())
    using = settings(folder=folder)
    found = listed.backups(using, HERE, system="media", way="archive")
    assert [one.id for one in found] == [packed.name, "o4o_backup_20240101_000000.tar.gz"]
    archive = listed.find(using, HERE, Wish())
    assert archive == listed.locate(f"{folder}/{packed.name}", HERE)
    unpack(archive.location, tmp_path / "into")
    assert listing(tmp_path / "into/tree") == listing(top / "uploads")
    with pytest.raises(UsageError, match="there is nothing at"):
        listed.locate("s3://off-site/nothing.tar.gz", HERE)


def test_a_connection_that_breaks_is_gone_on_with(
    s3: Any, packed: Path, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="off-site", Key=packed.name, Body=packed.read_bytes())
    read, reads = StreamingBody.read, []

    def breaks(body: StreamingBody, amt: int | None = None) -> bytes:
        reads.append(amt)
        if len(reads) % 2 == 0:
            raise IncompleteReadError(actual_bytes=0, expected_bytes=1)
        return bytes(read(body, min(amt or 50_000, 50_000)))

    monkeypatch.setattr(StreamingBody, "read", breaks)
    unpack(f"s3://off-site/{packed.name}", tmp_path / "into")
    assert listing(tmp_path / "into/tree") == listing(top / "uploads")
    assert len(reads) > 6

    def always_breaks(body: StreamingBody, amt: int | None = None) -> bytes:
        raise IncompleteReadError(actual_bytes=0, expected_bytes=1)

    monkeypatch.setattr(StreamingBody, "read", always_breaks)
    with pytest.raises(CannotError, match="broke off 4 times after 0 bytes") as error:
        unpack(f"s3://off-site/{packed.name}", tmp_path / "into2")
    assert error.value.hint.startswith("run the same command again")


def test_what_was_replaced_midway_is_not_mixed_up(
    s3: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="off-site", Key=packed.name, Body=packed.read_bytes())
    read, reads = StreamingBody.read, []

    def breaks(body: StreamingBody, amt: int | None = None) -> bytes:
        reads.append(amt)
        if len(reads) == 2:
            s3.put_object(Bucket="off-site", Key=packed.name, Body=b"another one" * 50_000)
            raise IncompleteReadError(actual_bytes=0, expected_bytes=1)
        return bytes(read(body, 50_000))

    monkeypatch.setattr(StreamingBody, "read", breaks)
    with pytest.raises(CannotError, match="PreconditionFailed"):
        unpack(f"s3://off-site/{packed.name}", tmp_path / "into")


def test_a_bucket_that_says_nothing_is_given_up_in_time(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(bucket, "ANSWERING", 0.4)
        with pytest.raises(CannotError, match="Read timeout"):
            listed.archives("s3://off-site/of", HERE)


def test_a_download_that_stalls_says_so_and_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a server that gives the begin of everything, and then nothing more."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(bucket, "SILENCE", 1.0)
    monkeypatch.setattr(streams, "_SHORT", 0.2)
    asked = []

    class Stalls(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.command)
            self.send_response(200)
            self.send_header("Content-Length", "5000000")
            self.send_header("ETag", '"of one part"')
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(bytes(300_000))
            self.wfile.flush()
            over.wait(20)

        def log_message(self, *_: object) -> None:
            pass

    over, told = threading.Event(), list[str]()
    with ThreadingHTTPServer(("127.0.0.1", 0), Stalls) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with (
            pytest.raises(CannotError, match=r"Nothing could be read from s3://dumps/orders\.sql for 1 s"),
            bucket._client("s3://dumps", "", silence=0.6, attempts=4) as s3,
        ):
            for progress in bucket.download(s3, "dumps", "orders.sql", tmp_path / "orders.sql", label="dump"):
                told.append(progress.label)
        over.set()
        server.shutdown()
    assert any(re.fullmatch(r"dump: waiting for more for .* at most", one) for one in told)
    assert len(asked) < 5, "nobody asks on"
    assert list(tmp_path.iterdir()) == []


def test_without_credentials_it_is_said_which_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint was to type a command that has none either."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which remembers those of the tests before
    with pytest.raises(CannotError, match="Unable to locate credentials") as error:
        bucket.head("s3://off-site/a.sql")
    assert error.value.hint.startswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,")


def test_a_body_that_stalls_is_told_without_words_that_mean_nothing() -> None:
    with pytest.raises(CannotError) as error, bucket._told("s3://off-site/of"):
        raise ReadTimeoutError(endpoint_url=None)
    assert error.value.what == "s3://off-site/of does not give what was asked for: Read timeout."


# --- another host ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")
@pytest.mark.parametrize("client", ["paramiko", "openssh"])
def test_a_tree_on_another_host_comes_out_of_the_archive_that_lies_there(client: str, top: Path, packed: Path) -> None:
    with ssh_server.serving("127.0.0.15") as server:
        there = shell.connect(
            server.address,
            settings=SshSettings.model_validate({
                "user": ssh_server.USER,
                "port": server.port,
                "keys": [str(server.home / ".ssh" / "id_ed25519")],
                "agent": False,
                "host_keys": [(server.folder / "host_key.pub").read_text()],
                "client": client,
            }),
        )  # fmt: skip
        place = Path(tempfile.mkdtemp(prefix="salvor-archive-"))
        try:
            into = place / "into"
            shutil.copy(packed, place)
            into.mkdir(mode=0o700)
            for path in (place, into, place / packed.name):
                shutil.chown(path, ssh_server.USER)
            found = unpack(place / packed.name, into, there=there, on_host=True)
            assert not found.owners
            theirs, ours = listing(into / "tree"), listing(top / "uploads")
            assert {n: (it[0], it[1], it[-1]) for n, it in theirs.items()} == {
                n: (it[0], it[1], it[-1]) for n, it in ours.items()
            }
            (archive,) = listed.archives(str(place), HERE)
            assert archive.taken is not None
            other = listed._dated([Archive(archive.location, True, None, 1)], there)  # by the clock over there
            assert other[0].taken == archive.taken
        finally:
            shutil.rmtree(place)


def test_a_folder_that_is_on_the_other_host_only_is_listed_there(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other host: this one, through a shell, after this process was told that it has no such folder."""
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path != tmp_path and is_dir(path))
    (tmp_path / "not one.tar.gz").touch()
    (tmp_path / "a name\n7 o4o_backup_20260101_000000.tar.gz").touch()
    (tmp_path / "o4o_backup_20251399_000000.tar.gz").touch()
    (found,) = listed.archives(str(tmp_path), HERE)
    assert (found.name, found.there, found.size) == (packed.name, True, packed.stat().st_size)
    monkeypatch.undo()
    assert found.taken in [one.taken for one in listed.archives(str(tmp_path), HERE)]
    assert listed.archives(str(tmp_path / "nowhere"), HERE) == []


# --- written -----------------------------------------------------------------------------------------------------


def part(path: Path) -> Callable[[], Iterator[bytes]]:
    def stream() -> Iterator[bytes]:
        return HERE.pieces(["tar", "-c", "--format=gnu", "-C", str(path.parent), "--", path.name], deadline=60)

    return stream


def finish(work: Iterator[object]) -> None:
    for _ in work:
        pass


def test_a_written_archive_holds_what_it_was_given_in_any_tool(top: Path, tmp_path: Path) -> None:
    using, folder = settings(folder=str(tmp_path / "backup")), tmp_path / "backup"
    folder.mkdir(mode=0o700)
    (folder / ".o4o_backup_20200101_000000.tar.gz.new").write_bytes(b"what a killed call left")
    other = folder / ".o4o_backup_20200102_000000.tar.gz.new"
    with other.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody else writes it now
        finish(write(using, f"{NAME}.tar.gz", {"a/media": part(top / "uploads"), ".env": part(top / ".env")}, tmp_path))
    assert {path.name for path in folder.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}.tar.gz.sha256", other.name}
    made.run("tar", "-xzf", folder / f"{NAME}.tar.gz", "-C", tmp_path)
    assert listing(tmp_path / "a/media") == listing(top / "uploads")
    assert (tmp_path / "a/media/one.jpg").stat().st_nlink == 2
    assert listing(tmp_path / ".env") == listing(top / ".env")
    with pytest.raises(UsageError, match="already"):
        finish(write(using, f"{NAME}.tar.gz", {".env": part(top / ".env")}, tmp_path))


def test_two_that_are_written_at_once_leave_each_other_alone(top: Path, tmp_path: Path) -> None:
    using, names = settings(folder=str(tmp_path)), (f"{NAME}.tar.gz", "o4o_backup_20260101_000000.tar.gz")

    def meanwhile() -> Iterator[bytes]:
        finish(write(using, names[1], {".env": part(top / ".env")}, tmp_path))
        yield from part(top / "build")()

    finish(write(using, names[0], {"build": meanwhile}, tmp_path))
    assert {one.name for one in listed.archives(str(tmp_path), HERE)} == set(names)


def test_an_archive_is_written_to_a_bucket(s3: Any, top: Path, tmp_path: Path) -> None:
    using = settings(folder="s3://off-site/daily")
    finish(write(using, f"{NAME}.tar.gz", {"uploads": part(top / "uploads")}, tmp_path / "scratch"))
    assert list((tmp_path / "scratch").iterdir()) == []
    unpack(f"s3://off-site/daily/{NAME}.tar.gz", tmp_path / "into")
    assert listing(tmp_path / "into/tree") == listing(top / "uploads")


def test_what_fails_midway_leaves_nothing(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using, folder = settings(folder=str(tmp_path / "backup")), tmp_path / "backup"
    with pytest.raises(CannotError, match="There is no folder"):
        finish(write(using, f"{NAME}.tar.gz", {}, tmp_path))
    folder.mkdir()

    def breaks_off() -> Iterator[bytes]:
        yield from list(part(top / "uploads")())[:2]

    def fails() -> Iterator[bytes]:
        return HERE.pieces(["tar", "-c", "/nowhere"], deadline=10)

    def two() -> Iterator[bytes]:
        return HERE.pieces(["tar", "-c", "-C", str(top), "build", "logs"], deadline=10)

    for content, match in (
        (breaks_off, "truncated"),
        (fails, "Cannot stat"),
        (lambda: iter([bytes(1024)]), "nothing to pack"),
        (two, "'logs' is not below 'build'"),
    ):
        with pytest.raises(CannotError, match=match):
            finish(write(using, f"{NAME}.tar.gz", {".env": part(top / ".env"), "uploads": content}, tmp_path))
        assert list(folder.iterdir()) == []
    compressed = writing._compressed

    def another(pieces: Iterable[bytes]) -> Iterator[bytes]:
        return compressed(piece.replace(b"GET / 200", b"GET / 404") for piece in pieces)

    def nothing(pieces: Iterable[bytes]) -> Iterator[bytes]:
        return compressed([bytes(len(b"".join(pieces)))])

    for spoilt in (another, nothing):
        monkeypatch.setattr(writing, "_compressed", spoilt)
        with pytest.raises(CannotError, match=r"'uploads/shop\.log' in .* is not what was written to it"):
            finish(write(using, f"{NAME}.tar.gz", {"uploads": part(top / "logs")}, tmp_path))
        assert list(folder.iterdir()) == []
    monkeypatch.setattr(writing, "_compressed", compressed)
    put = writing._Written.put

    def spoils(written: writing._Written, piece: bytes) -> None:
        put(written, piece[:9000] + bytes([piece[9000] ^ 1]) + piece[9001:])

    monkeypatch.setattr(writing._Written, "put", spoils)  # a disk that does not keep what it was given
    with pytest.raises(CannotError):
        finish(write(using, f"{NAME}.tar.gz", {"uploads": part(top / "uploads")}, tmp_path))
    assert list(folder.iterdir()) == []


@pytest.mark.root
def test_a_full_disk_leaves_nothing(top: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root mounts a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    made.run("mount", "-t", "tmpfs", "-o", "size=100k", "none", disk)
    try:
        with pytest.raises(CannotError, match="No space left"):
            finish(write(settings(folder=str(disk)), f"{NAME}.tar.gz", {"uploads": part(top / "uploads")}, tmp_path))
        assert list(disk.iterdir()) == []
    finally:
        made.run("umount", disk)


def test_a_pipe_is_left_out_of_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs/pipe")
    (tmp_path / "logs/log").write_text("line")
    finish(write(settings(folder=str(tmp_path)), f"{NAME}.tar.gz", {"uploads": part(tmp_path / "logs")}, tmp_path))
    archive = Archive(str(tmp_path / f"{NAME}.tar.gz"), False, None, 1)
    with opened(archive, None, HERE) as source:
        assert source.how == ""
    assert set(unpack(archive.location, tmp_path / "into").entries) == {"", "log"}

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from salvor.change import Level
from salvor.errors import UsageError
from salvor.journal import FILE, Journal, mirror, mirror_store
from salvor.journal.evidence import check
from salvor.journal.mirror_store import name_of, store

from tests.waiting import until

INCIDENT = "20261121T003300Z-orders-3f2a"


def copied(folder: Path) -> bytes:
    """The journal, as the mirror folder has it."""
    return b"".join(path.read_bytes() for path in sorted((folder / INCIDENT).glob("[!.]*")))


def levels(folder: Path, location: str) -> list[tuple[Level, str]]:
    return [(found.level, found.figure) for found in check(folder, mirror=location) if found.check == "mirror"]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_FIRST_WAIT", 0.02)


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_folder_holds_every_line(tmp_path: Path, share: Path, form: str) -> None:
    location = form.format(share)
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror=location) as journal:
        for number in range(20):
            journal.append("note", text=str(number))
    content = (tmp_path / INCIDENT / FILE).read_bytes()
    assert copied(share) == content
    lines = content.splitlines()
    assert {path.name for path in (share / INCIDENT).iterdir()} == {name_of(n, line) for n, line in enumerate(lines, 1)}
    assert levels(tmp_path / INCIDENT, location) == [(Level.PASS, "21 lines")]
    assert {path.stat().st_mode & 0o777 for path in (share / INCIDENT).iterdir()} == {0o600}
    assert (share / INCIDENT).stat().st_mode & 0o777 == 0o700


def test_a_mirror_that_is_away_delays_nothing_is_told_once_and_catches_up(tmp_path: Path, share: Path) -> None:
    share.rmdir()  # a share that is not mounted: its folder must not be made on the local disk
    told: list[str] = []
    journal = Journal.create(tmp_path / INCIDENT, by="kim", mirror=str(share), tell=told.append)
    for number in range(30):
        journal.append("note", text=str(number))
    assert until(lambda: bool(told))
    time.sleep(0.1)
    assert len(told) == 1
    assert "cannot be written: [Errno 2]" in told[0]
    assert not share.exists()
    share.mkdir()
    assert until(lambda: len(told) == 2)
    journal.close()
    assert "is written again" in told[1]
    assert copied(share) == (tmp_path / INCIDENT / FILE).read_bytes()


def test_the_next_command_sends_what_an_earlier_one_could_not(tmp_path: Path, share: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim", mirror=str(share)) as journal:
        journal.append("note", text="one")
    away = share.rename(tmp_path / "away")
    told: list[str] = []
    with Journal.open(folder, by="kim", mirror=str(share), tell=told.append) as journal:
        journal.append("note", text="two")
    assert "lacks the last 3 lines" in told[-1], "what an unreachable mirror has, nobody can know"
    away.rename(share)
    assert levels(folder, str(share)) == [(Level.WARN, "line 3")]
    before = {path: path.stat().st_mtime_ns for path in (share / INCIDENT).iterdir()}
    with Journal.open(folder, by="kim", mirror=str(share)):
        pass
    assert copied(share) == (folder / FILE).read_bytes()
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "nothing is sent twice"


def test_a_share_that_goes_away_is_not_made_on_the_local_disk(tmp_path: Path, share: Path) -> None:
    told: list[str] = []
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror=str(share), tell=told.append) as journal:
        assert until(lambda: len(copied(share)) > 0)
        shutil.rmtree(share)
        journal.append("note", text="one")
        assert until(lambda: bool(told))
    assert not share.exists()


def test_a_mirror_that_is_away_is_asked_ever_more_rarely(
    tmp_path: Path, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def names(_: object) -> set[str]:
        asked.append(time.monotonic())
        raise OSError

    monkeypatch.setattr(mirror_store._Folder, "names", names)
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror=str(share), tell=lambda _: None) as journal:
        for number in range(50):
            journal.append("note", text=str(number))
            time.sleep(0.004)
        assert 1 < len(asked) < 8
        journal.close(deadline=5)


def test_a_mirror_that_hangs_delays_no_append_and_the_close_by_its_deadline_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepts by the kernel's backlog, and never answers
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{hanging.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        program = f"""
import time
from pathlib import Path
from salvor.journal import Journal
journal = Journal.create(Path({str(tmp_path / INCIDENT)!r}), by="kim", mirror="s3://bucket/prefix")
longest = 0
for number in range(100):
    begun = time.monotonic()
    journal.append("note", text=str(number))
    longest = max(longest, time.monotonic() - begun)
    time.sleep(0.005)
begun = time.monotonic()
journal.close(deadline=0.2)
print(longest, time.monotonic() - begun)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=True
        )
    longest, closing = map(float, done.stdout.split())
    assert longest < 1, "the import of boto3 holds the interpreter a little"
    assert 0.2 <= closing < 2
    assert "lacks the last 101 lines" in done.stderr


def test_lines_that_the_disk_does_not_take_reach_the_mirror(
    tmp_path: Path, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    journal = Journal.create(tmp_path / "file" / INCIDENT, by="kim", mirror=str(share), tell=lambda _: None)
    journal.append("note", text="held")
    assert journal.pending == 2
    journal.close()
    assert copied(share).count(b"\n") == 2


def test_check_finds_what_the_mirror_knows_better(tmp_path: Path, share: Path) -> None:
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim", mirror=str(share)) as journal:
        for text in ("one", "two"):
            journal.append("note", text=text)
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)

    (folder / FILE).write_bytes(b"".join(lines[:2]))
    assert levels(folder, str(share)) == [(Level.FAIL, "line 3")]
    (folder / FILE).write_bytes(b"".join(lines).replace(b"two", b"owt"))
    assert levels(folder, str(share)) == [(Level.FAIL, "line 3")]
    (folder / FILE).write_bytes(b"".join(lines))
    (share / INCIDENT / name_of(2, b"another")).touch()
    assert levels(folder, str(share)) == [(Level.WARN, "line 2")]
    shutil.rmtree(share / INCIDENT)
    assert levels(folder, str(share)) == [(Level.WARN, "line 1")]
    share.rmdir()
    assert levels(folder, str(share)) == [(Level.UNKNOWN, "")]


@pytest.mark.parametrize("apart", [1, 2, 3, 5])
def test_lines_that_others_went_on_without_are_kept_beside_the_journal(tmp_path: Path, share: Path, apart: int) -> None:
    here, there, said = tmp_path / "here" / INCIDENT, tmp_path / "there" / INCIDENT, list[str]()
    with Journal.create(here, by="kim", mirror=str(share)):
        pass
    with Journal.open(here, by="kim") as never_sent:  # as when the power fails
        for number in range(apart):
            never_sent.append("note", text=f"the last word {number}")
    with (here / FILE).open("a") as file:
        file.write('{"n":3,"at')
    with Journal.open(there, by="lee", mirror=str(share)) as journal:
        for _ in range(2):
            journal.append("note", text="gone on")
    with Journal.open(here, by="kim", mirror=str(share), tell=said.append) as journal:
        texts = [line.get("text") for line in journal.of("note")]
    if apart <= 2:  # as much in the mirror, or more
        assert texts == ["gone on", "gone on"]
        assert (here / mirror.ASIDE).read_text().endswith('"}\n{"n":3,"at\n')
        kept = f"without {apart + 1} lines of this machine, kept in journal.aside.jsonl"
        assert kept in journal.of("repaired")[0]["text"]
        assert levels(here, str(share)) == [(Level.PASS, "4 lines")]
        before = (here / mirror.ASIDE).read_text()
        mirror.put_aside(here, [b"of another time"])
        assert (here / mirror.ASIDE).read_text() == f"{before}of another time\n"
    else:
        assert len(texts) == apart and not (here / mirror.ASIDE).exists()
        with Journal.open(there, by="lee", mirror=str(share)) as journal:
            assert [line.get("text") for line in journal.of("note")] == texts
        assert levels(there, str(share))[-1][0] is Level.WARN
        assert (there / mirror.ASIDE).read_text().count("gone on") == 2
    assert "is repaired" in "".join(said)


@pytest.mark.parametrize("location", ["", "s3://", "ftp://host/folder", "file://host/folder", "s3:/bucket"])
def test_a_place_that_cannot_be_a_mirror(tmp_path: Path, location: str) -> None:
    with pytest.raises(UsageError, match="mirror"):
        store(location, INCIDENT)
    if location:
        with pytest.raises(UsageError, match="mirror"):
            Journal.create(tmp_path / INCIDENT, by="kim", mirror=location)
        assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------- S3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="evidence")
        yield "evidence"


@pytest.mark.parametrize("prefix", ["", "/a/b/"])
def test_a_bucket_holds_every_line(tmp_path: Path, bucket: str, prefix: str) -> None:
    location = f"s3://{bucket}{prefix}"
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror=location) as journal:
        for number in range(5):
            journal.append("note", text=str(number))
        journal.close(deadline=30)
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
    folder = f"{prefix.strip('/')}/{INCIDENT}/".lstrip("/")
    assert all(key.startswith(folder) for key in keys)
    content = b"".join(client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in sorted(keys))
    assert content == (tmp_path / INCIDENT / FILE).read_bytes()
    assert levels(tmp_path / INCIDENT, location) == [(Level.PASS, "6 lines")]


def test_a_bucket_that_is_not_there_is_told(tmp_path: Path, bucket: str) -> None:
    told: list[str] = []
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror="s3://none/x", tell=told.append) as journal:
        assert until(lambda: bool(told))
    assert journal.pending == 0
    assert "NoSuchBucket" in told[0]
    assert levels(tmp_path / INCIDENT, "s3://none/x") == [(Level.UNKNOWN, "")]


def test_no_thread_is_left(tmp_path: Path, share: Path) -> None:
    with Journal.create(tmp_path / INCIDENT, by="kim", mirror=str(share)):
        pass
    assert "journal mirror" not in [thread.name for thread in threading.enumerate()]

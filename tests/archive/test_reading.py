"""One reading of an archive for several who take from it: who joins it, who waits, and what is whose failure."""

from __future__ import annotations

import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from salvor import shell
from salvor.archive import reading, untar
from salvor.archive.extract import extract, taking_out
from salvor.archive.source import Archive
from salvor.archive.taking import Company
from salvor.errors import CannotError, OutcomeUnknownError

from tests.archive.made import by_hand, member

pytestmark = pytest.mark.timeout(60)
CONTENT = os.urandom(200_000)


class Pipe:
    """An archive that comes as slowly as a test wants it, and tells how often it was opened."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content, self.opened = path, content, 0
        os.mkfifo(path)

    @contextmanager
    def writing(self) -> Iterator[Callable[[float], None]]:
        """Somebody reads it: give that one the content up to a part of it."""
        with self.path.open("wb", buffering=0) as file:
            self.opened += 1
            given = 0

            def give(part: float) -> None:
                nonlocal given
                upto = int(len(self.content) * part)
                rest, given = memoryview(self.content)[given:upto], upto
                while rest:
                    rest = rest[file.write(rest) :]

            yield give


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    """a, then b, then c, of a third each."""
    members = [member(f"{name}/file", CONTENT) for name in "abc"]
    return by_hand(tmp_path / "plain.tar", members, "w").read_bytes()


def take(path: Path, into: Path, name: str, company: Company = Company()) -> Any:  # noqa: B008  frozen
    folder = into / name
    folder.mkdir(parents=True)
    work = extract(Archive(str(path), False, None, 1), None, name, shell.local(), str(folder), company=company)
    while True:
        try:
            next(work)
        except StopIteration as ended:
            return ended.value


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def together(*names: str) -> Callable[[str], Company]:
    return lambda name: Company(name, lambda: names)


def test_who_comes_later_joins_if_nothing_of_it_went_by_else_the_next_reading_is_for_all_of_those(
    plain: bytes, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    pipe = Pipe(tmp_path / "pipe.tar", plain)
    jobs: dict[str, Future[Any]] = {"a": pool.submit(take, pipe.path, tmp_path / "1", "a")}
    with pipe.writing() as give:
        give(0.5)  # all of a, and half of b
        (going_on,) = (one for key, one in reading._readings.items() if key.location == str(pipe.path))
        while not going_on._names.may_be_past("b"):
            time.sleep(0.01)
        jobs["c"] = pool.submit(take, pipe.path, tmp_path / "1", "c")
        jobs["b"] = pool.submit(take, pipe.path, tmp_path / "1", "b")
        jobs["a again"] = pool.submit(take, pipe.path, tmp_path / "2", "a")
        while len(going_on._later) < 2 or len(going_on._takings) < 2:
            time.sleep(0.01)
        give(1)
    for name in "ac":
        jobs[name].result(timeout=20)
        assert (tmp_path / "1" / name / "tree/file").read_bytes() == CONTENT
    assert not jobs["b"].done()
    with pipe.writing() as give:
        give(1)
    for place in ("1/b", "2/a"):
        jobs["b" if place == "1/b" else "a again"].result(timeout=20)
        assert (tmp_path / place / "tree/file").read_bytes() == CONTENT
    assert pipe.opened == 2
    assert not reading._readings


def test_it_begins_when_all_have_come_who_are_about_to(plain: bytes, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    pipe, company = Pipe(tmp_path / "pipe.tar", plain), together("a", "b", "c")
    jobs = [pool.submit(take, pipe.path, tmp_path, "a", company("a"))]
    time.sleep(0.2)
    jobs += [pool.submit(take, pipe.path, tmp_path, name, company(name)) for name in "bc"]
    with pipe.writing() as give:
        give(1)
    for job in jobs:
        job.result(timeout=20)
    assert not reading._readings


def test_who_is_said_to_come_and_does_not_is_not_waited_for_forever(
    plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_GATHERING", 0.1)
    path = tmp_path / "plain.tar"
    assert path.read_bytes() == plain
    take(path, tmp_path, "a", Company("a", lambda: ("a", "b")))


def test_a_hostile_member_is_refused_by_name_and_the_others_are_served(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    evil = [
        member("a/file", CONTENT),
        member("b/device", type=tarfile.CHRTYPE),
        member("b/later", CONTENT),
        member("c/file", CONTENT),
        member("d/link", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
    ]
    path, company = by_hand(tmp_path / "1.tar.gz", evil), together("a", "b", "c", "d")
    jobs = {name: pool.submit(take, path, tmp_path / "out", name, company(name)) for name in "abcd"}
    for name in "ac":
        jobs[name].result(timeout=20)
        assert (tmp_path / "out" / name / "tree/file").read_bytes() == CONTENT
    with pytest.raises(CannotError, match="'b/device' is a device"):
        jobs["b"].result(timeout=20)
    with pytest.raises(CannotError, match=r"'d/link' is a link to .* leads out"):
        jobs["d"].result(timeout=20)
    path = by_hand(tmp_path / "2.tar.gz", [*evil[:1], member("../../x", b"1"), *evil[3:4]])
    jobs = {name: pool.submit(take, path, tmp_path / "all", name, together("a", "c")(name)) for name in "ac"}
    for job in jobs.values():
        with pytest.raises(CannotError, match=r"'../../x' climbs out"):
            job.result(timeout=20)
    assert not (tmp_path / "x").exists()


def test_one_that_takes_nothing_or_whose_disk_is_full_keeps_nobody_else(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real commands in the place of tar: one that never reads, one that a full disk ends."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/tar"
    script.write_text(f"""#!/bin/sh
        case $1$PWD in
            --version*) ;;
            */a) exec sleep 8 ;;
            */b) head -c 100000 >/dev/full ;;
            *) exec {shutil.which("tar")} "$@" ;;
        esac""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(untar, "_STALLED", 2.0)
    monkeypatch.setattr(untar, "_ENDING", 0.1)
    large = os.urandom(4_000_000)  # more than a queue holds: the full disk is noticed in the middle of it
    members = [member("b/large", large)]
    members += [member(f"{name}/{number}", CONTENT) for name in "abc" for number in range(20)]
    names = ("a", "b", "b/large", "c")
    path, company = by_hand(tmp_path / "1.tar", members, "w"), together(*names)
    into = {name: tmp_path / name.replace("/", " of ") for name in names}
    jobs = {name: pool.submit(take, path, into[name], name, company(name)) for name in names}
    jobs["c"].result(timeout=20)
    jobs["b/large"].result(timeout=20)  # what another one wants as well
    assert (into["b/large"] / "b/large/tree").read_bytes() == large
    assert len(list((into["c"] / "c/tree").iterdir())) == 20
    with pytest.raises(OutcomeUnknownError, match="took nothing for"):
        jobs["a"].result(timeout=20)
    with pytest.raises(CannotError, match="No space left"):
        jobs["b"].result(timeout=20)


def test_a_tar_that_fails_when_it_has_taken_all_is_told(
    plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin/tar"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\n[ "$1" = --version ] || { cat >/dev/null; echo "Cannot close" >&2; exit 2; }\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    assert (tmp_path / "plain.tar").read_bytes() == plain
    with pytest.raises(CannotError, match="Cannot close"):
        take(tmp_path / "plain.tar", tmp_path / "out", "a")


def test_a_single_file_is_out_before_the_archive_ends_and_whole_after(plain: bytes, tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "pipe.tar", plain)
    (tmp_path / "into").mkdir()
    archive = Archive(str(pipe.path), False, None, 1)
    ended = threading.Event()

    def write() -> None:
        with pipe.writing() as give:
            give(0.5)
            ended.wait(20)
            give(0.9)  # and no more: it is cut off

    threading.Thread(target=write, daemon=True).start()
    with taking_out(archive, None, "a/file", shell.local(), str(tmp_path / "into"), tree="dump") as taking:
        for _ in taking.out():
            pass
        assert (tmp_path / "into/dump").read_bytes() == CONTENT
        ended.set()
        with pytest.raises(CannotError, match="truncated") as caught:
            list(taking.whole())
        assert caught.value.hint.startswith("if it is being written still: the same command again")


def test_who_leaves_stops_nobody_and_when_all_left_it_is_read_no_further(
    plain: bytes, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    pipe, company = Pipe(tmp_path / "pipe.tar", plain), together("b", "c")
    (tmp_path / "into").mkdir()
    archive = Archive(str(pipe.path), False, None, 1)
    job = pool.submit(take, pipe.path, tmp_path, "c", company("c"))
    with taking_out(archive, None, "b", shell.local(), str(tmp_path / "into"), company=company("b")):
        file = pipe.path.open("wb", buffering=0)
        file.write(pipe.content[:300_000])
    file.write(pipe.content[300_000:])
    file.close()
    job.result(timeout=20)
    shutil.rmtree(tmp_path / "into")
    (tmp_path / "into").mkdir()
    with taking_out(archive, None, "c", shell.local(), str(tmp_path / "into")):
        file = pipe.path.open("wb", buffering=0)
        file.write(pipe.content[:100_000])
    with suppress(BrokenPipeError):
        file.write(pipe.content[100_000:])
    until = time.monotonic() + 10
    while reading._readings and time.monotonic() < until:  # it does not wait for the pipe's end
        time.sleep(0.02)
    assert not reading._readings
    file.close()

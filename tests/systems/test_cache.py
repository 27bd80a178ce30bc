"""The kind cache: a directory with everything that a directory can hold, and a real Redis."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError
from salvor.change import Reachable
from salvor.errors import CannotError, NotConvergedError
from salvor.system import Context
from salvor.systems.cache import Cache, CacheSettings


def of_path(path: Path, context: Context) -> Cache:
    return Cache("pages", CacheSettings(kind="cache", path=str(path)), context)


def old(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("old")
    os.utime(path, (time.time() - 60,) * 2)
    return path


def test_what_was_there_goes_and_what_came_since_stays(tmp_path: Path, context: Context) -> None:
    pages, outside = tmp_path / "pages", old(tmp_path / "outside" / "kept")
    names = ["a", "deep/er/b", ".hidden", "-rf", "a\nline", "*", "\udcff", " "]
    for name in names:
        old(pages / name)
    (pages / "link").symlink_to(outside)
    (pages / "folder").symlink_to(outside.parent)
    os.utime(pages / "link", (time.time() - 60,) * 2, follow_symlinks=False)
    os.utime(pages / "folder", (time.time() - 60,) * 2, follow_symlinks=False)
    cache = of_path(pages, context)
    state = cache.observe()
    assert state.details["entries"] == len(names) + 2
    new = pages / "new"
    new.write_text("came since")
    os.utime(new, (state.details["now"] + 5,) * 2)
    for _ in range(2):
        cache.clear(state.details["now"])
        assert [path for path in pages.rglob("*") if not path.is_dir()] == [new]
    assert (pages / "deep/er").is_dir()
    assert outside.read_text() == "old"


def test_a_directory_that_is_not_what_it_was_is_refused(tmp_path: Path, context: Context) -> None:
    kept = old(tmp_path / "elsewhere" / "kept")
    (tmp_path / "pages").symlink_to(kept.parent)
    for path, said in ((tmp_path / "pages", "is reached by a link"), (tmp_path / "nothing", "is no directory")):
        with pytest.raises(CannotError, match=said):
            of_path(path, context).clear(int(time.time()))
        assert of_path(path, context).observe().reachable is Reachable.UNKNOWN
    assert kept.exists()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/srv",
        "/etc/shop",
        "/usr/share/x",
        "/dev/shm",
        "/dev/x/shop",
        "/var/lib",
        "pages",
        "/srv/../etc/x",
        "/srv/x/",
        "/srv//x",
        "/srv/./x",
        "/home/kim",
        "/root/.ssh",
    ],
)
def test_what_is_more_than_a_cache_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        CacheSettings(kind="cache", path=path)


@pytest.mark.parametrize(
    "path", ["/srv/cache", "/var/cache/shop", "/home/kim/cache", "/root/shop/cache", "/dev/shm/shop"]
)
def test_what_may_be_a_cache_is_taken(path: str) -> None:
    assert CacheSettings(kind="cache", path=path).path == path


def test_it_is_in_one_place() -> None:
    for places in ({}, {"path": "/srv/cache", "redis": {"database": 0}}):
        with pytest.raises(ValidationError, match="one of path and redis"):
            CacheSettings.model_validate({"kind": "cache", **places})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as somebody else")
def test_what_cannot_be_removed_is_said(context: Context) -> None:
    with tempfile.TemporaryDirectory(prefix="salvor-cache-") as folder:  # others may look into no folder of pytest's
        Path(folder).chmod(0o755)
        clear_as_nobody(Path(folder) / "pages", context)


def clear_as_nobody(pages: Path, context: Context) -> None:
    cache = Cache("pages", CacheSettings(kind="cache", path=str(pages), run_as="nobody"), context)
    old(pages / "a")
    with pytest.raises(NotConvergedError, match=r"could not be removed: 1; .*: 0"):
        cache.clear(int(time.time()))
    assert (pages / "a").exists()
    shutil.chown(pages, "nobody")
    old(pages / "closed" / "b")
    for mode in (0o700, 0o744, 0o711):
        (pages / "closed").chmod(mode)
        with pytest.raises(NotConvergedError, match="could not be looked into: 1"):
            cache.clear(int(time.time()))
    assert not (pages / "a").exists() and (pages / "closed" / "b").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_another_disk_below_it_is_no_part_of_it(tmp_path: Path, context: Context) -> None:
    mounted = tmp_path / "pages" / "mounted"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        kept, gone = old(mounted / "kept"), old(tmp_path / "pages" / "gone")
        cache = of_path(tmp_path / "pages", context)
        assert cache.observe().details["entries"] == 1
        cache.clear(int(time.time()))
        assert kept.exists() and not gone.exists()
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a folder")
@pytest.mark.parametrize("name", ["pages", "100% of a\\b"])
def test_a_folder_of_its_own_disk_that_is_mounted_below_it_loses_nothing(
    tmp_path: Path, context: Context, name: str
) -> None:
    """find -xdev goes into it: the files that customers had uploaded were removed."""
    kept, gone = old(tmp_path / "uploads" / "kept"), old(tmp_path / name / "gone")
    mounted = tmp_path / name / "up loads"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", kept.parent, mounted], check=True)
    cache = of_path(tmp_path / name, context)
    try:
        assert cache.observe().reachable is Reachable.UNKNOWN
        with pytest.raises(CannotError, match="another folder of its disk mounted below it"):
            cache.clear(int(time.time()))
        assert kept.exists() and gone.exists()
    finally:
        subprocess.run(["umount", mounted], check=True)
    cache.clear(int(time.time()))
    assert kept.exists() and not gone.exists()


# ------------------------------------------------------------------------------------------ Redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """A real Redis of 16 databases with a password; its port."""
    if not shutil.which("redis-server"):
        pytest.skip("not installed here: redis-server")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "open sesame", "--save", ""]
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.02)
    yield port
    process.kill()
    process.wait(10)


def ask(port: int, *words: str) -> str:
    environment = {**os.environ, "REDISCLI_AUTH": "open sesame"}
    command = ["redis-cli", "-p", str(port), *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def test_one_database_of_redis_is_cleared_once(redis: int, tmp_path: Path, context: Context) -> None:
    secret = tmp_path / "password"
    secret.write_text("open sesame\n")
    secret.chmod(0o600)

    def opened(database: int, **more: object) -> Cache:
        place = {"port": redis, "database": database, "password": f"file:{secret}", **more}
        return Cache("pages", CacheSettings.model_validate({"kind": "cache", "redis": place}), context)

    ask(redis, "-n", "0", "SET", "session", "kept")
    ask(redis, "-n", "1", "SET", "page", "old")
    cache = opened(1)
    state = cache.observe()
    assert (state.reachable, state.details["entries"]) == (Reachable.UP, 1)
    assert abs(state.details["now"] - time.time()) < 5
    cache.clear(state.details["now"])
    assert ask(redis, "-n", "1", "EXISTS", "page") == "0"
    ask(redis, "-n", "1", "SET", "page", "new")
    cache.clear(state.details["now"])  # its work is done
    assert ask(redis, "-n", "1", "GET", "page") == "new"
    cache.clear(state.details["now"] + 1)
    assert ask(redis, "-n", "1", "EXISTS", "page") == "0"
    # redis-cli would go on in database 0.
    with pytest.raises(CannotError, match="out of range"):
        opened(99).clear(1)
    for wrong in ({"password": None}, {"user": "nobody"}):
        with pytest.raises(CannotError, match="refuses"):
            opened(0, **wrong).clear(1)
    ask(redis, "CONFIG", "SET", "min-replicas-to-write", "3")  # as a server that takes no writes
    with pytest.raises(NotConvergedError, match="was not cleared"):
        opened(0).clear(1)
    assert ask(redis, "-n", "0", "GET", "session") == "kept"
    assert "open sesame" not in state.summary


def test_a_redis_that_is_down_is_down(context: Context) -> None:
    settings = CacheSettings.model_validate({"kind": "cache", "redis": {"port": 1, "database": 0}})
    assert Cache("pages", settings, context).observe().reachable is Reachable.DOWN

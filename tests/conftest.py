"""Fixtures for every test: a sandbox of its own, torn down whatever happens.

`sandbox` serves a whole module, `fresh_sandbox` one test. The cluster and its first backup are made once, and each
sandbox begins with a copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
import salvor.sandbox
import salvor.sandbox.o4o.database
import salvor.sandbox.o4o.layout
import salvor.systems
from salvor import secrets
from salvor.sandbox import configuration, database, o4o, platforms, processes
from salvor.sandbox.folders import Folders
from salvor.sandbox.layout import Layout

from tests import world
from tests.world import World


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell's background job ignores Ctrl-C, and so would the commands that tests stop with it. Once a command was
    stopped by it, another one ends its process at once: in a test that is pytest itself, without a word.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """What a killed process leaves is in the kernel's memory: no test can tell whether this one waited for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def secrets_of_others_are_forgotten() -> Iterator[None]:
    """What one test resolves as a secret is masked in its texts alone: it may be a word of the next one's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_known", set(secrets._known))
        patch.setattr(secrets, "_names", set(secrets._names))
        patch.setattr(secrets, "_hidden", secrets._hidden)
        yield


def pytest_sessionfinish() -> None:
    """Remove the System V segments (of which a machine has 4,096) of servers that were killed and not started again.

    PostgreSQL keeps one of 56 bytes for each server, to see at the next start whether a child still lives.
    """
    lines = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    for _, number, _, size, creator, _, attached, *_ in lines:
        if size == "56" and attached == "0" and not Path("/proc", creator).exists():
            subprocess.run(["ipcrm", "--shmem-id", number], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def kinds_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds of system in tests/kinds are found beside the real ones."""
    monkeypatch.setattr(salvor.systems, "__path__", [*salvor.systems.__path__, world.KINDS])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    """The small world of tests/world.py, damaged."""
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path)
    made.damage()
    return made


@contextmanager
def place_for_a_sandbox(platform: str = "sandbox") -> Iterator[Path]:
    """A new folder for the stand-in of a platform, and one for incidents; whatever stands there at the end is torn
    down.
    """
    base = Path(tempfile.mkdtemp(prefix="salvor-test-"))
    name = f"SALVOR_{platform.upper()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, str(base / "sandbox"))
        patch.setenv("SALVOR_INCIDENTS", str(base / "incidents"))
        if os.geteuid() == 0:
            base.chmod(0o711)  # the servers' user has to pass
            patch.setenv(f"{name}_ROOT", str(base / "data"))
        try:
            yield base
        finally:
            platforms.package(platform).down()
            shutil.rmtree(base)


@contextmanager
def a_cluster() -> Iterator[Path]:
    """The data folder of a sandbox whose servers are stopped: what every sandbox begins with."""
    with place_for_a_sandbox():
        made = Layout.plan(Layout.home())
        made.make()
        database.make(made, tell=lambda text: None)
        for member in ("a", "b"):  # the standby last, so that it has everything
            server = database.server(made, member)
            server.stop()
            oldest = (server.control() or {})["Latest checkpoint's REDO WAL file"]
            server.shell.run([server.program("pg_archivecleanup"), f"{server.data}/pg_wal", oldest])  # 80 of 220 MB
        yield made.root


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """A cluster for all tests of the session, which its workers share: they only copy it. Of two that come at once the
    second waits for the first to make it, and the last one that leaves removes it.
    """
    own = tmp_path_factory.getbasetemp()
    place = (own if worker_id == "master" else own.parent) / "cluster"
    with Path(f"{place}.changed").open("w") as changed, Path(f"{place}.used").open("w") as used:
        with locked(changed):
            fcntl.flock(used, fcntl.LOCK_SH)
            if not place.exists():
                with a_cluster() as made:
                    subprocess.run(["cp", "-a", "--reflink=auto", made, f"{place}.new"], check=True)
                Path(f"{place}.new").rename(place)
        yield place
        with locked(changed), suppress(BlockingIOError):
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)


@contextmanager
def locked(file: IO[str]) -> Iterator[None]:
    """No other process has this file locked."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def a_sandbox(cluster: Path) -> Iterator[Layout]:
    """A sandbox that stands, begun with a copy of `cluster`."""
    with place_for_a_sandbox():
        mine = Layout.plan(Layout.home())
        mine.make()
        copy_database(cluster, mine)
        configuration.write(mine)
        salvor.sandbox.up(tell=lambda text: None)
        assert processes.until(lambda: database.streams(mine) and all(part.up for part in salvor.sandbox.status()), 20)
        yield mine


def copy_database(cluster: Path, mine: Folders) -> None:
    """The data, the secrets and the backups of a database whose servers are stopped."""
    parts = [cluster / name for name in ("secrets", "dumps", *mine.SERVER_FOLDERS, "database-is-made")]
    subprocess.run(["cp", "-a", "--reflink=auto", *parts, mine.root], check=True)


@pytest.fixture(scope="session")
def o4o_cluster() -> Iterator[Path]:
    """The database of the o4o stand-in, for all tests of the session."""
    with place_for_a_sandbox("o4o"):
        made = o4o.layout.Layout.plan(o4o.layout.Layout.home())
        made.make()
        o4o.database.make(made, tell=lambda text: None)
        o4o.database.server(made).stop()
        yield made.root


@contextmanager
def an_o4o(cluster: Path) -> Iterator[o4o.layout.Layout]:
    """An o4o stand-in that stands, begun with a copy of the database `cluster`."""
    with half_an_o4o(cluster) as mine:
        o4o.up(tell=lambda text: None)
        yield mine


@contextmanager
def half_an_o4o(cluster: Path) -> Iterator[o4o.layout.Layout]:
    """An o4o stand-in that has nothing but a copy of the database `cluster`."""
    with place_for_a_sandbox("o4o"):
        mine = o4o.layout.Layout.plan(o4o.layout.Layout.home())
        mine.make()
        copy_database(cluster, mine)
        o4o.database.configure(mine)
        yield mine


@pytest.fixture(scope="module")
def sandbox(cluster: Path) -> Iterator[Layout]:
    """A sandbox that stands, for all tests of a module."""
    with a_sandbox(cluster) as mine:
        yield mine


@pytest.fixture
def fresh_sandbox(cluster: Path) -> Iterator[Layout]:
    """A sandbox that stands, for one test to break."""
    with a_sandbox(cluster) as mine:
        yield mine

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.postgres.logical.world import World


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    home = Path(tempfile.mkdtemp(prefix="salvor-logical-"))
    home.chmod(0o755)
    run_as = "postgres" if os.geteuid() == 0 else None
    if run_as:
        shutil.chown(home, run_as, run_as)
    world = World(home, run_as)
    try:
        world.make()
        world.do("backup", kind="dump")
        yield world
    finally:
        for data in home.glob("data*"):
            if data.is_dir():
                replace(world.server, data=str(data)).kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def alone(made: World) -> World:
    """The database is alone in its cluster, and there is a dump of it. Each test leaves its 500 orders there."""
    made.system = made.another_incident()
    with made.server.connect(writes=True) as connection:
        connection.execute("drop database if exists accounts with (force)")
    return made


@pytest.fixture
def shared(alone: World) -> World:
    """Another database shares the cluster."""
    with alone.server.connect(writes=True) as connection:
        connection.execute("create database accounts")
    return alone

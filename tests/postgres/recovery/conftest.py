from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor.sandbox import database, processes
from salvor.sandbox.layout import Layout

from tests.postgres.recovery.clusters import Cluster, open_system


@pytest.fixture(scope="session")
def prepared() -> Iterator[Layout]:
    """A sandbox's database, made once and put aside whole, for every test to begin from."""
    if not Path(database.PROGRAMS).exists() or not shutil.which("pgbackrest"):
        pytest.skip("PostgreSQL 15 and pgBackRest are not installed")
    place = Path(tempfile.mkdtemp(prefix="salvor-recovery-"))
    os.environ["SALVOR_SANDBOX_ROOT"] = f"{place}.data" if os.geteuid() == 0 else str(place)
    try:
        sandbox = Layout.plan(place)
    finally:
        del os.environ["SALVOR_SANDBOX_ROOT"]
    try:
        sandbox.make()
        database.make(sandbox, lambda text: None)
        for member in ("b", "a"):
            database.server(sandbox, member).stop("fast")
        copy(sandbox.root, Path(f"{place}.aside"))
        yield sandbox
    finally:
        processes.kill(processes.working_in(sandbox.root))
        shutil.rmtree(sandbox.root, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(f"{place}.aside", ignore_errors=True)


@pytest.fixture
def cluster(prepared: Layout) -> Iterator[Cluster]:
    """A running primary `a`, its standby `b`, and a full backup."""
    processes.kill(processes.working_in(prepared.root))
    for folder in ("a", "b", "repository"):
        shutil.rmtree(prepared.root / folder, ignore_errors=True)
        copy(Path(f"{prepared.place}.aside") / folder, prepared.root / folder)
    for member in ("a", "b"):
        database.server(prepared, member).launch()
    for member in ("a", "b"):
        database.server(prepared, member).start()
    yield Cluster(prepared, open_system(prepared))
    processes.kill(processes.working_in(prepared.root))


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)

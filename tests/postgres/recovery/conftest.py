from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from salvor.sandbox import configuration, database, processes
from salvor.sandbox.layout import Layout

from tests.conftest import copy_database
from tests.postgres.recovery.clusters import Cluster, open_system, wait_until_streaming


@pytest.fixture(scope="session")
def ours() -> Iterator[Layout]:
    """Where each test has its cluster."""
    if not Path(database.PROGRAMS).exists() or not shutil.which("pgbackrest"):
        pytest.skip("PostgreSQL 15 and pgBackRest are not installed")
    place = Path(tempfile.mkdtemp(prefix="salvor-recovery-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALVOR_SANDBOX_ROOT", f"{place}.data" if os.geteuid() == 0 else str(place))
        sandbox = Layout.plan(place)
    try:
        sandbox.make()
        yield sandbox
    finally:
        processes.kill(processes.working_in(sandbox.root))
        shutil.rmtree(sandbox.root, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(name="cluster")
def running_cluster(ours: Layout, cluster: Path) -> Iterator[Cluster]:
    """A running primary `a`, its standby `b`, and a full backup."""
    processes.kill(processes.working_in(ours.root))
    for folder in ours.SERVER_FOLDERS:
        shutil.rmtree(ours.root / folder, ignore_errors=True)
    copy_database(cluster, ours)
    configuration.write(ours)
    with ThreadPoolExecutor(2) as together:
        list(together.map(lambda member: database.server(ours, member).start(), ("a", "b")))
    made = Cluster(ours, open_system(ours))
    wait_until_streaming(made)
    yield made
    processes.kill(processes.working_in(ours.root))

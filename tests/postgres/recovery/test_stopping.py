"""A fenced server that is stopped, so that another can take its place."""

from __future__ import annotations

import time

import pytest
from salvor.postgres import promotion

from tests.postgres.recovery.clusters import Cluster


def test_an_archive_that_hangs_does_not_hold_up_who_waits_for_it_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "_STOPPED_WITHIN", (1.0, 50.0))
    server = cluster.server("a")
    with server.session(writes=True) as connection:
        connection.execute("alter system set archive_command = 'sleep 600'")
        connection.execute("select pg_reload_conf()")
    cluster.write("a", 5)
    begun = time.monotonic()
    promotion.stop_or_kill(server)
    assert time.monotonic() - begun < 10
    look = server.look()
    assert not look.processes and look.control
    assert look.control["Database cluster state"] == "shut down", "its last checkpoint is written"
    server.start()
    assert not cluster.missing("a")

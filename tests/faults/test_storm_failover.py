"""Promises 4, 7 and 8 on real engines: failovers and rehearsals, with every kind of fault thrown at them."""

from __future__ import annotations

import pytest
from salvor.sandbox.layout import Layout

from tests.faults.storms import passed

pytestmark = pytest.mark.timeout(900)


def test_a_failover_from_a_killed_primary(fresh_sandbox: Layout) -> None:
    passed("kill-primary", "failover", seed=3, count=36, at_least=32)


def test_the_best_way_back_from_a_lost_data_directory(fresh_sandbox: Layout) -> None:
    passed("lose-datadir", "restore", seed=5, count=30, at_least=26)


def test_a_rehearsal(fresh_sandbox: Layout) -> None:
    passed("nothing", "rehearsal", seed=5, count=12, at_least=10)

"""Promises 4, 7 and 8 on real engines: restores from a backup, with every kind of fault thrown at them."""

from __future__ import annotations

import pytest
from salvor.sandbox.layout import Layout

from tests.faults.storms import passed

pytestmark = pytest.mark.timeout(900)


def test_a_restore_to_the_moment_before_a_wrong_statement(fresh_sandbox: Layout) -> None:
    passed("wrong-update", "restore", seed=5, count=32, at_least=28)


def test_a_restore_from_backup_of_a_dropped_table(fresh_sandbox: Layout) -> None:
    passed("drop-table", "from_backup", seed=7, count=24, at_least=20)

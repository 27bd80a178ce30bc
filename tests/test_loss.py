"""The RPO that is measured: what the proof knows to be missing, else from the newest commit to the failure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from salvor.loss import COMPLETE, PARTLY, TO_THE_FAILURE, UNTOUCHED, Survived, rpo

FAILURE = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)


def copy(minutes: float | None, lacks: float | None = None) -> Survived:
    """One whose newest commit is of that many minutes before the failure."""
    return Survived(FAILURE - timedelta(minutes=minutes) if minutes is not None else None, lacks)


@pytest.mark.parametrize(
    ("copies", "seconds", "how"),
    [
        ([], 0.0, UNTOUCHED),
        ([copy(60)], 3600.0, TO_THE_FAILURE),
        ([copy(-1)], 0.0, TO_THE_FAILURE),
        ([copy(60, 0.0)], 0.0, COMPLETE),
        ([copy(None, 0.0)], 0.0, COMPLETE),
        ([copy(60, 1.5)], 1.5, PARTLY),
        ([copy(1, 90.0)], 60.0, TO_THE_FAILURE),
        ([copy(None)], None, TO_THE_FAILURE),
        ([copy(60, 0.0), None], None, TO_THE_FAILURE),
        ([copy(60, 0.0), copy(None)], None, TO_THE_FAILURE),
        ([copy(60, 0.0), copy(1)], 60.0, TO_THE_FAILURE),
        ([copy(60, 0.0), copy(0)], 0.0, TO_THE_FAILURE),
    ],
)
def test_the_rpo_is_that_of_the_copy_that_loses_the_most(
    copies: list[Survived | None], seconds: float | None, how: str
) -> None:
    assert rpo(copies, FAILURE) == (seconds, how)

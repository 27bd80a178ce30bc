"""Which file of the write-ahead log holds a position."""

from __future__ import annotations

from salvor.postgres.wal import Lineage, read_lsn

SIZE = 16 << 20


def test_a_position_is_in_the_newest_timeline_that_had_begun_in_its_segment() -> None:
    lineage = Lineage.of(4, "1\t0/20800000\tno recovery target\n2\t0/23000060\tundone: 3\n", {})
    assert [
        lineage.segment_at(read_lsn(lsn), SIZE) for lsn in ("0/1F000000", "0/20000028", "0/22FFFFFF", "0/23000000")
    ] == [
        "00000001000000000000001F",
        "000000020000000000000020",
        "000000020000000000000022",
        "000000040000000000000023",
    ]

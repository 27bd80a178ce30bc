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


def test_a_gap_is_seen_on_the_way_alone() -> None:
    lineage = Lineage.of(2, "1\t0/5000060\tno recovery target\n", {})

    def ends_early(*missing: str) -> str | None:
        there = [f"{1:08X}{number:016X}" for number in range(2, 9)]  # it went on past the fork
        there += [f"{2:08X}{number:016X}" for number in range(5, 8)]
        return lineage.ends_early({one for one in there if one not in missing}, there[1], 2, SIZE)

    assert ends_early() is None
    assert ends_early("000000010000000000000002", "000000010000000000000006") is None, "before, and past the fork"
    assert ends_early("000000020000000000000007") is None, "it may not be archived yet"
    assert ends_early("000000010000000000000004") == "000000010000000000000003"
    assert ends_early("000000020000000000000005") == "000000010000000000000004"
    assert ends_early("000000020000000000000006") == "000000020000000000000005"

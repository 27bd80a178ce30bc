"""Places in the write-ahead log: LSNs, segment names, and which timeline was live when."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


def read_lsn(text: str) -> int:
    """`16/B374D848` to bytes. Raises ValueError."""
    high, slash, low = text.strip().partition("/")
    if not slash:
        raise ValueError(f"{text!r} is not an LSN, for example 0/3000060")
    return (int(high, 16) << 32) + int(low, 16)


def write_lsn(lsn: int) -> str:
    """Bytes to `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def timeline_of(segment: str) -> int:
    """The timeline of a WAL segment by its file name."""
    return int(segment[:8], 16)


def name_of(timeline: int, lsn: int, segment_size: int) -> str:
    """The file name of the WAL segment that holds an LSN; `segment_size` in bytes."""
    number, each = lsn // segment_size, 0x100000000 // segment_size
    return f"{timeline:08X}{number // each:08X}{number % each:08X}"


def end_of(segment: str, segment_size: int) -> int:
    """The first LSN behind a WAL segment, by its file name; `segment_size` in bytes."""
    number = int(segment[8:16], 16) * (0x100000000 // segment_size) + int(segment[16:24], 16)
    return (number + 1) * segment_size


def unbroken_since(segments: Iterable[str]) -> dict[int, str]:
    """Of each timeline the first segment of the run without a gap that ends with its newest one; names of 24 digits.

    How many segments make one of the numbers in the middle (256 of 16 MB each, 64 of 64 MB) shows in the names, as soon
    as there are two such numbers.
    """
    ordered = sorted(segments)
    each = _in_a_log(ordered)
    found: dict[int, str] = {}
    before = -1
    for one in ordered:
        timeline, number = timeline_of(one), _number(one, each)
        if timeline not in found or number != before + 1:
            found[timeline] = one
        before = number
    return found


def _in_a_log(segments: Sequence[str]) -> int:
    """How many segments make one of the numbers in the middle of their names, as far as the names tell."""
    several = len({one[8:16] for one in segments}) > 1
    return 1 << max(int(one[16:], 16) for one in segments).bit_length() if several else 0x100


def _number(segment: str, in_a_log: int) -> int:
    """Which segment it is, from the begin of the log."""
    return int(segment[8:16], 16) * in_a_log + int(segment[16:24], 16)


@dataclass(frozen=True)
class Timeline:
    """One timeline: the one it forked off (None: it is the first), where, and since when it was live (UTC)."""

    id: int
    parent: int | None = None
    forked_at: int = 0
    live_since: datetime | None = None


@dataclass(frozen=True)
class Lineage:
    """The timelines that lead to the one that is live, the newest first.

    PostgreSQL's recovery_target_timeline=latest follows the newest timeline in the archive. That is a trap twice: after
    a restore to 10:00 that went live at 10:20, a second restore to 10:10 would follow the new timeline, which has
    nothing of 10:00 to 10:20, and end at 10:00 without a word; and after an undone restore, the newest timeline is
    the one that was undone. So Salvor always names the timeline: the one that was live at the time asked for.
    """

    timelines: tuple[Timeline, ...]

    @staticmethod
    def of(current: int, history: str, live_since: Mapping[int, datetime]) -> Lineage:
        """From the text of its history file, and when each timeline's was archived: that is when it went live."""
        chain = []
        for line in history.splitlines():
            words = line.split(None, 2)
            if len(words) >= 2 and words[0].isdigit():
                chain.append((int(words[0]), read_lsn(words[1])))
        timelines = []
        parent, fork = None, 0
        for name, next_fork in [*chain, (current, 0)]:
            timelines.append(Timeline(name, parent, fork, live_since.get(name)))
            parent, fork = name, next_fork
        return Lineage(tuple(reversed(timelines)))

    @property
    def current(self) -> int:
        """The timeline that is live, or was when the damage came."""
        return self.timelines[0].id

    def live_at(self, moment: datetime) -> int:
        """The timeline that was live at `moment`."""
        for timeline in self.timelines:
            if timeline.live_since is None or timeline.live_since <= moment:
                return timeline.id
        return self.timelines[-1].id

    def segment_at(self, lsn: int, segment_size: int) -> str:
        """The file name of the WAL segment that holds an LSN: where timelines forked within it, the newest one's holds
        what came before the fork too, and the older one's is often not archived.
        """
        number = lsn // segment_size
        holding = next((one for one in self.timelines if one.forked_at // segment_size <= number), self.timelines[-1])
        return name_of(holding.id, lsn, segment_size)

    def ends_early(self, segments: Collection[str], since: str, to: int, segment_size: int = 0) -> str | None:
        """The last of these segments that a replay from `since` on along timeline `to` gets to, when it does not get on
        although there are later ones; None when there is no gap. `segment_size` in bytes (0: as the names tell). Of
        timeline `to` only what is there counts: what follows may not be archived yet.
        """
        each = 0x100000000 // segment_size if segment_size else _in_a_log(sorted(segments))
        names = [one.id for one in self.timelines]
        way = self.timelines[names.index(to) : names.index(timeline_of(since)) + 1][::-1]
        number, last = _number(since, each), since
        for one, child in zip(way, [*way[1:], None], strict=True):
            ends = [_number(name, each) + 1 for name in segments if timeline_of(name) == one.id]
            end = child.forked_at // (0x100000000 // each) if child else max(ends, default=0)
            for here in range(number, end):
                name = f"{one.id:08X}{here // each:08X}{here % each:08X}"
                if name not in segments:
                    return last
                last = name
            number = max(number, end)
        return None

    def leads_from(self, timeline: int, lsn: int, to: int) -> bool:
        """Whether a recovery that begins on `timeline` at `lsn` can follow timeline `to`: no fork came before."""
        names = [one.id for one in self.timelines]
        if timeline not in names or to not in names or names.index(timeline) < names.index(to):
            return False
        if timeline == to:
            return True
        fork = self.timelines[names.index(timeline) - 1].forked_at
        return lsn <= fork

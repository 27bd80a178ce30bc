"""A DROP DATABASE that was under way where a replay stopped: where in the WAL it began.

The trap: it marks the database invalid and removes its files outside of its transaction, before that commits
(src/backend/commands/dbcommands.c, dropdb). A replay stops by time only at a commit, so just before that commit the
database is gone already. Only a position in the WAL is early enough.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from salvor.errors import CannotError
from salvor.postgres.backrest import Repository
from salvor.postgres.server import Server
from salvor.postgres.wal import read_lsn, write_lsn

_MOST_SEGMENTS = 64
"""How far to look back for its beginning: it waits for a checkpoint, while others go on writing WAL."""
_RECORD = re.compile(r"rmgr: .*lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), .*desc: (?P<what>.*)")

# Older minor releases than 15.4 do not mark it: its files are gone, and it looks whole.
_BROKEN = """
    select oid::text, datname::text, datconnlimit = -2, pg_last_wal_replay_lsn()::text,
      (select setting::int from pg_settings where name = 'wal_segment_size')
    from pg_database
    where datconnlimit = -2
      or (dattablespace = 1663 and pg_stat_file('base/' || oid || '/PG_VERSION', true) is null)
    order by 1
"""

_FETCH = r"""
set -e
data=$1 name=$2 restore=$3
mkdir -p -m 700 -- "$data/salvor_wal"
path=$data/salvor_wal/$name
[ -e "$path" ] || if [ -e "$data/pg_wal/$name" ]; then ln -- "$data/pg_wal/$name" "$path"; else eval "$restore"; fi
"""
# 1664/0/1262 is pg_database. pg_waldump ends with an error where the segments that are there end.
_DUMP = r"""
"$1" --path="$2/salvor_wal" "$3" 2>/dev/null |
    grep -E -e '^rmgr: Database .*desc: DROP ' -e 'desc: INPLACE .*rel 1664/0/1262 ' || :
"""


@dataclass(frozen=True)
class _Broken:
    """A database that was being dropped; `replayed` is the LSN to which WAL was replayed."""

    oid: str
    is_marked: bool
    replayed: int

    def is_broken_by(self, what: str) -> bool:
        """Whether a record of WAL did it. One that marks it looks like any VACUUM of pg_database: then the search goes
        on before that one.
        """
        if self.is_marked:
            return what.startswith("INPLACE")
        return bool(re.match(rf"DROP dir \S*/{self.oid}\b", what))


def began(stage: Server, repository: Repository, timeline: int, live: Server) -> tuple[str, str] | None:
    """The database that a staged, paused server lacks because its DROP was under way, and the LSN before which that
    began; None when every database is whole. Reads WAL of the timelines that were replayed, those that lead to
    `timeline`, from the archive into the stage's folder. `live`: what is replaced, for a history that is not archived.

    Raises CannotError when its beginning is not in the WAL.
    """
    with stage.session(deadline=10.0) as connection:
        found = connection.execute(_BROKEN).fetchone()
    if found is None:
        return None
    oid, name, is_marked, replayed, size = found
    broken = _Broken(oid, is_marked, read_lsn(replayed))
    lineage = repository.archive.lineage(timeline, live)
    number = broken.replayed // size
    try:
        for back in range(min(_MOST_SEGMENTS, number)):
            segment = lineage.segment_at((number - back) * size, size)
            if lsn := _beginning(stage, repository, segment, broken):
                return name, write_lsn(lsn)
    finally:
        stage.shell.run(["rm", "-rf", "--", f"{stage.data}/salvor_wal"])
    raise CannotError(
        f"The database {name!r} was being dropped at the moment asked for, and where that began is not in the last "
        f"{_MOST_SEGMENTS} segments of WAL.",
        safe="what is live is as it was",
        hint="name a moment some minutes earlier: --at=TIME",
    )


def _beginning(stage: Server, repository: Repository, segment: str, broken: _Broken) -> int:
    """Where the DROP of that database began, in the WAL from `segment` on; 0 when it is not there."""
    place = f"{stage.data}/salvor_wal/{segment}"
    restore = repository.archive_get(stage.data).replace("%f", segment).replace('"%p"', shlex.quote(place))
    stage.shell.run(["sh", "-c", _FETCH, "sh", stage.data, segment, restore], deadline=120.0)
    argv = ["sh", "-c", _DUMP, "sh", stage.program("pg_waldump"), stage.data, segment]
    records = map(_RECORD.match, stage.shell.run(argv, deadline=120.0).stdout.splitlines())
    return max(
        (
            lsn
            for record in records
            if record and (lsn := read_lsn(record["lsn"])) < broken.replayed and broken.is_broken_by(record["what"])
        ),
        default=0,
    )

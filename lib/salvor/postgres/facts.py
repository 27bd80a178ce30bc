"""What a server says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from salvor import clock
from salvor.postgres.server import PROBE_SECONDS, Server
from salvor.postgres.wal import read_lsn


@dataclass(frozen=True)
class Facts:
    """What a server says of itself. LSNs in bytes; `fresh` is its newest commit (UTC)."""

    in_recovery: bool
    timeline: int
    lsn: int
    received: int
    fresh: datetime | None
    now: datetime
    streams_from: str | None
    paused: bool
    checksum_failures: int
    sessions: int
    swapped_in: str | None
    """`<database oid> <incident>` when a restore of an incident put the service's database there."""
    awaits: str | None
    """Its synchronous standbys, when its commits wait for more of them than follow."""
    data: str
    configuration: str
    """The paths of its data directory and its postgresql.conf."""
    delay: float
    """Seconds by which it replays late, as it was told to (recovery_min_apply_delay)."""

    @property
    def is_held_back(self) -> bool:
        """Whether it was told not to replay all that it has: what it answers is of an earlier moment."""
        return self.in_recovery and self.lsn < self.received and (self.paused or self.delay > 0)


# A primary knows the time of its last commit only with track_commit_timestamp, and only since its start (or from the
# recovery before that); without it, it commits now, so: now.
# A receiver says that it streams before the primary has agreed: one that is refused (its slot is gone) ends at once.
# A standby's control file tells of a timeline that it follows from its next restart point on, which may be minutes
# later; its receiver ends with the primary. The segments that it has are named by their timeline.
_FACTS = r"""
    select pg_is_in_recovery(),
      case when pg_is_in_recovery()
        then (select greatest(timeline_id, min_recovery_end_timeline, (select received_tli from pg_stat_wal_receiver),
            (select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'))
          from pg_control_checkpoint(), pg_control_recovery())
        else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
      case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text,
      case when pg_is_in_recovery() then pg_last_wal_receive_lsn() end::text,
      case when pg_is_in_recovery() then pg_last_xact_replay_timestamp()
           when current_setting('track_commit_timestamp')::boolean
             then coalesce((select timestamp from pg_last_committed_xact()), pg_last_xact_replay_timestamp())
           else now() end,
      now(),
      (select sender_host || ':' || sender_port from pg_stat_wal_receiver join pg_stat_activity using (pid)
        where status = 'streaming' and backend_start < clock_timestamp() - interval '0.5 s'),
      case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end,
      (select coalesce(sum(checksum_failures), 0)::bigint from pg_stat_database),
      (select count(*) from pg_stat_activity where backend_type = 'client backend' and usename <> session_user),
      (select d.oid || ' ' || substr(one, 15) from pg_database d join pg_db_role_setting on setdatabase = d.oid,
        unnest(setconfig) one where datname = %s and setrole = 0 and starts_with(one, 'salvor.origin=')),
      (select name from current_setting('synchronous_standby_names') name
        where name <> '' and not pg_is_in_recovery() and current_setting('synchronous_commit') not in ('off', 'local')
          and (select count(*) from pg_stat_replication where sync_state in ('sync', 'quorum'))
            < coalesce(substring(name from '^\s*(?:[a-zA-Z]+\s+)?(\d+)\s*\('), '1')::int),
      current_setting('data_directory'), current_setting('config_file'),
      (select setting::float / 1000 from pg_settings where name = 'recovery_min_apply_delay')
"""


def ask_facts(server: Server, database: str) -> Facts:
    """Ask a server what it is. Raises psycopg.Error."""
    with server.session(deadline=PROBE_SECONDS) as connection:
        row = connection.execute(_FACTS, [database]).fetchone()
    assert row
    lsn = read_lsn(row[2]) if row[2] else 0
    return Facts(row[0], row[1], lsn, max(lsn, read_lsn(row[3]) if row[3] else 0), *row[4:])


def describe_awaited(standbys: str) -> str:
    """One line for people about `Facts.awaits`."""
    return (
        f"its commits wait for a synchronous standby ({standbys}) that does not follow: start it, or alter system set "
        "synchronous_standby_names = '' and reload"
    )


def as_noted(facts: Facts, marker: Mapping[str, Any]) -> Facts:
    """The facts of a stage, with how far it came as noted in its marker before its recovery was ended."""
    newest, replayed = marker.get("newest_commit"), marker.get("replayed")
    facts = replace(facts, fresh=clock.read_time(newest)) if newest else facts
    return replace(facts, lsn=read_lsn(replayed), received=read_lsn(replayed)) if replayed else facts

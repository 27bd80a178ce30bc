"""The replay of WAL in a staged server, followed until it is at its target; and why it does not get there."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from datetime import datetime

from salvor import clock
from salvor.change import Progress
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres import beside
from salvor.postgres.connection import Line
from salvor.postgres.promotion import promote_server
from salvor.postgres.server import LOOKED_EVERY, Server, pause
from salvor.postgres.wal import read_lsn, write_lsn

ACCEPT_MISSING_WAL = "accept-missing-wal"
_REPLAY_SECONDS = 24 * 3600.0
_GAP_SECONDS = 30.0
"""How long WAL that must be there is waited for: the archive may take it a little later."""

_REPLAYED = """
    select pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
      case when pg_is_in_recovery() then pg_is_wal_replay_paused() end,
      exists (select from pg_stat_activity
        where backend_type = 'startup' and wait_event = 'RecoveryRetrieveRetryInterval')
"""

_HELD = """
    select 1 from pg_locks join pg_stat_activity using (pid)
    where backend_type = 'startup' and mode = 'AccessExclusiveLock' and granted limit 1
"""


def replay(stage: Server, target: str, known_end: int) -> Iterator[Progress]:
    """Wait until a staged server has reached its target (as `recovery_options` takes it), or has replayed all WAL: of
    the newest state at least up to `known_end`, an LSN (0: not known). Yields bytes of WAL.

    Raises CannotError when the target cannot be reached, OutcomeUnknownError after a day.
    """
    with Line(stage, deadline=5.0) as line:
        paused, newest = yield from _follow(stage, line, target, known_end)
    if paused:
        _no_pause_for_lack_of_room(stage)
        yield from _end_what_was_under_way(stage, newest)


def _follow(
    stage: Server, line: Line, target: str, known_end: int
) -> Generator[Progress, None, tuple[bool, datetime | None]]:
    """As `_replay`; whether it is paused at its target, and its newest commit."""
    import psycopg

    begun = looked = clock.monotonic()
    first = 0
    waiting: tuple[int, int, float] = (0, 0, 0.0)  # at which LSN, how often seen waiting, since when
    while True:
        if clock.monotonic() - begun > _REPLAY_SECONDS:
            raise OutcomeUnknownError(f"{stage.data} still replays WAL.", hint="run the same command again")
        try:
            row = line.ask(_REPLAYED)
        except psycopg.Error as error:
            if "authentication failed" in str(error):  # it answers, and will not let us in later either
                raise CannotError(
                    f"{stage.data} does not let the operator in: {' '.join(str(error).split())}",
                    safe="what is live is as it was; the copy stays, and is gone on with",
                    hint="mend the operator's password (systems: operator: password), then the same command again",
                ) from error
            if clock.monotonic() > looked + LOOKED_EVERY:
                looked = clock.monotonic()
                if not stage.processes():
                    raise _not_reached(stage, target) from None
            yield Progress(0, None, "", "replaying WAL until the data is consistent")
            pause(begun, most=0.05)
            continue
        assert row
        in_recovery, lsn, newest, paused, waits = row
        if not in_recovery:
            return False, newest  # a promotion of it was begun by an earlier call
        now = read_lsn(lsn) if lsn else 0
        first = first or now
        label = f"replaying WAL, at {clock.write_time(newest)}" if newest else "replaying WAL"
        yield Progress(now - first, known_end - first if known_end > first else None, "bytes", label)
        if target != "latest" and paused:
            return True, newest
        if target == "latest" and waits:
            waiting = (now, waiting[1] + 1, waiting[2]) if now == waiting[0] else (now, 1, clock.monotonic())
            if waiting[1] >= 3 and clock.monotonic() - waiting[2] >= 1.0:
                if now >= known_end:
                    return False, newest
                if clock.monotonic() - waiting[2] > _GAP_SECONDS:
                    raise _gap(stage, now, known_end)
        pause(begun, most=0.05)


def _end_what_was_under_way(stage: Server, newest: datetime | None) -> Iterator[Progress]:
    """End the recovery when a transaction that had not committed at the target holds tables in it.

    The trap of going back to just before a DROP TABLE: the paused replay holds that transaction's lock, and whoever
    reads the table waits for ever. With the recovery ended the transaction is rolled back. The copy still archives
    nothing, and lets only the operator in. The newest commit is noted, which is harder to tell afterwards.
    """
    with stage.session(deadline=5.0) as connection:
        if not connection.execute(_HELD).fetchone():
            return
    yield Progress(0, None, "", "rolling back what was under way at the target")
    marker = beside.marker_of(stage)
    noted = {"newest_commit": clock.write_time(newest)} if newest else {}
    beside.write_marker(stage, marker | noted)
    promote_server(stage)


def _no_pause_for_lack_of_room(stage: Server) -> None:
    if any("insufficient parameter settings" in line for line in stage.last_log(20)):
        raise CannotError(
            f"The replay in {stage.data} stopped: the primary had larger settings meanwhile.",
            safe="what is live is as it was",
            hint=f"tail {stage.log} names it: raise it in the stage's postgresql.conf and stop the stage, "
            "then run the same command again",
        )


def _gap(stage: Server, reached: int, known_end: int) -> CannotError:
    said = [line for line in stage.last_log(60) if "ERROR" in line or "P00" in line]
    why = f" pgBackRest says: {said[-1]}" if said else ""
    return CannotError(
        f"WAL is missing: the replay ended at {write_lsn(reached)}, and WAL goes to {write_lsn(known_end)}.{why}",
        safe="what is live is as it was",
        hint="see that the archive can be read, and run the same command again; or accept the loss with "
        f"--override='{ACCEPT_MISSING_WAL}=REASON'",
    )


def _refused_by_the_archive(log: str) -> str:
    """What pgBackRest said of the last WAL that was asked for, when it failed; empty when there is no such WAL.

    The trap: to PostgreSQL each of the two is the end of the archive (manual, "restore_command").
    """
    asked_last = re.split(r"restored log file|starting point-in-time recovery", log)[-1]
    found = re.search(r"ERROR: \[\d+\]:.*(?:\n[ \t]+.*)*", asked_last)
    return " ".join(found[0].split()) if found else ""


def _not_reached(stage: Server, target: str) -> CannotError:
    log = "\n".join(stage.last_log(60))
    last = re.findall(r"last completed transaction was at log time (.*)", log)
    if "before configured recovery target was reached" in log:
        if said := _refused_by_the_archive(log):
            return CannotError(
                f"The replay ended before {target.partition(':')[2]}, as the archive did not give the next WAL, so "
                f"whether there is more is not known. pgBackRest says: {said}",
                safe="what is live is as it was; the copy stays, and is gone on with",
                hint="see that the repository can be read (inv backups --check), then the same command again",
            )
        newest = f" The newest commit there is from {last[-1]}." if last else ""
        return CannotError(
            f"The target {target.partition(':')[2]} cannot be reached: the WAL ends before it.{newest}",
            safe="what is live is as it was",
            hint=f"inv undo --incident={beside.marker_of(stage).get('incident')}, then inv restore without --at, "
            "--target and --failed-at for everything there is, or with an earlier time",
        )
    if "before consistent recovery point" in log:
        return CannotError(
            f"The target {target.partition(':')[2]} lies before the end of the backup.",
            safe="what is live is as it was",
            hint="name an older backup with --from, or a later time: inv backups lists them",
        )
    return stage.ended()

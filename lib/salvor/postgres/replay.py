"""The replay of WAL in a staged server, followed until it is at its target; and why it does not get there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from salvor import clock
from salvor.change import Progress
from salvor.errors import CannotError, NoRoomError, OutcomeUnknownError
from salvor.postgres import beside
from salvor.postgres.connection import Line
from salvor.postgres.look import Process
from salvor.postgres.promotion import promoting
from salvor.postgres.restore_command import REFUSED
from salvor.postgres.server import LOOKED_EVERY, Server, pause
from salvor.postgres.wal import read_lsn, write_lsn

ACCEPT_MISSING_WAL = "accept-missing-wal"
_REPLAY_SECONDS = 24 * 3600.0
_GAP_SECONDS = 30.0
"""How long WAL that must be there is waited for: the archive may take it a little later."""

# A server rests between two tries only when one takes less than wal_retrieve_retry_interval (xlogrecovery.c), so of a
# repository that is far away, or does not answer, only that file tells that it was asked in vain.
_REPLAYED = """
    select pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
      case when pg_is_in_recovery() then pg_is_wal_replay_paused() end,
      exists (select from pg_stat_activity
        where backend_type = 'startup' and wait_event = 'RecoveryRetrieveRetryInterval'),
      coalesce(pg_read_file('salvor_refused', 0, 100, true), '')
"""

_HELD = """
    select 1 from pg_locks join pg_stat_activity using (pid)
    where backend_type = 'startup' and mode = 'AccessExclusiveLock' and granted limit 1
"""


@dataclass(frozen=True)
class _Rest:
    """Where a replay came to rest: whether at its target, at which LSN, and its newest commit."""

    at_target: bool
    lsn: int
    newest: datetime | None


class _Wait:
    """How often a replay was seen waiting at the same place (an LSN, or a segment), and since when."""

    def __init__(self) -> None:
        self._place: int | str = ""
        self._times = 0
        self._since = 0.0
        self._refused: str | None = None

    def is_refused_anew(self, refused: str) -> bool:
        """Whether a try has failed since the last look, by what `REFUSED` says then and now."""
        before, self._refused = self._refused, refused or self._refused
        return bool(refused) and before not in (None, refused)

    def see(self, place: int | str) -> None:
        if place != self._place:
            self._place, self._times, self._since = place, 0, clock.monotonic()
        self._times += 1

    @property
    def seconds(self) -> float:
        return clock.monotonic() - self._since

    @property
    def is_settled(self) -> bool:
        return self._times >= 3 and self.seconds >= 1.0


def replay(stage: Server, target: str, known_end: int) -> Generator[Progress, None, bool]:
    """Wait until a staged standby has reached its target (as `recovery_options` takes it), or has replayed all WAL, at
    least up to `known_end`: an LSN (0: not known). Yields bytes of WAL. Whether it is at its target: not so when all
    WAL up to a known end was replayed, and nothing was committed after the time asked for.

    Raises CannotError when the target cannot be reached, OutcomeUnknownError after a day.
    """
    with Line(stage, deadline=5.0) as line:
        rest = yield from _follow(stage, line, target, known_end)
    if rest.at_target:
        yield from _end_what_was_under_way(stage, rest)
    return rest.at_target


def _follow(stage: Server, line: Line, target: str, known_end: int) -> Generator[Progress, None, _Rest]:
    import psycopg

    begun = looked = clock.monotonic()
    first = 0
    waiting = _Wait()
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
                processes = stage.all_processes()
                if not processes:
                    raise _not_begun(stage, target) from None
                awaited, refused = _not_given(stage, processes)
                if waiting.is_refused_anew(refused):
                    awaited = refused[:24]
                if segment := awaited:
                    waiting.see(segment)
                    if waiting.is_settled and waiting.seconds > _GAP_SECONDS:
                        _require_room(stage)
                        raise _inconsistent(stage, segment) from None
            yield Progress(0, None, "", "replaying WAL until the data is consistent")
            pause(begun, most=0.05)
            continue
        assert row
        in_recovery, lsn, newest, paused, waits, refused = row
        now = read_lsn(lsn) if lsn else 0
        if not in_recovery:
            return _Rest(True, now, newest)  # a promotion of it was begun by an earlier call
        first = first or now
        label = f"replaying WAL, at {clock.write_time(newest)}" if newest else "replaying WAL"
        yield Progress(now - first, known_end - first if known_end > first else None, "bytes", label)
        if paused:
            _no_pause_for_lack_of_room(stage)
            if target != "latest":
                return _Rest(True, now, newest)
        if waiting.is_refused_anew(refused) or waits:
            waiting.see(now)
            if waiting.is_settled:
                if now >= known_end > 0:
                    return _Rest(target == "latest", now, newest)
                refused = _refused_by_the_archive(stage) if target != "latest" else ""
                is_at_the_end = now >= known_end and not refused
                if is_at_the_end or waiting.seconds > _GAP_SECONDS:
                    _require_room(stage)
                if is_at_the_end and target == "latest":
                    return _Rest(True, now, newest)
                if is_at_the_end:
                    raise _ends_before(stage, target, newest)
                if waiting.seconds > _GAP_SECONDS:
                    raise _refused(target, refused) if refused else _gap(stage, target, now, known_end)
        pause(begun, most=0.05)


# While a server starts, the title of its process says what it waits for (XLogFileRead in xlogrecovery.c), also while
# restore_command, its only child, fetches it: of a large segment over a slow line for long.
_NOT_GIVEN = r"""
printf '%s\n' "$(cat -- "$1" 2>/dev/null)"
shift
for pid; do
    [ -n "$(cat "/proc/$pid/task/$pid/children")" ] || { tr '\0' ' ' < "/proc/$pid/cmdline"; echo; }
done 2>/dev/null | sed -n 's/.*startup waiting for \([0-9A-F]\{24\}\).*/\1/p'
"""


def _not_given(stage: Server, processes: Sequence[Process]) -> tuple[str, str]:
    """The WAL segment that a server which is not consistent yet asked for and did not get; empty while it is fetched,
    or none is awaited. And what `REFUSED` says of a segment.
    """
    argv = ["sh", "-c", _NOT_GIVEN, "sh", f"{stage.data}/{REFUSED}", *(str(process.pid) for process in processes)]
    refused, *awaited = stage.shell.run(argv, check=False).stdout.split("\n")
    return "".join(awaited), "" if ".history" in refused else refused


def _end_what_was_under_way(stage: Server, rest: _Rest) -> Iterator[Progress]:
    """End the recovery when a transaction that had not committed where it rests holds tables in it.

    The trap of going back to just before a DROP TABLE, and of a crash amid an ALTER TABLE: the replay holds that
    transaction's lock, and whoever reads the table waits for ever. With the recovery ended the transaction is rolled
    back. The copy still archives nothing, and lets only the operator in. How far it came is noted, which cannot be told
    afterwards.
    """
    with stage.session(deadline=5.0) as connection:
        if not connection.execute(_HELD).fetchone():
            return
    yield Progress(0, None, "", "rolling back what was under way there")
    noted = {"replayed": write_lsn(rest.lsn)}
    if rest.newest:
        noted["newest_commit"] = clock.write_time(rest.newest)
    beside.write_marker(stage, beside.marker_of(stage) | noted)
    yield from promoting(stage)


def _no_pause_for_lack_of_room(stage: Server) -> None:
    if any("insufficient parameter settings" in line for line in stage.last_log(20)):
        raise CannotError(
            f"The replay in {stage.data} stopped: the primary had larger settings meanwhile.",
            safe="what is live is as it was",
            hint=f"tail {stage.log} names it: raise it in the stage's postgresql.conf and stop the stage, "
            "then run the same command again",
        )


_FULL = ("No space left on device", "Check free disk space")
_FREE = 'df -k --output=avail -- "$1/." "$1/pg_wal/." | tail -n +2'


def _require_room(stage: Server) -> None:
    """Raises NoRoomError when a segment of WAL does not fit any more: to PostgreSQL the archive has ended then, and
    the log that would tell may be cut off.
    """
    segment = int((stage.control() or {}).get("Bytes per WAL segment", 0))
    free = stage.shell.run(["sh", "-c", _FREE, "sh", stage.data], check=False).stdout.split()
    if any(int(each) * 1024 < segment for each in free):
        raise _no_room(stage)


def _no_room(stage: Server) -> NoRoomError:
    return NoRoomError(
        f"The disk of {stage.data} on {stage.shell.where} is full: the copy there cannot replay its WAL.",
        safe="what is live is as it was; the copy stays, and is gone on with",
        hint=f"make room there (df -h {shlex.quote(stage.data)}), then the same command again; "
        f"inv undo --incident={beside.marker_of(stage).get('incident')} removes the copy",
    )


def _gap(stage: Server, target: str, reached: int, known_end: int) -> CannotError:
    said = [line for line in stage.last_log(60) if "ERROR" in line or "P00" in line]
    why = f" pgBackRest says: {said[-1]}" if said else ""
    accept = f"accept the loss with --override='{ACCEPT_MISSING_WAL}=REASON'"
    earlier = f"inv undo --incident={beside.marker_of(stage).get('incident')}, then inv restore with an earlier time"
    return CannotError(
        f"WAL is missing: the replay ended at {write_lsn(reached)}, and WAL goes to {write_lsn(known_end)}.{why}",
        safe="what is live is as it was",
        hint="see that the archive can be read, and run the same command again; or "
        + (accept if target == "latest" else earlier),
    )


def _refused_by_the_archive(stage: Server) -> str:
    """What pgBackRest said of the last WAL that was asked for, when it failed; empty when there is no such WAL.

    The trap: to PostgreSQL each of the two is the end of the archive (manual, "restore_command").
    """
    asked_last = re.split(r"restored log file|entering standby mode", "\n".join(stage.last_log(60)))[-1]
    found = re.search(r"ERROR: \[\d+\]:.*(?:\n[ \t]+.*)*", asked_last)
    return f" pgBackRest says: {' '.join(found[0].split())}" if found else ""


def _inconsistent(stage: Server, segment: str) -> CannotError:
    return CannotError(
        f"WAL is missing: {segment}, without which the copy is not consistent, does not come from the archive."
        f"{_refused_by_the_archive(stage)}",
        safe="what is live is as it was",
        hint="see that the archive can be read, and run the same command again; or "
        f"inv undo --incident={beside.marker_of(stage).get('incident')}, then an older backup: inv backups lists them, "
        "inv restore --from=ID takes one",
    )


def _refused(target: str, said: str) -> CannotError:
    return CannotError(
        f"The replay ended before {target.partition(':')[2]}, as the archive did not give the next WAL, so "
        f"whether there is more is not known.{said}",
        safe="what is live is as it was; the copy stays, and is gone on with",
        hint="see that the repository can be read (inv backups --check), then the same command again",
    )


def _ends_before(stage: Server, target: str, newest: datetime | None) -> CannotError:
    last = f" The newest commit there is from {clock.write_time(newest)}." if newest else ""
    return CannotError(
        f"The target {target.partition(':')[2]} cannot be reached: the WAL ends before it.{last}",
        safe="what is live is as it was",
        hint=f"inv undo --incident={beside.marker_of(stage).get('incident')}, then inv restore without --at, "
        "--target and --failed-at for everything there is, or with an earlier time",
    )


def _not_begun(stage: Server, target: str) -> CannotError:
    _require_room(stage)
    said = "\n".join(stage.last_log(60))
    if any(words in said for words in _FULL):
        return _no_room(stage)
    if "before consistent recovery point" in said:
        return CannotError(
            f"The target {target.partition(':')[2]} lies before the end of the backup.",
            safe="what is live is as it was",
            hint="name an older backup with --from, or a later time: inv backups lists them",
        )
    return stage.ended()

"""Physical restore: a pgBackRest backup staged beside the damage, replayed to its target, then swapped in."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from salvor import clock, leftovers
from salvor.change import Progress
from salvor.errors import SalvorError
from salvor.postgres import backrest_work, beside, dropped
from salvor.postgres.backrest import Repository
from salvor.postgres.look import Look
from salvor.postgres.promotion import promoting
from salvor.postgres.recovery_target import recovery_options
from salvor.postgres.replay import ACCEPT_MISSING_WAL, replay
from salvor.postgres.restore_command import NO_WAL, REFUSED, SPOOL, fetching_ahead
from salvor.postgres.side_directory import APART, DRILL, SideDirectory
from salvor.postgres.stage_wal import WAL_WAS_AT, salvage
from salvor.postgres.wal import read_lsn

STAGE = "side-data"
EVERYTHING = "has_everything"
"""In the marker of a stage: it has all that the primary wrote, and nothing was committed after the time asked for."""
_WRITTEN = "primary_wrote"
_FLUSHED = """
    select pg_current_wal_flush_lsn()::text where not pg_is_in_recovery() and now() >= %s::timestamptz
      and ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int = %s
"""


@dataclass(frozen=True)
class Physical(SideDirectory):
    """A backup of a pgBackRest repository, restored and replayed beside one member's data directory."""

    repository: Repository

    # --- stage ---------------------------------------------------------------------------------------------------

    def build(self, backup: str, target: str, timeline: int, overrides: Mapping[str, str]) -> Iterator[Progress]:
        """Restore `backup` beside the data directory and replay to `target` along `timeline`; it then stays read-only.

        Goes on where a killed call stopped. Raises CannotError when the target cannot be reached, or WAL is missing.
        """
        with ThreadPoolExecutor(2) as pool:
            live, staged = pool.submit(self.live.look), pool.submit(self.stage.look)
        if beside.read_marker(live.result().marker).get("incident") == self.incident:
            return
        look = staged.result()
        wanted = {
            "incident": self.incident,
            "way": "physical",
            "backup": backup,
            "target": target,
            "timeline": timeline,
        }
        marker = beside.read_marker(look.marker)
        accepts_loss = ACCEPT_MISSING_WAL in overrides
        phase = marker.get("phase") if {name: marker.get(name) for name in wanted} == wanted else None
        if phase is None or phase == "undone":
            whole = bool(marker.get("incident") == self.incident)
            needs_all = target == "latest" and not accepts_loss
            noted = yield from self._restore(look, backup, target, timeline, whole=whole, needs_all=needs_all)
            beside.write_marker(self.stage, wanted | {"phase": "restored", **noted})
        yield from self._replay(target, timeline, accepts_loss=accepts_loss)
        if target.partition(":")[0] in ("time", "before") and phase not in ("complete", "promoting"):
            yield from self._before_a_drop(backup, timeline, wanted)
        if phase not in ("complete", "promoting"):
            marker = beside.marker_of(self.stage)
            stamp = {"phase": "complete", "completed_at": clock.write_time(clock.now())}
            beside.write_marker(self.stage, marker | stamp)

    def _replay(self, target: str, timeline: int, *, accepts_loss: bool) -> Iterator[Progress]:
        """Start the stage, and wait until it is at its target or, when nothing was committed after the time asked for,
        at the end of what the primary wrote. There it stays: it gets no other WAL, which may tell of later commits.
        """
        restored, damaged = self._launch()
        marker = beside.read_marker(restored.marker)
        if marker.get(EVERYTHING):
            yield from replay(self.stage, "latest", read_lsn(marker[_WRITTEN]))
            return
        if target == "latest":
            known_end = 0 if accepts_loss else self._known_end(timeline, restored, damaged)
        else:
            known_end = read_lsn(marker.get(_WRITTEN, "0/0"))
        at_target = yield from replay(self.stage, target, known_end)
        if not at_target:
            beside.write_marker(self.stage, marker | {EVERYTHING: True})
            self.stage.stop("fast", deadline=300.0)
            self._launch()
            yield from replay(self.stage, "latest", known_end)

    def _before_a_drop(self, backup: str, timeline: int, wanted: Mapping[str, Any]) -> Iterator[Progress]:
        """When a DROP DATABASE was under way at the target, restore once more, to the position where it began."""
        while found := dropped.began(self.stage, self.repository, timeline, self.live):
            database, lsn = found
            yield Progress(0, None, "", f"once more, to just before the DROP of {database} began")
            noted = yield from self._restore(
                self.stage.look(), backup, f"before-lsn:{lsn}", timeline, whole=False, needs_all=False
            )
            stamp = {"phase": "restored", "stopped_before_drop_of": database, "at": lsn}
            beside.write_marker(self.stage, {**wanted, **noted, **stamp})
            self._launch()
            yield from replay(self.stage, f"before-lsn:{lsn}", 0)

    def _restore(
        self, look: Look, backup: str, target: str, timeline: int, *, whole: bool, needs_all: bool
    ) -> Generator[Progress, None, dict[str, str]]:
        """The files of the backup, and the WAL that only the damaged server has: all of it with `needs_all`. `look`:
        one at the stage. What is to be noted of it, and of the primary.
        """
        with ThreadPoolExecutor(4) as pool:
            written = pool.submit(self._written, target, timeline)
            chosen = pool.submit(self.repository.backup, backup)
            elsewhere = pool.submit(self.repository.elsewhere, backup)
            if look.processes:
                self.stage.kill()
            if self._end_leftovers() or look.processes:
                look = self.stage.look()  # now that nothing works there any more
        # `whole`: it was built for another wish, or was live meanwhile.
        if look.directory is not None and (whole or not self._can_be_gone_on_with()):
            self.remove()
            look = self.stage.look()
        if look.directory is not None:
            self.stage.remove_locks()  # pgBackRest takes those of the killed for a server that runs
        if look.directory is None:
            beside.room_for(self.live, chosen.result().size, elsewhere.result().tablespaces.values())
        tablespaces = beside.places_of(self.live, elsewhere.result().tablespaces, self.incident)
        self.live.shell.run(["mkdir", "-p", "-m", "700", "--", self.stage.data])
        yield from backrest_work.restore(
            self.repository,
            backup,
            self.stage.data,
            incident=self.incident,
            target=recovery_options(target, timeline, chosen.result().timeline),
            tablespaces=tablespaces,
            resume=look.directory is not None and not look.empty,
        )
        yield Progress(0, None, "", "copying the WAL that is not archived")
        linked = elsewhere.result().links.get("pg_wal", "")
        with ThreadPoolExecutor(2) as pool:
            admitted = pool.submit(self.admit_only_the_operator)
            apart = salvage(self.live, self.stage, self.incident, linked, needs_all=needs_all)
        admitted.result()
        # Else it ends by itself where the WAL ends, and cannot be asked how far it came.
        script = '[ ! -e "$1/recovery.signal" ] || mv -T -- "$1/recovery.signal" "$1/standby.signal"'
        self.live.shell.run(["sh", "-c", script, "sh", self.stage.data])
        noted = {WAL_WAS_AT: apart, DRILL: "yes" if self.is_drill else ""}
        return {**written.result(), **{name: told for name, told in noted.items() if told}}

    def _written(self, target: str, timeline: int) -> dict[str, str]:
        """How far the live primary had flushed its WAL, when that was not before the time that is the target: then no
        commit of before it comes behind. Nothing where that cannot be told, or another timeline came after that one.
        """
        import psycopg

        kind, _, moment = target.partition(":")
        if kind not in ("time", "before"):
            return {}
        try:
            if max(self.repository.archive.timelines, default=0) > timeline:
                return {}
            with self.live.session(deadline=5.0) as connection:
                row = connection.execute(_FLUSHED, [moment, timeline]).fetchone()
        except (psycopg.Error, SalvorError):
            return {}
        return {_WRITTEN: row[0]} if row else {}

    def _can_be_gone_on_with(self) -> bool:
        """Whether pgBackRest takes what is there for its own work: else it ignores --delta, and refuses a folder in
        which there is anything (src/command/restore/restore.c). A restore that was killed in its first moments has made
        folders, and neither of these files.
        """
        script = '[ -e "$1/PG_VERSION" ] || [ -e "$1/backup.manifest" ]'
        return self.live.shell.succeeds(["sh", "-c", script, "sh", self.stage.data])

    def _end_leftovers(self) -> bool:
        """End what a killed call left working in the stage: two restores of one directory would spoil it. Whether there
        was anything.
        """
        return leftovers.end(self.live.shell, f"--pg1-path={self.stage.data}", self.stage.data)

    def _known_end(self, timeline: int, restored: Look, damaged: Look) -> int:
        """The LSN that a restore of the newest state must reach, as far as that is known; 0 when it is not."""
        segment_size = int((restored.control or {}).get("Bytes per WAL segment", 0))
        known = [self.repository.archive.reaches(timeline, segment_size) if segment_size else 0]
        if damaged.control and damaged.timeline == timeline and not damaged.in_recovery:
            known.append(read_lsn(damaged.control["Latest checkpoint location"]))
        return max(known)

    def _launch(self) -> tuple[Look, Look]:
        """Start the stage beside what is live; what was seen of both before."""
        with ThreadPoolExecutor(3) as pool:
            staged, damaged = pool.submit(self.stage.look), pool.submit(self.live.look)
            archiving = pool.submit(self.stage.settings, "archive_library", "archive_mode", "promote_trigger_file")
        looks, configured = (staged.result(), damaged.result()), archiving.result()
        if not all(look.control for look in looks):  # they say what room the servers had
            configured |= self.stage.settings(*_ROOM)
        overrides = self._overrides(looks, configured)
        if beside.read_marker(looks[0].marker).get(EVERYTHING):
            overrides |= {"restore_command": NO_WAL}
        self.stage.launch(overrides, looks[0])
        return looks

    def _overrides(self, looks: Sequence[Look], configured: Mapping[str, str]) -> dict[str, str]:
        """Settings of the command line, which is above every file: apart from the live server, and read-only."""
        settings = {
            **APART,
            "hba_file": self.hba,
            "cluster_name": STAGE,
            "hot_standby": "on",
            "recovery_target_action": "pause",
            "restore_command": fetching_ahead(self.repository, self.stage.data),
            "primary_conninfo": "",
            "primary_slot_name": "",
            "recovery_min_apply_delay": "0",
            "recovery_end_command": "",
            "archive_cleanup_command": "",
            **_without_other_targets(beside.read_marker(looks[0].marker)),
            "wal_retrieve_retry_interval": "500ms",
            # What is promoted before the swap keeps its WAL for the archive, which its real settings then name. A
            # command that fails instead would be tried three times, a second apart, before the server stops.
            "archive_command": "",
        }
        # PostgreSQL 15 and newer: it would be used instead of the command. 15 and older: it would end the recovery.
        settings |= dict.fromkeys({"archive_library", "promote_trigger_file"} & set(configured), "")
        if configured.get("archive_mode") == "always":
            settings["archive_mode"] = "on"
        # A hot standby needs as much room as the primary had when it wrote the WAL, or recovery stops.
        for name, label in _ROOM.items():
            figures = [int(look.control[label]) for look in looks if look.control and label in look.control]
            settings[name] = str(max(*figures, int(configured.get(name, 0))))
        return settings

    # --- promote and remove --------------------------------------------------------------------------------------

    def _end_recovery(self) -> Iterator[Progress]:
        yield Progress(0, None, "", "promoting the stage")
        yield from promoting(self.stage, self._launch)

    def _take_out_recovery_settings(self) -> None:
        """What pgBackRest wrote for the recovery, and what it had put out for that. Left there, it would bind the next
        standby that is copied from this server to the old target. And the WAL that was fetched ahead: what still
        fetches would make its folder anew, where the stage was.
        """
        self._end_leftovers()
        self.live.shell.run(["rm", "-rf", "--", *(f"{self.stage.data}/{name}" for name in (SPOOL, REFUSED))])
        path = f"{self.stage.data}/postgresql.auto.conf"
        self.live.shell.write(path, without_recovery(self.live.shell.read(path) or ""))

    def drop(self) -> None:
        """Remove the stage. What is live bears another name, so it cannot be meant."""
        self.stage.kill()
        self._end_leftovers()
        self.remove()


def without_recovery(settings: str) -> str:
    """The text of a postgresql.auto.conf as it was before pgBackRest wrote its recovery settings there."""
    generated = r"^# Recovery settings generated by pgBackRest.*\n(?:^(?:restore_command|recovery_\w+) = .*\n)*"
    settings = re.sub(generated, "", settings, flags=re.M)
    return re.sub(r"^# Removed by pgBackRest restore on \S+ \S+ # ", "", settings, flags=re.M)


_ROOM = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}

_TARGETS = {
    "immediate": "recovery_target",
    "time": "recovery_target_time",
    "before": "recovery_target_time",
    "name": "recovery_target_name",
    "lsn": "recovery_target_lsn",
    "xid": "recovery_target_xid",
}


def _without_other_targets(marker: Mapping[str, Any]) -> dict[str, str]:
    """Settings that put out every recovery target but that of the stage: one may be left from an older recovery."""
    kind = "lsn" if "stopped_before_drop_of" in marker else str(marker.get("target")).partition(":")[0]
    its = None if marker.get(EVERYTHING) else _TARGETS.get(kind)
    return {name: "" for name in _TARGETS.values() if name != its}

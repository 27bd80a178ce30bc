"""Physical restore: a pgBackRest backup staged beside the damage, replayed to its target, then swapped in."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from salvor import clock, leftovers
from salvor.change import UNSEEN, Progress, Reachable
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres import beside, dropped, fence
from salvor.postgres.backrest import Repository, recovery_options
from salvor.postgres.cluster import Member, View
from salvor.postgres.look import ABSENT, MARKER, Look
from salvor.postgres.server import LOOKED_EVERY, Line, Server, pause
from salvor.postgres.wal import read_lsn, write_lsn

if TYPE_CHECKING:
    from salvor.postgres.server import Connection

STAGE = "side-data"
ACCEPT_MISSING_WAL = "accept-missing-wal"

_HBA = "salvor_hba.conf"
_REPLAY_SECONDS = 24 * 3600.0
_GAP_SECONDS = 30.0
"""How long WAL that must be there is waited for: the archive may take it a little later."""


@dataclass(frozen=True)
class Physical:
    """The stage of one incident beside one member's data directory, and what is done with it."""

    member: Member
    repository: Repository
    incident: str
    side_port: int
    database: str

    @property
    def live(self) -> Server:
        """The server whose data directory is replaced."""
        return self.member.server

    @property
    def stage(self) -> Server:
        """The staged server."""
        return beside.stage_of(self.live, self.incident, self.side_port)

    @property
    def kept(self) -> str:
        """Where the replaced data directory is kept."""
        return beside.kept_of(self.live, self.incident)

    def is_live(self) -> bool:
        """Whether this incident's stage is the live data directory now."""
        return beside.read_marker(self.live.look().marker).get("incident") == self.incident

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
        phase = marker.get("phase") if {name: marker.get(name) for name in wanted} == wanted else None
        if phase is None or phase == "undone":
            whole = bool(marker.get("incident") == self.incident)
            yield from self._restore(look, backup, target, timeline, whole=whole)
            marker = wanted
            beside.write_marker(self.stage, marker | {"phase": "restored"})
        restored, damaged = self._launch()
        known_end = self._known_end(timeline, restored, damaged) if target == "latest" else 0
        yield from self._replay(target, 0 if ACCEPT_MISSING_WAL in overrides else known_end)
        if target.partition(":")[0] in ("time", "before") and phase not in ("complete", "promoting"):
            yield from self._before_a_drop(backup, timeline, wanted)
        if phase not in ("complete", "promoting"):
            marker = self._marker()
            stamp = {"phase": "complete", "completed_at": clock.write_time(clock.now())}
            beside.write_marker(self.stage, marker | stamp)

    def _before_a_drop(self, backup: str, timeline: int, wanted: Mapping[str, Any]) -> Iterator[Progress]:
        """When a DROP DATABASE was under way at the target, restore once more, to the position where it began."""
        lineage = self.repository.lineage(timeline, self.live)
        while found := dropped.began(self.stage, self.repository, lineage):
            database, lsn = found
            yield Progress(0, None, "", f"once more, to just before the DROP of {database} began")
            yield from self._restore(self.stage.look(), backup, f"before-lsn:{lsn}", timeline, whole=False)
            stamp = {"phase": "restored", "stopped_before_drop_of": database, "at": lsn}
            beside.write_marker(self.stage, {**wanted, **stamp})
            self._launch()
            yield from self._replay(f"before-lsn:{lsn}", 0)

    def _marker(self) -> dict[str, Any]:
        """What the stage says of itself."""
        return beside.read_marker(self.stage.shell.read(f"{self.stage.data}/{MARKER}"))

    def _restore(self, look: Look, backup: str, target: str, timeline: int, *, whole: bool) -> Iterator[Progress]:
        """The files of the backup, and the WAL that only the damaged server has. `look`: one at the stage."""
        with ThreadPoolExecutor(3) as pool:
            size = pool.submit(lambda: self.repository.backup(backup).size)
            places = pool.submit(self.repository.tablespaces, backup)
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
            beside.room_for(self.live, size.result())
        tablespaces = {
            oid: f"{re.sub(r'[.]salvor-[^/]*$', '', path)}.salvor-{self.incident}"
            for oid, path in places.result().items()
        }
        self.live.shell.run(["mkdir", "-p", "-m", "700", "--", self.stage.data, *tablespaces.values()])
        yield from self.repository.restore(
            backup,
            self.stage.data,
            target=recovery_options(target, timeline),
            tablespaces=tablespaces,
            resume=look.directory is not None and not look.empty,
        )
        yield Progress(0, None, "", "copying the WAL that is not archived")
        rules = fence.only_the_operator(self.live.operator.user)
        with ThreadPoolExecutor(2) as pool:
            done = pool.submit(self._salvage), pool.submit(self.live.shell.write, f"{self.stage.data}/{_HBA}", rules)
        for one in done:
            one.result()

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

    def _salvage(self) -> None:
        """Copy the WAL that the archive does not have from the damaged server's pg_wal, if that can be read.

        PostgreSQL's manual, "Recovering Using a Continuous Archive Backup", steps 2 and 6: recovery takes what the
        archive has from there, and the rest from pg_wal, up to the last whole record of the last, partial segment.
        Old segments that PostgreSQL renamed for later use look like unarchived ones, and may be gigabytes. A segment's
        first page says where it belongs (xlp_pageaddr in xlog_internal.h): theirs say elsewhere.
        """
        script = r"""
            words() { echo $#; }
            cd -- "$1/pg_wal" 2>/dev/null || exit 0
            segments= copied=
            for name in *; do
                [ -f "$name" ] && ! [ -e "archive_status/$name.done" ] || continue
                case $name in
                *.history) copied="$copied $name" ;;
                *[!0-9A-F]*) ;;
                ????????????????????????) segments="$segments $name" ;;
                esac
            done
            stage=$2 addresses= size=0
            if [ "$segments" ]; then
                addresses=$(head -q -c 16 -- $segments | od -A n -v -t x8 | while read -r _ one; do echo "$one"; done)
                size=$(stat -c %s -- $segments | sort -n | tail -n 1)
            fi
            [ "$(words $addresses)" = "$(words $segments)" ] || addresses=  # one is cut short: no address is known
            set -- $addresses
            for name in $segments; do
                address=$((0x${1:-0})) log=${name#????????}
                start=$((0x${log%????????} * 4294967296 + 0x${log#????????} * size))
                if [ $# = 0 ] || [ "$address" = "$start" ]; then copied="$copied $name"; fi
                [ $# = 0 ] || shift
            done
            for name in $copied; do cp -p --reflink=auto -- "$name" "$stage/pg_wal/" || echo "$name"; done
            sync -- "$stage/pg_wal"
        """
        self.live.shell.run(["sh", "-c", script, "sh", self.live.data, self.stage.data], deadline=600.0)

    def _known_end(self, timeline: int, restored: Look, damaged: Look) -> int:
        """The LSN that a restore of the newest state must reach, as far as that is known; 0 when it is not."""
        segment_size = int((restored.control or {}).get("Bytes per WAL segment", 0))
        known = [self.repository.archived_to(timeline, segment_size) if segment_size else 0]
        if damaged.control and damaged.timeline == timeline and not damaged.in_recovery:
            known.append(read_lsn(damaged.control["Latest checkpoint location"]))
        return max(known)

    def _launch(self) -> tuple[Look, Look]:
        """Start the stage beside what is live; what was seen of both before."""
        with ThreadPoolExecutor(3) as pool:
            staged, damaged = pool.submit(self.stage.look), pool.submit(self.live.look)
            archiving = pool.submit(self.stage.settings, "archive_library", "archive_mode")
        looks, configured = (staged.result(), damaged.result()), archiving.result()
        if not all(look.control for look in looks):  # they say what room the servers had
            configured |= self.stage.settings(*_ROOM)
        self.stage.launch(self._overrides(looks, configured), looks[0])
        return looks

    def _overrides(self, looks: Sequence[Look], configured: Mapping[str, str]) -> dict[str, str]:
        """Settings of the command line, which is above every file: apart from the live server, and read-only."""
        settings = {
            "unix_socket_directories": "",
            "hba_file": f"{self.stage.data}/{_HBA}",
            "external_pid_file": "",
            "cluster_name": STAGE,
            "hot_standby": "on",
            "recovery_target_action": "pause",
            "restore_command": self.repository.archive_get(self.stage.data),
            "primary_conninfo": "",
            "primary_slot_name": "",
            "wal_retrieve_retry_interval": "500ms",
            # What is promoted before the swap keeps its WAL for the archive, which its real settings then name. A
            # command that fails instead would be tried three times, a second apart, before the server stops.
            "archive_command": "",
            "synchronous_standby_names": "",
            "huge_pages": "try",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        if "archive_library" in configured:
            settings["archive_library"] = ""  # PostgreSQL 15 and newer; it would be used instead of the command
        if configured.get("archive_mode") == "always":
            settings["archive_mode"] = "on"
        # A hot standby needs as much room as the primary had when it wrote the WAL, or recovery stops.
        for name, label in _ROOM.items():
            figures = [int(look.control[label]) for look in looks if look.control and label in look.control]
            settings[name] = str(max(*figures, int(configured.get(name, 0))))
        return settings

    def _replay(self, target: str, known_end: int) -> Iterator[Progress]:
        """Wait until the target is reached, or all WAL is replayed."""
        with Line(self.stage, deadline=5.0) as line:
            paused, newest = yield from self._follow(line, target, known_end)
        if paused:
            self._no_pause_for_lack_of_room()
            yield from self._end_what_was_under_way(newest)

    def _follow(
        self, line: Line, target: str, known_end: int
    ) -> Generator[Progress, None, tuple[bool, datetime | None]]:
        """As `_replay`; whether it is paused at its target, and its newest commit."""
        import psycopg

        begun = looked = clock.monotonic()
        first = 0
        waiting: tuple[int, int, float] = (0, 0, 0.0)  # at which LSN, how often seen waiting, since when
        while True:
            if clock.monotonic() - begun > _REPLAY_SECONDS:
                raise OutcomeUnknownError(f"{self.stage.data} still replays WAL.", hint="run the same command again")
            try:
                row = line.ask(_REPLAYED)
            except psycopg.Error as error:
                if "authentication failed" in str(error):  # it answers, and will not let us in later either
                    raise CannotError(
                        f"{self.stage.data} does not let the operator in: {' '.join(str(error).split())}",
                        safe="what is live is as it was; the copy stays, and is gone on with",
                        hint="mend the operator's password (systems: operator: password), then the same command again",
                    ) from error
                if clock.monotonic() > looked + LOOKED_EVERY:
                    looked = clock.monotonic()
                    if not self.stage.processes():
                        raise self._not_reached(target) from None
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
                        raise self._gap(now, known_end)
            pause(begun, most=0.05)

    def _end_what_was_under_way(self, newest: datetime | None) -> Iterator[Progress]:
        """End the recovery when a transaction that had not committed at the target holds tables in it.

        The trap of going back to just before a DROP TABLE: the paused replay holds that transaction's lock, and whoever
        reads the table waits for ever. With the recovery ended the transaction is rolled back. The copy still archives
        nothing, and lets only the operator in. The newest commit is noted, which is harder to tell afterwards.
        """
        with self.stage.session(deadline=5.0) as connection:
            if not connection.execute(_HELD).fetchone():
                return
        yield Progress(0, None, "", "rolling back what was under way at the target")
        marker = self._marker()
        noted = {"newest_commit": clock.write_time(newest)} if newest else {}
        beside.write_marker(self.stage, marker | noted)
        promote_server(self.stage)

    def _no_pause_for_lack_of_room(self) -> None:
        if any("insufficient parameter settings" in line for line in self.stage.last_log(20)):
            raise CannotError(
                f"The replay in {self.stage.data} stopped: the primary had larger settings meanwhile.",
                safe="what is live is as it was",
                hint=f"tail {self.stage.log} names it: raise it in the stage's postgresql.conf and stop the stage, "
                "then run the same command again",
            )

    def _gap(self, reached: int, known_end: int) -> CannotError:
        said = [line for line in self.stage.last_log(60) if "ERROR" in line or "P00" in line]
        why = f" pgBackRest says: {said[-1]}" if said else ""
        return CannotError(
            f"WAL is missing: the replay ended at {write_lsn(reached)}, and WAL goes to {write_lsn(known_end)}.{why}",
            safe="what is live is as it was; the stage is kept",
            hint="see that the archive can be read, and run the same command again; or accept the loss with "
            f"--override='{ACCEPT_MISSING_WAL}=REASON'",
        )

    def _not_reached(self, target: str) -> CannotError:
        log = "\n".join(self.stage.last_log(60))
        last = re.findall(r"last completed transaction was at log time (.*)", log)
        if "before configured recovery target was reached" in log:
            newest = f" The newest commit there is from {last[-1]}." if last else ""
            return CannotError(
                f"The target {target.partition(':')[2]} cannot be reached: the WAL ends before it.{newest}",
                safe="what is live is as it was",
                hint="for everything there is, leave out --at and --target; or name an earlier time",
            )
        if "before consistent recovery point" in log:
            return CannotError(
                f"The target {target.partition(':')[2]} lies before the end of the backup.",
                safe="what is live is as it was",
                hint="name an older backup with --from, or a later time: inv backups lists them",
            )
        return self.stage.ended()

    # --- promote, and the way back --------------------------------------------------------------------------------

    def promote(self, identity: str, view: View, *, unfenced_because: str) -> Iterator[Progress]:
        """Make the stage the live data directory: promote it, rename twice, start. What was live is kept.

        Refuses while it is not known that what is replaced cannot write. Goes on where a killed call stopped.
        """
        live = view.of(self.member.name).look or self.live.look()
        if beside.read_marker(live.marker).get("incident") != self.incident:
            require_fence(view, identity, self.kept if self.live.shell.exists(self.kept) else "", unfenced_because)
            marker = self._marker()
            if marker.get("incident") != self.incident or marker.get("phase") not in ("complete", "promoting"):
                raise CannotError(
                    f"There is no whole stage of this incident beside {self.live.data}.",
                    safe="what is live is as it was",
                    hint="run the same command again: it stages first",
                )
            marker = {"was_running": bool(live.processes), "replaces": identity} | marker | {"phase": "promoting"}
            beside.write_marker(self.stage, marker)
            yield Progress(0, None, "", "promoting the stage")
            promote_server(self.stage, self._launch)
            yield Progress(0, None, "", "stopping it, and what it replaces")
            with ThreadPoolExecutor(3) as pool:
                stopping = pool.submit(self.stage.stop, "fast", deadline=300.0), pool.submit(stop_or_kill, self.live)
                clean = pool.submit(self._take_out_recovery_settings)
            for one in (*stopping, clean):
                one.result()
            beside.swap(self.live, comes=self.stage.data, goes=self.kept)
        yield Progress(0, None, "", "starting")
        self.live.shell.run(["rm", "-f", "--", f"{self.live.data}/{_HBA}"])
        fence.take_out(self.live)
        self.live.start(deadline=300.0)
        see_it_writes(self.live)

    def _take_out_recovery_settings(self) -> None:
        """What pgBackRest wrote for the recovery, and what it had put out for that. Left there, it would bind the next
        standby that is copied from this server to the old target."""
        path = f"{self.stage.data}/postgresql.auto.conf"
        text = self.live.shell.read(path) or ""
        text = re.sub(
            r"^# Recovery settings generated by pgBackRest.*\n(?:^(?:restore_command|recovery_\w+) = .*\n)*",
            "",
            text,
            flags=re.M,
        )
        text = re.sub(r"^# Removed by pgBackRest restore on \S+ \S+ # ", "", text, flags=re.M)
        self.live.shell.write(path, text)

    def demote(self, identity: str) -> Iterator[Progress]:
        """Put back what was live before: stopped or running as it was, and fenced still."""
        if self.is_live():
            marker = beside.read_marker(self.live.look().marker)
            yield Progress(0, None, "", "stopping what was promoted")
            self.live.stop("fast", deadline=300.0)
            beside.write_marker(self.live, marker | {"phase": "undone"})
        marker = beside.read_marker(self.live.look().marker)
        if self.live.shell.exists(self.kept):
            beside.swap(self.live, comes=self.kept, goes=self.stage.data)
        elif marker.get("incident") == self.incident:
            beside.put_away(self.live, self.stage.data)  # there was nothing before: the data directory was lost
        look = self.live.look()
        if look.identity != identity:
            raise CannotError(f"{self.live.data} is {look.identity} now, and was {identity} before.", hint="inv assess")
        if identity == ABSENT:
            return
        fence.put_back(self.live, identity)
        marker = beside.read_marker(self.stage.look().marker)
        if marker.get("was_running"):
            yield Progress(0, None, "", "starting what was live before")
            self.live.start(deadline=300.0)

    # --- remove --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Remove the stage. What is live bears another name, so it cannot be meant."""
        self.stage.kill()
        self._end_leftovers()
        self.remove()

    def remove(self) -> None:
        """Remove the stage's directory, which no process works in."""
        beside.remove(self.live, self.stage.data, tablespaces="own")


_ROOM = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}

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


def require_fence(view: View, identity: str, kept: str, unfenced_because: str) -> None:
    """See that what is replaced cannot write any more. Raises CannotError when that is not known.

    `kept`: it is put away already, by a call that was killed. `unfenced_because`: the operator's reason to go on.
    """
    holder = view.holder_of(identity)
    if (holder is None and kept) or unfenced_because:
        return
    if holder is None and view.primary.identity == UNSEEN:
        holder = view.holder_of(UNSEEN)
    if holder and holder.is_fenced:
        return
    seen = holder.describe() if holder else f"no member is {identity} now"
    raise CannotError(
        f"It is not known that the old primary cannot write any more: {seen}.",
        safe="nothing was promoted",
        hint="inv isolate fences it; where its machine cannot be reached, see to it by hand (power off), then add "
        "--override='promote-without-fence=REASON'",
    )


def promote_server(server: Server, launch: Any = None) -> None:
    """End a server's recovery and see that it ended. Finds its work done when it is no standby."""
    import psycopg

    if server.probe()[0] is not Reachable.UP:
        look = server.look()
        if not look.in_recovery and not look.processes:
            return
        if launch is not None:
            launch()
        server.start(deadline=300.0)
    begun = clock.monotonic()
    try:
        with server.session(deadline=90.0, writes=True) as connection:
            state = connection.execute(_RECOVERY).fetchone()
            if state == ("ended",):
                return
            if state == ("paused",):  # at its target, where pg_promote would be noticed up to a second later
                connection.execute("select pg_wal_replay_resume()")
                done = _has_ended_recovery(connection, begun)
            else:
                done = connection.execute("select pg_promote(true, 80)").fetchone() == (True,)
    except psycopg.Error as error:
        raise OutcomeUnknownError(
            f"Whether {server.data} was promoted is not known: {error}.",
            hint="run the same command again: it looks first",
        ) from error
    if not done:
        raise OutcomeUnknownError(
            f"{server.data} did not end its recovery within 80 s.",
            safe="nothing was lost",
            hint="run the same command again",
        )


_RECOVERY = """
    select case when not pg_is_in_recovery() then 'ended' when pg_is_wal_replay_paused() then 'paused' else 'on' end
"""


def _has_ended_recovery(connection: Connection, begun: float) -> bool:
    """Wait for 80 s at most."""
    while connection.execute("select pg_is_in_recovery()").fetchone() != (False,):
        if clock.monotonic() > begun + 80:
            return False
        pause(begun)
    return True


def stop_or_kill(server: Server) -> None:
    """Stop a fenced server: by a clean shutdown when it answers, else by SIGKILL."""
    if not server.processes():
        return
    if server.probe()[0] is Reachable.UP:
        try:
            server.stop("fast", deadline=60.0)
            return
        except OutcomeUnknownError:
            pass  # it hangs; it is fenced, so nothing that anybody was told is lost
    server.kill()


def see_it_writes(server: Server) -> None:
    """See that a server takes writes, by a small message in its WAL. Raises CannotError when it does not."""
    import psycopg

    try:
        with server.session(deadline=10.0, writes=True) as connection:
            connection.execute("select pg_logical_emit_message(true, 'salvor', 'it takes writes')")
    except psycopg.Error as error:
        raise CannotError(
            f"{server.address}:{server.port} is promoted and does not take writes: {error}.",
            safe="what was live before is kept",
            hint="when it waits for a synchronous standby: alter system set synchronous_standby_names = ''; and reload",
        ) from error

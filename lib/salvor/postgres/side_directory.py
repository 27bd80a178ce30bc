"""A data directory that one incident builds beside the live one: swapped in, swapped back, or removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from salvor.change import ABSENT, UNSEEN, Progress
from salvor.errors import CannotError, nothing_kept
from salvor.postgres import beside, fence
from salvor.postgres.cluster import Member, View
from salvor.postgres.connection import listens
from salvor.postgres.promotion import require_fence, see_it_writes, stop_or_kill
from salvor.postgres.server import Server

APART = {
    "unix_socket_directories": "",
    "external_pid_file": "",
    "synchronous_standby_names": "",
    "max_logical_replication_workers": "0",  # or its subscriptions would take what the live server is to get
    "huge_pages": "try",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",  # its log is read for the reasons
}
"""Settings of the command line, which is above every file: they keep a stage apart from the live server."""

DRILL = "drill"
"""In the marker of a stage: it was made for a drill, so that nobody needs it."""

_HBA = "salvor_hba.conf"


@dataclass(frozen=True)
class SideDirectory:
    """The stage of one incident beside one member's data directory. How it is built is each kind's own."""

    member: Member
    incident: str
    side_port: int
    is_drill: bool = field(default=False, kw_only=True)

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

    @property
    def hba(self) -> str:
        """The pg_hba.conf of the stage: it lets the operator in, and nobody else."""
        return f"{self.stage.data}/{_HBA}"

    def admit_only_the_operator(self) -> None:
        """Write the stage's pg_hba.conf."""
        self.stage.shell.write(self.hba, fence.only_the_operator(self.stage.operator.user))

    def end_drills(self) -> Iterator[str]:
        """End the copies of drills that hold the side port, most often of one that was killed, and give the drill of
        each: a recovery waits for none. A drill ends no other's.
        """
        if self.is_drill or not listens(self.stage.address, self.stage.port):
            return
        for one in beside.listing(self.live):
            other = beside.stage_of(self.live, one.incident, self.side_port)
            if one.kind == "salvor" and beside.marker_of(other).get(DRILL) and other.processes():
                other.kill()
                yield one.incident

    def is_live(self) -> bool:
        """Whether this incident's stage is the live data directory now."""
        return beside.read_marker(self.live.look().marker).get("incident") == self.incident

    def is_complete(self, marker: Mapping[str, Any]) -> bool:
        """Whether a marker says that the stage is whole."""
        return marker.get("incident") == self.incident and marker.get("phase") in ("complete", "promoting")

    # --- promote, and the way back --------------------------------------------------------------------------------

    def promote(self, identity: str, view: View, *, unfenced_because: str) -> Iterator[Progress]:
        """Make the stage the live data directory: rename twice, start. What was live is kept.

        Refuses while it is not known that what is replaced cannot write. Goes on where a killed call stopped.
        """
        live = view.of(self.member.name).look or self.live.look()
        if beside.read_marker(live.marker).get("incident") != self.incident:
            self._refuse_another(identity, view)
            require_fence(view, identity, self.kept if self.live.shell.exists(self.kept) else "", unfenced_because)
            marker = beside.marker_of(self.stage)
            if not self.is_complete(marker):
                raise CannotError(
                    f"There is no whole stage of this incident beside {self.live.data}.",
                    safe="what is live is as it was",
                    hint="run the same command again: it stages first",
                )
            marker = {"was_running": bool(live.processes), "replaces": identity} | marker | {"phase": "promoting"}
            beside.write_marker(self.stage, marker)
            yield from self._end_recovery()
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
        if not self.live.shell.exists(self.kept):  # with it, discard removes what the stage said
            self.live.shell.run(["rm", "-f", "--", self.stage.log])

    def _refuse_another(self, identity: str, view: View) -> None:
        """Raises CannotError when another cluster than the one to be replaced takes writes, there or on another member:
        of two members that were lost, the one that still is has the identity of both.
        """
        for one in view.sightings:
            is_another = identity != UNSEEN and one.identity.partition("/")[0] != identity.partition("/")[0]
            if not (is_another and one.is_up and one.writable):
                continue
            raise CannotError(
                f"{one.member.server.data} takes writes, and is {one.identity}, not {identity}, which was to be "
                "replaced: somebody brought it back meanwhile.",
                safe="nothing was replaced",
                hint=f"inv assess; if nothing is broken, inv undo --incident={self.incident} removes the copy",
            )

    def _end_recovery(self) -> Iterator[Progress]:
        """Let the stage take writes, where it only replays so far."""
        yield from ()

    def _take_out_recovery_settings(self) -> None:
        """Take out of its files what only its recovery needed."""

    def demote(self, identity: str) -> Iterator[Progress]:
        """Put back what was live before: stopped or running as it was, and fenced still."""
        before = identity.partition("/")[0]  # of a database that was swapped in: its cluster
        if self.is_live():
            if before != ABSENT and not self.live.shell.exists(self.kept):
                raise nothing_kept(self.kept, self.incident)
            beside.require_idle(self.live, self.kept)
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
        if look.identity != before:
            raise CannotError(f"{self.live.data} is {look.identity} now, and was {before} before.", hint="inv assess")
        if before == ABSENT:
            return
        fence.put_back(self.live, before, self.incident)
        marker = beside.read_marker(self.stage.look().marker)
        if marker.get("was_running"):
            yield Progress(0, None, "", "starting what was live before")
            self.live.start(deadline=300.0)

    # --- remove --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Remove the stage. What is live bears another name, so it cannot be meant."""
        self.stage.kill()
        self.remove()

    def remove(self) -> None:
        """Remove the stage's directory, which no process works in."""
        beside.remove(self.live, self.stage.data, tablespaces="own")

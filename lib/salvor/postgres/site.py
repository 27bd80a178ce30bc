"""One cluster and one incident: where the servers are, where the backups are, and what is staged and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from salvor import secrets
from salvor.change import Finding, Kept, Level, Staged, State
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.postgres import beside
from salvor.postgres.backrest import Repository
from salvor.postgres.beside import Beside
from salvor.postgres.cluster import Member, Sighting, View, view
from salvor.postgres.connection import listens
from salvor.postgres.facts import as_noted, ask_facts
from salvor.postgres.failover import stage_name
from salvor.postgres.physical import STAGE, Physical
from salvor.postgres.server import Server
from salvor.postgres.side_directory import SideDirectory


@dataclass(frozen=True)
class Site:
    """What every way back works on. `open_repository` gives the pgBackRest repository as a member's machine uses it."""

    name: str
    incident: str
    database: str
    members: tuple[Member, ...]
    side_port: int
    open_repository: Callable[[Member], Repository] | None
    is_drill: bool = False

    def member(self, name: str) -> Member:
        """The member of that name. Raises UsageError."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(one.name for one in self.members)
        raise UsageError(f"{self.name}: there is no member {name!r}.", hint=f"its members are {known}")

    def view(self) -> View:
        """All members, looked at side by side, within 5 s."""
        return view(self.members, self.database, self.incident)

    def repository(self, member: Member) -> Repository:
        """The pgBackRest repository as used from a member's machine. Raises CannotError when none is described."""
        if self.open_repository is None:
            raise CannotError(
                f"{self.name}: its backups are not described.",
                hint="add pgbackrest: to the inventory; for a dump, --kind=dump",
            )
        return self.open_repository(member)

    def physical(self, member: Member) -> Physical:
        """This incident's physical stage beside a member's data directory."""
        return Physical(member, self.incident, self.side_port, self.repository(member), is_drill=self.is_drill)

    def beside(self, seen: View) -> list[tuple[Member, list[Beside]]]:
        """What stands beside each data directory whose machine answers."""
        members = [one.member for one in seen.sightings if one.look]
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            return list(zip(members, pool.map(lambda member: beside.listing(member.server), members), strict=True))

    def stage(self, seen: View) -> Physical | None:
        """The physical stage that stands beside a member; None when there is none."""
        for member, found in self.beside(seen):
            if any(one.kind == "salvor" and one.incident == self.incident for one in found):
                return self.physical(member)
        return None

    def side_servers(self, seen: View) -> list[str]:
        """What runs beside the members whose machines answer: in this incident's stage, or on the side port."""
        found = []
        for member in (one.member for one in seen.sightings if one.look):
            stage = beside.stage_of(member.server, self.incident, self.side_port)
            found += [f"process {each.pid} in {stage.data}, member {member.name}" for each in stage.all_processes()]
            if listens(stage.address, stage.port):
                found.append(f"something listens on {stage.address}:{stage.port}, member {member.name}")
        return found

    def side_port_freed(self, side: SideDirectory) -> Iterator[Finding]:
        """End what drills that were killed left running where this stage is to run, and say so."""
        for drill in side.end_drills():
            told = f"the copy of the drill {drill} held it, and was ended"
            yield Finding(self.name, "side port", Level.WARN, told, detail=f"inv undo --incident={drill} removes it")

    def server(self, where: str, seen: View) -> Server:
        """The server that is meant by `live`, `side-data`, `standby NAME` or `address:HOST`. Raises CannotError."""
        if where == "live":
            return seen.primary.member.server
        if where == STAGE:
            staged = self.stage(seen)
            if staged is None:
                raise CannotError(f"{self.name}: nothing is staged for {self.incident}.", hint="inv restore stages it")
            return staged.stage
        for member in self.members:
            if where in (stage_name(member.name), f"address:{member.server.address}"):
                return member.server
        raise CannotError(f"{self.name}: there is no {where!r} to ask.", hint="it is live, a stage, or address:HOST")

    # --- as the steps see it -------------------------------------------------------------------------------------

    def state(self, seen: View) -> State:
        """The state of the cluster, from a look at its members."""
        primary = seen.primary
        around = self.beside(seen)
        staged = [self._staged_standby(one) for one in seen.standbys if one is not primary]
        for member, found in around:
            mine = any(one.kind == "salvor" and one.incident == self.incident for one in found)
            if self.incident and mine and self.open_repository:
                staged.append(self._staged_data(self.physical(member)))
        kept = [
            Kept(f"{member.name}:kept-{one.incident}", one.identity, one.incident)
            for member, found in around
            for one in found
            if one.kind == "kept"
        ]
        lines = [one.describe() for one in seen.sightings]
        if seen.rivals:
            lines.insert(0, _describe_split(primary, seen.rivals))
        return State(
            reachable=primary.reachable,
            identity=primary.identity,
            writable=primary.writable,
            summary="; ".join(lines),
            origin=primary.origin,
            address=primary.member.server.address,
            fresh=primary.facts.fresh if primary.facts else None,
            staged=tuple(staged),
            kept=tuple(kept),
            machine=primary.member.machine,
            rivals=tuple(one.identity for one in seen.unfenced if primary.is_up),
            left_behind=tuple(
                f"{one.member.name} follows timeline {one.timeline}, which was taken back: {primary.member.name} is on "
                f"timeline {primary.timeline}"
                for one in seen.left_behind
                if one.timeline > primary.timeline
            ),
            misdescribed=tuple(
                f"{one.member.name}: {one.mistake.what}: {one.mistake.mend}" for one in seen.sightings if one.mistake
            ),
            details={one.member.name: one.describe() for one in seen.sightings},
        )

    def _staged_standby(self, one: Sighting) -> Staged:
        return Staged(
            stage_name(one.member.name),
            one.identity,
            complete=True,
            address=one.member.server.address,
            fresh=one.facts.fresh if one.facts else None,
            detail=one.describe(),
            shows_all=not (one.facts and one.facts.is_held_back),
        )

    def _staged_data(self, stage: Physical) -> Staged:
        """The stage is whole when its marker says so and it answers: after a reboot it is to be started again."""
        import psycopg

        look = stage.stage.look()
        marker = beside.read_marker(look.marker)
        whole = stage.is_complete(marker)
        fresh, detail = None, f"phase: {marker.get('phase', 'files')}"
        if whole:
            try:
                fresh = as_noted(ask_facts(stage.stage, self.database), marker).fresh
            except (psycopg.Error, CannotError) as error:
                whole, detail = False, f"it is whole and does not run: {secrets.mask(str(error)).strip()}"
        name = f"of {marker['backup']} to {marker['target']}, " if "backup" in marker else ""
        of = {str(name): marker[name] for name in ("backup", "target", "timeline") if name in marker}
        return Staged(STAGE, look.identity, whole, stage.stage.address, fresh, name + detail, of)

    def reachable_member(self) -> Member:
        """A member whose machine answers, for commands that any of them can run. Raises CannotError."""
        errors: list[SalvorError] = []
        for member in self.members:
            try:
                member.server.shell.run(["true"], deadline=5.0)
            except SalvorError as error:
                errors.append(error)
                continue
            return member
        why = "; ".join(dict.fromkeys(error.what.removesuffix(".") for error in errors))
        hint = next((error.hint for error in errors if error.hint), "check the network and SSH")
        raise CannotError(f"{self.name}: no machine of a member can be worked on: {why}.", hint=hint)


def _describe_split(primary: Sighting, rivals: Sequence[Sighting]) -> str:
    """One line for people about a split brain: which one counts as live, and what to do when it is the wrong one."""
    both = " and ".join(
        f"{one.member.name} ({one.facts.sessions if one.facts else 'unknown'} sessions)" for one in (primary, *rivals)
    )
    name = primary.member.name
    return (
        f"SPLIT BRAIN: {both} take writes; {name} counts as live, on timeline {primary.timeline}. If users are to stay "
        f"on another one, stop {name} before anything is fenced: inv protect then rebuilds it"
    )

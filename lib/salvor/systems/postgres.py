"""A PostgreSQL cluster: a primary, its standbys, its backups, and three ways to bring it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from salvor import clock, secrets, shell, unmounted
from salvor.archive.system import Archived
from salvor.backups.audit import Audited
from salvor.change import Backup, Change, Finding, Progress, State, Verdict, WayBack
from salvor.errors import CannotError, OutcomeUnknownError, SecretError
from salvor.postgres import (
    audit,
    backing_up,
    beside,
    dump_chosen,
    failover,
    fence,
    logical,
    logical_place,
    logical_proof,
    logical_stage,
    proof,
    rebuild,
    sessions,
    sound,
    ways,
)
from salvor.postgres.asking import ask
from salvor.postgres.backrest import NAME, Repository
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.connection import Operator
from salvor.postgres.described import require_described
from salvor.postgres.physical import STAGE
from salvor.postgres.server import Server
from salvor.postgres.settings import MemberSettings, PostgresSettings
from salvor.postgres.site import Site
from salvor.roles import Machine
from salvor.shell import Shell
from salvor.ssh.host import Host
from salvor.system import Outcome, verb
from salvor.wish import PROMOTE_WITHOUT_FENCE, Wish

_DAY = 24 * 3600.0
_A_MOMENT = 0.5
"""Seconds for which what was seen is taken for what there is, by who only looks. Who acts looks anew."""


class Postgres(Archived):
    """A PostgreSQL cluster. What it does is in `salvor.postgres`, by way back; this ties it together."""

    Settings = PostgresSettings
    settings: PostgresSettings
    _seen: tuple[float, View] | None = None
    """When it was looked at last (`clock.monotonic`), and what was seen; until something is changed."""

    @cached_property
    def site(self) -> Site:
        """The cluster and the incident, for the ways back."""
        return Site(
            name=self.name,
            incident=self.context.incident,
            database=self.settings.database,
            members=tuple(map(self._member, self.settings.members)),
            side_port=self.settings.side_port,
            open_repository=self._repository if self.settings.pgbackrest else None,
            is_drill=self.context.is_drill,
        )

    def _member(self, member: MemberSettings) -> Member:
        name = self.context.machine_at(member.host, member.ssh.port)

        def is_cut_off() -> bool:
            machine = self.context.system_of(name)
            return isinstance(machine, Machine) and machine.is_cut_off()

        return Member(member.name, self._server(member), name, is_cut_off)

    def _server(self, member: MemberSettings) -> Server:
        settings = self.settings
        return Server(
            shell=self._shell(member),
            programs=settings.programs,
            data=member.data,
            address=member.address,
            port=member.port,
            operator=Operator(settings.operator.user, settings.operator.password),
            start_command=settings.start,
            stop_command=settings.stop,
            configuration=member.configuration,
            environment=self._passphrase(),
        )

    def _shell(self, member: MemberSettings) -> Shell:
        run_as = self.settings.run_as or None
        if not member.host:
            return shell.local(run_as)
        return shell.OnDemand(member.host, lambda: Host(member.host, member.ssh, run_as).open(4.0))

    def _repository(self, member: Member) -> Repository:
        pgbackrest = self.settings.pgbackrest
        assert pgbackrest
        return Repository(
            shell=member.server.shell,
            config=pgbackrest.config,
            stanza=pgbackrest.stanza,
            system=self.name,
            program=pgbackrest.program,
            environment=self._passphrase(),
        )

    def _passphrase(self) -> dict[str, str]:
        pgbackrest = self.settings.pgbackrest
        if not pgbackrest or not pgbackrest.passphrase:
            return {}
        return {"PGBACKREST_REPO1_CIPHER_PASS": secrets.resolve(pgbackrest.passphrase)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(remark for member in self.site.members for remark in member.server.shell.remarks)

    # --- look ----------------------------------------------------------------------------------------------------

    def observe(self) -> State:
        """Who is the primary (or what is left of it), who follows, what is staged and kept. Within 5 s."""
        seen = self._look()
        state = self.site.state(seen)
        return logical.add_to(self, state, seen)

    def _look(self, *, since: float = 0.0) -> View:
        """What is seen of the cluster now, or was seen at most so many seconds ago and not changed since."""
        begun, last = clock.monotonic(), self._seen
        if last is None or begun - last[0] > since:
            last = self._seen = begun, self.site.view()
        return last[1]

    def backups(self) -> list[Backup]:
        """pgBackRest's backups and the dumps, newest first."""
        sources: dict[tuple[str, str], Callable[[], list[Backup]]] = dict(logical.sources(self))
        if self.settings.pgbackrest:
            sources[NAME, NAME] = lambda: self._repository(self.site.reachable_member()).backups()
        return self._list(sources)

    def ways_back(self, wish: Wish) -> list[WayBack]:
        """Failover, physical, logical, or in the runbook's order; what is possible comes first.

        Raises CannotError without the operator's password or its privileges: a healthy server seems silent then, and no
        way is proven; where the inventory describes another server; and when it needs nothing but time to start, room
        on its disk, that disk itself, or a connection slot.
        """
        self._require_password()
        seen = self._look(since=_A_MOMENT)
        self._require_privileges(seen)
        require_described(self.name, seen.primary)
        sound.require_a_free_slot(self.name, seen.primary, wish)
        over = ways.unless_left_behind(self.site, seen, failover.way(seen, wish))
        if not over.possible:
            sound.require_started(self.name, seen.primary, wish)
            sound.require_its_disk(self.name, seen.primary, wish)
            sound.require_more_than_room(self.name, seen.primary, wish)
        found, dumps = [over, ways.physical(self.site, seen, wish)], logical.ways_back(self, seen, wish)
        if not wish.gives_up(seen.primary.member.machine):
            found = logical.unless_shared(self, seen, found, dumps)
        return wish.in_its_order([*found, *dumps])

    def _require_password(self) -> None:
        try:
            secrets.resolve(self.settings.operator.password)
        except SecretError as error:
            raise CannotError(
                f"{self.name} cannot be asked whether it is broken, and nothing could be proven: {error.what}",
                safe="nothing was changed",
                hint=error.hint,
            ) from error

    def _require_privileges(self, seen: View) -> None:
        if "permission denied" in seen.primary.detail:
            raise CannotError(
                f"{self.name} answers, and may be well, but its operator may not ask: {seen.primary.describe()}",
                safe="nothing was changed",
                hint=f"the operator has to be a superuser: alter role {self.settings.operator.user} superuser",
            )

    def verify(self, way: WayBack, wish: Wish) -> Iterator[Finding]:
        """Prove what is staged. Reads only."""
        seen = self._look(since=_A_MOMENT)
        hear = partial(self.context.hears, self.name)
        if way.name == "failover":
            yield from proof.standby(self.name, seen, way.stage.removeprefix("standby "), wish)
        elif way.name == "physical":
            arguments = {name: str(value) for name, value in (way.arguments or {}).items()}
            member, backup = self.site.member(arguments["member"]), arguments["backup"]
            yield from proof.stage(self.name, self.site, seen, member, backup, arguments["target"], wish, hear)
        else:
            yield from logical_proof.verify(self, way, wish, hear)

    def ask(self, statement: str, where: str) -> Any:
        """The first value of a query, asked read-only. `where`: live, a stage's name, or `address:HOST`."""
        if where in _LOGICAL_STAGES:
            return logical_place.ask(self, statement, where)
        seen = View(())
        if where in ("live", STAGE):
            seen = self._look(since=math.inf)  # one look for the questions of one plan
        if where == "live" and seen.primary.is_frozen:
            raise OutcomeUnknownError(f"It was not asked: {seen.primary.describe()}.")
        return ask(self.site.server(where, seen), self.settings.database, statement)

    def side_servers(self) -> list[str]:
        """Processes that work in this incident's stage, also in a removed one, and whoever listens on the side port."""
        return self.site.side_servers(self.site.view())

    def redundancy(self, tell: Callable[[str], object] = lambda said: None) -> Iterator[Change]:
        """Rebuild each member that is no healthy standby of the live primary; back up what nothing else leads to."""
        for one in rebuild.unprotected(self.site.view, lambda said: tell(f"{self.name}: {said}")):
            yield self.change(
                "rebuild_standby",
                why=f"it does not follow the primary: {one.describe()}",
                no_undo="what it replaces is kept until inv discard",
                member=one.member.name,
            )
        yield from backing_up.lacking(self)

    def audit(self, *, deep: bool) -> Iterator[Audited]:
        """Its dumps, its pgBackRest repositories and the WAL that goes there."""
        yield from audit.look(self, deep=deep)

    def expiry(self, verdicts: Sequence[Verdict]) -> Iterator[Change]:
        """What the policy lets go. Of a pgBackRest repository the WAL goes with it that is older than what is kept
        for its day: an older backup leads to its own moment only.
        """
        yield from backing_up.with_wal(super().expiry(verdicts), verdicts)

    # --- act -----------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        self._seen = None

    @verb(deadline=120.0)
    def fence(self, identity: str) -> Iterator[Progress]:
        """Shut everybody but the operator out of the server with that identity, so that it survives a restart."""
        seen = self.site.view()
        if logical.is_shared(self, seen, identity):
            yield from logical.fence(self, seen, identity)
            return
        holder = seen.holder_of(identity)
        if holder is None or holder.look is None:
            gone = holder.describe() if holder else "; ".join(one.describe() for one in seen.sightings)
            raise CannotError(
                f"{self.name}: {identity} cannot be reached, so it cannot be fenced: {gone}.",
                safe="nothing was promoted",
                hint="see to it by hand that it cannot write (power off), then restore with "
                f"--override='{PROMOTE_WITHOUT_FENCE}=REASON'",
            )
        if point := holder.look.unmounted:
            holder.member.server.kill()
            raise CannotError(
                f"{self.name} cannot be fenced: {holder.describe()}; what is on that disk comes back with it.",
                safe="nothing was promoted, and nothing of it runs now",
                hint=f"{unmounted.mend(point, holder.member.server.shell.where)}. Or see to it by hand that it cannot "
                f"write (power off), and add --override='{PROMOTE_WITHOUT_FENCE}=REASON'",
            )
        if not holder.is_shut:
            yield from fence.fence(holder.member.server, identity.partition("/")[0], self.context.incident)

    @verb(deadline=60.0)
    def unfence(self, identity: str) -> Outcome:
        """Let everybody in again. What is not there any more needs nothing."""
        seen = self.site.view()
        if logical.is_shared(self, seen, identity):
            logical.unfence(self, seen, identity)
            return None
        holder = seen.holder_of(identity)
        if holder and holder.block:
            self._require_no_successor(seen, holder)
            fence.remove(holder.member.server)
        return None

    def _require_no_successor(self, seen: View, fenced: Sighting) -> None:
        """Raises CannotError when a member that was promoted after the fenced one takes writes: both would."""
        for one in seen.sightings:
            if not (one.facts and one.writable is not False and one.timeline > fenced.timeline > 0):
                continue
            old, new = fenced.member.name, one.member.name
            raise CannotError(
                f"{self.name}: {old} stays fenced, as {new} was promoted after it and takes writes: {one.describe()}.",
                safe=f"nobody writes to {old}, and nothing of either is lost",
                hint=f"if {new} is to stay: inv incident.close --incident={self.context.incident}, then inv protect "
                f"rebuilds {old}; if {old}: stop the server of {new}, then the same command again",
            )

    @verb(deadline=_DAY)
    def stage(self, stage: str, **arguments: Any) -> Iterator[Progress | Finding]:
        """Build a copy beside what is live: `side-data` by pgBackRest (member, backup, target, timeline), or a dump."""
        if stage != STAGE:
            yield from logical_stage.stage(self, stage, **arguments)
            return
        physical = self.site.physical(self.site.member(arguments["member"]))
        yield from self.site.side_port_freed(physical)
        yield from physical.build(
            arguments["backup"], arguments["target"], arguments["timeline"], arguments.get("overrides") or {}
        )

    @verb(deadline=600.0, destructive=True)
    def drop(self, stage: str) -> Iterator[Progress]:
        """Remove this incident's stage. Refuses what is live or kept, which bear other names."""
        if stage in _LOGICAL_STAGES:
            yield from logical_stage.drop(self, stage)
        elif stage == STAGE and (staged := self.site.stage(self.site.view())):
            staged.drop()

    @verb(deadline=900.0)
    def promote(self, identity: str, stage: str, **arguments: Any) -> Iterator[Progress]:
        """Make the stage what is live in the place of `identity`, once that is known to write no more."""
        because = str(arguments.get("unfenced_because") or "")
        if stage == STAGE:
            member = self.site.member(arguments["member"])
            yield from self.site.physical(member).promote(identity, self.site.view(), unfenced_because=because)
        elif stage in _LOGICAL_STAGES:
            yield from logical.promote(self, identity, stage, **arguments)
        else:
            name = self.site.member(stage.removeprefix("standby ")).name
            yield from failover.promote(self.site.view(), name, identity, unfenced_because=because)

    @verb(deadline=900.0)
    def demote(self, identity: str, stage: str, **arguments: Any) -> Iterator[Progress]:
        """Put back what `promote` replaced, stopped or running as it was, and fenced."""
        if stage == STAGE:
            yield from self.site.physical(self.site.member(arguments["member"])).demote(identity)
        else:
            yield from logical.demote(self, identity, stage, **arguments)

    @verb(deadline=3600.0, destructive=True)
    def discard(self, identity: str, kept: str) -> Iterator[Progress]:
        """Remove what was kept of an incident, for good."""
        member, _, name = kept.partition(":kept-")
        if not name:
            yield from logical.discard(self, identity, kept)
            return
        server = self.site.member(member).server
        path = beside.kept_of(server, name)
        found = next((one for one in beside.listing(server) if one.path == path), None)
        if found and found.identity != identity.partition("/")[0]:
            raise CannotError(
                f"{path} is {found.identity}, not {identity}; it was not removed.", hint="look again: inv assess"
            )
        if found:
            beside.require_idle(server, path)
            yield Progress(0, None, "", f"removing {path}")
            beside.remove(server, path, tablespaces="all")

    @verb(deadline=60.0, destructive=True)
    def end_sessions(
        self,
        before: str,
        idle_in_transaction: float | None = None,
        role: str | None = None,
        application: str | None = None,
    ) -> None:
        """End sessions on the live primary, of those that were there at the time `before` (ISO 8601, the server's):
        idle in a transaction for so many seconds, or of a role or an application.
        """
        primary = self.site.view().primary
        if not primary.is_up:
            raise CannotError(f"{self.name}: no live primary: {primary.describe()}.", hint="inv assess")
        sessions.end(primary.member.server, clock.read_time(before), idle_in_transaction, role, application)

    @verb(deadline=_DAY)
    def rebuild_standby(self, member: str) -> Iterator[Progress]:
        """Copy the live primary to a member and start it as a streaming standby."""
        yield from rebuild.rebuild(self.site.view(), self.site.member(member), self.context.incident)

    @verb(deadline=300.0)
    def adopt(self, identity: str) -> Outcome:
        """Have the pgBackRest repository take the WAL and the backups of the cluster with that identity."""
        backing_up.adopt(self, identity)
        return None

    @verb(deadline=_DAY)
    def backup(self, kind: str) -> Iterator[Progress | Finding]:
        """Take a backup of the live primary: full, diff or incr to each repository of pgBackRest, or a dump."""
        yield from backing_up.back_up(self, kind)

    def pack(self, scratch: Path) -> Iterator[bytes]:
        """A dump of the live primary, as a tar stream, for an archive of the whole platform."""
        yield from dump_chosen.pack(self, scratch)

    @verb(deadline=_DAY, destructive=True)
    def expire(self, repository: str, backups: list[str], wal_since: str = "") -> Iterator[Progress]:
        """Remove backups that the policy lets go: dumps from their place, or by pgBackRest from one repository. All
        WAL stays since the full backup `wal_since`.
        """
        yield from backing_up.expire(self, repository, backups, wal_since)


_LOGICAL_STAGES = ("side-database", "side-cluster")

"""A PostgreSQL cluster: a primary, its standbys, its backups, and three ways to bring it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor import clock, secrets, shell
from salvor.archive import audit as archive
from salvor.archive.settings import ArchivesSettings
from salvor.archive.system import Archived
from salvor.audit import Audited
from salvor.change import Backup, Change, Finding, Progress, State, Verdict, WayBack
from salvor.errors import CannotError, OutcomeUnknownError, UsageError
from salvor.policy import BackedUpSettings
from salvor.postgres import (
    audit,
    backrest,
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
    restore_point,
    sessions,
    ways,
)
from salvor.postgres.backrest import Repository
from salvor.postgres.cluster import Member, View
from salvor.postgres.physical import STAGE
from salvor.postgres.server import Operator, Server, ask
from salvor.postgres.site import Site
from salvor.secrets import SecretReference
from salvor.shell import Shell
from salvor.ssh.host import Host
from salvor.ssh.settings import SshSettings
from salvor.system import Outcome, Wish, verb

_DAY = 24 * 3600.0


def _check_path(path: str) -> str:
    if not path.startswith("/") or path.rstrip("/") in ("", "/") or "\n" in path or "'" in path:
        raise ValueError(f"{path!r} is not the absolute path of a folder (without quotes and newlines)")
    return path.rstrip("/")


Folder = Annotated[str, AfterValidator(_check_path)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberSettings(_Part):
    """One server: where it listens and where its data is. `host`: the machine it runs on, over SSH; empty: this one.

    `configuration` is the path of postgresql.conf when it lies outside the data directory, as on Debian.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    address: str = Field(min_length=1)
    port: int = Field(default=5432, ge=1, le=65535)
    data: Folder
    host: str = ""
    ssh: SshSettings = SshSettings()
    configuration: Folder | None = None


class OperatorSettings(_Part):
    """The superuser that Salvor connects as."""

    user: str
    password: SecretReference


class PgBackRestSettings(_Part):
    """The pgBackRest repository. `passphrase`: of an encrypted one, when its configuration does not hold it."""

    config: Folder = "/etc/pgbackrest/pgbackrest.conf"
    stanza: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    program: str = "pgbackrest"
    passphrase: SecretReference | None = None


class PostgresSettings(BackedUpSettings):
    """A cluster as the inventory describes it. Who is the primary is observed, never written."""

    database: str = Field(min_length=1, max_length=63)
    members: tuple[MemberSettings, ...] = Field(min_length=1)
    side_port: int = Field(ge=1, le=65535)
    programs: Folder
    run_as: str = ""
    operator: OperatorSettings
    pgbackrest: PgBackRestSettings | None = None
    dumps: str = ""
    archives: ArchivesSettings | None = None
    start: tuple[str, ...] | None = None
    stop: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _members_differ(self) -> PostgresSettings:
        for name, values in (
            ("name", [member.name for member in self.members]),
            ("address and port", [(member.address, member.port) for member in self.members]),
            ("host and data", [(member.host, member.data) for member in self.members]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"two members have the same {name}")
        if any(member.port == self.side_port for member in self.members):
            raise ValueError("side_port is the port of a member; the stage needs one of its own")
        return self


class Postgres(Archived):
    """A PostgreSQL cluster. What it does is in `salvor.postgres`, by way back; this ties it together."""

    Settings = PostgresSettings
    settings: PostgresSettings
    _seen: View | None = None
    """What `observe` saw last, until something is changed: the questions of one plan need no look each."""

    @cached_property
    def site(self) -> Site:
        """The cluster and the incident, for the ways back."""
        return Site(
            name=self.name,
            incident=self.context.incident,
            database=self.settings.database,
            members=tuple(Member(one.name, self._server(one)) for one in self.settings.members),
            side_port=self.settings.side_port,
            open_repository=self._repository if self.settings.pgbackrest else None,
        )

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
        return shell.on_demand(member.host, lambda: Host(member.host, member.ssh, run_as).open(4.0))

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

    # --- look ----------------------------------------------------------------------------------------------------

    def observe(self) -> State:
        """Who is the primary (or what is left of it), who follows, what is staged and kept. Within 5 s."""
        seen = self._seen = self.site.view()
        state = self.site.state(seen)
        return logical.add_to(self, state, seen)

    def backups(self) -> list[Backup]:
        """pgBackRest's backups and the dumps, newest first."""
        found = self._repository(self.site.reachable_member()).backups() if self.settings.pgbackrest else []
        found += logical.backups(self)
        return sorted(found, key=lambda backup: backup.taken, reverse=True)

    def ways_back(self, wish: Wish) -> list[WayBack]:
        """Failover, physical, logical, or in the runbook's order; what is possible comes first."""
        seen = self.site.view()
        found = [failover.way(seen, wish), ways.physical(self.site, seen, wish)]
        found = [*logical.unless_shared(self, seen, found), *logical.ways_back(self, seen, wish)]
        return wish.in_its_order(found)

    def verify(self, way: WayBack, wish: Wish) -> Iterator[Finding]:
        """Prove what is staged. Reads only."""
        seen = self.site.view()
        if way.name == "failover":
            yield from proof.standby(self.name, seen, way.stage.removeprefix("standby "), wish)
        elif way.name == "physical":
            arguments = {name: str(value) for name, value in (way.arguments or {}).items()}
            member, backup = self.site.member(arguments["member"]), arguments["backup"]
            yield from proof.stage(self.name, self.site, seen, member, backup, arguments["target"], wish)
        else:
            yield from logical_proof.verify(self, way, wish)

    def ask(self, statement: str, where: str) -> Any:
        """The first value of a query, asked read-only. `where`: live, a stage's name, or `address:HOST`."""
        if where in _LOGICAL_STAGES:
            return logical_place.ask(self, statement, where)
        seen = View(())
        if where == "live":
            seen = self._seen or self.site.view()
        elif where == STAGE:
            seen = self.site.view()
        if where == "live" and seen.primary.is_frozen:
            raise OutcomeUnknownError(f"It was not asked: {seen.primary.describe()}.")
        return ask(self.site.server(where, seen), self.settings.database, statement)

    def side_servers(self) -> list[str]:
        """Processes that work in this incident's stage, also in a removed one, and whoever listens on the side port."""
        return self.site.side_servers(self.site.view())

    def redundancy(self) -> Iterator[Change]:
        """Rebuild each member that is no healthy standby of the live primary; back up what nothing else leads to."""
        for one in rebuild.unprotected(self.site.view):
            yield self.change(
                "rebuild_standby",
                why=f"it does not follow the primary: {one.describe()}",
                no_undo="what it replaces is kept until inv discard",
                member=one.member.name,
            )
        primary = self.site.view().primary
        if not self.settings.pgbackrest or not primary.is_up or primary.is_fenced:
            return
        repository, identifier = self.site.repository(primary.member), primary.system_identifier
        if not repository.is_of(identifier):
            yield self.change(
                "adopt",
                why=f"the repository takes another cluster's WAL and backups, and refuses those of {identifier}",
                no_undo="the backups of the cluster before it stay; a later upgrade of the stanza leads back to it",
                identity=primary.identity,
            )
        if not any(one.system_identifier == identifier and not one.broken for one in repository.stored):
            yield self.change(
                "backup",
                kind="full",
                why="there is no backup of this cluster",
                no_undo="it only adds a backup; the policy removes it",
            )

    def audit(self, *, deep: bool) -> Iterator[Audited]:
        """Its dumps, its pgBackRest repositories and the WAL that goes there."""
        yield from audit.look(self, deep=deep)

    def expiry(self, verdicts: Sequence[Verdict]) -> Iterator[Change]:
        """What the policy lets go. Of a pgBackRest repository the WAL goes with it that is older than what is kept
        for its day: an older backup leads to its own moment only.
        """
        for change in super().expiry(verdicts):
            repository = change.arguments["repository"]
            if not str(repository).startswith(f"{backrest.NAME} "):
                yield change
                continue
            kept = [one.backup for one in verdicts if one.backup.repository == repository and one.is_of_the_day]
            since = min(kept, key=lambda one: one.taken).id.partition("_")[0]  # FULL, or FULL_INCREMENTAL
            yield replace(
                change,
                arguments={**change.arguments, "wal_since": since},
                why=f"{change.why}; WAL without a gap stays since {since}",
            )

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
                f"--override='{failover.PROMOTE_WITHOUT_FENCE}=REASON'",
            )
        if not holder.is_fenced:
            yield from fence.fence(holder.member.server, identity.partition("/")[0])

    @verb(deadline=60.0)
    def unfence(self, identity: str) -> Outcome:
        """Let everybody in again. What is not there any more needs nothing."""
        seen = self.site.view()
        if logical.is_shared(self, seen, identity):
            logical.unfence(self, seen, identity)
            return None
        holder = seen.holder_of(identity)
        if holder and holder.block:
            fence.remove(holder.member.server)
        return None

    @verb(deadline=_DAY)
    def stage(self, stage: str, **arguments: Any) -> Iterator[Progress]:
        """Build a copy beside what is live: `side-data` by pgBackRest (member, backup, target, timeline), or a dump."""
        if stage != STAGE:
            yield from logical_stage.stage(self, stage, **arguments)
            return
        member = self.site.member(arguments["member"])
        yield from self.site.physical(member).build(
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
        primary = self.site.view().primary
        if primary.identity != identity or not primary.is_up:
            raise CannotError(
                f"{self.name}: the primary is {primary.describe()}, and not {identity}.",
                safe="the repository is as it was",
                hint="inv assess",
            )
        repository = self.site.repository(primary.member)
        if not repository.is_of(primary.system_identifier):
            repository.adopt(primary.member.server, _socket_folder(primary.member.server))
        return None

    @verb(deadline=_DAY)
    def backup(self, kind: str) -> Iterator[Progress]:
        """Take a backup of the live primary: full, diff or incr by pgBackRest, or a dump."""
        if kind == "dump":
            yield from logical.backup(self)
            return
        if kind not in ("full", "diff", "incr"):
            raise UsageError(f"--kind: there is no backup of kind {kind!r}.", hint="it is full, diff, incr or dump")
        primary = self.site.view().primary
        if not primary.is_up or primary.is_fenced:
            raise CannotError(f"{self.name}: no live primary to back up: {primary.describe()}.", hint="inv assess")
        server, repository = primary.member.server, self.site.repository(primary.member)
        if not repository.is_of(primary.system_identifier):
            raise CannotError(
                f"{self.name}: the repository takes the backups of another cluster than {primary.system_identifier}.",
                safe="no backup was taken; those that are there stay",
                hint="inv protect makes the repository take this cluster's, and backs it up",
            )
        if primary.look and primary.timeline != int((primary.look.control or {})["Latest checkpoint's TimeLineID"]):
            # pgBackRest refuses a server that was promoted and has had no checkpoint yet.
            with server.session(deadline=600.0, writes=True) as connection:
                connection.execute("checkpoint")
        keeps_all = self.settings.keep is not None
        yield from repository.take(kind, server, _socket_folder(server), keeps_all=keeps_all)
        repository = self.site.repository(primary.member)  # one that has looked after the backup, not before
        yield from restore_point.note(server, self.settings.database, repository, repository.stored[0].label)

    def pack(self, scratch: Path) -> Iterator[bytes]:
        """A dump of the live primary, as a tar stream, for an archive of the whole platform."""
        yield from dump_chosen.pack(self, scratch)

    @verb(deadline=_DAY, destructive=True)
    def expire(self, repository: str, backups: list[str], wal_since: str = "") -> Iterator[Progress]:
        """Remove backups that the policy lets go: dumps from their place, or by pgBackRest from one repository. All
        WAL stays since the full backup `wal_since`.
        """
        name, _, number = repository.partition(" ")
        if name == backrest.NAME and number.isdigit():
            stored = self._repository(self.site.reachable_member())
            yield from stored.expire(int(number), backups, wal_since)
        elif repository == self.settings.dumps:
            yield from logical.expire(self, backups)
        elif (archives := self.settings.archives) and repository == archives.folder:
            yield from archive.remove(archives, dump_chosen.host(self), backups)
        else:
            raise UsageError(f"{self.name}: it has no repository {repository!r}.", safe="nothing was removed")


def _socket_folder(server: Server) -> str:
    return str(ask(server, "postgres", "show unix_socket_directories")).split(",")[0].strip()


_LOGICAL_STAGES = ("side-database", "side-cluster")

"""A dump staged as a database beside the live one, in a cluster that others share; one transaction swaps the names."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from salvor import clock
from salvor.change import ABSENT, Finding, Kept, Progress, Staged
from salvor.errors import CannotError, OutcomeUnknownError, nothing_kept
from salvor.postgres import asking, loading, surroundings
from salvor.postgres.server import Server

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

STAGE = "side-database"
ORIGIN, SOURCE, TAKEN, LEFT_OUT = "salvor.origin", "salvor.source", "salvor.taken", "salvor.left_out"
KEPT, FENCE = "salvor.kept", "salvor.fence"
"""Settings of a database that say what Salvor did with it; they travel with a rename."""

_NAME_BYTES = 63
Said = Progress | Finding
Load = Callable[[], Generator[Said, None, tuple[str, ...]]]


@dataclass(frozen=True)
class Seen:
    """A database of the cluster: its object id, whether it admits sessions, and what Salvor wrote on it."""

    name: str
    oid: int
    allows_connections: bool
    connectable: bool
    """Anybody but a superuser may connect."""
    marks: Mapping[str, str]


@dataclass(frozen=True)
class SideDatabase:
    """The stage of one incident beside a database. `cluster` is the identity of the server's data directory."""

    server: Server
    cluster: str
    database: str
    incident: str

    @property
    def stage(self) -> str:
        """The name of the staged database."""
        return fitting(self.database, "salvor", self.incident)

    @property
    def kept(self) -> str:
        """The name that the replaced database gets."""
        return fitting(self.database, "kept", self.incident)

    def identity(self, seen: Seen | None) -> str:
        """`<cluster>/<database oid>`, or `<cluster>/absent`."""
        return f"{self.cluster}/{seen.oid if seen else ABSENT}"

    # --- look ----------------------------------------------------------------------------------------------------

    def look(self) -> dict[str, Seen]:
        """Every database by name. Raises psycopg.Error."""
        with self._administrator() as connection:
            return look(connection)

    def staged(self, seen: Mapping[str, Seen]) -> Staged | None:
        """The stage as `observe` shows it."""
        stage = seen.get(self.stage)
        if stage is None:
            return None
        complete = stage.marks.get(ORIGIN) == self.incident
        detail = stage.marks.get(SOURCE, "") if complete else "it is being loaded, or a load was broken off"
        fresh = clock.read_time(stage.marks[TAKEN]) if TAKEN in stage.marks else None
        return Staged(STAGE, self.identity(stage), complete, self.server.address, fresh=fresh, detail=detail)

    def keeps(self, seen: Mapping[str, Seen]) -> list[Kept]:
        """What earlier cutovers replaced."""
        return [Kept(one.name, self.identity(one), one.marks[KEPT]) for one in seen.values() if KEPT in one.marks]

    # --- stage ---------------------------------------------------------------------------------------------------

    def build(self, source: str, taken: datetime | None, around: Mapping[str, Any], load: Load) -> Iterator[Said]:
        """Load `source` (its name) into a new database. Finds its work done; a half-built one is built anew.

        `around`: owner, encoding, locale, grants and settings, when the live database is gone.
        """
        seen = self.look()
        if _has(seen, self.database, ORIGIN, self.incident):
            return
        if _has(seen, self.stage, ORIGIN, self.incident) and seen[self.stage].marks.get(SOURCE) == source:
            return
        self._drop(self.stage)
        with self._administrator() as connection:
            around = surroundings.of_database(connection, self.database) or around
            surroundings.create_database(connection, self.stage, around)
            # The applications get in when it bears the live name, not before.
            _run(connection, "revoke all on database {} from public", self.stage)
        left_out = yield from load()
        with self._administrator() as connection:
            surroundings.dress_database(connection, self.stage, around)
            _set(connection, self.stage, SOURCE, source)
            if taken:
                _set(connection, self.stage, TAKEN, clock.write_time(taken))
            if left_out:
                _set(connection, self.stage, LEFT_OUT, json.dumps(list(left_out)))
            _set(connection, self.stage, ORIGIN, self.incident)

    def drop(self) -> None:
        """Remove the stage and the role that loaded it. Refuses to touch a database that is live or kept."""
        self._drop(self.stage)  # first: while it is being loaded, that role owns it
        loading.remove(self.server, self.stage, self.incident)

    def _drop(self, name: str) -> None:
        with self._administrator(deadline=600.0) as connection:
            try:
                if name in look(connection):
                    _run(connection, "alter database {} is_template false", name)  # no template can be dropped
                _run(connection, "drop database if exists {} with (force)", name)
            except psycopg.errors.ObjectInUse as error:  # no force removes these
                raise CannotError(
                    f"{name} cannot be removed: {' '.join(str(error).split())}",
                    safe="it was not removed",
                    hint="end what uses it, then the same command again. Of a subscription, in that database: "
                    "alter subscription NAME disable; alter subscription NAME set (slot_name = none); drop "
                    "subscription NAME. Its slot on the publisher keeps WAL there until it is used again, or dropped",
                ) from error
            asking.forget(self.server, connection)

    # --- fence ---------------------------------------------------------------------------------------------------

    def is_fenced(self, seen: Seen) -> bool:
        """Whether only the operator gets in."""
        return FENCE in seen.marks and not (seen.connectable and seen.allows_connections)

    def fence(self, identity: str) -> Iterator[Progress]:
        """Let nobody but superusers in: the right to connect taken from everybody, every session ended and seen gone.

        What it takes away is written on the database first, so that `unfence` gives back exactly that.
        """
        seen = self._holder(identity)
        if seen is None:
            return
        with self._administrator() as connection:
            around = surroundings.of_database(connection, seen.name)
            grants = [one for one in around["grants"] or () if one[1] == "CONNECT"]
            if FENCE not in seen.marks:
                _set(connection, seen.name, FENCE, json.dumps(grants))
            for role, _, _ in grants:
                surroundings.revoke_connect(connection, seen.name, role)
            yield Progress(0, None, "", f"ending the sessions of {seen.name}")
            self._end_sessions(connection, [seen.name])

    def unfence(self, identity: str) -> None:
        """Give back the right to connect as it was. Finds its work done."""
        seen = self._holder(identity)
        if seen and FENCE in seen.marks:
            with self._administrator() as connection:
                self._unfence(connection, seen)

    def _unfence(self, connection: Connection, seen: Seen) -> None:
        for role, _, grantable in json.loads(seen.marks[FENCE]):
            surroundings.grant_connect(connection, seen.name, role, grantable=grantable)
        _run(connection, "alter database {} allow_connections true", seen.name)
        _reset(connection, seen.name, FENCE)

    def _holder(self, identity: str) -> Seen | None:
        return next((one for one in self.look().values() if self.identity(one) == identity), None)

    def _end_sessions(self, connection: Connection, names: list[str], *, deadline: float = 20.0) -> None:
        until = clock.monotonic() + deadline
        while clock.monotonic() < until:
            left = connection.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                where datname = any(%s) and pid <> pg_backend_pid()""",
                [names],
            ).fetchall()
            if not left:
                return
            time.sleep(0.1)
        raise OutcomeUnknownError(
            f"Not every session on {', '.join(names)} ended within {clock.write_duration(deadline)}.",
            safe="new sessions are refused; nothing was swapped",
            hint="run the same command again",
        )

    # --- promote, and the way back --------------------------------------------------------------------------------

    def promote(self, identity: str, *, unfenced_because: str = "") -> Iterator[Progress]:
        """Give the stage the live name and the live database the kept one, in one transaction.

        Refuses while applications may still write to what is replaced. Finds its work done.
        """
        seen = self.look()
        if _has(seen, self.database, ORIGIN, self.incident):
            self._open(self.database, *(name for name in (self.kept,) if name in seen))
            return
        live = seen.get(self.database)
        if self.identity(live) != identity:
            raise CannotError(
                f"{self.database} is {self.identity(live)} now, and was {identity} when it was assessed.",
                safe="what is live is as it was",
                hint="inv assess",
            )
        if not _has(seen, self.stage, ORIGIN, self.incident):
            raise CannotError(
                f"There is no whole stage of this incident beside {self.database}.",
                safe="what is live is as it was",
                hint="run the same command again: it stages first",
            )
        if live and not self.is_fenced(live) and not unfenced_because:
            raise CannotError(
                f"Applications may still write to {self.database}.",
                safe="nothing was swapped",
                hint="inv isolate fences it; or add --override='promote-without-fence=REASON'",
            )
        yield Progress(0, None, "", "changing the names")
        self._swap(comes=self.stage, goes=self.kept if live else None)
        self._open(self.database)

    def demote(self, identity: str) -> Iterator[Progress]:
        """Give the names back as they were before `promote`. What was live before is fenced still."""
        seen = self.look()
        if _has(seen, self.database, ORIGIN, self.incident):
            if self.kept not in seen and identity != self.identity(None):
                raise nothing_kept(f"the database {self.kept}", self.incident)
            yield Progress(0, None, "", "changing the names back")
            self._swap(comes=self.kept if self.kept in seen else None, goes=self.stage)
        live = self.look().get(self.database)
        if self.identity(live) != identity:
            raise CannotError(
                f"{self.database} is {self.identity(live)}, and was {identity} before.", hint="inv assess"
            )
        if live and not live.allows_connections:
            self._open(self.database)  # the operator may look at it; the fence on it stands

    def _swap(self, *, comes: str | None, goes: str | None) -> None:
        """One transaction. Nobody may be connected to what is renamed, so both admit nobody meanwhile."""
        with self._administrator(deadline=60.0) as connection:
            names = [name for name in (comes, self.database if goes else None) if name]
            for name in names:
                _run(connection, "alter database {} allow_connections false", name)
            self._end_sessions(connection, names)
            try:
                with connection.transaction():
                    if goes:
                        _run(connection, "alter database {} rename to {}", self.database, goes)
                        if goes == self.kept:
                            _set(connection, goes, KEPT, self.incident)
                    if comes:
                        _run(connection, "alter database {} rename to {}", comes, self.database)
                        if comes == self.kept:
                            _reset(connection, self.database, KEPT)
            except psycopg.errors.ObjectInUse as error:
                raise CannotError(
                    f"{self.database} cannot be renamed: {error.diag.message_primary}; {error.diag.message_detail}",
                    safe="the names are as they were",
                    hint="prepared transactions hold it: select gid from pg_prepared_xacts; roll them back",
                ) from error
            if goes:
                _run(connection, "alter database {} allow_connections true", goes)

    def _open(self, *names: str) -> None:
        with self._administrator() as connection:
            for name in names:
                _run(connection, "alter database {} allow_connections true", name)

    def discard(self, identity: str, kept: str) -> None:
        """Remove a database that was kept, for good. Refuses any other."""
        seen = self.look().get(kept)
        if seen is None:
            return
        if KEPT not in seen.marks or self.identity(seen) != identity:
            raise CannotError(
                f"{kept} is not the database {identity} that was kept; it was not removed.",
                hint="look again: inv assess",
            )
        self._drop(kept)

    def _administrator(self, deadline: float = 30.0) -> Connection:
        # Nobody can shut or rename the database that he is connected to.
        elsewhere = "template1" if self.database == "postgres" else "postgres"
        return self.server.connect(elsewhere, writes=True, deadline=deadline)


def fitting(database: str, word: str, incident: str) -> str:
    """`<database>_<word>_<incident>`, cut to the 63 bytes of a name with a digest in place of what does not fit."""
    whole = f"{database}_{word}_{incident}"
    if len(whole.encode()) <= _NAME_BYTES:
        return whole
    tail = f"_{word}_{hashlib.sha256(f'{database}/{incident}'.encode()).hexdigest()[:12]}"
    return database.encode()[: _NAME_BYTES - len(tail)].decode(errors="ignore") + tail


_LOOK = """
    select datname, d.oid, datallowconn,
        exists (select from aclexplode(coalesce(datacl, acldefault('d', datdba)))
            where privilege_type = 'CONNECT' and (grantee = 0 or pg_get_userbyid(grantee) !~ '^salvor_reads_')),
        (select jsonb_object_agg(split_part(one, '=', 1), substr(one, strpos(one, '=') + 1))
            from pg_db_role_setting, unnest(setconfig) one
            where setdatabase = d.oid and setrole = 0 and one ~ '^salvor[.]')
    from pg_database d where datname not in ('template0', 'template1')
"""


def look(connection: Connection) -> dict[str, Seen]:
    """Every database by name."""
    return {row[0]: Seen(row[0], row[1], row[2], row[3], row[4] or {}) for row in connection.execute(_LOOK)}


def _has(seen: Mapping[str, Seen], name: str, mark: str, value: str) -> bool:
    return name in seen and seen[name].marks.get(mark) == value


def _run(connection: Connection, statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))


def _set(connection: Connection, database: str, mark: str, value: str) -> None:
    statement = sql.SQL("alter database {} set {} = {}")
    connection.execute(statement.format(sql.Identifier(database), sql.Identifier(*mark.split(".")), sql.Literal(value)))


def _reset(connection: Connection, database: str, mark: str) -> None:
    statement = sql.SQL("alter database {} reset {}")
    connection.execute(statement.format(sql.Identifier(database), sql.Identifier(*mark.split("."))))

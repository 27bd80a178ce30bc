"""The database that a dump is loaded into: what it must be, and how the dump's statements are fitted to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, LiteralString

from salvor.errors import CannotError
from salvor.postgres.dump_rules import Lane
from salvor.postgres.dump_screen import Order, Span, setting_word

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

    Connect = Callable[[], Connection]


@dataclass(frozen=True)
class Terms:
    """What the caller has decided about a dump.

    `roles`: a role that the dump names to the role that takes its place, or to None: what names it is left out.
    `extensions`: those that may be created although only a superuser can. `trusted`: whoever made the dump may act
    as a superuser; without it nothing is given to a role that can leave the database.
    """

    roles: Mapping[str, str | None] = field(default_factory=dict)
    extensions: Collection[str] = ()
    trusted: bool = False


# Everything that a user can create has an object id from 16384 on (FirstNormalObjectId, src/include/access/transam.h).
_OBJECTS: LiteralString = """
    WITH objects (catalogue, id, name) AS (
        SELECT 'pg_class'::regclass, oid, oid::regclass::text FROM pg_class WHERE relkind NOT IN ('t', 'i', 'I')
        UNION ALL SELECT 'pg_proc'::regclass, oid, oid::regproc::text FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, oid::regtype::text FROM pg_type
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'pg_publication'::regclass, oid, pubname::text FROM pg_publication
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvname::text FROM pg_foreign_server
        UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtname::text FROM pg_event_trigger
        UNION ALL SELECT 'pg_largeobject'::regclass, oid, 'large object ' || oid FROM pg_largeobject_metadata
    )
    SELECT name FROM objects
    WHERE id >= 16384 AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = catalogue AND objid = id AND deptype = 'e'
    ) ORDER BY name LIMIT 1
"""

# Roles that can leave a database: what they own can be made to run as them.
_POWERFUL: LiteralString = """
    SELECT rolname FROM pg_roles AS role WHERE rolcreaterole OR EXISTS (
        SELECT FROM pg_roles AS power WHERE pg_has_role(role.oid, power.oid, 'MEMBER') AND (power.rolsuper
            OR power.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
    )
"""


@contextmanager
def told_connection() -> Iterator[None]:
    """Say what a connection's failure means."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        message = str(error).strip().partition("\n")[0]
        raise CannotError(f"The database to load into does not answer: {message}") from error


@dataclass
class Target:
    """What the server has and who we are there; `left_out` says what of the dump was left out, and why."""

    terms: Terms
    has_administrator: bool
    database: str
    role: str
    major: int
    roles: frozenset[str]
    powerful: frozenset[str]
    tablespaces: frozenset[str]
    available: Mapping[str, bool]
    """Extensions that can be created, and whether that takes no superuser."""
    installed: frozenset[str]
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def look(cls, connect: Connect, terms: Terms, *, has_administrator: bool) -> Target:
        """Ask the server. Raises CannotError when the database is not empty."""
        with told_connection(), connect() as connection:

            def column(query: LiteralString) -> frozenset[str]:
                return frozenset(row[0] for row in connection.execute(query))

            found = connection.execute(_OBJECTS).fetchone()
            who = connection.execute("SELECT current_database(), current_user").fetchone()
            assert who
            if found:
                raise CannotError(
                    f"The database {who[0]!r} is not empty: it has {found[0]!r}.",
                    safe="nothing was loaded into it",
                    hint="load into a database that was just created from template0",
                )
            available = connection.execute(
                "SELECT name, bool_or(trusted) FROM pg_available_extension_versions GROUP BY name"
            ).fetchall()
            return cls(
                terms,
                has_administrator,
                database=who[0],
                role=who[1],
                major=connection.info.server_version // 10000,
                roles=column("SELECT rolname FROM pg_roles"),
                powerful=column(_POWERFUL),
                tablespaces=column("SELECT spcname FROM pg_tablespace"),
                available={row[0]: row[1] for row in available},
                installed=column("SELECT extname FROM pg_extension"),
            )

    def fit(self, order: Order, error: Callable[[str, int, str], CannotError]) -> Order | None:
        """The order as it is to be carried out here; None when it is left out. Raises CannotError when it cannot be."""
        if order.lane is Lane.EXTENSION:
            return self._extension(order, error)
        if order.lane is Lane.SUBSCRIPTION:
            note = (
                "what it fetched since the dump is lost to it: empty its tables and create it again, which copies "
                "them; its old slot on the publisher keeps WAL there until it is dropped"
            )
            self.left_out.append(f"subscription {order.name} ({note})")
            return None
        if order.sql == b"CREATE SCHEMA public":
            return None  # template0 has it
        if why := self._needs_administrator(order):
            return self._leave_out(order, why)
        order = self._tablespace(order)
        renamed = {}
        for span in order.roles:
            name = self.terms.roles.get(span.name, span.name)
            if name is None:
                return self._leave_out(order, f"role {span.name}")
            self._check_role(order, name, error)
            if name != span.name:
                renamed[span] = name
        if order.database:
            renamed[order.database] = self.database
        return replace(order, sql=with_names(order.sql, renamed)) if renamed else order

    def _leave_out(self, order: Order, why: str) -> Order | None:
        self.left_out.append(f"{order.shown} ({why})")
        return None

    def _needs_administrator(self, order: Order) -> str:
        if self.has_administrator:
            return ""
        extension = order.sql.startswith(b"COMMENT ON EXTENSION ")
        default = order.sql.startswith(b"ALTER DEFAULT ") and order.roles[0].name != self.role
        session = order.lane is Lane.PRIVILEGE and b"SESSION" in order.sql[:16]
        if order.lane is Lane.OWNER or default or session or extension:
            return "no administrator's connection"
        return ""

    def _check_role(self, order: Order, name: str, error: Callable[[str, int, str], CannotError]) -> None:
        if name not in self.roles:
            raise error(
                f"the role {name!r} does not exist here: {order.shown}",
                order.line,
                f"create it, or say which role takes its place, or that it is left out: roles={{{name!r}: ...}}",
            )
        runs_code = order.lane is Lane.OWNER and not order.sql.startswith(b"ALTER PUBLICATION ")
        if runs_code and name in self.powerful and not self.terms.trusted and name != self.role:
            raise error(
                f"the role {name!r} can leave the database, and would own what the dump made: {order.shown}",
                order.line,
                f"say which role takes its place (roles={{{name!r}: ...}}), or load the dump as trusted",
            )

    def _tablespace(self, order: Order) -> Order:
        name = setting_word(order.settings.get("default_tablespace", b""))
        if not name or name in {space.lower() for space in self.tablespaces}:
            return order
        note = f"tablespace {name} (this server has none of that name)"
        if note not in self.left_out:
            self.left_out.append(note)
        return replace(order, settings={**order.settings, "default_tablespace": b"''"})

    def _extension(self, order: Order, error: Callable[[str, int, str], CannotError]) -> Order | None:
        name = order.name
        if name in self.installed:
            return None
        if name not in self.available:
            raise error(
                f"this server does not have the extension {name!r}.", order.line, "install its package on the server"
            )
        if not (self.available[name] or self.terms.trusted or name in self.terms.extensions):
            raise error(
                f"the extension {name!r} can reach beyond the database: only a superuser may create it.",
                order.line,
                f"allow it (extensions={[name]}), or load the dump as trusted",
            )
        return order


def with_names(sql: bytes, names: Mapping[Span, str]) -> bytes:
    """The statement with other names in place of those."""
    for span in sorted(names, key=lambda span: span.start, reverse=True):
        quoted = '"' + names[span].replace('"', '""') + '"'
        sql = sql[: span.start] + quoted.encode() + sql[span.end :]
    return sql


def refuse_newer(server_major: int | None, target_major: int, source: str) -> None:
    """Raises CannotError when the dump is of a newer server than the one it is to be loaded into."""
    if server_major is not None and server_major > target_major:
        raise CannotError(
            f"{source} was dumped from PostgreSQL {server_major}, and this server is PostgreSQL {target_major}.",
            safe="nothing was loaded",
            hint=f"load it into PostgreSQL {server_major} or newer",
        )

"""Decides what each statement of a dump may do: only what pg_dump writes is admitted, the rest is refused by name.

A dump is untrusted text. The load runs as a role that owns no more than the stage, so this screen is not the wall: it
gives a clear word before the server would say no, and keeps what needs an administrator's hand to a few known shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from salvor.errors import CannotError
from salvor.postgres.dump_reader import MetaCommand, Statement, Token
from salvor.postgres.dump_rules import ADMITTED, REFUSED, SUPERUSER_ONLY, Lane
from salvor.postgres.dump_source import printable

TRUSTED_LANGUAGES = {"sql", "plpgsql", "plperl", "pltcl", "plv8"}
"""Languages whose functions cannot leave the database."""

SETTINGS = {
    "check_function_bodies",
    "client_encoding",
    "client_min_messages",
    "default_table_access_method",
    "default_tablespace",
    "default_with_oids",
    "escape_string_warning",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "xmloption",
}
"""What pg_dump sets for what follows. Its timeouts are left out: the load has its own deadline."""

ENCODINGS = {
    *(f"latin{number}" for number in range(1, 11)),
    *(f"iso_8859_{number}" for number in range(5, 9)),
    *(f"win{number}" for number in (866, 874, *range(1250, 1259))),
    *("sql_ascii", "utf8", "unicode", "euc_cn", "euc_jp", "euc_jis_2004", "euc_kr", "koi8r", "koi8u"),
}
"""Encodings in which a byte below 128 is always that character, so that a quote is a quote."""

_SYSTEM_SCHEMAS = ("pg_", "information_schema")
_NO_ROLES = {"public", "current_user", "current_role", "session_user", "default"}
_RESTRICT = re.compile(rb"\\(un)?restrict ([A-Za-z0-9]+)")
_CONNECT = re.compile(
    rb"\\connect (?:-reuse-previous=on \"dbname='((?:[^'\\\"]|\\.|\"\")*)'\"|\"((?:[^\"]|\"\")*)\"|(\w+))"
)
_ADD_KEY = re.compile(rb"(.*\s)ADD\s+CONSTRAINT\s+", re.DOTALL)
_UNCHECKED = re.compile(rb"\bNOT\s+VALID\s*$")
_OPTIONS_END = re.compile(r" (?:BEGIN ATOMIC|RETURN) ")


@dataclass(frozen=True, slots=True)
class Span:
    """A name in a statement: what it says, and where it stands, in bytes of the statement."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Order:
    """A statement that was admitted, with what the load must know to carry it out."""

    sql: bytes
    line: int
    lane: Lane
    settings: Mapping[str, bytes]
    """What the dump has set for it: name to value as SQL."""
    tables: tuple[str, ...] = ()
    """The tables it writes or locks."""
    table: bytes = b""
    """The table of a COPY, as SQL."""
    name: str = ""
    """The extension or subscription it is about."""
    roles: tuple[Span, ...] = ()
    database: Span | None = None
    """Where it names the dumped database, which the stage stands in for."""
    key: Span | None = None
    """Where it names the foreign key it adds."""

    @property
    def exclusive(self) -> bool:
        """Whether it locks its tables against building indexes too: constraints do, CREATE INDEX does not."""
        return not self.sql.startswith(b"CREATE ")

    def in_two(self) -> tuple[Order, Order] | None:
        """To add the foreign key unchecked, and to check it; None when it stays unchecked, or cannot be divided."""
        if self.key is None or not (opening := _ADD_KEY.fullmatch(self.sql, 0, self.key.start)):
            return None
        if _UNCHECKED.search(self.sql):
            return None
        check = opening[1] + b"VALIDATE CONSTRAINT " + self.sql[self.key.start : self.key.end]
        return replace(self, sql=self.sql + b" NOT VALID"), replace(self, sql=check, tables=self.tables[:1])

    @property
    def shown(self) -> str:
        """Its first words, safe for a terminal."""
        return shown(self.sql)


def shown(sql: bytes) -> str:
    """The start of a statement on one line, without control characters."""
    text = printable(" ".join(sql[:200].decode(errors="replace").split()))
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass
class Screen:
    """Judges the statements of one dump in their order.

    `error` makes the error for a line of the dump. `trusted`: whoever made the dump may act as a superuser; what only
    a superuser can create is admitted then.
    """

    error: Callable[[str, int, str], CannotError]
    trusted: bool = False
    _settings: Mapping[str, bytes] = field(default_factory=dict)
    _database: str | None = None  # of a dump that was made with --create
    _dropped: str | None = None
    _created: bool = False
    _coded: bool = False  # something was created that an extension's script could meet
    _key: bytes | None = None

    def meta_command(self, command: MetaCommand) -> None:
        """Pass over the meta-commands that pg_dump itself writes; raise CannotError for any other."""
        if found := _RESTRICT.fullmatch(command.text):
            if self._key is None or found[2] == self._key:
                self._key = found[2]
                return
        elif (found := _CONNECT.fullmatch(command.text)) and self._database is not None:
            quoted, named, plain = found.groups()
            name = re.sub(rb"\\(.)", rb"\1", quoted) if quoted else named.replace(b'""', b'"') if named else plain
            if name.decode(errors="replace") == self._database:
                return
            raise self.error(f"{shown(command.text)}: a dump of one database goes to one database.", command.line, "")
        raise self.error(f"{shown(command.text)}: commands of psql are not obeyed here.", command.line, "")

    def admit(self, statement: Statement) -> Order:
        """What the load shall do with the statement. Raises CannotError when it is not one of pg_dump's."""
        if self._dropped is not None and not statement.shape.startswith("CREATE DATABASE "):
            raise self._refusal(statement, "it drops a database")
        if setting := self._setting(statement):
            return setting
        for pattern, reason in REFUSED:
            if pattern.match(statement.shape):
                raise self._refusal(statement, reason)
        needs_superuser = self._superuser_only(statement)
        if needs_superuser and not self.trusted:
            raise self._refusal(statement, f"{needs_superuser}, which only a superuser may", _TRUST)
        for pattern, lane in ADMITTED:
            if found := pattern.match(statement.shape):
                if needs_superuser and lane is Lane.NOW:
                    lane = Lane.SUPERUSER
                return self._order(statement, lane, found)
        raise self._refusal(statement, "pg_dump writes no such statement")

    def _refusal(self, statement: Statement, reason: str, hint: str = "") -> CannotError:
        return self.error(f"refused: {reason}: {shown(statement.sql)}", statement.line, hint)

    # ------------------------------------------------------------------------------------------------ settings

    def _setting(self, statement: Statement) -> Order | None:
        shape, tokens = statement.shape, statement.tokens
        if shape == "SELECT PG_CATALOG . SET_CONFIG ( '' , '' , FALSE )" and tokens[5].text == b"'search_path'":
            name, value = "search_path", tokens[7].text
        elif _SET.fullmatch(shape):
            name = tokens[1].text.decode(errors="replace").lower()
            value = joined(tokens[3:])
        else:
            return None
        if not name.endswith("_timeout"):
            # the reader goes by the bare word; a server that took it for another one would find other strings
            unread = name == "standard_conforming_strings" and value.lower() not in {b"on", b"off"}
            if name not in SETTINGS or unread:
                raise self._refusal(statement, "pg_dump does not set that")
            if name == "client_encoding" and (encoding := setting_word(value)) not in ENCODINGS:
                raise self._refusal(
                    statement,
                    f"text in {encoding} cannot be told from quotes safely",
                    "dump it again with pg_dump --encoding=UTF8",
                )
            self._settings = {**self._settings, name: value}
        return Order(statement.sql, statement.line, Lane.SKIP, self._settings)

    # ----------------------------------------------------------------------------------------------- functions

    def _superuser_only(self, statement: Statement) -> str:
        """What it is that only a superuser can create; empty when others can too."""
        for pattern, what in SUPERUSER_ONLY:
            if pattern.match(statement.shape):
                return what
        if not re.match(r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) ", statement.shape):
            return ""
        # a function's options end where its body in SQL begins; within parentheses are its arguments
        end = _OPTIONS_END.search(statement.shape)
        last = statement.shape.count(" ", 0, end.start() + 1) if end else len(statement.tokens)
        depth = 0
        for index, token in enumerate(statement.tokens[:last]):
            depth += (token.text == b"(") - (token.text == b")")
            if token.shape == "LANGUAGE" and not depth and index + 1 < len(statement.tokens):
                language = identifier(statement.tokens[index + 1])
                if language.lower() not in TRUSTED_LANGUAGES:
                    return f"a function in the language {language!r}"
        return ""

    # -------------------------------------------------------------------------------------------------- orders

    def _order(self, statement: Statement, lane: Lane, found: re.Match[str]) -> Order:
        groups = {name: self._names(statement, found, name) for name, text in found.groupdict().items() if text}
        database = groups["database"][0] if "database" in groups else None
        if database:
            lane = self._own_database(statement, lane, database)
        if not self._created and statement.shape.startswith("CREATE OR REPLACE VIEW "):
            return Order(statement.sql, statement.line, Lane.SKIP, self._settings)  # --clean empties views that way
        if lane is Lane.CLEAN:
            if self._created:
                raise self._refusal(statement, "it drops something")
            lane = Lane.SKIP
        self._created = self._created or statement.shape.startswith("CREATE ")
        if lane is Lane.EXTENSION and self._coded and not self.trusted:
            # its script runs as a superuser, and could be made to call what the dump has put in its way
            raise self._refusal(statement, "an extension after functions, types or tables: pg_dump creates it before")
        self._coded = self._coded or bool(_CODE.match(statement.shape))
        if lane in {Lane.OWNER, Lane.PRIVILEGE} and not self.trusted:
            self._refuse_system_object(statement, groups)
        tables = tuple(span.name for key in ("table", "other") for span in groups.get(key, ()))
        name = next((groups[key][0].name for key in ("extension", "subscription") if key in groups), "")
        roles = tuple(span for key in ("role", "roles") for span in groups.get(key, ()) if span.name not in _NO_ROLES)
        sql, table = statement.sql, b""
        if lane is Lane.COPY:
            sql, table = joined(statement.tokens), joined(statement.tokens[1 : found["table"].count(" ") + 2])
        key = groups["key"][0] if "key" in groups else None
        return Order(sql, statement.line, lane, self._settings, tables, table, name, roles, database, key)

    def _names(self, statement: Statement, found: re.Match[str], group: str) -> list[Span]:
        """The names in a group of the pattern, a qualified name as one. Each token of a shape is one word of it."""
        first = statement.shape.count(" ", 0, found.start(group))
        last = first + found[group].strip().count(" ")
        spans: list[Span] = []
        joined = False
        for token in statement.tokens[first : last + 1]:
            end = token.start + len(token.text)
            if token.text == b".":
                joined = True
            elif joined:
                spans[-1] = Span(f"{spans[-1].name}.{identifier(token)}", spans[-1].start, end)
                joined = False
            elif token.kind in {"word", "name", "string", "number"}:
                spans.append(Span(identifier(token), token.start, end))
        return spans

    def _own_database(self, statement: Statement, lane: Lane, database: Span) -> Lane:
        """A dump made with --create speaks of its own database; of any other it may not."""
        if lane is Lane.DROP_DATABASE and not self._created:
            self._dropped = database.name
            return Lane.SKIP
        if lane is Lane.CREATE_DATABASE and not self._created and self._dropped in {None, database.name}:
            self._database, self._dropped = database.name, None
            return Lane.SKIP
        if database.name == self._database and lane not in {Lane.DROP_DATABASE, Lane.CREATE_DATABASE}:
            return lane
        raise self._refusal(statement, "it is about a database, and not the one that was dumped")

    def _refuse_system_object(self, statement: Statement, groups: Mapping[str, list[Span]]) -> None:
        """An administrator changes owners and privileges of what the dump created only, never of the system's own."""
        for span in groups.get("object", ()):
            schema, dot, _ = span.name.partition(".")
            if not dot:
                raise self._refusal(
                    statement,
                    "its object has no schema, as in dumps of pg_dump before 10.3",
                    "dump it again with a newer pg_dump",
                )
            if schema.startswith(_SYSTEM_SCHEMAS):
                raise self._refusal(statement, "it is about an object of the system", _TRUST)
        if any(span.name.startswith(_SYSTEM_SCHEMAS) for span in groups.get("schema", ())):
            raise self._refusal(statement, "it is about a schema of the system", _TRUST)


_CODE = re.compile(r"CREATE (?!DATABASE|SCHEMA|COLLATION|EXTENSION)")
_SET = re.compile(r"SET [A-Z_]+ (?:=|TO) (?:''|0|\"\"|[A-Z0-9_]+)(?: , (?:''|\"\"|[A-Z0-9_]+))*")
_TRUST = "load it as trusted when you know who made the dump"


def identifier(token: Token) -> str:
    """The name that a token stands for: an unquoted one in small letters, a quoted one (or a string) as it is."""
    text = token.text.decode(errors="replace")
    if token.kind == "name":
        return text[1:-1].replace('""', '"')
    if token.kind == "string":
        return text[1:-1].replace("''", "'")
    return text.lower()


def setting_word(value: bytes) -> str:
    """A setting's value as a word: `'UTF8'` and `utf8` alike."""
    return value.strip().strip(b"'\"").decode(errors="replace").lower().replace("-", "_")


def joined(tokens: Iterable[Token]) -> bytes:
    """SQL put together anew from tokens, without what stood between them."""
    return b" ".join(token.text for token in tokens)

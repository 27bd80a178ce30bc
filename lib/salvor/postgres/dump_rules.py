"""The statements that pg_dump writes, as patterns over their shapes, and what the load does with each kind.

The shape of a statement is its tokens with a space between: keywords in capitals, `""` for a quoted name, `''` for a
string, `0` for a number. So no pattern can be fooled by what stands in quotes.
"""

from __future__ import annotations

import re
from enum import Enum


class Lane(Enum):
    """How the load carries a statement out."""

    SKIP = "skip"
    """Not at all."""
    SUBSCRIPTION = "subscription"
    """Not at all, which is said: it would fetch data from another server."""
    NOW = "now"
    """In its order, when all before it is done."""
    COPY = "copy"
    """Its data over several connections."""
    ROWS = "rows"
    """An INSERT, in batches over several connections."""
    BUILD = "build"
    """An index or a constraint that builds one: beside others."""
    FOREIGN_KEY = "foreign key"
    """Beside others, after the builds."""
    FOLLOW = "follow"
    """After the builds before it."""
    LATE = "late"
    """At the end, by the role that loads."""
    EXTENSION = "extension"
    """In its order, by the administrator."""
    SUPERUSER = "superuser"
    """In its order, by the administrator: what a trusted dump may create though only a superuser can."""
    PUBLICATION = "publications"
    """At the end, by the administrator, and so are those below, in this order."""
    COMMENT = "comments"
    OWNER = "owners"
    """What was created by the role that loads is given to its owners."""
    PRIVILEGE = "privileges"
    EVENT_TRIGGER = "event triggers"
    """Last, so that none of them sees the load."""
    CLEAN = "clean"
    """Skipped at the start of a dump (--clean), as the stage is empty; refused later."""
    DROP_DATABASE = "drop database"
    """Skipped before the same database is created (--create --clean); refused else."""
    CREATE_DATABASE = "create database"
    """Skipped at the start of a dump (--create): the stage stands in for it. Refused else."""


_PART = r"""(?:""|[^\s().,;'"]+)"""
NAME = rf"{_PART}(?: \. {_PART})*"
_OPERATOR = rf"{_PART} \.(?: [^\s(\w\"'])+"
_ARGUMENTS = r"(?: \((?:[^()]|\([^()]*\))*\))?"
_ROLES = rf"(?:GROUP )?(?P<roles>{_PART}(?: , {_PART})*)"


def _patterns(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), reason) for pattern, reason in rules)


REFUSED = _patterns(
    (r"COPY .*\bPROGRAM\b", "it runs a program on the server"),
    (rf"COPY (?!{NAME}(?: \( [^()']*\))? FROM STDIN$)", "COPY from or to anything but the dump itself"),
    (r"DO\b", "a block of code"),
    (r"ALTER SYSTEM\b", "it changes the server's settings"),
    (r"(?:CREATE|DROP) (?:ROLE|USER(?! MAPPING)|GROUP)\b", "it is about a role, not about a database"),
    (
        r"(?:ALTER|COMMENT ON) (?:ROLE|USER(?! MAPPING)|GROUP)\b(?!.* IN DATABASE )",
        "it is about a role, not a database",
    ),
    (r"(?:CREATE|ALTER|DROP|COMMENT ON) TABLESPACE\b", "it is about a tablespace"),
    (r"LOAD\b", "it loads a library into the server"),
    (r"(?:GRANT|REVOKE) (?!.* ON )", "it changes the membership of roles"),
    (r"SECURITY LABEL .*\bON (?:ROLE|TABLESPACE|DATABASE|SUBSCRIPTION)\b", "it labels what is not in the database"),
)
"""Pattern, and the reason to refuse: never, however much the dump is trusted."""

SUPERUSER_ONLY = _patterns(
    (r"(?:CREATE|ALTER) EVENT TRIGGER\b", "an event trigger"),
    (r"(?:CREATE|ALTER) OPERATOR (?:CLASS|FAMILY)\b", "a class of operators"),
    (r"(?:CREATE|ALTER) FOREIGN DATA WRAPPER\b", "a foreign data wrapper"),
    (rf"CREATE TYPE {NAME}(?: \(|$)", "a base type"),
    (r"(?:CREATE|ALTER) TEXT SEARCH (?:PARSER|TEMPLATE)\b", "a parser of text search"),
    (r"CREATE ACCESS METHOD\b", "an access method"),
    (r"CREATE TRANSFORM\b", "a transform"),
    (r"(?:CREATE|ALTER)(?: OR REPLACE)?(?: TRUSTED| PROCEDURAL)* LANGUAGE\b", "a language"),
    (
        r"(?:GRANT|REVOKE) .* ON (?:LANGUAGE|PARAMETER|FOREIGN DATA WRAPPER)\b",
        "privileges beyond the database's objects",
    ),
)
"""Pattern, and what it is: admitted only from a trusted dump."""

_KINDS = (
    r"(?:(?:UNLOGGED |FOREIGN )?TABLE|(?:RECURSIVE |MATERIALIZED )?VIEW|SEQUENCE|SCHEMA|TYPE|DOMAIN|FUNCTION|PROCEDURE"
    r"|AGGREGATE|OPERATOR|CAST|(?:DEFAULT )?CONVERSION|COLLATION|STATISTICS|RULE|(?:CONSTRAINT )?TRIGGER|POLICY"
    r"|TEXT SEARCH (?:CONFIGURATION|DICTIONARY|PARSER|TEMPLATE)|SERVER|USER MAPPING|EVENT TRIGGER|FOREIGN DATA WRAPPER"
    r"|ACCESS METHOD|TRANSFORM|(?:TRUSTED )?(?:PROCEDURAL )?LANGUAGE|LARGE OBJECT)"
)
_WITH_SCHEMA = (
    r"(?:(?:FOREIGN )?TABLE|(?:MATERIALIZED )?VIEW|SEQUENCE|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TYPE|DOMAIN|COLLATION"
    r"|CONVERSION|STATISTICS|OPERATOR (?:CLASS|FAMILY)|TEXT SEARCH (?:CONFIGURATION|DICTIONARY))"
)
_WITHOUT_SCHEMA = (
    r"(?:LARGE OBJECT|(?:FOREIGN )?SERVER|PUBLICATION|EVENT TRIGGER|FOREIGN DATA WRAPPER|(?:PROCEDURAL )?LANGUAGE"
    r"|PARAMETER)"
)
_OBJECT = (
    rf"(?:{_WITH_SCHEMA} (?P<object>{NAME}){_ARGUMENTS}|SCHEMA (?P<schema>{_PART})|{_WITHOUT_SCHEMA} {_PART}"
    rf"|DATABASE (?P<database>{_PART}))"
)
_TO_ROLE = rf"OWNER TO (?P<role>{_PART})$"
_LITERAL = r"(?:''|-? ?0)"

ADMITTED = tuple(
    (re.compile(pattern), lane)
    for pattern, lane in (
        (rf"COPY (?P<table>{NAME})", Lane.COPY),
        (rf"INSERT INTO (?P<table>{NAME}) ", Lane.ROWS),
        (rf"SELECT PG_CATALOG \. SETVAL \( '' , {_LITERAL} , (?:TRUE|FALSE) \)$", Lane.NOW),
        (rf"SELECT PG_CATALOG \. (?:LO_CREATE|LO_OPEN|LOWRITE|LO_CLOSE) \( {_LITERAL}(?: , {_LITERAL})? \)$", Lane.NOW),
        (r"(?:BEGIN|COMMIT)$", Lane.NOW),  # around large objects
        (r"SELECT \* FROM PG_CATALOG \. PG_RESTORE_(?:RELATION|ATTRIBUTE|EXTENDED)_STATS \(", Lane.SKIP),
        (r"SELECT .*PG_CATALOG \. LO_UNLINK \(", Lane.CLEAN),
        (rf"DROP DATABASE (?:IF EXISTS )?(?P<database>{_PART})$", Lane.DROP_DATABASE),
        (r"DROP ", Lane.CLEAN),
        (
            r"ALTER (?:TABLE|DOMAIN) .*\b"
            rf"(?:DROP CONSTRAINT(?: IF EXISTS)? {_PART}|DROP DEFAULT|DETACH PARTITION {NAME})$",
            Lane.CLEAN,
        ),
        (rf"CREATE DATABASE (?P<database>{_PART}) ", Lane.CREATE_DATABASE),
        (rf"ALTER DATABASE (?P<database>{_PART}) OWNER TO ", Lane.SKIP),
        (rf"ALTER DATABASE (?P<database>{_PART}) SET {NAME} (?:=|TO) ", Lane.LATE),
        (rf"ALTER DATABASE (?P<database>{_PART}) ", Lane.SKIP),
        (rf"ALTER ROLE {_PART} IN DATABASE (?P<database>{_PART}) ", Lane.SKIP),
        (rf"COMMENT ON DATABASE (?P<database>{_PART}) IS ", Lane.COMMENT),
        (rf"CREATE EXTENSION (?:IF NOT EXISTS )?(?P<extension>{_PART})(?: WITH SCHEMA {_PART})?$", Lane.EXTENSION),
        (rf"CREATE (?:UNIQUE )?INDEX {_PART} ON (?:ONLY )?(?P<table>{NAME}) ", Lane.BUILD),
        (
            rf"ALTER TABLE ONLY (?P<table>{NAME}) ADD CONSTRAINT {_PART} (?:PRIMARY KEY|UNIQUE|EXCLUDE)\b",
            Lane.BUILD,
        ),
        (
            rf"ALTER TABLE ONLY (?P<table>{NAME}) ADD CONSTRAINT (?P<key>{_PART}) FOREIGN KEY \([^()]*\) "
            rf"REFERENCES (?P<other>{NAME})",
            Lane.FOREIGN_KEY,
        ),
        (rf"ALTER TABLE ONLY (?P<other>{NAME}) ATTACH PARTITION (?P<table>{NAME}) ", Lane.NOW),
        (r"ALTER INDEX ", Lane.FOLLOW),
        (rf"ALTER TABLE (?:ONLY )?{NAME} (?:CLUSTER ON|REPLICA IDENTITY) ", Lane.FOLLOW),
        (rf"ALTER TABLE (?:ONLY )?{NAME} (?:ENABLE|FORCE) ROW LEVEL SECURITY$", Lane.LATE),
        (rf"(?:CREATE|ALTER) PUBLICATION {_PART} (?!OWNER TO )", Lane.PUBLICATION),
        (rf"CREATE SUBSCRIPTION (?P<subscription>{_PART}) CONNECTION '' PUBLICATION ", Lane.SUBSCRIPTION),
        (rf"(?:ALTER SUBSCRIPTION {_PART} OWNER TO|COMMENT ON SUBSCRIPTION) ", Lane.SKIP),
        (r"(?:CREATE|ALTER) EVENT TRIGGER (?!.* OWNER TO )", Lane.EVENT_TRIGGER),
        (rf"ALTER {_OBJECT}(?: USING {_PART})? {_TO_ROLE}", Lane.OWNER),
        (rf"ALTER OPERATOR (?P<object>{_OPERATOR}){_ARGUMENTS} {_TO_ROLE}", Lane.OWNER),
        (
            rf"ALTER DEFAULT PRIVILEGES FOR ROLE (?P<role>{_PART})(?: IN SCHEMA (?P<schema>{_PART}))? "
            rf"(?:GRANT|REVOKE) .* (?:TO|FROM) {_ROLES}(?: WITH GRANT OPTION)?$",
            Lane.PRIVILEGE,
        ),
        (
            rf"(?:GRANT|REVOKE) (?:(?! ON ).)* ON {_OBJECT} (?:TO|FROM) {_ROLES}(?: WITH GRANT OPTION| CASCADE)?$",
            Lane.PRIVILEGE,
        ),
        (rf"SET SESSION AUTHORIZATION (?P<role>{_PART}|'')$", Lane.PRIVILEGE),
        (r"RESET SESSION AUTHORIZATION$", Lane.PRIVILEGE),
        (
            rf"CREATE POLICY {_PART} ON {NAME}(?: AS \w+)?(?: FOR \w+)? TO (?P<roles>{_PART}(?: , {_PART})*)"
            r"(?= USING| WITH CHECK|$)",
            Lane.NOW,
        ),
        (rf"CREATE USER MAPPING FOR (?P<role>{_PART}) ", Lane.NOW),
        (rf"CREATE (?:OR REPLACE )?{_KINDS}\b", Lane.NOW),
        (rf"ALTER {_KINDS}\b", Lane.NOW),
        (r"COMMENT ON ", Lane.COMMENT),
        (r"SECURITY LABEL ", Lane.NOW),
        (r"REFRESH MATERIALIZED VIEW ", Lane.NOW),
    )
)
"""Pattern and lane; the first that matches counts. Groups name the tables, roles and objects it is about."""

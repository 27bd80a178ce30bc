"""The structure of a database as digests: two equal databases agree, whatever their object ids and minor versions.

Every name is qualified by the server itself (the session's search_path is `pg_catalog`). Members of extensions are left
out (the extension stands for them), and so is what a dump does not carry: invalid indexes, CLUSTER marks, tablespaces,
who granted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from psycopg import Connection


@dataclass(frozen=True)
class Definition:
    """Digests (16 hex digits) of one object's definition: `exact`, and `essential` without casts and brackets.

    PostgreSQL writes some expressions with other casts and brackets once they were dumped and loaded
    (`x IN ('a', 'b')` on a varchar), so `exact` alone would call equal databases different.
    """

    essential: str
    exact: str


def take(connection: Connection[Any]) -> dict[str, Definition]:
    """The definition of every object, by `kind name`. The session must have search_path `pg_catalog`."""
    found: dict[str, Definition] = {}
    for query in _queries():
        for kind, name, text in connection.execute(query.encode()).fetchall():
            exact = _one_form_of_arrays(text or "")
            found[f"{kind} {name}"] = Definition(_digest(_essential(exact)), _digest(exact))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


_ARRAY_CAST = re.compile(r"\(ARRAY\[((?:'(?:[^']|'')*'::character varying(?:, )?)+)\]\)::text\[\]")
_ELEMENT = re.compile(r"'(?:[^']|'')*'::character varying")


def _one_form_of_arrays(text: str) -> str:
    """`(ARRAY['a'::varchar, ...])::text[]` is loaded as `ARRAY[('a'::varchar)::text, ...]`: the second form of both."""
    return _ARRAY_CAST.sub(lambda cast: f"ARRAY[{_ELEMENT.sub(lambda one: f'({one[0]})::text', cast[1])}]", text)


_NAME = r'(?:"(?:[^"]|"")*"|[\w$]+)'
_CAST = re.compile(
    r"::(?:character varying|double precision|bit varying|(?:timestamp|time)(?:\(\d\))? with(?:out)? time zone|"
    r"interval(?: (?:year|month|day|hour|minute|second|to|\(\d\))+)?|"
    rf"{_NAME}(?:\.{_NAME})?)(?:\(\d+(?:,\s*-?\d+)?\))?(?:\[\])*"
)


def _essential(text: str) -> str:
    return re.sub(r"[()\s]+", "", _CAST.sub("", text))


_ACL = r"""(select string_agg(concat(case grantee when 0 then 'public' else pg_get_userbyid(grantee) end, ' ',
    privilege_type, case when is_grantable then '*' end), ',' order by pg_get_userbyid(grantee) collate "C",
    privilege_type, is_grantable) from aclexplode(coalesce(\1, acldefault(\2, \3))))"""
_OWN = r"""(\2 >= 16384 and not exists (select from pg_depend m
    where m.classid = '\1'::regclass and m.objid = \2 and m.deptype = 'e'))"""


def _expand(text: str) -> str:
    text = re.sub(r"\bACL\(([^,]+), (.+?), (\w+)\)", _ACL, text)
    return re.sub(r"\bOWN\((\w+), ([\w.]+)\)", _OWN, text)


@cache
def _queries() -> tuple[str, ...]:
    text = re.sub(r"^--.*\n", "", Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"), flags=re.M)
    return tuple(_expand(query.strip()) for query in text.split(";\n") if query.strip())


def compare(expected: dict[str, Definition], found: dict[str, Definition]) -> Iterator[tuple[str, str]]:
    """Each object that differs, and how: `missing`, `not expected`, `another definition` or `written differently`.

    The last is the same apart from casts and brackets, and no damage.
    """
    for name in sorted({*expected, *found}):
        before, after = expected.get(name), found.get(name)
        if after is None:
            yield name, "missing"
        elif before is None:
            yield name, "not expected"
        elif before.essential != after.essential:
            yield name, "another definition"
        elif before.exact != after.exact:
            yield name, "written differently"

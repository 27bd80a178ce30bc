"""Whether a machine has the libraries and extensions that the databases of a server there need. Reads only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import LiteralString

import psycopg

from salvor import secrets
from salvor.change import Finding, Level
from salvor.errors import SalvorError
from salvor.postgres import asking
from salvor.postgres.server import Server

_SHOWN = 10
_WHERE: LiteralString = """
    select setting, replace(current_setting('dynamic_library_path'), '$libdir', setting) from pg_config
    where name = 'PKGLIBDIR'
"""
_DATABASES: LiteralString = "select datname from pg_database where datallowconn order by 1"
# Without its control file an extension works, and no dump of it can be restored.
_NEEDED: LiteralString = """
    select distinct probin, coalesce('extension ' || extname, 'functions') from pg_proc
    left join pg_depend on classid = 'pg_proc'::regclass and objid = pg_proc.oid and deptype = 'e'
    left join pg_extension on refclassid = 'pg_extension'::regclass and refobjid = pg_extension.oid
    where probin is not null
    union all
    select null, 'extension ' || extname from pg_extension
    where extname not in (select name from pg_available_extensions)
"""
# As PostgreSQL looks for them: by that name, and with the suffix (expand_dynamic_library_name in dfmgr.c).
_MISSING = r"""
IFS=:
for places; do
    found=
    for place in $places; do
        if [ -r "$place" ] || [ -r "$place.so" ]; then found=yes; fi
    done
    [ "$found" ] || echo "$places"
done
"""


def check(subject: str, server: Server, evidence: str) -> Iterator[Finding]:
    """What its databases need and its machine has not, which else shows when somebody uses it."""
    try:
        missing = [f"{who} in {', '.join(databases)}" for who, databases in _missing(server).items()]
    except (psycopg.Error, SalvorError) as error:
        yield Finding(subject, "libraries", Level.WARN, "not known", "", secrets.mask(str(error)).strip(), evidence)
        return
    if missing:
        shown = "; ".join(missing[:_SHOWN]) + ("; ..." if len(missing) > _SHOWN else "")
        detail = (
            f"{shown}. HINT: install the packages that have them on {server.shell.where}; nothing is to be restarted"
        )
        yield Finding(subject, "libraries", Level.WARN, f"{len(missing)} missing", "0", detail, evidence)


def _missing(server: Server) -> dict[str, list[str]]:
    """Each library that is not there, by what needs it, and the databases in which it does."""
    with server.session() as connection:
        ((folder, path),) = connection.execute(_WHERE).fetchall()
        databases = [name for (name,) in connection.execute(_DATABASES).fetchall()]
    needed: dict[tuple[str | None, str], list[str]] = defaultdict(list)
    for database in databases:
        with asking.session(server, database) as connection:
            for library, who in connection.execute(_NEEDED).fetchall():
                needed[library, who].append(database)
    places = {library: _places(library, folder, path) for library, _ in needed if library}
    argv = ["sh", "-c", _MISSING, "sh", *sorted(set(places.values()))]
    gone = set(server.shell.run(argv).stdout.splitlines())
    return {
        f"{who}: {library}" if library else f"{who}: its control file": found
        for (library, who), found in sorted(needed.items(), key=lambda one: one[0][1])
        if library is None or places[library] in gone
    }


def _places(library: str, folder: str, path: str) -> str:
    """Where a library may be, as a path of folders would be written."""
    if "/" in library:
        return library.replace("$libdir", folder, 1) if library.startswith("$libdir") else library
    return ":".join(f"{one}/{library}" for one in path.split(":"))

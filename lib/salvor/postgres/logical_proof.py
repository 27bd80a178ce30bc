"""What proves the stage of a dump: its content against the fingerprint that came with it, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg

from salvor import clock, secrets
from salvor.change import Finding, Level, WayBack
from salvor.errors import CannotError
from salvor.postgres import asking, carried, dump_chosen, dump_find, fingerprint, integrity, side_database
from salvor.postgres.dump_store import open_store
from salvor.postgres.fingerprint import Fingerprint
from salvor.postgres.gauge import Gauge, Hear
from salvor.postgres.logical_place import Place, place_of, scratch, side_database_of
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres


def verify(system: Postgres, way: WayBack, wish: Wish, hear: Hear) -> Iterator[Finding]:
    """The content of the stage against the fingerprint that came with the dump, and what was left out. Reads only;
    `hear` is told how far that is.
    """
    arguments = {name: str(value) for name, value in (way.arguments or {}).items()}
    source = dump_chosen.source(system, arguments["source"], arguments.get("within", ""))
    try:
        place = place_of(system, way.stage)
        expected = _expected_of(system, source)
        found = _fingerprint(place, hear) if expected else None
        with asking.session(place.server, place.database) as connection:
            has_amcheck = connection.execute("select 1 from pg_extension where extname = 'amcheck'").fetchone()
    except (CannotError, psycopg.Error) as error:
        yield Finding(system.name, "readable", Level.FAIL, "not readable", detail=secrets.mask(str(error)))
        return
    evidence, left_out = place.identity, place.left_out
    if expected and found:
        figure = f"{len(found.tables):,} tables, {found.rows:,} rows"
        yield Finding(system.name, "readable", Level.PASS, figure, detail="every row was read", evidence=evidence)
        yield from fingerprint.compare(expected, found, subject=system.name, evidence=evidence)
    else:
        with Gauge(place.server, hear, "reading every table") as gauge:
            read = integrity.every_page(system.name, place.server, place.database, evidence, gauge)
        yield read
        why = "none came with this dump, so only the service's own checks can tell whether all is there"
        yield Finding(system.name, "content fingerprint", Level.WARN, "none", detail=why, evidence=evidence)
    if has_amcheck:
        with Gauge(place.server, hear, "pg_amcheck") as gauge:
            checked = integrity.amcheck(system.name, place.server, place.database, evidence, gauge)
        yield checked
    if left_out:
        shown = "; ".join(left_out[:10])
        yield Finding(system.name, "left out of the dump", Level.WARN, f"{len(left_out)}", "0", shown, evidence)
    if way.stage == side_database.STAGE:
        yield from carried.subscriptions(system.name, side_database_of(system, system.site.view()), evidence)
    yield from carried.wal(system.name, place.marker, evidence)
    yield _freshness(system.name, source, wish, evidence)


def _fingerprint(place: Place, hear: Hear) -> Fingerprint:
    with Gauge(place.server, hear, fingerprint.TAKING) as gauge:
        return fingerprint.take(asking.sessions(place.server), place.database, gauge=gauge)


def _expected_of(system: Postgres, source: dump_find.Source) -> Fingerprint | None:
    if source.manifest is None:
        return None
    place = system.settings.dumps
    if source.name.startswith(("/", "s3://")):
        place = source.name.rpartition("/")[0]
    return dump_find.fingerprint_of(open_store(place).folder_of(source.manifest, scratch(system)) / "dump")


def _freshness(subject: str, source: dump_find.Source, wish: Wish, evidence: str) -> Finding:
    if source.taken is None:
        why = "the dump does not say of which moment it is"
        return Finding(subject, "freshness", Level.WARN, "not known", clock.write_duration(wish.rpo), why, evidence)
    age = clock.age(source.taken).total_seconds()
    asked = wish.at is not None or wish.source != "latest"
    level = Level.PASS if asked or age <= wish.rpo else Level.WARN
    figure = f"of {clock.write_time(source.taken)}, {clock.write_duration(age)} old"
    detail = "as asked for" if asked else "what was written since is not in it"
    return Finding(subject, "freshness", level, figure, clock.write_duration(wish.rpo), detail, evidence)

"""Proof of a staged copy or a standby before it is promoted. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from salvor import clock, secrets
from salvor.change import Finding, Level
from salvor.errors import CannotError, SalvorError
from salvor.postgres import asking, carried, libraries, restore_point
from salvor.postgres.backrest import Repository
from salvor.postgres.beside import read_marker
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.connection import LOCK_MILLISECONDS
from salvor.postgres.facts import Facts, as_noted, ask_facts
from salvor.postgres.lag import lag_of, missing_commits
from salvor.postgres.look import Look
from salvor.postgres.physical import EVERYTHING
from salvor.postgres.server import Server
from salvor.postgres.site import Site
from salvor.wish import Wish

if TYPE_CHECKING:
    import psycopg

_READ_SECONDS = 4 * 3600.0


def standby(subject: str, view: View, name: str, wish: Wish) -> Iterator[Finding]:
    """A standby: of this cluster, and near enough. Its tables are not read, which can take as long as a restore."""
    seen = view.of(name)
    evidence = seen.identity
    if not seen.facts or not seen.look:
        yield Finding(subject, "answers", Level.FAIL, detail=seen.describe(), evidence=evidence)
        return
    yield _same_cluster(subject, seen.look, view.primary.look, evidence)
    lag = lag_of(seen, view.primary)
    late = lag.seconds is not None and lag.seconds > wish.rpo
    yield Finding(
        subject,
        "freshness",
        Level.FAIL if late else Level.WARN if lag.seconds is None else Level.PASS,
        figure="not known" if lag.seconds is None else f"{clock.write_duration(lag.seconds)} behind",
        limit=clock.write_duration(wish.rpo),
        detail=lag.why,
        evidence=evidence,
        lacks=lag.lacks,
    )
    if seen.facts.is_held_back:
        until = f" of {clock.write_time(seen.facts.fresh)}" if seen.facts.fresh else ""
        detail = f"its newest commit that can be seen is that{until}: the checks tell nothing of what comes after it"
        figure = f"{(seen.facts.received - seen.facts.lsn) / 1e6:,.1f} MB are not replayed yet"
        yield Finding(subject, "replayed", Level.WARN, figure, "0", detail, evidence)
    yield _checksums(subject, seen.look, seen.facts, evidence)
    yield from libraries.check(subject, seen.member.server, evidence)


def stage(
    subject: str, site: Site, view: View, member: Member, backup: str, target: str, wish: Wish
) -> Iterator[Finding]:
    """A restored copy: of this cluster, at its target, every table readable."""
    import psycopg

    staged = site.physical(member)
    server = staged.stage
    look = server.look()
    evidence = look.identity
    try:
        facts = as_noted(ask_facts(server, site.database), read_marker(look.marker))
    except psycopg.Error as error:
        yield Finding(subject, "answers", Level.FAIL, detail=secrets.mask(str(error)), evidence=evidence)
        return
    marker = read_marker(look.marker)
    yield _recovered(subject, facts, target, marker, evidence)
    yield _fresh(subject, facts, target, marker, view.primary, wish, evidence)
    yield _checksums(subject, look, facts, evidence)
    repository = site.repository(member)
    short = (
        _is_of_the_repository(subject, look, repository, evidence),
        carried.port(subject, staged, evidence),
        carried.configuration(subject, staged, evidence),
        libraries.check(subject, server, evidence),
        carried.slots(subject, member.server, evidence),
    )
    with ThreadPoolExecutor(len(short)) as pool:
        for found in pool.map(list[Finding], short):
            yield from found
    yield from carried.wal(subject, marker, evidence)
    stored = next((one for one in repository.stored if one.label == backup), None)
    if stored:
        yield from restore_point.compare(stored, server, site.database, target, subject, evidence)
    yield from _integrity(subject, server, look, evidence)


def _is_of_the_repository(subject: str, look: Look, repository: Repository, evidence: str) -> Iterator[Finding]:
    known = {one.system_identifier for one in repository.stored}
    mine = look.identity.partition("@")[0]
    level = Level.PASS if mine in known else Level.FAIL
    yield Finding(subject, "system identifier", level, figure=mine, limit=", ".join(sorted(known)), evidence=evidence)


def _same_cluster(subject: str, look: Look, primary: Look | None, evidence: str) -> Finding:
    mine = look.identity.partition("@")[0]
    if not primary or not primary.control:
        detail = "the primary's data is lost or unreadable, so there is nothing to compare with"
        return Finding(subject, "system identifier", Level.WARN, figure=mine, detail=detail, evidence=evidence)
    same = primary.control.get("Database system identifier") == mine
    return Finding(
        subject,
        "system identifier",
        Level.PASS if same else Level.FAIL,
        figure=mine,
        limit=primary.control.get("Database system identifier", ""),
        evidence=evidence,
    )


def _recovered(subject: str, facts: Facts, target: str, marker: Mapping[str, Any], evidence: str) -> Finding:
    everything = target == "latest" or bool(marker.get(EVERYTHING))
    at_rest = facts.paused or everything or not facts.in_recovery
    earlier = marker.get("stopped_before_drop_of")
    paused = (
        f"the replay is paused at {marker.get('at')}, just before the DROP of the database {earlier} began"
        if earlier
        else "the replay is paused there"
    )
    return Finding(
        subject,
        "recovery reached its target",
        Level.PASS if at_rest else Level.FAIL,
        figure=target,
        detail="all WAL there is was replayed" if everything else paused,
        evidence=evidence,
    )


def _fresh(
    subject: str, facts: Facts, target: str, marker: Mapping[str, Any], primary: Sighting, wish: Wish, evidence: str
) -> Finding:
    """The newest commit against what was asked for, or against what the old primary had."""
    newest = f"newest commit {clock.write_time(facts.fresh)}" if facts.fresh else "no commit since the backup"
    kind, _, value = target.partition(":")
    if kind in ("time", "before"):
        asked = clock.read_time(value)
        beyond = bool(facts.fresh and facts.fresh > asked)
        earlier = marker.get("stopped_before_drop_of")
        why = "as none came after it" if marker.get(EVERYTHING) else "as recovery paused at the first one after it"
        return Finding(
            subject,
            "freshness",
            Level.FAIL if beyond else Level.PASS,
            figure=newest,
            limit=clock.write_time(asked),
            detail=f"every commit up to where the DROP of the database {earlier} began"
            if earlier
            else f"every commit up to the time asked for, {why}",
            evidence=evidence,
            lacks=None if beyond or earlier else 0.0,
        )
    if kind != "latest":
        return Finding(subject, "freshness", Level.PASS, figure=newest, detail="as asked for", evidence=evidence)
    seconds, detail = _lost(facts, primary)
    late = seconds is not None and seconds > wish.rpo
    return Finding(
        subject,
        "freshness",
        Level.FAIL if late else Level.WARN if seconds is None else Level.PASS,
        figure=f"{newest}; loses {clock.write_duration(seconds)}" if seconds is not None else newest,
        limit=clock.write_duration(wish.rpo),
        detail=detail,
        evidence=evidence,
        lacks=seconds,
    )


def _lost(facts: Facts, primary: Sighting) -> tuple[float | None, str]:
    """Seconds of commits that the old primary had and the stage has not; None when that cannot be told."""
    there = primary.facts if primary.is_fenced else None
    if there and there.fresh and there.fresh != there.now:
        return _seconds(there.fresh, facts.fresh), "compared with the newest commit of the old primary"
    try:
        commits = missing_commits(primary, facts.lsn) if primary.is_fenced or not primary.facts else None
    except SalvorError:
        commits = None
    if commits is None:
        return None, "what the primary had more cannot be told; everything that was archived is there"
    count, last = commits
    return (_seconds(last, facts.fresh) if count and last else 0.0), f"the old primary's WAL has {count} commits more"


def _seconds(newer: datetime, older: datetime | None) -> float | None:
    return max(0.0, (newer - older).total_seconds()) if older else None


def _checksums(subject: str, look: Look, facts: Facts, evidence: str) -> Finding:
    on = look.has_checksums
    level = Level.FAIL if facts.checksum_failures else Level.PASS if on else Level.WARN
    figure = f"{facts.checksum_failures} failures" if on else "off"
    detail = (
        "" if on else "damaged pages can go unseen; pg_checksums --enable turns them on while the server is stopped"
    )
    return Finding(subject, "data checksums", level, figure=figure, detail=detail, evidence=evidence)


def _integrity(subject: str, server: Server, look: Look, evidence: str) -> Iterator[Finding]:
    """pg_amcheck where its extension is installed; elsewhere every page of every table is read."""
    with server.session() as connection:
        names = [row[0] for row in connection.execute("select datname from pg_database where datallowconn order by 1")]
    with ThreadPoolExecutor(2) as pool:  # the small ones while a large one is read
        yield from pool.map(lambda name: _integrity_of(subject, server, name, look, evidence), names)


# Nobody but a transaction manager ends such a one, so who waits for its locks waits for ever. A table that it made is
# not in pg_class yet, and nobody reads that.
_PREPARED: LiteralString = """
    select p.gid, p.prepared, string_agg(distinct c.oid::regclass::text, ', ')
    from pg_prepared_xacts p join pg_locks l on l.virtualtransaction = '-1/' || p.transaction
      join pg_class c on c.oid = l.relation
    where l.mode = 'AccessExclusiveLock' and l.locktype = 'relation'
      and l.database = (select oid from pg_database where datname = current_database())
    group by p.gid, p.prepared order by p.prepared
"""


def _integrity_of(subject: str, server: Server, database: str, look: Look, evidence: str) -> Finding:
    import psycopg

    try:
        with asking.session(server, database) as connection:
            has_amcheck = connection.execute("select 1 from pg_extension where extname = 'amcheck'").fetchone()
            prepared = connection.execute(_PREPARED).fetchall()
    except psycopg.Error as error:
        detail = secrets.mask(str(error)).strip()
        return Finding(subject, f"integrity of {database}", Level.FAIL, "not readable", "", detail, evidence)
    if prepared:
        locking = "; ".join(
            f"the prepared transaction {name!r}, of {clock.write_time(since)}, locks {tables}"
            for name, since, tables in prepared
        )
        names = ", ".join(f"'{name}'" for name, *_ in prepared)
        detail = (
            f"{locking}, so they cannot be read. HINT: in {database} at {server.address}:{server.port}: "
            f"COMMIT PREPARED or ROLLBACK PREPARED {names}, as the transaction manager has decided; "
            "then the same command again"
        )
        return Finding(subject, f"integrity of {database}", Level.FAIL, "not readable", "", detail, evidence)
    if has_amcheck:
        return amcheck(subject, server, database, evidence)
    return every_page(subject, server, database, evidence, look)


def amcheck(subject: str, server: Server, database: str, evidence: str) -> Finding:
    """What pg_amcheck says of a database in which its extension is installed: tables and B-tree indexes."""
    where = [f"--host={server.address}", f"--port={server.port}", f"--username={server.operator.user}"]
    jobs = f"--jobs={server.shell.cores()}"
    result = server.shell.run(
        [server.program("pg_amcheck"), *where, jobs, f"--database={database}", "--no-password"],
        environment={
            "PGPASSWORD": secrets.resolve(server.operator.password),
            "PGOPTIONS": f"-c lock_timeout={LOCK_MILLISECONDS}",
        },
        deadline=_READ_SECONDS,
        check=False,
    )
    lines = (result.stdout + result.stderr).strip().splitlines()
    return Finding(
        subject,
        f"integrity of {database}",
        Level.FAIL if result.exit_code else Level.PASS,
        figure=f"{len(lines)} complaints" if result.exit_code else "sound",
        detail=secrets.mask("; ".join(lines[:3])) if result.exit_code else "pg_amcheck: tables and B-tree indexes",
        evidence=evidence,
    )


# Every page is read from disk and its checksum compared: through an index only, some would be left out.
_TABLES = """
    select oid::regclass::text, pg_relation_size(oid), relkind = 't' from pg_class
    where relkind in ('r', 'm', 't') and relpersistence <> 't' and pg_relation_size(oid) > 0 order by 2 desc
"""


_COUNTED: LiteralString = "select count(*) from {}"
_TAKEN_APART: tuple[LiteralString, ...] = (
    "select count(record_send(t)) from {} t",
    "select count(t::text) from {} t",
)


def _ask_first(connection: psycopg.Connection[Any], questions: Sequence[LiteralString], table: str) -> None:
    """Put the first of the questions that the types of a table's columns allow, each in a transaction of its own that
    no code of the data can have written to.
    """
    import psycopg

    for question in questions:
        try:
            connection.execute(sql.SQL(f"begin read only; {question}; commit").format(sql.SQL(table)))
            return
        except psycopg.errors.UndefinedFunction:
            if question == questions[-1]:
                raise
            connection.rollback()


def every_page(subject: str, server: Server, database: str, evidence: str, look: Look | None = None) -> Finding:
    """Whether every page of every table of a database can be read. Indexes are not. `look`: one at that server."""
    import psycopg

    check = f"integrity of {database}"
    # Without checksums only taking every row apart can show that a page is damaged. Some types, such as the aclitem of
    # many catalogs, have no binary form; as text it takes longer.
    apart = (_COUNTED,) if (look or server.look()).has_checksums else _TAKEN_APART
    read, size, table = 0, 0, ""
    try:
        with asking.session(server, database, deadline=_READ_SECONDS) as connection:
            for setting in ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
                connection.execute(sql.SQL("set {} = off").format(sql.Identifier(setting)))
            connection.execute("set search_path = pg_catalog")  # a dump may have set another for its database
            connection.execute("set max_parallel_workers_per_gather = 4")
            for table, bytes_, is_toast in connection.execute(_TABLES).fetchall():
                # What TOAST holds is taken apart with the rows that refer to it.
                _ask_first(connection, (_COUNTED,) if is_toast else apart, table)
                read, size = read + 1, size + bytes_
    except (psycopg.Error, CannotError) as error:
        detail = secrets.mask(f"{table}: {error}")
        return Finding(subject, check, Level.FAIL, figure="not readable", detail=detail, evidence=evidence)
    detail = (
        f"every page of {read} tables was read ({size / 1e6:.0f} MB); amcheck is not installed, so indexes were not"
    )
    return Finding(subject, check, Level.PASS, figure="readable", detail=detail, evidence=evidence)

"""The fingerprint of a physical backup: of a restore point just behind it, where a restore can stop and be compared.

A snapshot is no place in the WAL: a commit may be in the log and not yet be seen. So writers are held up for an
instant, in which the snapshot and the restore point are made; the reading takes its time afterwards.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from salvor import secrets
from salvor.change import Finding, Level, Progress, canonical
from salvor.errors import CannotError
from salvor.postgres import asking, backrest_work, fingerprint, rows
from salvor.postgres.backrest import Repository
from salvor.postgres.fingerprint import Fingerprint
from salvor.postgres.gauge import Gauge, Hear
from salvor.postgres.server import Server
from salvor.postgres.stored import Stored

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

_SUMMARY, _WHOLE = "fingerprint", "fingerprint-whole"
_MOST_CHARACTERS = 30_000
"""Of a whole fingerprint in an annotation: `pgbackrest info` gives all of them each time. About 600 tables."""
_TRIES = 5
_HOLD_SECONDS = 0.5


def name_of(label: str) -> str:
    """The name of the restore point that belongs to a backup."""
    return f"salvor-{label}"


def note(server: Server, database: str, repository: Repository, label: str, hear: Hear) -> Iterator[Progress]:
    """Make the restore point of a backup that was just taken, and note with the backup what was there. `hear` is told
    how far its reading is.

    Writers of `database` wait for half a second at most. Where that is not enough to come between them, the backup
    stays without a fingerprint, and the last progress says so.
    """
    try:
        with server.connect(database, deadline=60.0) as leader, server.connect(database, writes=True) as holder:
            yield Progress(0, None, "", "making the restore point of its fingerprint")
            snapshot, sequences = _hold_and_mark(server, holder, leader, name_of(label))
            yield Progress(0, None, "", fingerprint.TAKING)
            with Gauge(server, hear, fingerprint.TAKING) as gauge:
                found = fingerprint.take(asking.sessions(server), database, snapshot=snapshot, gauge=gauge)
    except (psycopg.Error, CannotError) as error:
        said = error.what if isinstance(error, CannotError) else secrets.mask(str(error)).strip()
        yield Progress(0, None, "", f"the backup is whole, and has no fingerprint: {said}")
        return
    found = replace(found, sequences=sequences)
    noted = {_SUMMARY: json.dumps({**found.summary(), "digest": _digest(found), "restore_point": name_of(label)})}
    whole = base64.b64encode(zlib.compress(json.dumps(found.to_json()).encode(), 9)).decode()
    backrest_work.annotate(repository, label, noted | ({_WHOLE: whole} if len(whole) <= _MOST_CHARACTERS else {}))


def _hold_and_mark(
    server: Server, holder: Connection, leader: Connection, name: str
) -> tuple[str, dict[str, tuple[int, bool]]]:
    """The snapshot of `leader` and the sequences, at the restore point `name`."""
    holder.execute("set search_path = pg_catalog")  # the database may have another, with tables of those names
    for tried in range(_TRIES):
        try:
            with holder.transaction():
                _hold_writers(holder)
                snapshot = rows.begin(leader)
                relations = rows.relations(leader)
                # Sequences belong to no snapshot and move on meanwhile; replayed, they are here or a little ahead.
                sequences = {
                    relation.label: value
                    for relation, value in rows.read_together(leader, relations[1])
                    if isinstance(value, tuple)
                }
                holder.execute("select pg_create_restore_point(%s)", [name])
            holder.execute("select pg_switch_wal()")  # so that the archive has it soon
            return snapshot, sequences
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            if tried == _TRIES - 1:
                raise CannotError(
                    f"in {_TRIES} tries no moment was found in which nobody writes: pg_stat_activity and "
                    "pg_prepared_xacts name the transactions that go on"
                ) from error
            time.sleep(1.0)
    raise AssertionError


def _hold_writers(holder: Connection) -> None:
    """Lock every table against writes, all in one statement, within half a second or not at all.

    The limit is below deadlock_timeout, or a writer that holds one table and waits for another could be ended for us.
    """
    row = holder.execute("select setting::int from pg_settings where name = 'deadlock_timeout'").fetchone()
    milliseconds = int(min(_HOLD_SECONDS * 1000, (row[0] if row else 1000) / 2))
    tables = [table for table in rows.relations(holder)[0] if table.kind not in ("materialized view", "unlogged")]
    names = [sql.Identifier(one.schema, one.name) for one in tables] + [sql.Identifier("pg_catalog", "pg_largeobject")]
    holder.execute(sql.SQL("set local statement_timeout = {}").format(milliseconds))
    holder.execute(sql.SQL("lock table only {} in share mode").format(sql.SQL(", only ").join(names)))
    holder.execute("set local statement_timeout = '10s'")


def compare(
    stored: Stored, server: Server, database: str, target: str, subject: str, evidence: str, hear: Hear
) -> list[Finding]:
    """What was restored against the fingerprint of its backup. It is comparable only where the replay stopped there.
    `hear` is told how far its reading is.
    """
    check = "content fingerprint"
    if _SUMMARY not in stored.annotations:
        return []
    summary: dict[str, Any] = json.loads(stored.annotations[_SUMMARY])
    if target != f"name:{summary.get('restore_point')}":
        detail = (
            f"that of the backup is of its restore point {summary.get('restore_point')}, and this is another moment"
        )
        return [Finding(subject, check, Level.PASS, "not comparable", detail=detail, evidence=evidence)]
    with Gauge(server, hear, fingerprint.TAKING) as gauge:
        found = fingerprint.take(asking.sessions(server), database, gauge=gauge)
    if _WHOLE in stored.annotations:
        expected = Fingerprint.from_json(json.loads(zlib.decompress(base64.b64decode(stored.annotations[_WHOLE]))))
        return fingerprint.compare(expected, found, subject=subject, evidence=evidence, physical=True)
    level = Level.PASS if _digest(found) == summary.get("digest") else Level.FAIL
    detail = "the tables are too many to note each with the backup, so which one differs cannot be told"
    return [Finding(subject, check, level, _digest(found), str(summary.get("digest")), detail, evidence)]


def _digest(found: Fingerprint) -> str:
    """Of all that a restore must have exactly: sequences may be ahead, and unlogged tables are empty."""
    tables = {name: asdict(content) for name, content in found.tables.items() if content.kind != "unlogged"}
    whole = canonical([tables, asdict(found.large_objects)])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]

"""An order-independent fingerprint of what a database holds: every bit of every row, taken at one snapshot.

A table's fingerprint is its row count and the sum of a 64-bit hash of each row's binary form, so neither the order of
rows nor the layout of pages matters, duplicates count, and parallel workers can share the work. It finds damage and
mistakes; it is no defence against somebody who constructs collisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from salvor.change import Finding, Level, canonical
from salvor.errors import CannotError
from salvor.postgres import rows, structure
from salvor.postgres.gauge import Gauge
from salvor.postgres.rows import Connect, Content
from salvor.postgres.structure import Definition


@dataclass(frozen=True)
class Fingerprint:
    """What a database held at one moment.

    `sequences`: last value and whether it was called; `skipped`: what was not read, and why; `structure`: see
    `structure.take`.
    """

    server_version: int
    tables: Mapping[str, Content]
    sequences: Mapping[str, tuple[int, bool]]
    large_objects: Content
    structure: Mapping[str, Definition]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One short name of the whole content (16 hex digits): equal for equal contents."""
        whole = {
            key: value for key, value in self.to_json().items() if key not in ("server_version", "structure", "skipped")
        }
        return hashlib.sha256(canonical(whole).encode()).hexdigest()[:16]

    @property
    def rows(self) -> int:
        """The rows of all tables."""
        return sum(content.rows for content in self.tables.values())

    def summary(self) -> dict[str, Any]:
        """A few figures for listings: the whole may be megabytes."""
        return {"digest": self.digest, "tables": len(self.tables), "rows": self.rows}

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        data = asdict(self)
        return data | {"sequences": {name: list(value) for name, value in self.sequences.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Fingerprint:
        """The Fingerprint that `to_json` wrote. Raises KeyError or TypeError for anything else."""
        return Fingerprint(
            server_version=data["server_version"],
            tables={name: Content(**content) for name, content in data["tables"].items()},
            sequences={name: (value[0], value[1]) for name, value in data["sequences"].items()},
            large_objects=Content(**data["large_objects"]),
            structure={name: Definition(**definition) for name, definition in data["structure"].items()},
            skipped=data["skipped"],
        )


TAKING = "taking the fingerprint"


def take(
    connect: Connect, database: str, jobs: int = 2, snapshot: str | None = None, gauge: Gauge | None = None
) -> Fingerprint:
    """The fingerprint of `database`, read by `jobs` sessions at one snapshot: `snapshot`, or one taken now. `gauge`:
    what tells how far that is, and may end it.

    Whoever exported `snapshot` must keep its transaction open meanwhile, and hold locks on the tables (`lock_tables`)
    when somebody may alter or truncate them. Raises CannotError when the database cannot be read whole.
    """
    try:
        with connect(database) as leader:
            version = leader.info.server_version
            if version < rows.OLDEST:
                raise CannotError(
                    f"{database}: a fingerprint needs PostgreSQL {rows.OLDEST // 10000}; this is {version // 10000}.",
                    hint="restore it without a fingerprint; the service's own checks remain",
                )
            given, snapshot = snapshot, rows.begin(leader, snapshot)
            if not given:
                rows.lock_tables(leader)
            relations, sequences, skipped = rows.relations(leader)
            work = [*rows.batches(relations), *rows.batches(sequences)]
            if gauge:
                gauge.expect(sum(map(rows.size, work)))
            with (
                ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="fingerprint") as pool,
                gauge.ending_at_once() if gauge else nullcontext(),
            ):
                reading = [pool.submit(rows.read, connect, database, snapshot, batch, gauge) for batch in work]
                definitions = structure.take(leader)
                large_objects = rows.large_objects(leader)
                results = [row for future in reading for row in future.result()]
    except psycopg.Error as error:
        raise rows.unreadable(database, error) from error
    return Fingerprint(
        server_version=version,
        tables={relation.label: content for relation, content in results if isinstance(content, Content)},
        sequences={relation.label: content for relation, content in results if not isinstance(content, Content)},
        large_objects=large_objects,
        structure=definitions,
        skipped=skipped,
    )


_NAMED = 10


def compare(
    expected: Fingerprint, found: Fingerprint, *, subject: str = "", evidence: str = "", physical: bool = False
) -> list[Finding]:
    """What differs, by name; one passing finding when nothing does.

    Only a warning is: what a dump fills anew (materialised views, tables of extensions); after a `physical` restore,
    unlogged tables, which PostgreSQL empties, and sequences a little ahead (the log records 32 values beforehand).
    """
    damaged: list[str] = []
    doubtful: list[str] = []
    excused = ("unlogged",) if physical else ("materialized view", "of an extension")
    for name in sorted({*expected.tables, *found.tables}):
        before, after = expected.tables.get(name), found.tables.get(name)
        if before == after:
            continue
        said = f"{name}: {_difference(before, after)}"
        kind = (before or after or Content(0, "")).kind
        reason = expected.skipped.get(name) or found.skipped.get(name)
        (doubtful if kind in excused or reason else damaged).append(
            f"{said} ({reason or kind})" if reason or kind != "table" else said
        )
    for name in sorted({*expected.sequences, *found.sequences}):
        value, now = expected.sequences.get(name), found.sequences.get(name)
        if value != now:
            ahead = physical and value is not None and now is not None and now[0] > value[0]
            (doubtful if ahead or name in found.skipped else damaged).append(
                f"sequence {name}: {_value(now)}, expected {_value(value)}"
            )
    if expected.large_objects != found.large_objects:
        damaged.append(f"large objects: {_difference(expected.large_objects, found.large_objects)}")
    for name, how in structure.compare(dict(expected.structure), dict(found.structure)):
        (doubtful if how == "written differently" else damaged).append(f"{name}: {how}")
    doubtful += [f"{name}: not compared, {why}" for name, why in found.skipped.items() if name not in expected.tables]
    figure = f"{found.digest}, {len(found.tables):,} tables, {found.rows:,} rows"
    limit = f"{expected.digest}, {len(expected.tables):,} tables, {expected.rows:,} rows"
    findings = []
    if damaged:
        findings.append(Finding(subject, "content fingerprint", Level.FAIL, figure, limit, _list(damaged), evidence))
    else:
        findings.append(
            Finding(
                subject, "content fingerprint", Level.PASS, figure, limit, "every row as it was backed up", evidence
            )
        )
    if doubtful:
        findings.append(
            Finding(subject, "content that may differ", Level.WARN, f"{len(doubtful)}", "", _list(doubtful), evidence)
        )
    return findings


def _difference(before: Content | None, after: Content | None) -> str:
    if after is None:
        return "missing"
    if before is None:
        return f"not expected, with {after.rows:,} rows"
    if before.rows != after.rows:
        return f"{after.rows:,} rows, expected {before.rows:,}"
    return f"{after.rows:,} rows as expected, with other content"


def _value(value: tuple[int, bool] | None) -> str:
    return "missing" if value is None else f"{value[0]}{'' if value[1] else ' (not yet called)'}"


def _list(items: list[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more:,} more" if more > 0 else "")

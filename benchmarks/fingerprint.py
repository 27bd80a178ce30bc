"""The fingerprint against `pg_dump | sha256sum` and a plain scan: `python benchmarks/fingerprint.py DSN [ROWS]`.

DSN is a superuser's connection string to a server; a database of its own is made there and removed. The three take
turns, round by round. Prints seconds of each, and the median ratios of the rounds.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from salvor.postgres import fingerprint

ROUNDS = 5
DATABASE = "salvor_benchmark"
JOBS = os.cpu_count() or 2


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A session in the benchmark's database."""
    return psycopg.connect(dsn, dbname=DATABASE, autocommit=True)


def fill(dsn: str, rows: int) -> None:
    """A narrow table and a wide one."""
    with connect(dsn) as connection:
        connection.execute("create table narrow (id bigint primary key, at timestamptz, amount numeric, state text)")
        connection.execute(
            """insert into narrow select g, '2026-01-01'::timestamptz + g * interval '1 s', g * 1.25, 'paid'
            from generate_series(1, %s) g""",
            [rows],
        )
        connection.execute("create table wide (id bigint, body text, tags jsonb, score float8)")
        connection.execute(
            """insert into wide select g, repeat(md5(g::text), 8), jsonb_build_object('n', g, 'of', 'x'), sqrt(g)
            from generate_series(1, %s / 10) g""",
            [rows],
        )
        connection.execute("vacuum (analyze, freeze)")


def by_fingerprint(dsn: str) -> float:
    """Seconds for the fingerprint."""
    begun = time.perf_counter()
    fingerprint.take(lambda name: connect(dsn), DATABASE, JOBS)
    return time.perf_counter() - begun


def by_dump(dsn: str) -> float:
    """Seconds for `pg_dump | sha256sum`."""
    parts = conninfo_to_dict(dsn)
    secret = {"PGPASSWORD": str(parts.pop("password"))} if "password" in parts else {}
    begun = time.perf_counter()
    where = make_conninfo("", **{**parts, "dbname": DATABASE})
    argv = ["pg_dump", f"--dbname={where}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **secret}) as dump:
        assert dump.stdout
        hashlib.file_digest(dump.stdout, "sha256")  # type: ignore[arg-type]  # a pipe can be read
    assert dump.returncode == 0
    return time.perf_counter() - begun


def by_scan(dsn: str) -> float:
    """Seconds for counting every row."""
    begun = time.perf_counter()
    with connect(dsn) as connection:
        for table in ("narrow", "wide"):
            connection.execute(f"select count(*) from {table}".encode())  # noqa: S608  # two constants
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    dsn, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2_000_000
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create database {DATABASE} template template0".encode())
        try:
            fill(dsn, rows)
            by_scan(dsn)  # so that all of them find the same cache
            rounds = [(by_fingerprint(dsn), by_dump(dsn), by_scan(dsn)) for _ in range(ROUNDS)]
        finally:
            connection.execute(f"drop database {DATABASE} with (force)".encode())
    names = ("fingerprint", "pg_dump | sha256sum", "sequential scan")
    for name, column in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name:20} {statistics.median(column):7.2f} s")
    print(f"pg_dump | sha256sum takes {statistics.median(dump / mine for mine, dump, _ in rounds):.2f} times as long")
    print(f"a sequential scan takes   {statistics.median(scan / mine for mine, _, scan in rounds):.2f} times as long")


if __name__ == "__main__":
    main()

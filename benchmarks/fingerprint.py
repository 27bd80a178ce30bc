"""The fingerprint against `pg_dump | sha256sum` and a plain scan: `python benchmarks/fingerprint.py [ROWS]`.

A server of its own is made below FOLDER (default: that for temporary files) and removed. The three take turns, round by
round, each beginning in its turn. Prints seconds of each, and the ratios of the rounds: median, least and most.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from restore import FILL, FILL_ORDERS, JOBS, PROGRAMS, USER
from salvor.postgres import fingerprint
from salvor.shell import local

ROUNDS = 6
DATABASE = "postgres"


@contextmanager
def server(folder: str) -> Iterator[str]:
    """A server while the block runs, and how to reach it."""
    root = Path(tempfile.mkdtemp(prefix="salvor-fingerprint-", dir=folder))
    if os.geteuid() == 0:
        shutil.chown(root, USER, USER)
    shell, data = local(USER), str(root / "data")
    settings = f"-c listen_addresses= -c unix_socket_directories={root} -c shared_buffers=1GB"
    control = [f"{PROGRAMS}/pg_ctl", "-D", data, "-s", "-w"]
    try:
        shell.run([f"{PROGRAMS}/initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync"], deadline=60.0)
        shell.run([*control, "-l", str(root / "log"), "-o", settings, "start"], deadline=60.0)
        yield f"host={root} user={USER} dbname={DATABASE}"
    finally:
        shell.run([*control, "-m", "immediate", "stop"], deadline=60.0, check=False)
        shutil.rmtree(root)


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A session in the benchmark's database."""
    return psycopg.connect(dsn, autocommit=True)


NARROW = """
create table narrow (id bigint primary key, at timestamptz, amount numeric, state text);
insert into narrow select g, '2026-01-01'::timestamptz + g * interval '1 s', g * 1.25, 'paid'
    from generate_series(1, {rows}) g;
"""


def fill(dsn: str, content: str, rows: int) -> None:
    """The data: the orders of restore.py, or rows that are little more than keys."""
    with connect(dsn) as connection:
        connection.execute(content.format(rows=rows, orders="orders").encode())
        connection.execute("vacuum (analyze, freeze)")


def by_fingerprint(dsn: str) -> float:
    """Seconds for the fingerprint."""
    begun = time.perf_counter()
    fingerprint.take(lambda name: connect(dsn), DATABASE, JOBS)
    return time.perf_counter() - begun


def by_dump(dsn: str) -> float:
    """Seconds for `pg_dump | sha256sum`."""
    begun = time.perf_counter()
    with subprocess.Popen([f"{PROGRAMS}/pg_dump", f"--dbname={dsn}"], stdout=subprocess.PIPE) as dump:
        subprocess.run(["sha256sum"], stdin=dump.stdout, stdout=subprocess.DEVNULL, check=True)
    assert dump.returncode == 0
    return time.perf_counter() - begun


def by_scan(dsn: str) -> float:
    """Seconds for counting every row."""
    begun = time.perf_counter()
    with connect(dsn) as connection:
        tables = connection.execute("select oid::regclass::text from pg_class where relkind = 'r' and oid >= 16384")
        for (table,) in tables.fetchall():
            connection.execute(f"select count(*) from {table}".encode())  # noqa: S608  # ours
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=2_000_000)
    parser.add_argument("--narrow", action="store_true", help="rows of 65 bytes, instead of the orders of 220")
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir())
    given = parser.parse_args()
    with server(given.folder) as dsn:
        fill(dsn, NARROW if given.narrow else FILL + FILL_ORDERS, given.rows)
        by_scan(dsn)  # so that all of them find the same cache
        ways = {"fingerprint": by_fingerprint, "pg_dump | sha256sum": by_dump, "sequential scan": by_scan}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            first = number % len(ways)
            for name in [*list(ways)[first:], *list(ways)[:first]]:
                took[name].append(ways[name](dsn))
    for name, seconds in took.items():
        print(f"{name:20} {statistics.median(seconds):7.2f} s")
    for name in list(ways)[1:]:
        ratios = [other / mine for other, mine in zip(took[name], took["fingerprint"], strict=True)]
        print(f"{name} takes {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as long")


if __name__ == "__main__":
    main()

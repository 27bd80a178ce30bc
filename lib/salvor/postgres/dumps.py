"""Dump backups: taken together with a fingerprint of the same snapshot."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo

from salvor import clock, durable, secrets, shell
from salvor.change import Progress
from salvor.errors import CannotError
from salvor.postgres import asking, dump_manifest, fingerprint, rows, surroundings
from salvor.postgres.dump_store import Store, open_store
from salvor.postgres.fingerprint import Fingerprint
from salvor.postgres.gauge import Gauge
from salvor.postgres.server import Server

_FORMAT = 1
_SECONDS = 24 * 3600.0


def take(server: Server, database: str, place: str, *, jobs: int = 2) -> Generator[Progress, None, str]:
    """Dump `database` of a running server into `place`; the generator returns the new backup's id.

    The dump, its fingerprint and the moment it is of belong to one snapshot. A backup is listed only when it is whole;
    what a killed run left is removed by the next one. Raises CannotError.
    """
    store = open_store(place)
    try:
        with server.connect(database, deadline=60.0) as leader:
            snapshot = rows.begin(leader)
            rows.lock_tables(leader)
            taken = _now(leader)
            identifier = _new_id(store, database, taken)
            folder = store.begin(identifier)
            try:
                yield from _dump(server, database, folder, snapshot, jobs)
                cluster = json.dumps(surroundings.of_cluster(leader), indent=1)
                durable.replace(folder / "cluster.json", cluster.encode())
                manifest = _manifest(folder, identifier, database, taken, leader.info.server_version)
                yield from store.finish(folder, manifest)
            except BaseException:
                store.give_up(folder)
                raise
    except psycopg.Error as error:
        raise CannotError(
            f"{database} on {server.address}:{server.port} cannot be dumped: {secrets.mask(str(error)).strip()}",
            hint="inv assess tells what it is like",
        ) from error
    return identifier


def _now(connection: psycopg.Connection[Any]) -> datetime:
    """The moment of the connection's snapshot, by the server's clock."""
    row = connection.execute("select now()").fetchone()
    assert row
    moment: datetime = row[0]
    return moment.astimezone(UTC)


def _new_id(store: Store, database: str, taken: datetime) -> str:
    """`orders-20261120T031200Z`; with a number behind it for another one of the same second."""
    wanted = f"{quote(database, safe='')}-{taken:%Y%m%dT%H%M%SZ}"
    known = {manifest["id"] for manifest in store.manifests()}
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, 1000))
    return next(name for name in names if name not in known)


def _dump(server: Server, database: str, folder: Path, snapshot: str, jobs: int) -> Iterator[Progress]:
    """pg_dump, pg_dumpall and the fingerprint, side by side."""
    here = shell.local()
    environment = {"PGPASSWORD": secrets.resolve(server.operator.password), "PGOPTIONS": "-c statement_timeout=0"}
    where = make_conninfo(host=server.address, port=server.port, user=server.operator.user, connect_timeout=10)
    # gzip 1 takes half of the time of the default level (6) for 15 % more bytes.
    dump = [_program(server, "pg_dump"), "--no-password", "--format=directory", f"--jobs={jobs}", "--compress=1"]
    dump += ["--lock-wait-timeout=60s", f"--snapshot={snapshot}", f"--file={folder / 'dump'}"]
    dump += [f"--dbname={make_conninfo(where, dbname=database)}"]
    roles = [_program(server, "pg_dumpall"), "--no-password", "--globals-only", f"--file={folder / 'globals.sql'}"]
    roles += [f"--dbname={make_conninfo(where, dbname=database)}"]

    with (
        Gauge(server, lambda told: None, "dumping") as gauge,
        ThreadPoolExecutor(3, thread_name_prefix="dump") as pool,
        gauge.ending_at_once(),
    ):

        def run(argv: Sequence[str]) -> None:
            hear = lambda said: gauge.go_on()  # noqa: E731
            here.run([*_UMASK, *argv], deadline=_SECONDS, environment=environment, hear=hear)

        reading = pool.submit(fingerprint.take, asking.sessions(server), database, jobs, snapshot, gauge)
        dumping = [pool.submit(run, argv) for argv in (dump, roles)]
        while not (reading.done() and all(future.done() for future in dumping)):
            yield Progress(size_of(folder), None, "bytes", "dumping")
            time.sleep(0.1)
    for future in dumping:  # pg_dump's own words first
        future.result()
    found = reading.result()
    found = replace(found, sequences=_sequences(found, server, folder / "dump"))
    durable.replace(folder / "fingerprint.json", json.dumps(found.to_json()).encode())


def to_file(server: Server, database: str, path: Path, form: Sequence[str]) -> None:
    """Dump `database` into one file, mode 600; `form` are pg_dump's options for it. Raises CannotError."""
    environment = {"PGPASSWORD": secrets.resolve(server.operator.password), "PGOPTIONS": "-c statement_timeout=0"}
    where = make_conninfo(host=server.address, port=server.port, user=server.operator.user, dbname=database)
    dump = [_program(server, "pg_dump"), "--no-password", "--lock-wait-timeout=60s", *form, f"--file={path}"]
    shell.local().run([*_UMASK, *dump, f"--dbname={where}"], deadline=_SECONDS, environment=environment)


_UMASK = ["sh", "-c", 'umask 077; exec "$@"', "sh"]


def _program(server: Server, name: str) -> str:
    """A client program: that of the server's own version when it is on this machine, else whatever PATH has."""
    return server.program(name) if Path(server.program(name)).is_file() else name


def size_of(folder: Path) -> int:
    """Bytes of all files in it, by now."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


_SETVAL = re.compile(r"^SELECT pg_catalog\.setval\('((?:[^']|'')*)', (-?\d+), (true|false)\);$", re.M)


def _sequences(found: Fingerprint, server: Server, dump: Path) -> dict[str, tuple[int, bool]]:
    """The values that the dump holds: a sequence belongs to no snapshot, and may have moved on meanwhile."""
    pg_restore = _program(server, "pg_restore")
    here = shell.local()
    contents = here.run([pg_restore, "--list", str(dump)], deadline=300.0).stdout
    chosen = "".join(line + "\n" for line in contents.splitlines() if " SEQUENCE SET " in line)
    if not chosen:
        return dict(found.sequences)
    argv = [pg_restore, "--use-list=/dev/stdin", "--file=-", str(dump)]
    script = here.run(argv, deadline=300.0, input=chosen.encode()).stdout
    values = {
        name.replace("''", "'"): (int(value), called == "true") for name, value, called in _SETVAL.findall(script)
    }
    return {name: values.get(name, value) for name, value in found.sequences.items()}


def _manifest(folder: Path, identifier: str, database: str, taken: datetime, version: int) -> dict[str, Any]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o600)
            size = path.stat().st_size
            files[str(path.relative_to(folder))] = {"size": size, "sha256": dump_manifest.sum_of(path)}
    found = Fingerprint.from_json(json.loads((folder / "fingerprint.json").read_bytes()))
    return {
        "format": _FORMAT,
        "id": identifier,
        "database": database,
        "taken": clock.write_time(taken),
        "server_version": f"{version // 10000}.{version % 10000}",
        "size": sum(one["size"] for one in files.values()),
        "files": files,
        "fingerprint": found.summary(),
    }

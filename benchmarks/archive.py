"""A service back from one archive, against the same work by hand: `python benchmarks/archive.py --rounds=3`.

The archive holds a dump of `--rows` rows (.sql.gz, of pg_dump), `--megabytes` of pictures, 6,000 small files of a built
application, and an .env. In each round, in another order, on warm caches:

`salvor, staged`: the database and the three trees staged beside what is live, side by side as in a recovery: every file
read back and compared, all flushed to disk, the database analyzed.
`salvor, whole`: the whole chain of `inv restore`: assess, fence, stage, prove, cut over.
`by hand`: `tar xzf`, `createdb`, `gunzip | psql`. `by hand, flushed`: then `sync -f`.

Seconds are medians, ratios are medians of the ratios of one round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cold import settle
from salvor import console
from salvor.change import Change, Progress
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import System
from salvor.wish import Wish

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "benchmark"  # noqa: S105
AS_SERVER = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
TREES = {"media": "uploads", "build": "build", "environment": ".env"}


def run(*argv: str | Path, **more: Any) -> None:
    """Run a command to its end."""
    subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.DEVNULL, **more)


@contextmanager
def cluster(folder: Path) -> Iterator[int]:
    """A cluster of its own; its port."""
    data = folder / "data"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    (folder / "password").write_text(PASSWORD)
    if AS_SERVER:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    options = ["-U", "salvor", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--locale=C.UTF-8"]
    run(*AS_SERVER, PROGRAMS / "initdb", "-D", data, *options, cwd="/")
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n")
        file.write("shared_buffers = '256MB'\nmax_wal_size = '4GB'\n")
    run(*AS_SERVER, PROGRAMS / "pg_ctl", "-D", data, "-w", "-l", data / "log", "start", cwd="/")
    try:
        os.environ |= {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "salvor", "PGPASSWORD": PASSWORD}
        yield port
    finally:
        run(*AS_SERVER, PROGRAMS / "pg_ctl", "-D", data, "-m", "immediate", "stop", cwd="/")


def fill(folder: Path, rows: int, megabytes: int) -> Path:
    """Make the database, the trees, and the archive by the customer's own commands. Returns the archive's path."""
    top, chance = folder / "srv", random.Random(7)  # noqa: S311  the same each time
    statements = f"""
        create table customers (id int primary key, name text, address text);
        create table orders (id int primary key, customer int references customers, note text, cents int);
        insert into customers select g, 'customer ' || md5(g::text), 'street ' || g % 977
            from generate_series(1, {rows // 4}) g;
        insert into orders select g, 1 + g % {rows // 4}, md5(g::text) || ' as it was ordered', g % 9999
            from generate_series(1, {rows}) g;
        create index on orders (customer);
    """  # noqa: S608
    run("createdb", "orders")
    run("createdb", "accounts")  # others share the cluster
    run("psql", "-q", "-d", "orders", "-c", statements)
    for number in range(megabytes * 4):
        path = top / "uploads" / f"{number % 89:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(50_000, 450_000)))
    source = Path(random.__file__).read_bytes()
    for number in range(6000):
        path = top / "build" / f"{number % 97:02d}" / f"{number}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source[: chance.randint(500, 20_000)])
    (top / ".env").write_text("DATABASE_URL=postgres://shop@localhost/shop\n")
    run("sh", "-c", 'pg_dump orders | gzip > "$1"', "sh", top / "database.sql.gz")
    archive = folder / "backup" / "o4o_backup_20261120_020000.tar.gz"
    archive.parent.mkdir()
    run("tar", "-czf", archive, "-C", top, ".")
    (top / "database.sql.gz").unlink()
    return archive


def describe(folder: Path, port: int) -> None:
    """The inventory."""
    archives = {"folder": str(folder / "backup")}
    secret = folder / "operator"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    database = {
        "kind": "postgres", "database": "orders", "side_port": port + 1, "programs": str(PROGRAMS),
        "run_as": "postgres" if AS_SERVER else "",
        "members": [{"name": "a", "address": "127.0.0.1", "port": port, "data": str(folder / "data")}],
        "operator": {"user": "salvor", "password": f"file:{secret}"},
        "archives": archives | {"member": "database.sql.gz"},
    }  # fmt: skip
    trees = {
        name: {"kind": "files", "path": str(folder / "srv" / member), "archives": archives | {"member": member}}
        for name, member in TREES.items()
    }
    service = {"rto": "1h", "rpo": "1d", "systems": ["database", *trees]}
    (folder / "inventory").mkdir()
    text = yaml.safe_dump({"systems": {"database": database, **trees}, "services": {"shop": service}})
    (folder / "inventory" / "shop.yaml").write_text(text)
    os.environ |= {"SALVOR_INVENTORY": str(folder / "inventory"), "SALVOR_INCIDENTS": str(folder / "incidents")}


def session(archive: Path) -> Session:
    """A new incident of the service."""
    return open_session("shop", Plain(), platform="shop", wish=Wish(source=str(archive)))


def change(system: System, verb: str, **arguments: Any) -> Change:
    """A change that is approved by nobody."""
    return system.change(verb, why="-", no_undo="-", **arguments)


def act(system: System, change: Change) -> str:
    """Carry a change out; how long each of its parts took, as its progress tells."""
    begun, label, told = time.monotonic(), "beginning", ""
    for said in system.apply(change):
        if isinstance(said, Progress) and said.label != label:
            told += f" {label.split(' from ')[0]} {time.monotonic() - begun:.1f},"
            begun, label = time.monotonic(), said.label
    return f"{system.name}:{told} {label} {time.monotonic() - begun:.1f}"


def staged(archive: Path) -> float:
    """Stage every system, side by side; seconds."""
    incident = session(archive).incident
    ways = {
        one: next(way for way in one.ways_back(Wish(source=str(archive))) if way.possible) for one in incident.systems
    }
    changes = {one: change(one, "stage", **dict(way.arguments or {})) for one, way in ways.items()}
    begun = time.monotonic()
    incident.under_way |= {one.key: one for one in changes.values()}  # as the runner does
    with ThreadPoolExecutor(8) as pool:
        for told in pool.map(act, changes, changes.values()):
            print(f"    {told}")
    seconds = time.monotonic() - begun
    for one, way in ways.items():
        act(one, change(one, "drop", stage=way.stage))
    return seconds


def whole(archive: Path) -> float:
    """The whole chain; seconds. It is undone afterwards."""
    with contextlib.redirect_stdout(io.StringIO()):
        begun = time.monotonic()
        one = session(archive)
        console.recover(one, Plain(), yes=True)
        seconds = time.monotonic() - begun
        aftermath.undo(one.incident.id, Plain(), yes=True)
    return seconds


def by_hand(folder: Path, archive: Path, *, flushed: bool) -> float:
    """What one types without Salvor; seconds."""
    beside = folder / "by-hand"
    beside.mkdir()
    begun = time.monotonic()
    run("tar", "-xzf", archive, "-C", beside)
    run("createdb", "--template=template0", "beside")
    load = 'gunzip -c "$1" | psql -q -v ON_ERROR_STOP=1 -d beside'
    run("sh", "-c", load, "sh", beside / "database.sql.gz")
    if flushed:
        run("sync", "-f", beside)
    seconds = time.monotonic() - begun
    run("dropdb", "beside")
    shutil.rmtree(beside)
    return seconds


def main() -> None:
    """Read the arguments, measure, clear away."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_500_000)
    arguments.add_argument("--megabytes", type=int, default=350)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="salvor-archive-"))
    folder.chmod(0o755)
    try:
        with cluster(folder) as port:
            archive = fill(folder, given.rows, given.megabytes)
            describe(folder, port)
            print(f"archive of {archive.stat().st_size / 1e6:.0f} MB", flush=True)
            compare(folder, archive, given.rounds)
    finally:
        shutil.rmtree(folder)


def compare(folder: Path, archive: Path, rounds: int) -> None:
    """Measure each way in each round, and print."""
    ways: dict[str, Callable[[], float]] = {
        "salvor, staged": lambda: staged(archive),
        "salvor, whole": lambda: whole(archive),
        "by hand": lambda: by_hand(folder, archive, flushed=False),
        "by hand, flushed": lambda: by_hand(folder, archive, flushed=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            settle()
            taken[name].append(ways[name]())
            print(f"  round {number + 1}: {name} {taken[name][-1]:.1f} s", flush=True)
    for ours in ("salvor, staged", "salvor, whole"):
        for theirs in ("by hand", "by hand, flushed"):
            ratios = [one / other for one, other in zip(taken[ours], taken[theirs], strict=True)]
            print(f"{ours} / {theirs}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for name, seconds in taken.items():
        print(f"{name:16} {statistics.median(seconds):6.1f} s")


if __name__ == "__main__":
    main()

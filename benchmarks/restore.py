"""Recoveries by Salvor against the same work by hand: `python benchmarks/restore.py physical|dump|memory [ROWS...]`.

Makes a PostgreSQL cluster of its own in FOLDER (`--folder`, default: a new one below the current), with orders whose
text compresses like text, a pgBackRest repository and a plain `.sql.gz` dump; then a table is dropped, and Salvor (its
command, as it is typed) and the shell scripts below bring the data back in turn, each round in another order. After
each the cluster is put back as it was. Ratios are of neighbours in a round.

`physical`: back to just before the DROP. By hand: fence, restore beside, start, wait, promote, stop both, swap, start;
and the same with the proof that Salvor asks for (every page of every table read) in between.
`dump`: the plain dump. By hand: the quickest recipe that we know for it (a side cluster without fsync, one transaction,
then flush, swap, start); the same recipe for a dump that was taken with `pg_dump -Fd` (compressed at level 1, 4 jobs);
and `gunzip | psql` into a new database of the running server.
`memory`: the most memory that Salvor's own process had, for each of the ROWS.

The orders are in 8 tables, as a shop's data are in several: one holds half of them, the others the rest in equal parts,
and each has a primary key, two indexes and a foreign key to the customers. `--tables=1`: all are in one.

"back" is the moment at which the service's check is answered from its port again, "end" that at which the command is
over: Salvor's has then written the record, too.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cold import settle
from salvor import clock

HERE = Path(__file__).absolute().parent
PROGRAMS = Path("/usr/lib/postgresql/15/bin")
USER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
JOBS = os.cpu_count() or 2

FILL = """
create table customers (id bigint primary key, name text not null);
insert into customers select g, md5(g::text) from generate_series(1, {rows} / 50 + 1) g;
"""

FILL_ORDERS = """
create table {orders} (id bigint primary key, customer_id bigint not null references customers, placed timestamptz
    not null, amount numeric not null, status text not null, note text not null);
insert into {orders} select g, 1 + g % ({rows} / 50), '2026-01-01'::timestamptz + g * interval '1 s', g * 1.25,
    'paid', md5(g::text) || md5((g + 1)::text) || repeat(' as ordered before', 3) from generate_series(1, {rows}) g;
create index on {orders} (placed);
create index on {orders} (customer_id, status);
"""

SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{root}'
shared_buffers = 256MB
max_wal_size = 2GB
archive_mode = on
archive_command = 'pgbackrest --config={root}/pgbackrest.conf --stanza=orders --pg1-path="$PWD" archive-push %p'
restore_command = 'pgbackrest --config={root}/pgbackrest.conf --stanza=orders --pg1-path="$PWD" archive-get %f "%p"'
track_commit_timestamp = on
"""

PGBACKREST = """
[global]
repo1-path={root}/repository
repo1-bundle=y
repo1-retention-full=9
compress-type=zst
compress-level=3
process-max={jobs}
start-fast=y
lock-path={root}/lock
spool-path={root}/spool
log-path={root}/log
log-level-file=off
log-level-console=warn

[orders]
pg1-path={root}/data
pg1-port={port}
pg1-socket-path={root}
"""

ACCESS = "local all {user} peer\nhost all all 127.0.0.0/8 scram-sha-256\n"

INVENTORY = """
systems:
  orders-db:
    kind: postgres
    database: orders
    members:
      - {{name: a, address: 127.0.0.1, port: {port}, data: {root}/data}}
    side_port: {side_port}
    programs: {programs}
    run_as: {user}
    operator: {{user: salvor, password: "file:{root}/operator.password"}}
    pgbackrest: {{config: {root}/pgbackrest.conf, stanza: orders}}
services:
  orders:
    rto: 4h
    rpo: 24h
    systems: [orders-db]
    checks:
      - {{name: the customers are there, system: orders-db, sql: select count(*) from customers, at_least: 2}}
"""

# What the scripts below share. `side`: another socket, so that no application can come in; the archive is not written.
SHELL = """
set -eu
data=$root/data side=$root/data.side
ask() { psql -X -q -At -v ON_ERROR_STOP=1 -h "$root" -p "$1" -d "$2" -c "$3"; }
fence() {
    printf 'local all %s peer\\nlocal all all reject\\nhost all all all reject\\n' "$user" > "$root/hba"
    cat "$data/pg_hba.conf" >> "$root/hba" && mv "$root/hba" "$data/pg_hba.conf"
    ask $port postgres "select pg_reload_conf()" > "$root/said"
    ask $port postgres "select pg_terminate_backend(pid) from pg_stat_activity
        where pid <> pg_backend_pid() and backend_type = 'client backend'" > "$root/said"
}
swap() {
    pg_ctl -D "$side" -s -w -m fast stop
    pg_ctl -D "$data" -s -w -m fast stop
    mv -T "$data" "$data.kept-hand" && mv -T "$side" "$data" && sync "$root"
    cp "$data.kept-hand/pg_hba.conf" "$data/pg_hba.conf" && sed -i 1,3d "$data/pg_hba.conf"
    pg_ctl -D "$data" -s -w -l "$data.log" start
    ask $port orders "select count(*) from customers" > "$root/said"
}
staged() {
    initdb -D "$side" -U "$user" -A peer -E UTF8 --locale=C.UTF-8 --data-checksums --no-sync > "$root/said"
    cp "$data/postgresql.conf" "$side/"
    pg_ctl -D "$side" -s -w -l "$side.log" start -o "-p $side_port -c archive_mode=off -c fsync=off \
        -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 -c autovacuum=off -c max_wal_size=8GB \
        -c max_parallel_maintenance_workers=0 -c maintenance_work_mem=128MB"
    pg_dumpall -h "$root" -p $port -g | grep -v "ROLE $user" | psql -X -q -h "$root" -p $side_port postgres
    ask $side_port postgres "create database orders"
}
flush() {
    pg_ctl -D "$side" -s -w -m fast stop
    initdb --sync-only -D "$side" > "$root/said"
    pg_ctl -D "$side" -s -w -l "$side.log" start -o "-p $side_port -c archive_mode=off"
}
"""

BY_HAND = {
    "by hand": """
fence
ask $port postgres "select pg_switch_wal()" > "$root/said"
mkdir -m 700 "$side"
pgbackrest --config="$root/pgbackrest.conf" --stanza=orders --pg1-path="$side" --process-max=$jobs \
    --type=time --target="$target" --target-action=promote restore
pg_ctl -D "$side" -s -w -l "$side.log" start -o "-p $side_port -c archive_command="
while [ "$(ask $side_port postgres 'select pg_is_in_recovery()')" = t ]; do sleep 0.1; done
$proof
swap
""",
    "quickest by hand": """
fence
staged
gunzip -c "$root/orders.sql.gz" | psql -X -q -1 -v ON_ERROR_STOP=1 -h "$root" -p $side_port orders > "$root/said"
flush
swap
""",
    "pg_restore -Fd": """
fence
staged
pg_restore -h "$root" -p $side_port -d orders -j 4 "$root/orders.folder"
flush
swap
""",
    "gunzip | psql": """
ask $port postgres "create database loaded"
gunzip -c "$root/orders.sql.gz" | psql -X -q -v ON_ERROR_STOP=1 -h "$root" -p $port loaded > "$root/said"
""",
}

PROOF = """
{ echo "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;"
  ask $side_port orders "select 'select count(*) from ' || oid::regclass || ';' from pg_class
    where relkind in ('r', 'm', 't') and pg_relation_size(oid) > 0"; } |
    psql -X -q -v ON_ERROR_STOP=1 -h "$root" -p $side_port orders > "$root/said"
"""


@dataclass(frozen=True)
class Took:
    """Seconds of one recovery, and the most memory (MB) that Salvor's own process had; nan: not measured."""

    back: float
    end: float
    memory: float = float("nan")


@dataclass
class World:
    """A cluster of the benchmark's own: `root` holds all of it."""

    root: Path
    rows: int
    tables: int = 1
    with_dumps: bool = True
    port: int = field(default_factory=lambda: free_port())
    side_port: int = field(default_factory=lambda: free_port())
    target: str = ""

    def sh(self, script: str, **variables: str) -> str:
        """Run a script as the servers' user; what it prints."""
        who = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if os.geteuid() == 0 else []
        known = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(self.root), "LC_ALL": "C.UTF-8", "user": USER}
        known |= {"root": str(self.root), "port": f"{self.port}", "side_port": f"{self.side_port}", "jobs": f"{JOBS}"}
        done = subprocess.run(
            [*who, "sh", "-c", SHELL + script], env={**known, **variables}, cwd="/", capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"This failed:\n{script}\n{done.stdout}{done.stderr}")
        return done.stdout

    def make(self) -> None:
        """The cluster, its data and backups; then the disaster."""
        if os.geteuid() == 0:
            shutil.chown(self.root, USER, USER)
        password = secrets.token_hex(16)
        settings = SETTINGS.format(root=self.root, port=self.port)
        self.sh(
            """
            initdb -D "$data" -U "$user" -A peer -E UTF8 --locale=C.UTF-8 --data-checksums --no-sync > "$root/said"
            echo "$settings" >> "$data/postgresql.conf"
            echo "$access" > "$data/pg_hba.conf"
            echo "$pgbackrest" > "$root/pgbackrest.conf"
            mkdir -p "$root/repository" "$root/lock" "$root/spool" "$root/log"
            pg_ctl -D "$data" -s -w -l "$data.log" start -o "-c fsync=off -c archive_mode=off"
            ask $port postgres "create role salvor superuser login password '$password'" > "$root/said"
            ask $port postgres "create database orders"
            echo "$fill" | psql -X -q -v ON_ERROR_STOP=1 -h "$root" -p $port orders > "$root/said"
            pg_ctl -D "$data" -s -w -m fast stop
            initdb --sync-only -D "$data" > "$root/said"
            pg_ctl -D "$data" -s -w -l "$data.log" start
            if [ "$with_dumps" ]; then
                pg_dump -h "$root" -p $port -Fp orders | gzip -6 > "$root/orders.sql.gz"
                pg_dump -h "$root" -p $port -Fd -Z 1 -j $jobs -f "$root/orders.folder" orders
            fi
            pgbackrest --config="$root/pgbackrest.conf" --stanza=orders stanza-create
            pgbackrest --config="$root/pgbackrest.conf" --stanza=orders --type=full backup
            ask $port orders "update orders set status = 'sent' where id > $newest" """,
            settings=settings,
            access=ACCESS.format(user=USER),
            pgbackrest=PGBACKREST.format(root=self.root, port=self.port, jobs=JOBS),
            password=password,
            fill=self.fill(),
            newest=f"{self.rows_of()['orders'] * 19 // 20}",
            with_dumps="yes" if self.with_dumps else "",
        )
        (self.root / "operator.password").write_text(password + "\n")
        (self.root / "operator.password").chmod(0o600)
        time.sleep(1.5)
        self.target = clock.now().isoformat()
        time.sleep(1.5)
        self.sh("""ask $port orders "drop table orders"; ask $port postgres checkpoint""")
        described = INVENTORY.format(
            root=self.root, port=self.port, side_port=self.side_port, programs=PROGRAMS, user=USER
        )
        (self.root / "inventory").mkdir()
        (self.root / "inventory" / "shop.yaml").write_text(described)

    def fill(self) -> str:
        """The data. Every table of orders refers to the customers."""
        parts = [FILL_ORDERS.format(rows=rows, orders=name) for name, rows in self.rows_of().items()]
        return "".join([FILL.format(rows=max(self.rows_of().values())), *parts, "vacuum (analyze);"])

    def rows_of(self) -> dict[str, int]:
        """How many orders each table has: the first one half of them, the others the rest in equal parts."""
        names = ["orders", *(f"orders_{number}" for number in range(2, self.tables + 1))]
        first, *others = names
        half = self.rows // 2 if others else self.rows
        return {first: half, **{name: half // len(others) for name in others}}

    def describe(self) -> str:
        """The sizes, in one line."""
        info = self.sh('pgbackrest --config="$root/pgbackrest.conf" --stanza=orders --output=json info')
        size = json.loads(info)[0]["backup"][0]["info"]["size"]
        stored = int(self.sh('du -sb "$root/repository" | cut -f 1'))
        dump = self.root / "orders.sql.gz"
        dumped = f", dump {dump.stat().st_size / 1e6:.0f} MB compressed" if self.with_dumps else ""
        return (
            f"{self.rows:,} orders in {self.tables} tables; backup of {size / 1e9:.2f} GB, "
            f"repository {stored / 1e9:.2f} GB{dumped}; {JOBS} cores"
        )

    def put_back(self) -> None:
        """Everything as it was before a recovery: also in the archive, which got another timeline."""
        self.sh(
            """
            if [ "$(ask $port postgres "select count(*) from pg_database where datname = 'loaded'")" = 1 ]; then
                ask $port postgres "drop database loaded"
            fi
            kept=$(ls -d "$data".kept-* 2> "$root/said" || :)
            if [ "$kept" ]; then
                pg_ctl -D "$data" -s -w -m immediate stop
                rm -rf "$data" && mv -T "$kept" "$data"
                echo "$access" > "$data/pg_hba.conf"
                pg_ctl -D "$data" -s -w -l "$data.log" start
            fi
            rm -rf "$root"/repository/archive/orders/*/0000000[2-9]*
            ask $port postgres checkpoint
            sync""".replace("$access", ACCESS.format(user=USER).strip())
        )

    def by_hand(self, name: str, proof: str = "") -> Took:
        """One recovery by a script."""
        begun = time.perf_counter()
        target = self.target.replace("T", " ")
        self.sh(BY_HAND[name].replace("$proof", proof), target=target)
        took = time.perf_counter() - begun
        return Took(took, took)

    def by_salvor(self, *arguments: str) -> Took:
        """One recovery by Salvor's command."""
        incidents = self.root / "incidents"
        # The bytecode is kept, as it is where Salvor has run before, whatever this environment says.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{self.root}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment |= {"SALVOR_INVENTORY": f"{self.root}/inventory", "SALVOR_INCIDENTS": f"{incidents}"}
        argv = [str(Path(sys.executable).with_name("inv")), "restore", "--platform=shop", "--service=orders", "--yes"]
        begun, begun_at = time.perf_counter(), clock.now()
        with (self.root.parent / f"{self.root.name}.said").open("w") as said:
            process = subprocess.Popen(
                [*argv, *arguments], env=environment, cwd=HERE.parent, stdout=said, stderr=subprocess.STDOUT
            )
            peak: list[int] = [0]
            watcher = threading.Thread(target=_watch, args=(process, peak))
            watcher.start()
            code = process.wait()
        took = time.perf_counter() - begun
        watcher.join()
        if code:
            sys.exit(f"Salvor failed: {(self.root.parent / f'{self.root.name}.said').read_text()}")
        newest = max(incidents.iterdir(), key=lambda path: path.name)
        lines = [json.loads(line) for line in (newest / "journal.jsonl").read_text().splitlines()]
        recovered = next(line["at"] for line in lines if line["kind"] == "recovered")
        shutil.rmtree(incidents)
        return Took((datetime.fromisoformat(recovered) - begun_at).total_seconds(), took, peak[0] / 1024)


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Note the most memory of a process, in KB."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        peak[0] = max([peak[0], *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        time.sleep(0.05)


def free_port() -> int:
    """A port that is free now, below those that the kernel gives to outgoing connections."""
    for port in range(21000 + secrets.randbelow(9000), 32000):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise SystemExit("No port is free.")


@contextmanager
def world(rows: int, folder: Path, tables: int = 1, *, with_dumps: bool = True) -> Iterator[World]:
    """A cluster with that many orders, in so many tables, while the block runs."""
    root = Path(tempfile.mkdtemp(prefix="salvor-restore-", dir=folder))
    root.chmod(0o755)
    made = World(root, rows, tables, with_dumps)
    try:
        made.make()
        print(made.describe(), flush=True)
        yield made
    finally:
        for data in root.glob("data*"):
            if (data / "postmaster.pid").exists():
                made.sh('pg_ctl -D "$place" -s -m immediate stop || :', place=str(data))
        shutil.rmtree(root)
        Path(f"{root}.said").unlink(missing_ok=True)


def compare(made: World, ways: dict[str, Callable[[], Took]], rounds: int) -> None:
    """Let them take turns, and print what each took, and how the first compares with the others."""
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for warm_up in list(ways)[:2]:
        ways[warm_up]()
        made.put_back()
    for number in range(rounds):
        turn = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in turn:
            settle()
            took[name].append(ways[name]())
            made.put_back()
            print(f"  round {number + 1}: {name:24} {took[name][-1].back:7.2f} s", file=sys.stderr, flush=True)
    ours, *others = ways
    print(f"{'':24}{'back, s':>9}{'end, s':>9}   {ours} takes so many times as long: median (least to most)")
    for name, each in took.items():
        line = f"{name:24}{_middle([one.back for one in each]):9.2f}{_middle([one.end for one in each]):9.2f}"
        if name in others:
            ratios = [mine.back / one.back for mine, one in zip(took[ours], each, strict=True)]
            line += f"   {_middle(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)
    print(f"memory of Salvor's process: {max(one.memory for one in took[ours]):.0f} MB at most", flush=True)


def _middle(figures: list[float]) -> float:
    return statistics.median(figures)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("physical", "dump", "memory"))
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--tables", type=int, default=8, help="that the orders are in; 1: all in one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    asked = parser.parse_args()
    if asked.what == "memory":
        for rows in asked.rows or (500_000, 4_000_000):
            with world(rows, asked.folder) as made:
                for name, arguments in (
                    ("physical", (f"--at={made.target}",)),
                    ("dump", (f"--from={made.root}/orders.sql.gz",)),
                ):
                    print(f"  {name:10}{made.by_salvor(*arguments).memory:7.0f} MB", flush=True)
                    made.put_back()
        return
    for rows in asked.rows or ((6_000_000,) if asked.what == "physical" else (3_000_000,)):
        with world(rows, asked.folder, asked.tables, with_dumps=asked.what == "dump") as made:
            if asked.what == "physical":
                ways = {
                    "salvor": lambda: made.by_salvor(f"--at={made.target}"),
                    "by hand": lambda: made.by_hand("by hand"),
                    "by hand, with the proof": lambda: made.by_hand("by hand", PROOF),
                }
            else:
                ways = {
                    "salvor": lambda: made.by_salvor(f"--from={made.root}/orders.sql.gz"),
                    "quickest by hand": lambda: made.by_hand("quickest by hand"),
                    "pg_restore -Fd": lambda: made.by_hand("pg_restore -Fd"),
                    "gunzip | psql": lambda: made.by_hand("gunzip | psql"),
                }
            compare(made, ways, asked.rounds)


if __name__ == "__main__":
    main()

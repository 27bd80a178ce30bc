"""A dump staged as a cluster of its own beside a data directory, then swapped in as a physical restore is."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.postgres import beside, surroundings
from salvor.postgres.asking import ask
from salvor.postgres.side_database import Load, Said
from salvor.postgres.side_directory import APART, DRILL, SideDirectory
from salvor.postgres.stage_wal import WAL_WAS_AT, follow

STAGE = "side-cluster"

_CONFIGURATION = "postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf conf.d"


@dataclass(frozen=True)
class SideCluster(SideDirectory):
    """A cluster that is made beside one member's data directory, with one database that is loaded from a dump."""

    database: str

    def marker(self) -> dict[str, Any]:
        """What the stage says of itself; empty when there is none."""
        return beside.marker_of(self.stage)

    # --- stage ---------------------------------------------------------------------------------------------------

    def build(
        self, source: str, taken: datetime | None, around: Mapping[str, Any], roles: str, load: Callable[[], Load]
    ) -> Iterator[Said]:
        """Make a cluster as the old one was and load `source` (its name) into it; it then runs, read-only.

        `around`: what `surroundings.of_cluster` says; `roles`: the script of `pg_dumpall --globals-only`. Finds its
        work done; a half-built stage is built anew: its files were not flushed, so nothing of it can be trusted.
        """
        if self.is_live():
            return
        marker = self.marker()
        if self.is_complete(marker) and marker.get("source") == source:
            self._start(_SERVING)
            return
        self.drop()
        yield Progress(0, None, "", "making a cluster")
        self._make(around)
        self._start({**_LOADING, **dict.fromkeys(self.stage.settings(*_THROWN_AWAY), "off")})
        left_out = self._create_roles(roles)
        database = around.get("database") or {}
        with self.stage.connect(writes=True, deadline=60.0) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", [self.database]).fetchone():
                surroundings.create_database(connection, self.database, database)
        with self._flushing():
            left_out += yield from load()()
        with self.stage.connect(writes=True, deadline=60.0) as connection:
            surroundings.dress_database(connection, self.database, database)
        yield Progress(0, None, "", "flushing it to disk")
        self.stage.stop("fast", deadline=3600.0)
        # Not before: the WAL of a load is many times that of a cluster at rest, and what is live needs its disk.
        control = self.stage.look().control or {}
        apart = follow(self.live, self.stage, self.incident, int(control.get("Bytes per WAL segment", 16 << 20)))
        self._run("initdb", "--sync-only", "-D", self.stage.data, deadline=3600.0)
        self._start(_SERVING)
        stamp: dict[str, Any] = {"left_out": left_out, "completed_at": clock.write_time(clock.now())}
        if taken:
            stamp["newest_commit"] = clock.write_time(taken)
        if apart:
            stamp[WAL_WAS_AT] = apart
        beside.write_marker(self.stage, self._marker(source, "complete") | stamp)

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        """Have the large files written to disk while the block fills them, so that little is left for its end: loading
        takes the processor, flushing the disk. What goes wrong with it is found by whoever flushes it all.
        """
        done = threading.Event()

        def flush() -> None:
            while not done.wait(_FLUSHED_EVERY):
                with suppress(SalvorError):
                    self.stage.shell.run(["sh", "-c", _FLUSH, "sh", self.stage.data], deadline=60.0, check=False)

        thread = threading.Thread(target=flush, name="flushing a stage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _marker(self, source: str, phase: str) -> dict[str, Any]:
        marker = {"incident": self.incident, "way": "logical", "stage": STAGE, "source": source, "phase": phase}
        return marker | ({DRILL: "yes"} if self.is_drill else {})

    def _run(self, program: str, *arguments: str, deadline: float = 300.0, input: bytes | None = None) -> str:
        argv = [self.stage.program(program), *arguments]
        return self.stage.shell.run(argv, deadline=deadline, input=input).stdout

    def _make(self, around: Mapping[str, Any]) -> None:
        """initdb with the encoding, locale, checksums and segment size of the old cluster, and its configuration."""
        operator = self.stage.operator
        password = secrets.resolve(operator.password)
        if "\n" in password:
            raise UsageError(
                "The operator's password has a newline in it, which PostgreSQL's single-user mode cannot read."
            )
        control = self.live.look().control or {}
        checksums = control.get("Data page checksum version", "1" if around.get("data_checksums", True) else "0") != "0"
        segment = int(control.get("Bytes per WAL segment", around.get("wal_segment_size") or 16 << 20))
        options = [f"--username={operator.user}", "--auth=reject", f"--wal-segsize={segment >> 20}", "--no-sync"]
        options += ["--data-checksums"] if checksums else []
        database = around.get("database") or {}
        if database.get("encoding"):
            options += [f"--encoding={database['encoding']}", f"--lc-collate={database['collate']}"]
            options += [f"--lc-ctype={database['ctype']}"]
        else:
            options += ["--encoding=UTF8", "--locale=C.UTF-8"]
        if database.get("provider") == "i":
            options += ["--locale-provider=icu", f"--icu-locale={database['icu_locale']}"]
        self._run("initdb", "-D", self.stage.data, *options)
        beside.write_marker(self.stage, self._marker("", "loading"))
        # The password goes by standard input: initdb would read it from a file, which others might read too.
        role, quoted = operator.user.replace('"', '""'), password.replace("'", "''")
        statement = f"ALTER ROLE \"{role}\" PASSWORD '{quoted}'\n"
        self._run("postgres", "--single", "-D", self.stage.data, "template1", input=statement.encode())
        self._configure(around)

    def _configure(self, around: Mapping[str, Any]) -> None:
        """The old data directory's own files; where they are lost, what the backup knows of them."""
        script = r"""
            [ -z "$4" ] || exit 0
            cd -- "$1" 2>/dev/null && [ -s postgresql.conf ] && [ -s pg_hba.conf ] || exit 44
            for name in $3 *.crt *.key *.pem *.crl; do ! [ -e "$name" ] || cp -RLp -- "$name" "$2/"; done"""
        argv = [
            "sh",
            "-c",
            script,
            "sh",
            self.live.data,
            self.stage.data,
            _CONFIGURATION,
            self.live.configuration or "",
        ]
        if self.stage.shell.run(argv, check=False).exit_code == 44:
            settings = {name: value for name, value in (around.get("settings") or {}).items() if "." not in name}
            settings |= {"listen_addresses": self.live.address, "port": str(self.live.port)}
            lines = "".join(f"{name} = '{_quoted(value)}'\n" for name, value in settings.items())
            self.stage.shell.write(f"{self.stage.data}/postgresql.conf", f"# As the backup knew it.\n{lines}")
            self.stage.shell.write(f"{self.stage.data}/pg_hba.conf", around.get("hba") or _OPEN_TO_PASSWORDS)
            self.stage.shell.write(f"{self.stage.data}/pg_ident.conf", around.get("ident") or "")
        self.admit_only_the_operator()

    def _start(self, phase: Mapping[str, str]) -> None:
        """Start it, and see that it is this cluster that answers: the stage of another incident may hold the port."""
        self.stage.start({**_APART, "hba_file": self.hba, **phase})
        answers = ask(self.stage, "postgres", "show data_directory")
        if answers != self.stage.data:
            raise CannotError(
                f"{self.stage.address}:{self.stage.port} is held by {answers}, so {self.stage.data} cannot be started.",
                safe="what is live is as it was",
                hint="undo or close the other incident, or name another side_port",
            )

    def _create_roles(self, script: str) -> list[str]:
        """Roles, their passwords, memberships and settings, tablespaces beside their old place. Returns what failed."""
        failed = []
        with self.stage.connect(writes=True, deadline=60.0) as connection:
            for statement in _statements(script):
                if re.match(rf"(?:CREATE|ALTER) ROLE {re.escape(_named(self.stage.operator.user))}\b", statement):
                    continue  # its password of today is set already
                if "salvor_reads" in statement:
                    continue  # whoever asks a database is named after its object id, and here it has another
                if place := _TABLESPACE.match(statement):
                    path = beside.places_of(self.live, {"": place["path"]}, self.incident)[""]
                    statement = f"{place['start']}'{path}'"
                try:
                    connection.execute(statement.encode())
                except psycopg.errors.DuplicateObject:
                    pass
                except psycopg.Error as error:
                    failed.append(secrets.mask(f"{statement[:60]}: {error.diag.message_primary}"))
        return failed


_APART = {**APART, "cluster_name": STAGE, "archive_mode": "off"}

# Measured: a third quicker than with the default settings. A crash meanwhile costs only the stage.
_LOADING = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "autovacuum": "off",
    "max_parallel_maintenance_workers": "1",  # a primary key is built alone, and one process keeps one core busy
    "maintenance_work_mem": "128MB",
}

_THROWN_AWAY = ("wal_init_zero", "wal_recycle")
"""Off, the WAL of the load is written once and removed with its last checkpoint, so that nobody flushes it to disk."""

_FLUSHED_EVERY = 2.0
_FLUSH = r"""find -L "$1/base" "$1/pg_tblspc" -type f -size +1024k -exec sync -d -- {} +"""

_SERVING = {"default_transaction_read_only": "on"}
_OPEN_TO_PASSWORDS = "local all all scram-sha-256\nhost all all all scram-sha-256\n"
_TABLESPACE = re.compile(r"(?P<start>CREATE TABLESPACE .* LOCATION )'(?P<path>[^']*)'$", re.S)


def _statements(script: str) -> Iterator[str]:
    """The statements of `pg_dumpall --globals-only`, one a line but for what stands in quotes."""
    lines = "".join(line for line in script.splitlines(keepends=True) if not line.startswith(("--", "\\")))
    for found in re.finditer(r"((?:[^;'\"]|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")+);", lines):
        statement = found[1].strip()
        if re.match(r"(?:CREATE|ALTER|COMMENT ON|GRANT|REVOKE|SET)\b", statement):
            yield statement


def _named(role: str) -> str:
    """A role's name as pg_dumpall writes it."""
    return sql.Identifier(role).as_string() if not re.fullmatch(r"[a-z_][a-z0-9_]*", role) else role


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")

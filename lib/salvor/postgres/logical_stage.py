"""Stages a dump: into a database or a cluster that is made for it, with the settings and roles of the old one."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salvor import secrets, shell
from salvor.change import Progress
from salvor.errors import UsageError
from salvor.postgres import dump_chosen, dump_find, loading, side_cluster, side_database, surroundings
from salvor.postgres.dump_chosen import Coming
from salvor.postgres.dump_find import Source
from salvor.postgres.dump_store import open_store
from salvor.postgres.logical_place import scratch, side_cluster_of, side_database_of
from salvor.postgres.server import Server
from salvor.postgres.side_database import Said

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres


def stage(
    system: Postgres,
    stage: str,
    source: str,
    member: str = "",
    trusted_because: str = "",
    within: str = "",
    archive_trusted_because: str = "",
) -> Iterator[Said]:
    """Build the side database or side cluster from the dump of that name, or from the one `within` that archive. Finds
    its work done.
    """
    found, place = dump_chosen.source(system, source, within), scratch(system)
    if found.member:
        with dump_chosen.coming(system, found, place, trusted=bool(archive_trusted_because)) as dump:
            trusted = bool(trusted_because)
            yield from _build(system, stage, member, found, dump, {}, trusted=trusted, origin_known=trusted)
    else:
        path = yield from dump_find.bring(system.settings.dumps, found, place)
        around: dict[str, Any] = (dump_find.read_beside(path, "cluster.json") if found.manifest else None) or {}
        trusted = bool(found.manifest or trusted_because)
        of_unknown = (around.get("database") or {}).get("unknown_origin")  # and it still was when it was backed up
        origin_known = bool(trusted_because or (found.manifest and not of_unknown))
        yield from _build(
            system, stage, member, found, Coming(path), around, trusted=trusted, origin_known=origin_known
        )
    dump_find.forget(place)


def _build(
    system: Postgres,
    stage: str,
    member: str,
    found: Source,
    dump: Coming,
    around: dict[str, Any],
    *,
    trusted: bool,
    origin_known: bool,
) -> Iterator[Said]:
    def load(server: Server, database: str, hba: str | None = None) -> Generator[Said, None, tuple[str, ...]]:
        yield from dump.out()
        try:
            left_out = yield from _load(server, database, dump.path, system, around, trusted, origin_known, hba)
        except Exception:
            yield from dump.whole(system.name)  # that its archive is damaged says more than what the load made of it
            raise
        yield from dump.whole(system.name)
        return left_out

    if stage == side_database.STAGE:
        beside = side_database_of(system, system.site.view())
        described = around.get("database") or {}
        yield from beside.build(found.name, found.taken, described, lambda: load(beside.server, beside.stage))
    elif stage == side_cluster.STAGE:
        cluster = side_cluster_of(system, member)
        yield from system.site.side_port_freed(cluster)
        around, roles = _cluster_as_it_was(system, around, dump.path if found.manifest else None)
        yield from cluster.build(
            found.name, found.taken, around, roles, lambda: lambda: load(cluster.stage, cluster.database, cluster.hba)
        )
    else:
        raise UsageError(f"{system.name}: there is no stage {stage!r}.")


def _load(
    server: Server,
    database: str,
    path: Path,
    system: Postgres,
    around: Mapping[str, Any],
    trusted: bool,
    origin_known: bool,
    hba: str | None = None,
) -> Generator[Progress, None, tuple[str, ...]]:
    """Load; and a new database has a schema `public`, which the old one may not have had."""
    with server.connect() as connection:
        old = surroundings.of_database(connection, system.settings.database) or around.get("database") or {}
        known = connection.execute("select 1 from pg_roles where rolname = %s", [old.get("owner")]).fetchone()
    owner = str(old["owner"]) if known else server.operator.user
    if database == system.settings.database and around.get("database"):
        owner = str(around["database"]["owner"]) if known else owner
    left_out = yield from loading.load(
        server,
        database,
        path,
        incident=system.context.incident,
        owner=owner,
        trusted=trusted,
        origin_known=origin_known,
        hba=hba,
    )
    expected = dump_find.fingerprint_of(path)
    if expected and "schema public" not in expected.structure:
        with server.connect(database, writes=True) as connection:
            connection.execute("drop schema if exists public")
    return left_out


def _cluster_as_it_was(system: Postgres, around: dict[str, Any], path: Path | None) -> tuple[dict[str, Any], str]:
    """Settings and roles of the cluster: of the live one, else of the backup, else of the newest backup there is."""
    primary = system.site.view().primary
    if primary.is_up and not (primary.facts and primary.facts.in_recovery):
        server = primary.member.server
        with server.connect() as connection:
            around = surroundings.of_cluster(connection) | {
                "database": surroundings.of_database(connection, system.settings.database) or around.get("database")
            }
        return around, _roles_of(server)
    if path is None and system.settings.dumps and not system.settings.dumps.startswith("s3://"):
        newest = next(iter(open_store(system.settings.dumps).backups(system.name)), None)
        path = Path(newest.location) / "dump" if newest else None
        around = (dump_find.read_beside(path, "cluster.json") if path else None) or around
    try:
        return around, (path.parent / "globals.sql").read_text() if path else ""
    except OSError:
        return around, ""


def _roles_of(server: Server) -> str:
    program = server.program("pg_dumpall") if Path(server.program("pg_dumpall")).is_file() else "pg_dumpall"
    where = [f"--host={server.address}", f"--port={server.port}", f"--username={server.operator.user}"]
    environment = {"PGPASSWORD": secrets.resolve(server.operator.password)}
    argv = [program, "--globals-only", "--no-password", "--database=postgres", *where]
    return shell.local().run(argv, environment=environment, deadline=60.0).stdout


def drop(system: Postgres, stage: str) -> Iterator[Progress]:
    """Remove this incident's stage. Finds its work done."""
    yield Progress(0, None, "", f"removing {stage}")
    shutil.rmtree(scratch(system), ignore_errors=True)
    if stage == side_database.STAGE:
        side_database_of(system, system.site.view()).drop()
        return
    for member in system.site.members:
        side = side_cluster_of(system, member.name)
        if side.live.shell.exists(side.stage.data):
            side.drop()

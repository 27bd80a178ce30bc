"""The logical way back: a dump into a database beside the live one, or into a cluster of its own beside it.

A side database where others share the cluster and it is up: those are not touched. A side cluster where the database is
alone or the cluster is lost.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from salvor import clock, secrets, shell
from salvor.change import Backup, Finding, Level, Progress, Staged, State, Undo, WayBack
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.postgres import (
    beside,
    dump_chosen,
    dump_find,
    dumps,
    fingerprint,
    loading,
    proof,
    side_cluster,
    side_database,
    surroundings,
)
from salvor.postgres.cluster import Member, View
from salvor.postgres.dump_store import open_store
from salvor.postgres.failover import PROMOTE_WITHOUT_FENCE
from salvor.postgres.fingerprint import Fingerprint
from salvor.postgres.server import Server
from salvor.postgres.server import ask as ask_server
from salvor.postgres.side_cluster import SideCluster
from salvor.postgres.side_database import Seen, SideDatabase
from salvor.system import Wish

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres

TRUST_DUMP = "trust-dump"
"""The override that lets a dump do what only a superuser can: whoever made it is known."""
NAME = "logical"


# --- look --------------------------------------------------------------------------------------------------------


def backups(system: Postgres) -> list[Backup]:
    """The dumps, of their own and in archives, newest first. Raises CannotError when they cannot be read."""
    found = open_store(system.settings.dumps).backups(system.name) if system.settings.dumps else []
    return sorted([*found, *dump_chosen.backups(system)], key=lambda backup: backup.taken, reverse=True)


def shared_by(system: Postgres, seen: View) -> dict[str, Seen]:
    """Every database of a live cluster that others share, by name; empty when it is alone in it, or cannot be asked."""
    if not seen.primary.is_up or not seen.primary.facts or seen.primary.facts.in_recovery:
        return {}
    try:
        found = _side_database(system, seen).look()
    except psycopg.Error:
        return {}
    others = [
        one for one in found.values() if one.name not in ("postgres", system.settings.database) and not _ours(one)
    ]
    ours = [one for one in found.values() if _ours(one)]
    return found if others or any(side_database.KEPT in one.marks for one in ours) else {}


def is_shared(system: Postgres, seen: View, identity: str) -> bool:
    """Whether that identity is of one database in a live cluster that others share: then only it is fenced."""
    return "/" in identity and bool(shared_by(system, seen))


def unless_shared(system: Postgres, seen: View, found: list[WayBack]) -> list[WayBack]:
    """The ways that bring back a whole cluster; not possible where databases that are sound share it."""
    others = [
        one.name
        for one in shared_by(system, seen).values()
        if one.name not in ("postgres", system.settings.database) and not _ours(one)
    ]
    if not others:
        return found
    why = f"{', '.join(sorted(others))} share the cluster and work: this way would take them back too"
    return [replace(way, possible=False, why=why) if way.possible else way for way in found]


def _ours(seen: Seen) -> bool:
    return any(mark in seen.marks for mark in (side_database.KEPT, side_database.SOURCE)) or "_salvor_" in seen.name


def add_to(system: Postgres, state: State, seen: View) -> State:
    """What `observe` shows of a database in a shared cluster: its own identity and fence, its stage, what is kept."""
    if cluster := _staged_cluster(system) if system.context.incident else None:
        others = tuple(one for one in state.staged if one.identity != cluster.identity)
        state = replace(state, staged=(*others, cluster))
    found = shared_by(system, seen)
    if not found:
        return state
    side = _side_database(system, seen)
    live = found.get(system.settings.database)
    staged = side.staged(found)
    return replace(
        state,
        identity=side.identity(live),
        writable=state.writable and live is not None and not side.is_fenced(live),
        origin=live.marks.get(side_database.ORIGIN) if live else None,
        staged=(*state.staged, *([staged] if staged else [])),
        kept=(*state.kept, *side.keeps(found)),
    )


def ways_back(system: Postgres, seen: View, wish: Wish) -> list[WayBack]:
    """A dump, when there is one that the wish means. Reads only."""
    try:
        return [_way(system, seen, wish)]
    except SalvorError as error:
        return [WayBack(NAME, False, error.what)]


def _way(system: Postgres, seen: View, wish: Wish) -> WayBack:
    database = system.settings.database
    if wish.source == "latest" and not wish.at and not wish.live_is_sound and wish.damaged_at:
        wish = replace(wish, at=wish.damaged_at)
    source = dump_chosen.find(system, wish)
    if source.manifest and source.manifest["database"] != database:
        raise CannotError(f"{source.name} is a dump of {source.manifest['database']}, not of {database}")
    why = f"{source.member} from {source.name}" if source.member else f"dump {source.name}"
    why += f" of {clock.write_time(source.taken)}" if source.taken else " of an unknown moment"
    within = {"within": source.member, **dump_chosen.trust(wish)} if source.member else {}
    overrides = dict(wish.overrides or {})
    trust = {"trusted_because": overrides[TRUST_DUMP]} if TRUST_DUMP in overrides else {}
    unfenced = {"unfenced_because": overrides[PROMOTE_WITHOUT_FENCE]} if PROMOTE_WITHOUT_FENCE in overrides else {}
    if found := shared_by(system, seen):
        stage, place_of = side_database.STAGE, {}
        identity = _side_database(system, seen).identity(found.get(database))
        server = seen.primary.member.server
        why += ", into a database beside: others share the cluster"
    else:
        member = _member(seen)
        stage, place_of = side_cluster.STAGE, {"member": member.name}
        identity, server = seen.primary.identity, member.server
        why += ", into a cluster beside" + (
            "" if seen.primary.is_up else "; other databases of the cluster are not in it"
        )
    beside.room_for(server, source.size or 0)  # what it unpacks to is not known, and never less
    return WayBack(
        NAME,
        True,
        why,
        stage=stage,
        address=server.address,
        backup=source.name,
        arguments={"stage": stage, "source": source.name, **within, **place_of, **trust},
        promote={"identity": identity, "stage": stage, **place_of, **unfenced},
        promote_undo=Undo("demote", {"identity": identity, "stage": stage, **place_of}),
        loses=max(0.0, clock.age(source.taken).total_seconds()) if source.taken else None,
    )


def _member(seen: View) -> Member:
    """The member whose data directory is replaced: the primary's, or another one's when its machine does not answer."""
    for one in (seen.primary, *seen.sightings):
        if one.look and one.look.is_mount_point:
            raise CannotError(f"{one.member.server.data} is a mount point or a link, so it cannot be renamed")
        if one.look:
            return one.member
    raise CannotError(f"no machine of a member answers: {seen.primary.detail}")


def _side_database(system: Postgres, seen: View) -> SideDatabase:
    primary = seen.primary
    cluster = primary.look.identity if primary.look else "unknown"
    return SideDatabase(primary.member.server, cluster, system.settings.database, system.context.incident)


def _side_cluster(system: Postgres, member: str) -> SideCluster:
    settings = system.settings
    return SideCluster(system.site.member(member), system.context.incident, settings.side_port, settings.database)


def _the_side_cluster(system: Postgres) -> SideCluster:
    """The side cluster of this incident, beside whichever member it stands. Raises CannotError."""
    for member in system.site.members:
        side = _side_cluster(system, member.name)
        try:
            if side.marker().get("stage") == side_cluster.STAGE:
                return side
        except CannotError:
            continue  # its machine does not answer
    raise CannotError(f"{system.name}: no side cluster is staged for {system.context.incident}.", hint="inv restore")


@dataclass(frozen=True)
class _Place:
    """Where a stage is, and what was left out of the dump when it was loaded."""

    server: Server
    database: str
    identity: str
    left_out: list[str]


def _place_of(system: Postgres, stage: str) -> _Place:
    if stage == side_cluster.STAGE:
        cluster = _the_side_cluster(system)
        left_out = list(cluster.marker().get("left_out") or ())
        return _Place(cluster.stage, system.settings.database, cluster.stage.identity(), left_out)
    side = _side_database(system, system.site.view())
    seen = side.look().get(side.stage)
    left_out = json.loads(seen.marks.get(side_database.LEFT_OUT, "[]")) if seen else []
    return _Place(side.server, side.stage, side.identity(seen), left_out)


def ask(system: Postgres, statement: str, where: str) -> Any:
    """The first value of a query, asked of a stage. Raises CannotError."""
    place = _place_of(system, where)
    return ask_server(place.server, place.database, statement)


def _staged_cluster(system: Postgres) -> Staged | None:
    """The side cluster as `observe` shows it."""
    try:
        side = _the_side_cluster(system)
    except CannotError:
        return None
    marker = side.marker()
    whole, detail = side.is_complete(marker), "it is being loaded, or a load was broken off"
    if whole:
        detail = str(marker.get("source", ""))
        try:
            side.stage.connect().close()
        except psycopg.Error as error:  # after a reboot it is to be started again
            whole, detail = False, f"it is whole and does not run: {secrets.mask(str(error)).strip()}"
    return Staged(
        side_cluster.STAGE,
        side.stage.identity(),
        whole,
        side.stage.address,
        fresh=clock.read_time(marker["newest_commit"]) if "newest_commit" in marker else None,
        detail=detail,
    )


# --- stage -------------------------------------------------------------------------------------------------------


def stage(
    system: Postgres,
    stage: str,
    source: str,
    member: str = "",
    trusted_because: str = "",
    within: str = "",
    archive_trusted_because: str = "",
) -> Iterator[Progress]:
    """Build the side database or side cluster from the dump of that name, or from the one `within` that archive. Finds
    its work done.
    """
    found = dump_chosen.source(system, source, within)
    path = yield from dump_chosen.bring(system, found, _scratch(system), trusted=bool(archive_trusted_because))
    around: dict[str, Any] = (dump_find.read_beside(path, "cluster.json") if found.manifest else None) or {}
    trusted = bool(found.manifest or trusted_because)
    if stage == side_database.STAGE:
        beside = _side_database(system, system.site.view())
        yield from beside.build(
            source,
            found.taken,
            around.get("database") or {},
            lambda: _load(beside.server, beside.stage, path, system, around, trusted),
        )
    elif stage == side_cluster.STAGE:
        cluster = _side_cluster(system, member)
        around, roles = _cluster_as_it_was(system, around, path if found.manifest else None)

        def load() -> side_database.Load:
            return lambda: _load(cluster.stage, cluster.database, path, system, around, trusted, cluster.hba)

        yield from cluster.build(source, found.taken, around, roles, load)
    else:
        raise UsageError(f"{system.name}: there is no stage {stage!r}.")
    dump_chosen.forget(system, _scratch(system))


def _scratch(system: Postgres) -> Path:
    return system.context.folder / "fetched"


def _load(
    server: Server,
    database: str,
    path: Path,
    system: Postgres,
    around: Mapping[str, Any],
    trusted: bool,
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
        server, database, path, incident=system.context.incident, owner=owner, trusted=trusted, hba=hba
    )
    expected = _expected(path)
    if expected and "schema public" not in expected.structure:
        with server.connect(database, writes=True) as connection:
            connection.execute("drop schema if exists public")
    return left_out


def _expected(path: Path) -> Fingerprint | None:
    data = dump_find.read_beside(path, "fingerprint.json")
    return Fingerprint.from_json(data) if data else None


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
    dump_chosen.forget(system, _scratch(system))
    if stage == side_database.STAGE:
        _side_database(system, system.site.view()).drop()
        return
    for member in system.site.members:
        side = _side_cluster(system, member.name)
        if side.live.shell.exists(side.stage.data):
            side.drop()


# --- promote, and the way back -----------------------------------------------------------------------------------


def promote(
    system: Postgres, identity: str, stage: str, member: str = "", unfenced_because: str = ""
) -> Iterator[Progress]:
    """Make the stage what is live; what was live is kept."""
    if stage == side_database.STAGE:
        yield from _side_database(system, system.site.view()).promote(identity, unfenced_because=unfenced_because)
    else:
        side = _side_cluster(system, member)
        yield from side.promote(identity, system.site.view(), unfenced_because=unfenced_because)


def demote(system: Postgres, identity: str, stage: str, member: str = "") -> Iterator[Progress]:
    """Put back what `promote` replaced."""
    if stage == side_database.STAGE:
        yield from _side_database(system, system.site.view()).demote(identity)
    else:
        yield from _side_cluster(system, member).demote(identity)


def discard(system: Postgres, identity: str, kept: str) -> Iterator[Progress]:
    """Remove a database that was kept, for good."""
    yield Progress(0, None, "", f"removing {kept}")
    _side_database(system, system.site.view()).discard(identity, kept)


def fence(system: Postgres, seen: View, identity: str) -> Iterator[Progress]:
    """Shut the applications out of one database of a shared cluster."""
    yield from _side_database(system, seen).fence(identity)


def unfence(system: Postgres, seen: View, identity: str) -> None:
    """Let them in again, exactly as before."""
    _side_database(system, seen).unfence(identity)


def backup(system: Postgres) -> Iterator[Progress]:
    """Take a dump of the live primary, with its fingerprint."""
    if not system.settings.dumps:
        raise UsageError(f"{system.name}: the inventory does not say where dumps go.", hint="add dumps: FOLDER to it")
    primary = system.site.view().primary
    if not primary.is_up:
        raise CannotError(f"{system.name}: no live primary to dump: {primary.describe()}.", hint="inv assess")
    yield from dumps.take(primary.member.server, system.settings.database, system.settings.dumps)


def expire(system: Postgres, identifiers: Sequence[str]) -> Iterator[Progress]:
    """Remove dumps for good."""
    store = open_store(system.settings.dumps)
    for count, identifier in enumerate(identifiers):
        yield Progress(count, len(identifiers), "backups", f"removing {identifier}")
        store.remove(identifier)


# --- verify ------------------------------------------------------------------------------------------------------


def verify(system: Postgres, way: WayBack, wish: Wish) -> Iterator[Finding]:
    """The content of the stage against the fingerprint that came with the dump, and what was left out. Reads only."""
    arguments = {name: str(value) for name, value in (way.arguments or {}).items()}
    source = dump_chosen.source(system, arguments["source"], arguments.get("within", ""))
    try:
        place = _place_of(system, way.stage)
        expected = _expected_of(system, source)
        found = _fingerprint(place) if expected else None
        with place.server.session(place.database) as connection:
            has_amcheck = connection.execute("select 1 from pg_extension where extname = 'amcheck'").fetchone()
    except (CannotError, psycopg.Error) as error:
        yield Finding(system.name, "readable", Level.FAIL, "not readable", detail=secrets.mask(str(error)))
        return
    evidence, left_out = place.identity, place.left_out
    if expected and found:
        figure = f"{len(found.tables):,} tables, {found.rows:,} rows"
        yield Finding(system.name, "readable", Level.PASS, figure, detail="every row was read", evidence=evidence)
        yield from fingerprint.compare(expected, found, subject=system.name, evidence=evidence)
    else:
        yield proof.every_page(system.name, place.server, place.database, evidence)
        why = "none came with this dump, so only the service's own checks can tell whether all is there"
        yield Finding(system.name, "content fingerprint", Level.WARN, "none", detail=why, evidence=evidence)
    if has_amcheck:
        yield proof.amcheck(system.name, place.server, place.database, evidence)
    if left_out:
        shown = "; ".join(left_out[:10])
        yield Finding(system.name, "left out of the dump", Level.WARN, f"{len(left_out)}", "0", shown, evidence)
    yield _freshness(system.name, source, wish, evidence)


def _fingerprint(place: _Place) -> Fingerprint:
    return fingerprint.take(lambda name: place.server.connect(name, deadline=60.0), place.database)


def _expected_of(system: Postgres, source: dump_find.Source) -> Fingerprint | None:
    if source.manifest is None:
        return None
    place = system.settings.dumps
    if source.name.startswith(("/", "s3://")):
        place = source.name.rpartition("/")[0]
    return _expected(open_store(place).folder_of(source.manifest, _scratch(system)) / "dump")


def _freshness(subject: str, source: dump_find.Source, wish: Wish, evidence: str) -> Finding:
    if source.taken is None:
        why = "the dump does not say of which moment it is"
        return Finding(subject, "freshness", Level.WARN, "not known", clock.write_duration(wish.rpo), why, evidence)
    age = clock.age(source.taken).total_seconds()
    asked = wish.at is not None or wish.source != "latest"
    level = Level.PASS if asked or age <= wish.rpo else Level.WARN
    figure = f"of {clock.write_time(source.taken)}, {clock.write_duration(age)} old"
    detail = "as asked for" if asked else "what was written since is not in it"
    return Finding(subject, "freshness", level, figure, clock.write_duration(wish.rpo), detail, evidence)

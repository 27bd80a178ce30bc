"""The logical way back: a dump into a database beside the live one, or into a cluster of its own beside it.

A side database where others share the cluster and it is up: those are not touched. A side cluster where the database is
alone or the cluster is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg

from salvor import clock
from salvor.backups import removal
from salvor.change import Backup, Progress, State, Undo, WayBack
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.postgres import (
    beside,
    dump_chosen,
    dump_find,
    dumps,
    side_cluster,
    side_database,
    ways,
)
from salvor.postgres.cluster import Member, View
from salvor.postgres.dump_store import open_store
from salvor.postgres.logical_place import scratch, side_cluster_of, side_database_of, staged_cluster
from salvor.postgres.side_database import Seen
from salvor.wish import PROMOTE_WITHOUT_FENCE, RESTORE_WHOLE_CLUSTER, Wish

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres

TRUST_DUMP = "trust-dump"
"""The override that lets a dump do what only a superuser can: whoever made it is known."""
NAME = "logical"
_EMPTY_CLUSTER = 20_000_000  # bytes: three template databases, and a little WAL


# --- look --------------------------------------------------------------------------------------------------------


def sources(system: Postgres) -> Iterator[tuple[tuple[str, str], Callable[[], list[Backup]]]]:
    """What lists the dumps, of their own and in archives, by their place."""
    if place := system.settings.dumps:
        yield (place, place), lambda: open_store(place).backups(system.name)
    if archives := system.settings.archives:
        yield (archives.folder, archives.folder), lambda: dump_chosen.backups(system)


def shared_by(system: Postgres, seen: View) -> dict[str, Seen]:
    """Every database of a live cluster that others share, by name; empty when it is alone in it, or cannot be asked, or
    the operator has the whole cluster brought back.
    """
    return {} if system.context.overridden(RESTORE_WHOLE_CLUSTER) else _all_in(system, seen)


def _all_in(system: Postgres, seen: View) -> dict[str, Seen]:
    if not seen.primary.is_up or not seen.primary.facts or seen.primary.facts.in_recovery:
        return {}
    try:
        found = side_database_of(system, seen).look()
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


def unless_shared(system: Postgres, seen: View, found: list[WayBack], dumps: Sequence[WayBack]) -> list[WayBack]:
    """The ways that bring back a whole cluster; not possible where databases that are sound share it, unless the
    operator takes them back too, or nothing becomes live and there is no dump to prove, which a recovery would take. Of
    a restore that is said at once: nobody is to look for the time of the damage in vain.
    """
    others = [
        one.name
        for one in _all_in(system, seen).values()
        if one.name not in ("postgres", system.settings.database) and not _ours(one)
    ]
    if not others or (system.context.is_rehearsal and not any(way.possible for way in dumps)):
        return found
    one, names = len(others) == 1, ", ".join(sorted(others))
    if reason := system.context.overridden(RESTORE_WHOLE_CLUSTER):
        told = f"; {names} {'goes' if one else 'go'} back with it: {reason}"
        return [replace(way, why=f"{way.why}{told}") if way.possible else way for way in found]
    why = (
        f"{names} {'shares the cluster and works' if one else 'share the cluster and work'}: this way takes "
        f"{'it' if one else 'them'} back too, with --override='{RESTORE_WHOLE_CLUSTER}=REASON' alone"
    )
    return [way.closed(why) if way.possible or way.name == "physical" else way for way in found]


def _ours(seen: Seen) -> bool:
    """Whether it is a stage, or was kept. One that was restored is live, and keeps the marks of its stage."""
    return side_database.KEPT in seen.marks or "_salvor_" in seen.name


def add_to(system: Postgres, state: State, seen: View) -> State:
    """What `observe` shows of a database in a shared cluster: its own identity and fence, its stage, what is kept."""
    if cluster := staged_cluster(system) if system.context.incident else None:
        others = tuple(one for one in state.staged if one.identity != cluster.identity)
        state = replace(state, staged=(*others, cluster))
    found = shared_by(system, seen)
    if not found:
        return state
    side = side_database_of(system, seen)
    live = found.get(system.settings.database)
    staged = side.staged(found)
    return replace(
        state,
        identity=side.identity(live),
        summary=state.summary if live else f"there is no database {system.settings.database}; {state.summary}",
        writable=state.writable and live is not None and not side.is_fenced(live),
        origin=state.origin if live else None,
        staged=(*state.staged, *([staged] if staged else [])),
        kept=(*state.kept, *side.keeps(found)),
    )


def ways_back(system: Postgres, seen: View, wish: Wish) -> list[WayBack]:
    """A dump, when there is one that the wish means. Reads only."""
    if wish.override(RESTORE_WHOLE_CLUSTER) and _all_in(system, seen):
        return [WayBack(NAME, False, "a dump is of one database, and the whole cluster is to be brought back")]
    try:
        return [_way(system, seen, wish)]
    except SalvorError as error:
        return [WayBack(NAME, False, error.reason)]


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
    found = {} if wish.gives_up(seen.primary.member.machine) else shared_by(system, seen)
    if found:
        stage, place_of = side_database.STAGE, {}
        identity = side_database_of(system, seen).identity(found.get(database))
        member = seen.primary.member
        server = member.server
        why += ", into a database beside: others share the cluster"
    else:
        member = _member(seen, wish)
        stage, place_of = side_cluster.STAGE, {"member": member.name}
        identity, server = seen.primary.identity, member.server
        why += ", into a cluster beside" + (
            "" if seen.primary.is_up else "; other databases of the cluster are not in it"
        )
    dump_find.see_room(system.settings.dumps, source, scratch(system))
    # What it unpacks to is not known, and never less; a cluster without a table takes room, too.
    beside.room_for(server, (source.size or 0) + (0 if found else _EMPTY_CLUSTER))
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
        loses=wish.loses(source.taken),
        machine=member.machine,
    )


def _member(seen: View, wish: Wish) -> Member:
    """The member whose data directory is replaced."""
    one = seen.to_replace(wish)
    if one is None:
        raise CannotError(f"no machine of a member answers, or may be used: {seen.primary.describe()}")
    if one.look and one.look.is_mount_point:
        raise CannotError(f"{one.member.server.data} is a mount point or a link, so it cannot be renamed")
    if one.look and one.look.unmounted:
        raise CannotError(f"{ways.is_not_mounted(one.member, one.look)}.")
    return one.member


# --- promote, and the way back -----------------------------------------------------------------------------------


def promote(
    system: Postgres, identity: str, stage: str, member: str = "", unfenced_because: str = ""
) -> Iterator[Progress]:
    """Make the stage what is live; what was live is kept."""
    if stage == side_database.STAGE:
        yield from side_database_of(system, system.site.view()).promote(identity, unfenced_because=unfenced_because)
    else:
        side = side_cluster_of(system, member)
        yield from side.promote(identity, system.site.view(), unfenced_because=unfenced_because)


def demote(system: Postgres, identity: str, stage: str, member: str = "") -> Iterator[Progress]:
    """Put back what `promote` replaced."""
    if stage == side_database.STAGE:
        yield from side_database_of(system, system.site.view()).demote(identity)
    else:
        yield from side_cluster_of(system, member).demote(identity)


def discard(system: Postgres, identity: str, kept: str) -> Iterator[Progress]:
    """Remove a database that was kept, for good."""
    yield Progress(0, None, "", f"removing {kept}")
    side_database_of(system, system.site.view()).discard(identity, kept)


def fence(system: Postgres, seen: View, identity: str) -> Iterator[Progress]:
    """Shut the applications out of one database of a shared cluster."""
    yield from side_database_of(system, seen).fence(identity)


def unfence(system: Postgres, seen: View, identity: str) -> None:
    """Let them in again, exactly as before."""
    side_database_of(system, seen).unfence(identity)


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
    yield from removal.each(identifiers, open_store(system.settings.dumps).remove)

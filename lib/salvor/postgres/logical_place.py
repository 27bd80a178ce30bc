"""Where the stage of a dump stands: as a database beside the live one, or as a cluster beside a member's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from salvor import clock, secrets
from salvor.change import Staged
from salvor.errors import CannotError, SalvorError
from salvor.postgres import side_cluster, side_database
from salvor.postgres.asking import ask as ask_server
from salvor.postgres.cluster import View
from salvor.postgres.server import Server
from salvor.postgres.side_cluster import SideCluster
from salvor.postgres.side_database import SideDatabase

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres


def side_database_of(system: Postgres, seen: View) -> SideDatabase:
    """The side database of this incident."""
    primary = seen.primary
    cluster = primary.look.identity if primary.look else "unknown"
    return SideDatabase(primary.member.server, cluster, system.settings.database, system.context.incident)


def side_cluster_of(system: Postgres, member: str) -> SideCluster:
    """The side cluster of this incident beside that member's data directory."""
    settings, context = system.settings, system.context
    found = system.site.member(member)
    return SideCluster(found, context.incident, settings.side_port, settings.database, is_drill=context.is_drill)


def staged_side_cluster(system: Postgres) -> SideCluster:
    """The side cluster of this incident, beside whichever member it stands. Raises CannotError."""
    for member in system.site.members:
        side = side_cluster_of(system, member.name)
        try:
            if side.marker().get("stage") == side_cluster.STAGE:
                return side
        except SalvorError:
            continue  # its machine does not answer
    raise CannotError(f"{system.name}: no side cluster is staged for {system.context.incident}.", hint="inv restore")


@dataclass(frozen=True)
class Place:
    """Where a stage is, what was left out of the dump when it was loaded, and what the stage says of itself."""

    server: Server
    database: str
    identity: str
    left_out: list[str]
    marker: Mapping[str, Any] = field(default_factory=dict)


def place_of(system: Postgres, stage: str) -> Place:
    """Where that stage is. Raises CannotError."""
    if stage == side_cluster.STAGE:
        cluster = staged_side_cluster(system)
        marker = cluster.marker()
        left_out = list(marker.get("left_out") or ())
        return Place(cluster.stage, system.settings.database, cluster.stage.identity(), left_out, marker)
    side = side_database_of(system, system.site.view())
    seen = side.look().get(side.stage)
    left_out = json.loads(seen.marks.get(side_database.LEFT_OUT, "[]")) if seen else []
    return Place(side.server, side.stage, side.identity(seen), left_out)


def ask(system: Postgres, statement: str, where: str) -> Any:
    """The first value of a query, asked of a stage. Raises CannotError."""
    place = place_of(system, where)
    return ask_server(place.server, place.database, statement)


def staged_cluster(system: Postgres) -> Staged | None:
    """The side cluster as `observe` shows it."""
    try:
        side = staged_side_cluster(system)
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


def scratch(system: Postgres) -> Path:
    """Where a dump that is not on this machine is brought to. The systems of an incident share its folder."""
    return system.context.folder / "fetched" / system.name

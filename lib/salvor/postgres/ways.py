"""The physical way back: which backup, to which target, along which timeline, and whether it is open."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from salvor import clock, unmounted
from salvor.change import Reachable, Undo, WayBack
from salvor.errors import NoRoomError, SalvorError
from salvor.postgres import beside, restore_point
from salvor.postgres.backrest import NAME, Repository
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.lag import missing_commits
from salvor.postgres.look import Look
from salvor.postgres.physical import STAGE
from salvor.postgres.replay import ACCEPT_MISSING_WAL
from salvor.postgres.site import Site
from salvor.postgres.stored import Stored
from salvor.postgres.wal import Lineage, end_of, read_lsn
from salvor.wish import PROMOTE_WITHOUT_FENCE, Wish

_LISTING_SECONDS = 3.0
"""For a list of the archived WAL, which may be long or far away: an assessment does not wait for it."""
_LABEL = re.compile(r"\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?")


class _Closed(Exception):
    """Why the way is not open."""


def unless_left_behind(site: Site, seen: View, way: WayBack) -> WayBack:
    """A failover, unless the archive tells what a lost primary cannot: that its standbys were left behind before."""
    if not way.possible or not site.open_repository:
        return way
    try:
        newer = _begun_without_standbys(site.repository(site.reachable_member()), seen)
    except SalvorError:
        return way
    told = f"the archive has timeline {newer}, begun after the newest commit that a standby has: none followed it"
    return way.closed(told) if newer else way


def _begun_without_standbys(repository: Repository, seen: View) -> int | None:
    """The newest timeline, where the primary cannot tell its own, when it began after the newest commit of every
    standby: the cluster was restored, and they were not rebuilt. After an undone restore they have newer commits.
    """
    fresh = [one.facts.fresh for one in seen.standbys if one.facts and one.facts.fresh]
    if seen.primary.timeline or not fresh:
        return None
    known = max(one.timeline for one in seen.standbys)
    begun = repository.archive.timelines.items()
    return max((one for one, since in begun if one > known and since > max(fresh)), default=None)


def physical(site: Site, seen: View, wish: Wish) -> WayBack:
    """A pgBackRest backup and its WAL, staged beside the broken primary's data directory."""
    try:
        return _physical(site, seen, wish)
    except _Closed as reason:
        return WayBack("physical", False, str(reason))
    except SalvorError as error:
        return WayBack("physical", False, error.reason)


def _physical(site: Site, seen: View, wish: Wish) -> WayBack:
    if wish.source != "latest" and not _LABEL.fullmatch(wish.source):
        raise _Closed(f"{wish.source} is no pgBackRest backup")
    if not site.open_repository:
        raise _Closed("the inventory names no pgBackRest repository for it (pgbackrest:)")
    target = _target(wish, seen.primary)
    member = _where(seen, wish)
    repository = site.repository(member)
    stored = _of_this_cluster(repository, seen)
    with ThreadPoolExecutor(2) as pool:
        installed, archived = pool.submit(_installed, member), pool.submit(_archived, repository)
        current = _begun_without_standbys(repository, seen) or _live_timeline(seen)
        lineage = repository.archive.lineage(current, member.server)
    moment = wish.at or (wish.damaged_at if target.startswith("before:") else None)
    timeline = lineage.live_at(moment) if moment else lineage.current
    backup = _backup(stored, lineage, timeline, target, wish)
    _fits(backup, member, installed.result())
    lack = _lack_of_room(repository, backup, member)
    identity = seen.primary.identity
    overrides = {name: reason for name, reason in (wish.overrides or {}).items() if name == ACCEPT_MISSING_WAL}
    unfenced = wish.override(PROMOTE_WITHOUT_FENCE)
    loses, why = _loses(repository, seen, target, backup)
    why += _unread(repository)
    segments, size = archived.result(), _segment_size(seen)
    if target != "immediate" and segments is None:
        why += "; whether WAL is missing on the way was not checked"
    elif target != "immediate" and (last := lineage.ends_early(segments or (), backup.wal[1], timeline, size)):
        until = repository.archive.time_of(last) or backup.stopped
        gap = f"the archive has a gap behind {last} of {clock.write_time(until)}"
        if _is_behind(target, until, end_of(last, size) if size else 0):
            raise _Closed(f"{target.partition(':')[2]} cannot be reached: {gap}")
        if target == "latest":
            loses, why = max(0.0, clock.age(until).total_seconds()), f"replayed to there: {gap}"
            why += "" if overrides else f"; carried out only with --override='{ACCEPT_MISSING_WAL}=REASON'"
    return WayBack(
        "physical",
        not lack,
        lack or f"{backup.kind} backup {backup.label} of {clock.write_time(backup.stopped)}, {why}",
        stage=STAGE,
        address=member.server.address,
        backup=backup.label,
        arguments={
            "stage": STAGE,
            "member": member.name,
            "backup": backup.label,
            "target": target,
            "timeline": timeline,
            **({"overrides": overrides} if overrides else {}),
        },
        promote={
            "identity": identity,
            "stage": STAGE,
            "member": member.name,
            **({"unfenced_because": unfenced} if unfenced else {}),
        },
        promote_undo=Undo("demote", {"identity": identity, "stage": STAGE, "member": member.name}),
        loses=loses,
        machine=member.machine,
        lacks_room=bool(lack),
    )


def _target(wish: Wish, primary: Sighting) -> str:
    """Where the replay is to stop."""
    if wish.at:
        return f"time:{clock.write_time(wish.at)}"
    if wish.target:
        return wish.target
    if wish.source != "latest":
        return "immediate"
    if wish.live_is_sound:
        return "latest"
    if wish.damaged_at:
        return "latest" if _ended_before(primary, wish.damaged_at) else f"before:{clock.write_time(wish.damaged_at)}"
    raise _Closed("replaying everything would replay the damage too: say when it began, --failed-at=TIME, or --at=TIME")


def _ended_before(primary: Sighting, moment: datetime) -> bool:
    """Whether a dead primary's last commit is from before `moment`: then everything there is was there at that moment.

    The trap: a replay to a time ends with an error when no commit comes after it (recovery_target_time).
    """
    if primary.reachable is not Reachable.DOWN or not primary.look or not primary.look.control:
        return False
    since = read_lsn(primary.look.control["Latest checkpoint's REDO location"])
    try:
        _, last = missing_commits(primary, since) or (0, None)
    except SalvorError:
        return False
    return last is not None and last < moment


def _where(seen: View, wish: Wish) -> Member:
    """The member whose data directory is replaced."""
    one = seen.to_replace(wish)
    if one is None:
        raise _Closed(f"no machine of a member answers, or may be used: {seen.primary.describe()}")
    if one.look and one.look.is_mount_point:
        raise _Closed(
            f"{one.member.server.data} is a mount point or a link, so it cannot be renamed; "
            "the data directory must be a folder below it"
        )
    if one.look and one.look.unmounted:
        raise _Closed(is_not_mounted(one.member, one.look))
    return one.member


def is_not_mounted(member: Member, look: Look) -> str:
    """Why nothing may be restored there."""
    server = member.server
    return (
        f"{unmounted.told(look.unmounted)}, and {server.data} belongs on it: it may be whole there, and what is "
        f"restored now would be on another disk; {unmounted.mend(look.unmounted, server.shell.where)}"
    )


def _unread(repository: Repository) -> str:
    """Which of its repositories cannot be read, so that what only they hold is not seen."""
    return "".join(
        f"; {NAME} {number} cannot be read ({why}): what only it holds is not seen"
        for number, why in repository.unread.items()
    )


def _live_timeline(seen: View) -> int | None:
    """The timeline that was live: the broken primary's, or else the one that its standbys follow. None when nobody that
    was in service tells it: then it is the newest in the archive.
    """
    known = [seen.primary.timeline, *(one.timeline for one in seen.sightings if not seen.is_out_of_service(one))]
    return next((timeline for timeline in known if timeline), None)


def _of_this_cluster(repository: Repository, seen: View) -> list[Stored]:
    """The backups of the cluster that is seen: the repository may hold those of one before it too."""
    if not repository.stored:
        raise _Closed(f"the repository holds no backup{_unread(repository)}")
    known = {one.system_identifier for one in seen.sightings} - {""}
    found = [one for one in repository.stored if not known or one.system_identifier in known]
    if not found:
        other = repository.stored[0].system_identifier
        raise _Closed(f"the backups are of another cluster (system identifier {other})")
    return found


def _backup(stored: list[Stored], lineage: Lineage, timeline: int, target: str, wish: Wish) -> Stored:
    """The newest whole backup from which the target can be reached along the timeline."""
    kind, _, value = target.partition(":")
    sound = [one for one in stored if not one.broken]
    if not sound:
        raise _Closed("every backup in the repository is marked as damaged")
    fitting = [one for one in sound if kind == "immediate" or lineage.leads_from(one.timeline, one.stop_lsn, timeline)]
    if not fitting:
        raise _Closed(f"no backup leads to timeline {timeline}, which was live then")
    if wish.source != "latest":
        fitting = [one for one in fitting if one.label == wish.source]
        if not fitting:
            raise _Closed(
                f"{wish.source} is not in the repository, is damaged, or does not lead to timeline {timeline}"
            )
    if kind in ("time", "before"):
        moment = clock.read_time(value)
        reaching = [one for one in fitting if one.consistent_from <= moment]
        if not reaching:
            oldest = clock.write_time(fitting[-1].consistent_from)
            raise _Closed(f"the oldest usable backup can be recovered to {oldest} at the earliest")
        return reaching[0]
    if kind == "name":
        # When a restore point was made is not known from outside, but for those that Salvor makes behind a backup.
        return next((one for one in fitting if value == restore_point.name_of(one.label)), fitting[0])
    if kind == "lsn":
        reaching = [one for one in fitting if one.stop_lsn <= read_lsn(value)]
        if not reaching:
            raise _Closed(f"every usable backup ends behind {value}")
        return reaching[0]
    return fitting[0]


def _installed(member: Member) -> str:
    """The version of the PostgreSQL that is installed there; empty when its program does not say one."""
    server = member.server
    said = server.shell.run([server.program("postgres"), "--version"], deadline=10.0).stdout
    version = re.search(r"\) (\d+(?:\.\d+)?)", said)
    return version[1] if version else ""


def _fits(backup: Stored, member: Member, installed: str) -> None:
    """That the backup is of the PostgreSQL that is installed there."""
    if installed and installed.split(".")[0] != backup.version.split(".")[0]:
        raise _Closed(f"the backup is of PostgreSQL {backup.version}, and {member.server.programs} has {installed}")


def _lack_of_room(repository: Repository, backup: Stored, member: Member) -> str:
    """Why the backup does not fit beside the data directory, empty when it does; the repository is asked for its
    tablespaces if it does not.
    """
    try:
        beside.room_for(member.server, backup.size)
    except NoRoomError:
        try:
            beside.room_for(member.server, backup.size, repository.elsewhere(backup.label).tablespaces.values())
        except NoRoomError as error:
            return error.reason
    return ""


def _archived(repository: Repository) -> frozenset[str] | None:
    """The WAL segments in the archive; None when that cannot be told soon enough."""
    try:
        return repository.archive.list_segments(_LISTING_SECONDS)
    except SalvorError:
        return None


def _segment_size(seen: View) -> int:
    """Bytes of a WAL segment; 0 when no member says it."""
    looks = [one.look for one in seen.sightings if one.look and one.look.control]
    return next((int((look.control or {}).get("Bytes per WAL segment", 0)) for look in looks), 0)


def _is_behind(target: str, until: datetime, end: int) -> bool:
    """Whether a target is later than the end of what can be replayed: a time, and an LSN (0: not known)."""
    kind, _, value = target.partition(":")
    if kind in ("time", "before"):
        return clock.read_time(value) > until
    return kind == "lsn" and 0 < end < read_lsn(value)


def _loses(repository: Repository, seen: View, target: str, backup: Stored) -> tuple[float | None, str]:
    """The expected loss in seconds, and the target in words."""
    kind, _, value = target.partition(":")
    if kind in ("time", "before"):
        return 0.0, f"replayed to {'just before ' * (kind == 'before')}{value}"
    if kind == "immediate":
        return max(0.0, clock.age(backup.stopped).total_seconds()), "as it was at its end"
    if kind != "latest":
        return None, f"replayed to {target}"
    primary = seen.primary
    if primary.look and primary.look.control:
        return 0.0, "replayed to the newest state, with what is in pg_wal"
    newest = repository.archive.newest
    return (clock.age(newest).total_seconds() if newest else None), "replayed to the end of the archive"

"""Proof of a staged copy or a standby before it is promoted. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

from salvor import clock, secrets
from salvor.change import Finding, Level
from salvor.errors import SalvorError
from salvor.postgres import carried, integrity, libraries, restore_point
from salvor.postgres.backrest import Repository
from salvor.postgres.beside import read_marker
from salvor.postgres.cluster import Member, Sighting, View
from salvor.postgres.facts import Facts, as_noted, ask_facts
from salvor.postgres.gauge import Hear
from salvor.postgres.lag import lag_of, missing_commits
from salvor.postgres.look import Look
from salvor.postgres.physical import EVERYTHING
from salvor.postgres.site import Site
from salvor.wish import Wish


def standby(subject: str, view: View, name: str, wish: Wish) -> Iterator[Finding]:
    """A standby: of this cluster, and near enough. Its tables are not read, which can take as long as a restore."""
    seen = view.of(name)
    evidence = seen.identity
    if not seen.facts or not seen.look:
        yield Finding(subject, "answers", Level.FAIL, detail=seen.describe(), evidence=evidence)
        return
    yield _same_cluster(subject, seen.look, view.primary.look, evidence)
    lag = lag_of(seen, view.primary)
    late = lag.seconds is not None and lag.seconds > wish.rpo
    yield Finding(
        subject,
        "freshness",
        Level.FAIL if late else Level.WARN if lag.seconds is None else Level.PASS,
        figure="not known" if lag.seconds is None else f"{clock.write_duration(lag.seconds)} behind",
        limit=clock.write_duration(wish.rpo),
        detail=lag.why,
        evidence=evidence,
        lacks=lag.lacks,
    )
    if seen.facts.is_held_back:
        until = f" of {clock.write_time(seen.facts.fresh)}" if seen.facts.fresh else ""
        detail = f"its newest commit that can be seen is that{until}: the checks tell nothing of what comes after it"
        figure = f"{(seen.facts.received - seen.facts.lsn) / 1e6:,.1f} MB are not replayed yet"
        yield Finding(subject, "replayed", Level.WARN, figure, "0", detail, evidence)
    yield _checksums(subject, seen.look, seen.facts, evidence)
    yield from libraries.check(subject, seen.member.server, evidence)
    if view.primary.look:
        with suppress(SalvorError):  # a machine that does not answer any more holds no failover up
            yield from carried.slots(subject, view.primary.member.server, seen.member.server, evidence)


def stage(
    subject: str, site: Site, view: View, member: Member, backup: str, target: str, wish: Wish, hear: Hear
) -> Iterator[Finding]:
    """A restored copy: of this cluster, at its target, every table readable. `hear` is told how far that is."""
    import psycopg

    staged = site.physical(member)
    server = staged.stage
    look = server.look()
    evidence = look.identity
    try:
        facts = as_noted(ask_facts(server, site.database), read_marker(look.marker))
    except psycopg.Error as error:
        yield Finding(subject, "answers", Level.FAIL, detail=secrets.mask(str(error)), evidence=evidence)
        return
    marker = read_marker(look.marker)
    yield _recovered(subject, facts, target, marker, evidence)
    yield _fresh(subject, facts, target, marker, view.primary, wish, evidence)
    yield _checksums(subject, look, facts, evidence)
    repository = site.repository(member)
    short = (
        _is_of_the_repository(subject, look, repository, evidence),
        carried.port(subject, staged, evidence),
        carried.configuration(subject, staged, evidence),
        libraries.check(subject, server, evidence),
        carried.slots(subject, member.server, server, evidence),
    )
    with ThreadPoolExecutor(len(short)) as pool:
        for found in pool.map(list[Finding], short):
            yield from found
    yield from carried.wal(subject, marker, evidence)
    stored = next((one for one in repository.stored if one.label == backup), None)
    if stored:
        yield from restore_point.compare(stored, server, site.database, target, subject, evidence, hear)
    yield from integrity.of_all(subject, server, look, evidence, hear)


def _is_of_the_repository(subject: str, look: Look, repository: Repository, evidence: str) -> Iterator[Finding]:
    known = {one.system_identifier for one in repository.stored}
    mine = look.identity.partition("@")[0]
    level = Level.PASS if mine in known else Level.FAIL
    yield Finding(subject, "system identifier", level, figure=mine, limit=", ".join(sorted(known)), evidence=evidence)


def _same_cluster(subject: str, look: Look, primary: Look | None, evidence: str) -> Finding:
    mine = look.identity.partition("@")[0]
    if not primary or not primary.control:
        detail = "the primary's data is lost or unreadable, so there is nothing to compare with"
        return Finding(subject, "system identifier", Level.WARN, figure=mine, detail=detail, evidence=evidence)
    same = primary.control.get("Database system identifier") == mine
    return Finding(
        subject,
        "system identifier",
        Level.PASS if same else Level.FAIL,
        figure=mine,
        limit=primary.control.get("Database system identifier", ""),
        evidence=evidence,
    )


def _recovered(subject: str, facts: Facts, target: str, marker: Mapping[str, Any], evidence: str) -> Finding:
    everything = target == "latest" or bool(marker.get(EVERYTHING))
    at_rest = facts.paused or everything or not facts.in_recovery
    earlier = marker.get("stopped_before_drop_of")
    paused = (
        f"the replay is paused at {marker.get('at')}, just before the DROP of the database {earlier} began"
        if earlier
        else "the replay is paused there"
    )
    return Finding(
        subject,
        "recovery reached its target",
        Level.PASS if at_rest else Level.FAIL,
        figure=target,
        detail="all WAL there is was replayed" if everything else paused,
        evidence=evidence,
    )


def _fresh(
    subject: str, facts: Facts, target: str, marker: Mapping[str, Any], primary: Sighting, wish: Wish, evidence: str
) -> Finding:
    """The newest commit against what was asked for, or against what the old primary had."""
    newest = f"newest commit {clock.write_time(facts.fresh)}" if facts.fresh else "no commit since the backup"
    kind, _, value = target.partition(":")
    if kind in ("time", "before"):
        asked = clock.read_time(value)
        beyond = bool(facts.fresh and facts.fresh > asked)
        earlier = marker.get("stopped_before_drop_of")
        why = "as none came after it" if marker.get(EVERYTHING) else "as recovery paused at the first one after it"
        return Finding(
            subject,
            "freshness",
            Level.FAIL if beyond else Level.PASS,
            figure=newest,
            limit=clock.write_time(asked),
            detail=f"every commit up to where the DROP of the database {earlier} began"
            if earlier
            else f"every commit up to the time asked for, {why}",
            evidence=evidence,
            lacks=None if beyond or earlier else 0.0,
        )
    if kind != "latest":
        return Finding(subject, "freshness", Level.PASS, figure=newest, detail="as asked for", evidence=evidence)
    seconds, detail = _lost(facts, primary)
    late = seconds is not None and seconds > wish.rpo
    return Finding(
        subject,
        "freshness",
        Level.FAIL if late else Level.WARN if seconds is None else Level.PASS,
        figure=f"{newest}; loses {clock.write_duration(seconds)}" if seconds is not None else newest,
        limit=clock.write_duration(wish.rpo),
        detail=detail,
        evidence=evidence,
        lacks=seconds,
    )


def _lost(facts: Facts, primary: Sighting) -> tuple[float | None, str]:
    """Seconds of commits that the old primary had and the stage has not; None when that cannot be told."""
    there = primary.facts if primary.is_fenced else None
    if there and there.fresh and there.fresh != there.now:
        return _seconds(there.fresh, facts.fresh), "compared with the newest commit of the old primary"
    try:
        commits = missing_commits(primary, facts.lsn) if primary.is_fenced or not primary.facts else None
    except SalvorError:
        commits = None
    if commits is None:
        return None, "what the primary had more cannot be told; everything that was archived is there"
    count, last = commits
    return (_seconds(last, facts.fresh) if count and last else 0.0), f"the old primary's WAL has {count} commits more"


def _seconds(newer: datetime, older: datetime | None) -> float | None:
    return max(0.0, (newer - older).total_seconds()) if older else None


def _checksums(subject: str, look: Look, facts: Facts, evidence: str) -> Finding:
    on = look.has_checksums
    level = Level.FAIL if facts.checksum_failures else Level.PASS if on else Level.WARN
    figure = f"{facts.checksum_failures} failures" if on else "off"
    detail = (
        "" if on else "damaged pages can go unseen; pg_checksums --enable turns them on while the server is stopped"
    )
    return Finding(subject, "data checksums", level, figure=figure, detail=detail, evidence=evidence)

"""Backing a cluster up, by pgBackRest or as a dump: what is lacking, and what the policy lets go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from salvor.archive import audit as archive
from salvor.change import Change, Finding, Level, Progress, Verdict
from salvor.errors import CannotError, UsageError
from salvor.postgres import backrest, backrest_work, dump_chosen, logical, restore_point
from salvor.postgres.asking import ask
from salvor.postgres.cluster import Member
from salvor.postgres.server import Server

if TYPE_CHECKING:
    from salvor.systems.postgres import Postgres


def back_up(system: Postgres, kind: str) -> Iterator[Progress | Finding]:
    """Back up the live primary: full, diff or incr by pgBackRest, or a dump. Raises CannotError when there is none, or
    the repository is another cluster's.
    """
    if kind == "dump":
        yield from logical.backup(system)
        return
    if kind not in ("full", "diff", "incr"):
        raise UsageError(
            f"--kind: {system.name} makes no backup of kind {kind!r}.",
            safe="nothing of it was changed",
            hint="it is full, diff, incr or dump; each of them makes a snapshot of the service's files as well",
        )
    primary = system.site.view().primary
    if not primary.is_up or primary.is_fenced:
        raise CannotError(f"{system.name}: no live primary to back up: {primary.describe()}.", hint="inv assess")
    server, repository = primary.member.server, system.site.repository(primary.member)
    if not repository.is_of(primary.system_identifier):
        raise CannotError(
            f"{system.name}: the repository takes the backups of another cluster than {primary.system_identifier}.",
            safe="no backup was taken; those that are there stay",
            hint="inv protect makes the repository take this cluster's, and backs it up",
        )
    if primary.look and primary.timeline != int((primary.look.control or {})["Latest checkpoint's TimeLineID"]):
        # pgBackRest refuses a server that was promoted and has had no checkpoint yet.
        with server.session(deadline=600.0, writes=True) as connection:
            connection.execute("checkpoint")
    yield from _to_each_repository(system, kind, primary.member, repository.numbers)


def _to_each_repository(
    system: Postgres, kind: str, member: Member, numbers: Sequence[int]
) -> Iterator[Progress | Finding]:
    """Back up to one pgBackRest repository after another, and name those that did not take it. Raises what the first
    one said when none did.
    """
    server, keeps_all = member.server, system.settings.keep is not None
    failed: dict[int, CannotError] = {}
    for number in numbers:
        try:
            taking = system.site.repository(member)
            yield from backrest_work.take(taking, kind, number, server, _socket_folder(server), keeps_all=keeps_all)
        except CannotError as error:
            failed[number] = error
            continue
        repository = system.site.repository(member)  # one that has looked after the backup, not before
        label = next(one.label for one in repository.stored if one.repository == number)
        yield from restore_point.note(
            server, system.settings.database, repository, label, partial(system.context.hears, system.name)
        )
    if len(failed) == len(numbers):
        first, repository = next(iter(failed.values())), system.site.repository(member)
        if not repository.unbegun:
            raise first
        named = ", ".join(f"{backrest.NAME} {number}" for number in repository.unbegun)
        raise CannotError(
            f"No backup was taken, and no WAL is archived, while {named} lacks the stanza: {first.what}",
            safe="the backups that are there stay",
            hint=repository.begun_anew,
        ) from first
    for number, why in failed.items():
        name = f"{backrest.NAME} {number}"
        yield Finding(system.name, "backup", Level.WARN, f"{name} does not have it", detail=why.what)


def lacking(system: Postgres) -> Iterator[Change]:
    """What has the repository take the live cluster's WAL, and hold a backup of it."""
    primary = system.site.view().primary
    if not system.settings.pgbackrest or not primary.is_up or primary.is_fenced:
        return
    repository, identifier = system.site.repository(primary.member), primary.system_identifier
    if not repository.is_of(identifier):
        yield system.change(
            "adopt",
            why=f"the repository takes another cluster's WAL and backups, and refuses those of {identifier}",
            no_undo="the backups of the cluster before it stay; a later upgrade of the stanza leads back to it",
            identity=primary.identity,
        )
    lacking = repository.lacking(identifier)
    if lacking:
        others = set(repository.numbers) - lacking.keys()
        named = f" in {', '.join(f'{backrest.NAME} {number}' for number in lacking)}" if others else ""
        empty = not any(one.repository in lacking for one in repository.stored)
        yield system.change(
            "backup",
            kind="incr" if others and empty else "full",  # the first one in a repository is full, whatever is asked
            why=f"there is no backup of this cluster{named}",
            no_undo="it only adds a backup; the policy removes it",
        )


def adopt(system: Postgres, identity: str) -> None:
    """Have the repository take the WAL and the backups of the live cluster. Raises CannotError when it is another one
    than `identity`.
    """
    primary = system.site.view().primary
    if primary.identity != identity or not primary.is_up:
        raise CannotError(
            f"{system.name}: the primary is {primary.describe()}, and not {identity}.",
            safe="the repository is as it was",
            hint="inv assess",
        )
    repository = system.site.repository(primary.member)
    if not repository.is_of(primary.system_identifier):
        backrest_work.adopt(repository, primary.member.server, _socket_folder(primary.member.server))


def with_wal(changes: Iterable[Change], verdicts: Sequence[Verdict]) -> Iterator[Change]:
    """The changes that let backups go; of a pgBackRest repository with the WAL that is older than what is kept for its
    day.
    """
    for change in changes:
        repository = change.arguments["repository"]
        if not str(repository).startswith(f"{backrest.NAME} "):
            yield change
            continue
        kept = [one.backup for one in verdicts if one.backup.repository == repository and one.is_of_the_day]
        since = min(kept, key=lambda one: one.taken).id.partition("_")[0]  # FULL, or FULL_INCREMENTAL
        yield replace(
            change,
            arguments={**change.arguments, "wal_since": since},
            why=f"{change.why}; WAL without a gap stays since {since}",
        )


def expire(system: Postgres, repository: str, backups: list[str], wal_since: str) -> Iterator[Progress]:
    """Remove backups from one repository, or dumps from their place."""
    name, _, number = repository.partition(" ")
    if name == backrest.NAME and number.isdigit():
        stored = system.site.repository(system.site.reachable_member())
        yield from backrest_work.expire(stored, int(number), backups, wal_since)
    elif repository == system.settings.dumps:
        yield from logical.expire(system, backups)
    elif (archives := system.settings.archives) and repository == archives.folder:
        yield from archive.remove(archives, dump_chosen.host(system), backups)
    else:
        raise UsageError(f"{system.name}: it has no repository {repository!r}.", safe="nothing was removed")


def _socket_folder(server: Server) -> str:
    return str(ask(server, "postgres", "show unix_socket_directories")).split(",")[0].strip()

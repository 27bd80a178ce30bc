"""What is done with a pgBackRest repository: backups taken, noted, removed, restored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from salvor import clock
from salvor.change import Progress
from salvor.errors import CannotError, CommandError
from salvor.postgres.backrest import NAME, Repository
from salvor.postgres.server import Server

_BACKUP_SECONDS = 24 * 3600.0
_RESTORE_SECONDS = 24 * 3600.0
_EXPIRE_SECONDS = 3600.0
_FILE = re.compile(r"(?:restore|backup) file (?P<name>\S.*?) \((?:.*?, )?(?P<percent>[0-9.]+)%\)")


def take(
    repository: Repository, kind: str, number: int, server: Server, socket_folder: str, *, keeps_all: bool
) -> Iterator[Progress]:
    """Take a backup (full, diff or incr) of the server to repository `number`: pgBackRest itself would take the first
    one alone. `keeps_all`: and let it remove none for it.
    """
    if number in repository.silent:
        raise CannotError(f"{NAME} {number} was not asked for a backup: {repository.unread[number]}.")
    options = [f"--repo={number}", f"--type={kind}", "--log-level-console=detail", "--log-level-file=off"]
    if keeps_all:
        options.append("--no-expire-auto")  # else its own repo-retention-full removes what our policy keeps
    argv = repository.argv(*_place(server, socket_folder), *options, "backup")
    yield from _follow(repository, argv, _BACKUP_SECONDS, None, f"backing up ({kind})")


def adopt(repository: Repository, server: Server, socket_folder: str) -> None:
    """Take this cluster's WAL and backups from now on. Those of the cluster before it stay restorable."""
    repository.run(*_place(server, socket_folder), "--log-level-file=off", "stanza-upgrade", deadline=120.0)


def annotate(repository: Repository, label: str, annotations: Mapping[str, str]) -> None:
    """Note something with a backup; what was noted by the same names is replaced."""
    noted = [f"--annotation={name}={value}" for name, value in annotations.items()]
    where = (f"--repo={repository.backup(label).repository}", f"--set={label}")
    repository.run(*where, "--log-level-file=off", *noted, "annotate", deadline=60.0)


def expire(repository: Repository, number: int, labels: Sequence[str], wal_since: str) -> Iterator[Progress]:
    """Remove backups from repository `number`, and the WAL that leads to no moment any more: of what is older than the
    full backup `wal_since`, each backup keeps only the WAL that makes it consistent.

    Raises CannotError when one that stays needs one of them: pgBackRest would remove it too, without a word.
    """
    stored = [one for one in repository.stored if one.repository == number]
    doomed = [one for one in stored if one.label in labels]
    for one in stored:
        if one.label not in labels and (lost := set(one.needs) & {each.label for each in doomed}):
            raise CannotError(
                f"{one.label} needs {', '.join(sorted(lost))}, which would be removed.",
                safe="nothing was removed",
                hint="the same command again looks anew",
            )
    since = next((one.stopped for one in stored if one.label == wal_since), stored[-1].stopped if stored else None)
    fulls = [one for one in stored if one.kind == "full"]
    for count, one in enumerate(doomed):  # the newest first: nothing that is left needs it
        yield Progress(count, len(doomed), "backups", f"removing {one.label}")
        # How many full backups, from the newest on, have all of the WAL since them. Said with each call, because else
        # the configured count decides.
        fulls = [each for each in fulls if each is not one]
        keeps = max(1, sum(1 for each in fulls if since and each.stopped >= since))
        wal = [f"--repo{number}-retention-archive={keeps}", f"--repo{number}-retention-archive-type=full"]
        arguments = (f"--repo={number}", f"--set={one.label}", "--log-level-file=off", *wal, "expire")
        repository.run(*arguments, deadline=_EXPIRE_SECONDS)
    yield Progress(len(doomed), len(doomed), "backups", "removed")


def restore(
    repository: Repository,
    label: str,
    data: str,
    *,
    incident: str,
    target: list[str],
    tablespaces: Mapping[str, str],
    resume: bool,
) -> Iterator[Progress]:
    """Restore a backup into `data`, the stage of an incident. `target`: pgBackRest's recovery options; `resume`: go on
    with what is there.
    """
    mapping = [f"--tablespace-map={name}={path}" for name, path in tablespaces.items()]
    argv = repository.argv(
        f"--pg1-path={data}",
        f"--set={label}",
        f"--process-max={repository.shell.cores()}",
        "--log-level-console=detail",
        "--log-level-file=off",
        *target,
        *mapping,
        *(["--delta"] if resume else []),
        "restore",
    )
    try:
        yield from _follow(repository, argv, _RESTORE_SECONDS, repository.backup(label).size, f"restoring {label}")
    except CommandError as error:
        wrong = next((line for line in error.stderr.splitlines() if "ERROR:" in line), error.stderr.strip())
        raise CannotError(
            f"Backup {label} cannot be restored: {wrong.partition('ERROR: ')[2] or wrong}",
            safe="what is live was not touched; what was copied so far stays beside it",
            hint="the same command tries again where it stopped; another backup instead (inv backups lists them): "
            f"inv undo --incident={incident}, then inv restore --from=ID. What is damaged: "
            f"{repository.shell.by_hand(repository.argv(f'--set={label}', '--output=text', '--verbose', 'verify'))}",
        ) from error


def _follow(
    repository: Repository, argv: list[str], deadline: float, total: int | None, label: str
) -> Iterator[Progress]:
    """Run it, and make progress of the percentages that it logs for each file."""
    shown = 0.0
    for line in repository.shell.stream(argv, deadline=deadline, environment=repository.environment):
        found = _FILE.search(line)
        if found and clock.monotonic() - shown > 0.2:
            shown = clock.monotonic()
            percent = float(found["percent"])
            if total is None:
                yield Progress(round(percent), 100, "%", label)
            else:
                yield Progress(round(total * percent / 100), total, "bytes", label)


def _place(server: Server, socket_folder: str) -> list[str]:
    return [f"--pg1-path={server.data}", f"--pg1-port={server.port}", f"--pg1-socket-path={socket_folder}"]

"""What restic writes to a repository, and removes from it: a backup, and what the policy lets go."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import CannotError, CommandError
from salvor.files import watching
from salvor.files.census import Count
from salvor.files.restic import DAY, READING, Repository
from salvor.files.said import INCOMPLETE, LOCKED, LOST, TAG, is_trace, status_of, vanished


def back_up(
    repository: Repository, path: str, owner: str, taken: datetime, contents: Count
) -> Generator[Progress, None, str]:
    """Back `path` up as a backup of the system `owner`; `taken` is the same for all repositories of one run.
    Returns the snapshot's id.

    Raises CannotError; also when something could not be read: the snapshot is then marked as not whole.
    """
    tags = [f"{TAG}{owner}", f"bytes:{contents.size}", f"files:{contents.entries}"]
    tags += ["sparse"] if contents.sparse else []
    argv = repository.argv(
        "backup", "--json", "--tag", ",".join(tags), "--time", f"{taken:%Y-%m-%d %H:%M:%S.%f}", "--", path
    )
    try:
        return (yield from _back_up(repository, argv))
    except CannotError as error:
        if LOCKED not in error.what:
            raise
    _unlock(repository)
    return (yield from _back_up(repository, argv))


def _unlock(repository: Repository) -> None:
    """Remove the locks whose process is gone, or that are older than half an hour: restic removes no others."""
    repository.run(repository.argv("unlock"), deadline=READING)


def forget(repository: Repository, snapshots: Sequence[str]) -> None:
    """Remove snapshots, by their ids, and what only they needed. Those that are gone already are passed over."""
    known = {one.id for one in repository.snapshots()}
    gone = [one for one in snapshots if any(each.startswith(one) for each in known)]
    argv = repository.argv("forget", "--prune", "--", *gone)
    for attempt in range(2 if gone else 0):
        try:
            _forget(repository, argv)
            return
        except CannotError as error:
            if LOCKED not in error.what or attempt:
                raise
        _unlock(repository)


def _forget(repository: Repository, argv: Sequence[str]) -> None:
    """Restic itself would try each file for a quarter of an hour that may not be removed."""
    said, trouble = list[str](), 0.0
    command = ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv]
    try:
        for line in repository.shell.stream(command, deadline=DAY, environment=repository.variables):
            said = [*said[-20:], line]
            if not LOST.search(line):
                trouble = 0.0
                continue
            trouble = trouble or clock.monotonic()
            if clock.monotonic() - trouble > watching.PATIENCE:
                raise CannotError(
                    f"The {repository.title} lets nothing be removed: {secrets.mask(line)[:300]}",
                    safe="the backups that the policy keeps",
                    hint="see whether it answers, and whether its key may delete; then the same command again",
                )
    except CommandError as error:
        raise repository.explained("\n".join(said) or error.stderr, argv) from error


def _back_up(repository: Repository, argv: Sequence[str]) -> Generator[Progress, None, str]:
    made, unread, said = "", list[str](), list[str]()
    most, moved = -1, clock.monotonic()
    command = ["sh", "-c", 'exec env TZ=UTC "$0" "$@" 2>&1', *argv]
    try:
        for line in repository.shell.stream(command, deadline=DAY, environment=repository.variables):
            status = status_of(line)
            match status.get("message_type"):
                case "status":
                    done = int(status.get("bytes_done", 0))
                    if done > most:
                        most, moved = done, clock.monotonic()
                    elif clock.monotonic() - moved > watching.SILENCE:
                        raise repository.lost(f"it took nothing for {clock.write_duration(watching.SILENCE)}")
                    yield Progress(done, status.get("total_bytes"), "bytes", f"to {repository.name}")
                case "summary":
                    made = str(status["snapshot_id"])
                    size = int(status["total_bytes_processed"])  # a quick backup says no status before its end
                    yield Progress(size, size, "bytes", f"to {repository.name}")
                case "error" if not vanished(status):
                    unread.append(str(status.get("item")))
                case "exit_error":  # restic 0.17 and newer
                    said.append(str(status.get("message")))
                case None if line.strip() and not is_trace(line):
                    said = [*said[-20:], line]
    except CommandError as error:
        if error.exit_code_of_command != 3:  # 3: a snapshot was made, and something could not be read
            raise repository.explained("\n".join(said) or error.stderr, argv) from error
    if unread:
        # It complains as much of a file that it stores again, because the repository lost what it held of it.
        there = watching.once_more(lambda: {node["path"] for node in repository.listing(made)})
        unread = [item for item in unread if item not in there]
    if unread:
        repository.run(repository.argv("tag", "--add", INCOMPLETE, made), deadline=READING)
        raise CannotError(
            f"{len(unread)} of what {repository.name} was to get could not be read, first {unread[0]!r}.",
            safe=f"the snapshot {made} is marked as not whole",
            hint=f"see who may read it on {repository.shell.where}: run_as, or its mode",
        )
    return made

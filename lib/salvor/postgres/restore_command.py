"""The restore_command of a stage: by which it gets its WAL, ahead of the replay, and says what it did not get."""

from __future__ import annotations

import shlex

from salvor.postgres.backrest import Repository

SPOOL = "salvor_spool"
"""The folder in a stage for WAL that was fetched ahead: that of the configuration belongs to the live server."""

REFUSED = "salvor_refused"
"""The file in a stage that says which WAL did not come last, and in which try."""

_QUEUE_OF_EACH = 64
"""MB that wait for the replay, for each process that fetches: all begin anew whenever half of it is used up. With four
of 16 MB each, and pgBackRest's default of 128 MB for all, 100 segments from a disk of the same machine took 10 s, one
by one 8.3 s, and with this 6.4 s (two cores, 50 ms of replay each).
"""

NO_WAL = f'echo "%f $$" > {REFUSED}; exit 1'
"""For a stage that is to get none."""


def fetching_ahead(repository: Repository, data: str) -> str:
    """For the stage in `data`: the segments that come next are fetched while one is replayed.

    What is in pg_wal already is asked for once more at the end of a recovery, and comes by itself: to turn the fetching
    back takes more than a second. Exit code 1 says that there is no such WAL. Whatever else befalls the fetching ahead,
    which waits 10 s for each segment, is not taken for an answer: the one that is needed is fetched again by itself,
    however long it takes.
    """
    spool = f"{data}/{SPOOL}"
    processes = max(4, repository.shell.cores())
    argv = repository.argv(
        f"--pg1-path={data}",
        "--archive-async",
        f"--spool-path={spool}",
        f"--lock-path={spool}/lock",
        "--archive-timeout=10",
        f"--process-max={processes}",
        f"--archive-get-queue-max={processes * _QUEUE_OF_EACH}MB",
        "--log-level-console=off",
        "--log-level-stderr=off",
        "--log-level-file=off",
        "archive-get",
    )
    ahead, one = f'{shlex.join(argv)} %f "%p"', repository.archive_get(data)
    get = f'if [ -e "pg_wal/%f" ]; then {one}; else {ahead} || {{ [ $? -gt 1 ] && {one}; }}; fi'
    return f'{get} || {{ code=$?; echo "%f $$" > {REFUSED}; exit $code; }}'

"""How a restic repository is made, so that there is one of it, whoever else makes it at the same time."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from time import sleep
from typing import TYPE_CHECKING

from salvor.errors import CannotError, CommandError
from salvor.files.said import NOTHING, REFUSED, DamagedError
from salvor.unmounted import UNMOUNTED, mend, told

if TYPE_CHECKING:
    from salvor.files.restic import Repository

_SETTLING = 5.0  # seconds in which another machine's `init` ends that began before ours had ended
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Who makes a repository at a location."""


def make(repository: Repository) -> bool:
    """Make the repository, unless there is one; whether there was none. Raises CannotError when it can be neither read
    nor made.
    """
    try:
        repository.ask("cat", "config")
    except CannotError as error:
        if NOTHING not in str(error.__cause__) or REFUSED.search(str(error.__cause__)):
            raise
        with _turns[repository.location]:
            _init(repository)
        return True
    return False


def _init(repository: Repository) -> None:
    """Two of restic's `init` at once spoil a repository: each writes its own key, and one the config. So those of this
    process take turns, and on a disk those of all; whoever comes second finds it made. Elsewhere nothing keeps two
    machines apart: there it is looked at afterwards.

    A killed one left its key: it is removed first, as of two keys with one password whichever comes first opens.
    Raises CannotError, also where its disk is not mounted, and where a config was lost DamagedError.
    """
    script = r"""
        umask 077
        point=$(unmounted "$1" | head -n 1); [ -z "$point" ] || { printf %s "$point" >&2; exit 47; }
        mkdir -p -- "$1" && exec 9<"$1" && flock -w 60 9 || exit
        [ -e "$1/config" ] && exit
        [ -z "$(find "$1/data" "$1/snapshots" -type f 2>/dev/null | head -n 1)" ] || exit 46
        rm -f -- "$1"/keys/*
        shift
        exec "$@"
    """
    argv = repository.argv("init")
    on_a_disk = ["sh", "-c", UNMOUNTED + script, "sh", repository.location, *argv]
    command = on_a_disk if repository.location.startswith("/") else argv
    try:
        repository.run(command, deadline=120.0)
    except CommandError as failed:
        if failed.exit_code_of_command == 46:
            raise DamagedError(
                f"Damaged: the {repository.title} holds data, and its file `config` is gone.",
                safe="nothing was changed",
                hint="copy that file back from wherever it is; without it restic reads nothing here",
            ) from failed
        if failed.exit_code_of_command == 47:
            raise CannotError(
                f"The {repository.title} is not there, and none was made: {told(failed.stderr)}.",
                safe="nothing was changed",
                hint=mend(failed.stderr, repository.shell.where),
            ) from failed
        # restic asks itself first, and refuses where one is: what let us come here is also said of a storage that
        # does not answer.
        if "already" not in failed.stderr:
            raise repository.explained(failed.stderr, argv) from failed
        repository.ask("cat", "config")
    else:
        if not repository.location.startswith("/"):
            _refuse_two(repository)


def _refuse_two(repository: Repository) -> None:
    """Raises DamagedError when another machine made the repository at the same time, each with a key of its own."""
    sleep(_SETTLING)  # whoever found none before we made ours has written its own by then
    try:
        keys = json.loads(repository.ask("key", "list"))
    except DamagedError:
        keys = []
    if len(keys) != 1:
        raise DamagedError(
            f"Two machines made the {repository.title} at the same time, which spoilt it.",
            safe="nothing was backed up there",
            hint="remove what is at that place: it holds no backup; then back up from one machine first",
        )

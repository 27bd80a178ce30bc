"""What a restored copy carries along from the day of its backup, and what no backup carries."""

from __future__ import annotations

from collections.abc import Iterator

from salvor.change import Finding, Level
from salvor.postgres.physical import Physical
from salvor.postgres.server import Server


def port(subject: str, staged: Physical, evidence: str) -> Iterator[Finding]:
    """Whether its own settings, which are as old as the backup, have it listen where the live server does."""
    its, live = staged.stage.setting("port"), staged.live
    if its and its != str(live.port):
        level = Level.WARN if live.start_command else Level.FAIL  # a service manager may name another one
        detail = f"HINT: set port in {staged.stage.configuration_file}, then the same command again"
        yield Finding(subject, "port", level, its, str(live.port), detail, evidence)


# The database of a logical slot stands behind its name in its file: ReplicationSlotOnDisk in slot.c; 0: it is physical.
_SLOTS = r"""
cd -- "$1/pg_replslot" 2>/dev/null || exit 0
for name in *; do
    [ ! -e "$name/state" ] || echo "$name $(od -A n -t u4 -j 80 -N 4 -- "$name/state")"
done
"""


def slots(subject: str, live: Server, evidence: str) -> Iterator[Finding]:
    """The logical replication slots of what is live, as far as it can be read. No backup has any."""
    listed = live.shell.run(["sh", "-c", _SLOTS, "sh", live.data]).stdout.splitlines()
    logical = [line.split()[0] for line in listed if line.split()[1:] not in ([], ["0"])]
    if logical:
        detail = (
            f"{', '.join(logical)}: no backup has them, and what reads them would miss changes. "
            "HINT: make them again (pg_create_logical_replication_slot), and have the readers copy anew"
        )
        yield Finding(subject, "replication slots", Level.WARN, f"{len(logical)} are lost", "", detail, evidence)

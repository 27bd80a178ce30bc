"""What a restored copy carries along from the day of its backup, and what no backup carries."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from psycopg import sql

from salvor.change import Finding, Level
from salvor.plain import amount
from salvor.postgres import fence
from salvor.postgres.physical import Physical, without_recovery
from salvor.postgres.server import Server
from salvor.postgres.side_database import SideDatabase
from salvor.postgres.stage_wal import WAL_WAS_AT


def port(subject: str, staged: Physical, evidence: str) -> Iterator[Finding]:
    """Whether its own settings, which are as old as the backup, have it listen where the live server does."""
    its, live = staged.stage.setting("port"), staged.live
    if its and its != str(live.port):
        level = Level.WARN if live.start_command else Level.FAIL  # a service manager may name another one
        detail = f"HINT: set port in {staged.stage.configuration_file}, then the same command again"
        yield Finding(subject, "port", level, its, str(live.port), detail, evidence)


def wal(subject: str, marker: Mapping[str, Any], evidence: str) -> Iterator[Finding]:
    """Whether its pg_wal could not be on the disk where the live one is, by its marker."""
    if was_at := marker.get(WAL_WAS_AT):
        detail = f"it was a link to {was_at}, where nothing could be placed or too little is free; now the data's disk"
        yield Finding(subject, "pg_wal", Level.WARN, "with the data", "", detail, evidence)


def subscriptions(subject: str, side: SideDatabase, evidence: str) -> Iterator[Finding]:
    """Those of the database that is to be kept: its server runs, so they go on there."""
    server = side.server
    with server.session() as connection:
        rows = connection.execute(
            "select subname from pg_subscription join pg_database d on d.oid = subdbid "
            "where datname = %s and subenabled order by 1",
            [side.database],
        ).fetchall()
    if rows:
        disable = sql.SQL("; ").join(
            sql.SQL("alter subscription {} disable").format(sql.Identifier(one)) for (one,) in rows
        )
        psql = [server.program("psql"), "-h", server.address, "-p", str(server.port), "-U", server.operator.user]
        command = shlex.join([*psql, "-d", side.kept, "-c", disable.as_string()])
        names = ", ".join(one for (one,) in rows)
        detail = (
            f"they go on in {side.kept}, and take there what the publisher has for them; once that is its name: "
            f"{command} (an inv undo needs them enabled again)"
        )
        yield Finding(subject, "subscriptions of what is kept", Level.WARN, names, "none", detail, evidence)


_ACCESS = ("pg_hba.conf", "pg_ident.conf")
_OWN = ("postgresql.conf", "conf.d/*.conf")
"""What counts only where the configuration lies in the data directory. What ALTER SYSTEM sets is always there."""
_READ = r"""
cd -- "$1" 2>/dev/null || exit 0
for name in $2; do
    [ ! -f "$name" ] || { printf '\f%s\n' "$name" && cat -- "$name" 2>/dev/null; }
done
:
"""
_SETTING = re.compile(r"^\s*([a-z_][\w.]*)(?:\s*=\s*|\s+)('(?:[^'\\]|''|\\.)*'|[^\s#']+)", re.M | re.I)


def configuration(subject: str, staged: Physical, evidence: str) -> Iterator[Finding]:
    """What its own configuration, which is as old as the backup, has otherwise than the live one. Values are not shown:
    they may be secret.
    """
    live, its = _configuration(staged.live), _configuration(staged.stage)
    if any(name not in live for name in its if name not in _ACCESS):
        return  # nothing is left to compare with, or not all of it
    new, old = _settings(live), _settings(its)
    names = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name) and name != "port")
    parts = [amount(len(names), "setting")] if names else []
    for name in _ACCESS:
        ours, theirs = (_lines(one[name]) if name in live.keys() & its.keys() else Counter() for one in (live, its))
        if count := ((ours - theirs) + (theirs - ours)).total():
            parts.append(f"{amount(count, 'line')} of {name}")
    if parts:
        detail = (
            f"{', '.join(names) or 'they'} will be as in the backup. HINT: diff {shlex.quote(staged.live.data)} and "
            f"{shlex.quote(staged.stage.data)}, and set there what is to stay; once it is live, the newer files are in "
            f"{shlex.quote(staged.kept)}"
        )
        yield Finding(subject, "configuration", Level.WARN, f"{', '.join(parts)} differ", "", detail, evidence)


def _configuration(server: Server) -> dict[str, str]:
    """The files of the configuration in a server's data directory, by their path there."""
    names = [*(() if server.configuration else _OWN), "postgresql.auto.conf", *_ACCESS]
    said = server.shell.run(["sh", "-c", _READ, "sh", server.data, " ".join(names)]).stdout
    return {name: text for name, _, text in (one.partition("\n") for one in said.split("\f")[1:])}


def _settings(files: Mapping[str, str]) -> dict[str, str]:
    """What the files set: the last one counts."""
    texts = [text for name, text in files.items() if name not in _ACCESS]
    return {name.lower(): value.strip("'") for name, value in _SETTING.findall(without_recovery("\n".join(texts)))}


def _lines(access: str) -> Counter[str]:
    """The lines of a pg_hba.conf or pg_ident.conf that say something, without the fence."""
    lines = (" ".join(line.partition("#")[0].split()) for line in fence.without(access).splitlines())
    return Counter(line for line in lines if line)


# The database of a logical slot stands behind its name in its file: ReplicationSlotOnDisk in slot.c; 0: it is physical.
_SLOTS = r"""
cd -- "$1/pg_replslot" 2>/dev/null || exit 0
for name in *; do
    [ ! -e "$name/state" ] || echo "$name $(od -A n -t u4 -j 80 -N 4 -- "$name/state")"
done
"""


def slots(subject: str, live: Server, copy: Server, evidence: str) -> Iterator[Finding]:
    """The logical replication slots of what is live, as far as it can be read, that `copy` lacks. No backup has any,
    and a standby only those that PostgreSQL 17 or somebody keeps in step.
    """
    if lost := sorted(_logical_slots(live) - _logical_slots(copy)):
        detail = (
            f"{', '.join(lost)}: the copy does not have them, and what reads them would miss changes. "
            "HINT: make them again (pg_create_logical_replication_slot), and have the readers copy anew"
        )
        yield Finding(
            subject, "replication slots", Level.WARN, f"{amount(len(lost), 'slot')} lost", "", detail, evidence
        )


def _logical_slots(server: Server) -> set[str]:
    listed = server.shell.run(["sh", "-c", _SLOTS, "sh", server.data], deadline=5.0).stdout.splitlines()
    return {line.split()[0] for line in listed if line.split()[1:] not in ([], ["0"])}

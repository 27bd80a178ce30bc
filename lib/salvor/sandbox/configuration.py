"""The configuration of a sandbox's PostgreSQL and pgBackRest."""

from __future__ import annotations

import getpass
from pathlib import Path

from salvor.sandbox import folders
from salvor.sandbox.folders import Folders
from salvor.sandbox.layout import ADDRESSES, Layout

STANZA = "orders"

# Stands in the data directory, so every backup holds it; what differs from member to member is included from beside
# it. A backup of one member can therefore become the data directory of the other.
SETTINGS = """
# ---- the sandbox
include_if_exists '../member.conf'
max_connections = 40
shared_buffers = 64MB
max_wal_size = 512MB
wal_level = replica
wal_log_hints = on
wal_keep_size = 64MB
# Else what it shares would stay in memory for good when the server is killed and its directory removed.
dynamic_shared_memory_type = mmap
track_commit_timestamp = on
hot_standby = on
password_encryption = scram-sha-256
log_checkpoints = off
log_line_prefix = '%m [%p] %q%u@%d '
log_timezone = 'UTC'
timezone = 'UTC'
"""

_MEMBER = """\
# What is particular to this member; postgresql.conf in the data directory includes it.
listen_addresses = '{address}'
port = {port}
unix_socket_directories = '{folder}'
archive_mode = on
archive_timeout = 5s
archive_command = '{pgbackrest} archive-push %p'
restore_command = '{pgbackrest} archive-get %f "%p"'
"""

_FOLLOWS = """\
primary_conninfo = '{connection}'
wal_retrieve_retry_interval = 500ms
"""

_ACCESS = """\
# type  database     user       address       method
local   all          {owner}                  peer
host    all          all        127.0.0.0/8   scram-sha-256
host    replication  replica    127.0.0.0/8   scram-sha-256
"""

_PGBACKREST = """\
[global]
repo1-path={root}/repository
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={passphrase}
repo1-bundle=y
repo1-retention-full=3
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-timeout=30
lock-path={root}/pgbackrest/lock
spool-path={root}/pgbackrest/spool
log-path={root}/pgbackrest/log
log-level-file=off

[{stanza}]
pg1-path={data}
pg1-port={port}
pg1-socket-path={folder}
"""


def write(sandbox: Layout) -> None:
    """Write the files that name this sandbox's folders and ports."""
    _give(sandbox, sandbox.root / "replica.pgpass", f"*:*:*:replica:{sandbox.secret('replica.password')}\n")
    write_pgbackrest(sandbox, STANZA, sandbox.data("a"))
    for member, other in (("a", "b"), ("b", "a")):
        connection = (
            f"host={ADDRESSES[other]} port={sandbox.database_port} user=replica application_name={member}"
            f" passfile={sandbox.root}/replica.pgpass connect_timeout=3"
        )
        write_member(sandbox, STANZA, sandbox.data(member), ADDRESSES[member], _FOLLOWS.format(connection=connection))


def write_pgbackrest(sandbox: Folders, stanza: str, data: Path) -> None:
    """Write pgBackRest's configuration for the server of a data directory, whose socket is beside it."""
    text = _PGBACKREST.format(
        root=sandbox.root,
        stanza=stanza,
        data=data,
        folder=data.parent,
        port=sandbox.database_port,
        passphrase=sandbox.secret("repository.passphrase"),
    )
    _give(sandbox, sandbox.root / "pgbackrest.conf", text)


def write_member(sandbox: Folders, stanza: str, data: Path, address: str, more: str = "") -> None:
    """Write what is particular to the server of a data directory, beside it."""
    # PostgreSQL runs these commands by sh in its data directory, so they fit whichever directory that is.
    pgbackrest = f'pgbackrest --config={sandbox.root}/pgbackrest.conf --stanza={stanza} --pg1-path="$PWD"'
    text = _MEMBER.format(address=address, port=sandbox.database_port, folder=data.parent, pgbackrest=pgbackrest)
    _give(sandbox, data.parent / "member.conf", text + more)


def owner(sandbox: Folders) -> str:
    """The operating-system user of the servers, which is also the name of the role that made the cluster."""
    return sandbox.run_as or getpass.getuser()


def access(sandbox: Folders) -> str:
    """The text of pg_hba.conf."""
    return _ACCESS.format(owner=owner(sandbox))


def _give(sandbox: Folders, path: Path, text: str) -> None:
    """Write a file for the servers' user."""
    folders.write(path, text)
    sandbox.give(path)

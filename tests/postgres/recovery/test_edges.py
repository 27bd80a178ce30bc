"""What real clusters have: tablespaces, encrypted repositories, settings that grew, configuration elsewhere, gaps."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from salvor import clock
from salvor.change import Finding, Level, Progress, Reachable, WayBack
from salvor.errors import CannotError
from salvor.postgres import backing_up, backrest, backrest_work, promotion, replay, restore_point, silent
from salvor.postgres.backrest import Repository
from salvor.postgres.physical import STAGE
from salvor.postgres.wal import write_lsn
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests import fstab
from tests.postgres.recovery.clusters import Cluster, is_up, lsn, now, wait_until_archived
from tests.waiting import until

WISH = Wish(rpo=30.0)


def stage(cluster: Cluster, wish: Wish = WISH) -> list[Finding]:
    way = cluster.way("physical", wish)
    assert way.possible and way.arguments, way.why
    cluster.do("stage", **way.arguments)
    return list(cluster.system.verify(way, wish))


def test_targets_by_name_and_by_lsn(cluster: Cluster) -> None:
    with cluster.server("a").session("orders", writes=True) as connection:  # of which a stage has no pages
        connection.execute("create unlogged table scratch as select generate_series(1, 1000)")
    cluster.write("a", 5)
    with cluster.server("a").session(writes=True) as connection:
        row = connection.execute("select pg_create_restore_point('before-release')::text").fetchone()
    assert row
    cluster.write("a", 5)
    for target in ("name:before-release", f"lsn:{row[0]}"):
        findings = stage(cluster, Wish(target=target))
        assert {finding.level for finding in findings} == {Level.PASS}, findings
        there = cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE)
        assert there == 5, target
    cluster.do("drop", stage=STAGE)
    left = cluster.sandbox.shell.run(["ls", f"{cluster.sandbox.root}/a"]).stdout.split()
    assert left == ["data", "data.log", "member.conf"]


def test_a_disk_that_would_fill_is_found_before_it_begins(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk is real; the backup only seems to be larger than it, and the dump is a file with holes."""
    room = shutil.disk_usage(cluster.sandbox.root)
    dump = tmp_path / "orders.sql"
    backups = cluster.system.site.repository(cluster.system.site.member("a")).stored

    def way(name: str, size: int) -> WayBack:
        with dump.open("w") as file:
            file.truncate(size)
        with monkeypatch.context() as patch:
            patch.setattr(Repository, "stored", [replace(one, size=size) for one in backups])
            return cluster.way(name, WISH if name == "physical" else Wish(source=str(dump)))

    for name in ("physical", "logical"):
        assert way(name, room.free // 2).possible, name
        full = way(name, 2 * room.total)
        assert (full.possible, full.lacks_room) == (False, name == "physical"), name
        assert re.search(r"needs [\d,]+ MB beside .*/a/data on this machine, where [\d,]+ MB are free", full.why), name
        assert full.loses == (0.0 if name == "physical" else None), "what it would lose with more room"
    df = cluster.sandbox.root / "nine-megabytes" / "df"
    df.parent.mkdir()
    df.parent.chmod(0o755)
    df.write_text("#!/bin/sh\necho avail; echo 9000\n")
    df.chmod(0o755)
    monkeypatch.setenv("PATH", f"{df.parent}:{os.environ['PATH']}")
    assert "needs 21 MB" in way("logical", 4096).why, "a cluster beside is never smaller"


def test_damage_in_the_stage_is_found(cluster: Cluster) -> None:
    """amcheck where it is installed, and every page of every table where it is not."""
    with cluster.server("a").session("orders", writes=True) as connection:
        connection.execute("create extension amcheck")
    findings = stage(cluster)
    assert [finding.detail for finding in findings if finding.check == "integrity of orders"] == [
        "pg_amcheck: tables and B-tree indexes"
    ]
    staged = cluster.system.site.physical(cluster.system.site.member("a")).stage
    with staged.session("orders") as connection:
        table = connection.execute("select pg_relation_filepath('order_lines')").fetchone()
    with staged.session("postgres") as connection:
        catalog = connection.execute("select pg_relation_filepath('pg_depend')").fetchone()
    assert table and catalog
    staged.stop("fast")
    for path in (table[0], catalog[0]):
        with open(f"{staged.data}/{path}", "r+b") as file:  # noqa: PTH123
            file.seek(3 * 8192 + 4000)
            file.write(b"\x5a" * 64)
    way = cluster.way("physical", WISH)
    assert way.arguments
    cluster.do("stage", **way.arguments)  # it is whole, so this only starts it
    heard: list[tuple[str, Progress | None]] = []
    context = replace(cluster.system.context, hears=lambda name, progress: heard.append((name, progress)))
    system = Postgres("orders-db", cluster.system.settings, context)
    failed = {finding.check: finding for finding in system.verify(way, WISH) if finding.level is Level.FAIL}
    assert (heard[0], heard[-1]) == (
        ("orders-db", Progress(0, None, "bytes", "reading every table")),
        ("orders-db", None),
    )
    assert {"integrity of orders", "integrity of postgres"} <= set(failed), failed
    assert "order_lines" in failed["integrity of orders"].detail
    assert "pg_depend" in failed["integrity of postgres"].detail


def test_settings_that_grew_since_the_backup(cluster: Cluster) -> None:
    with cluster.server("a").session(writes=True) as connection:
        connection.execute("alter system set max_connections = 90")
    for member in ("b", "a"):
        cluster.server(member).stop("fast")
    cluster.server("a").start()
    cluster.write("a", 5)
    cluster.crash("a")
    cluster.sandbox.shell.run(["rm", "-rf", f"{cluster.server('b').data}"])
    findings = stage(cluster)
    assert Level.FAIL not in {finding.level for finding in findings}, findings


@contextmanager
def cut_in_a_block(folder: Path) -> Iterator[None]:
    """The backup.info of an encrypted repository ends amid a block, which no passphrase decrypts."""
    whole = {path: path.read_bytes() for path in folder.glob("backup.info*")}
    for path in whole:
        os.truncate(path, 31)
    try:
        yield
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


def test_an_encrypted_repository_whose_passphrase_is_a_reference(cluster: Cluster) -> None:
    cluster.write("a", 5)
    root = cluster.sandbox.root
    text = (root / "pgbackrest.conf").read_text()
    found = re.search(r"^repo1-cipher-pass=(.*)\n", text, re.M)
    assert found
    (root / "without.conf").write_text(text.replace(found[0], ""))
    if cluster.sandbox.run_as:
        shutil.chown(root / "without.conf", cluster.sandbox.run_as)
    for name, content in (("right", found[1]), ("wrong", "not it")):
        (cluster.sandbox.place / name).write_text(content)
        (cluster.sandbox.place / name).chmod(0o600)

    def system(passphrase: str) -> Postgres:
        assert cluster.system.settings.pgbackrest
        update = {"config": str(root / "without.conf"), "passphrase": f"file:{cluster.sandbox.place / passphrase}"}
        pgbackrest = cluster.system.settings.pgbackrest.model_copy(update=update)
        settings = cluster.system.settings.model_copy(update={"pgbackrest": pgbackrest})
        return Postgres("orders-db", settings, cluster.system.context)

    with pytest.raises(CannotError, match="cannot read its repository") as raised:
        system("wrong").backups()
    assert "repo1-cipher-pass" in raised.value.hint
    with cut_in_a_block(root / "repository" / "backup" / "orders"):
        with pytest.raises(CannotError, match="CryptoError") as raised:
            system("wrong").backups()
        assert "repo1-cipher-pass" in raised.value.hint
    way = next(way for way in system("wrong").ways_back(WISH) if way.name == "physical")
    assert not way.possible and "cannot read its repository" in way.why
    encrypted = Cluster(cluster.sandbox, system("right"), cluster.acknowledged)
    findings = stage(encrypted)
    assert Level.FAIL not in {finding.level for finding in findings}, findings
    arguments = cluster.sandbox.shell.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null; :"]).stdout
    assert found[1] not in arguments


def test_without_its_password_or_privileges_a_healthy_server_is_not_called_broken(cluster: Cluster) -> None:
    settings = cluster.system.settings
    unset = settings.operator.model_copy(update={"password": "env:SALVOR_TEST_IS_NOT_SET"})
    system = Postgres("orders-db", settings.model_copy(update={"operator": unset}), cluster.system.context)
    assert system.observe().reachable is Reachable.UNKNOWN
    with pytest.raises(CannotError, match="cannot be asked whether it is broken") as refused:
        system.ways_back(WISH)
    assert "env:SALVOR_TEST_IS_NOT_SET" in refused.value.hint

    with cluster.server("a").session(writes=True) as connection:
        connection.execute("alter role salvor nosuperuser")
    assert cluster.observe().reachable is Reachable.UNKNOWN
    with pytest.raises(CannotError, match="may be well, but its operator may not ask"):
        cluster.system.ways_back(WISH)


def test_tablespaces_are_placed_beside_and_removed_with_what_used_them(cluster: Cluster) -> None:
    cluster.server("b").stop("fast")  # on the same machine it cannot have the same path
    space = f"{cluster.sandbox.root}/a/space"
    cluster.sandbox.shell.run(["mkdir", "-m", "700", space])
    with cluster.server("a").session("orders", writes=True, deadline=20) as connection:
        connection.execute(f"create tablespace quick location '{space}'")
        connection.execute("create table elsewhere tablespace quick as select generate_series(1, 1000) as n")
    cluster.do("backup", kind="full")
    identity = cluster.observe().identity
    way = cluster.way("physical", WISH)
    cluster.recover(way, identity)
    assert is_up(cluster.observe())
    assert cluster.system.ask("select count(*) from elsewhere", "live") == 1000
    with cluster.server("a").session("orders") as connection:
        row = connection.execute("select pg_tablespace_location(oid) from pg_tablespace order by oid desc").fetchone()
    assert row == (f"{space}.salvor-{cluster.system.context.incident}",)
    cluster.undo(way.promote_undo)
    cluster.do("drop", stage=STAGE)
    assert not cluster.sandbox.shell.exists(row[0])
    cluster.do("unfence", identity=identity)
    assert cluster.system.ask("select count(*) from elsewhere", "live") == 1000

    again = cluster.other_incident()
    again.recover(again.way("physical", WISH), identity)
    kept = again.observe().kept
    again.do("discard", identity=identity, kept=kept[0].name)
    assert not cluster.sandbox.shell.exists(space)
    assert again.system.ask("select count(*) from elsewhere", "live") == 1000


def test_wal_that_is_missing_is_said_and_its_loss_must_be_accepted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_GAP_SECONDS", 2.0)
    for _ in range(3):
        cluster.write("a", 3)
        wait_until_archived(cluster)
    archived = sorted(cluster.sandbox.root.glob("repository/archive/*/*/*/0*-*"))
    before = datetime.fromtimestamp(archived[-3].stat().st_mtime, UTC)
    archived[-2].unlink()
    assert [one.window for one in cluster.system.backups()] == [None], "it leads to its own moment only"
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("a").data])
    behind = cluster.way("physical", replace(WISH, at=clock.now()))
    assert not behind.possible and f"a gap behind {archived[-3].name[:24]}" in behind.why
    way = cluster.way("physical", WISH)
    assert way.arguments and way.loses
    assert way.loses == pytest.approx(clock.age(before).total_seconds(), abs=2.0)
    assert "only with --override='accept-missing-wal=REASON'" in way.why
    with pytest.raises(CannotError, match="WAL is missing") as error:
        cluster.do("stage", **way.arguments)
    assert "accept-missing-wal" in error.value.hint
    wish = replace(WISH, overrides={"accept-missing-wal": "the archive was damaged too"})
    assert Level.FAIL not in {finding.level for finding in stage(cluster, wish)}


def test_a_timeline_that_only_the_second_repository_has_is_followed(cluster: Cluster) -> None:
    """The first one takes nothing any more, which nobody saw."""
    root, shell = cluster.sandbox.root, cluster.sandbox.shell
    configuration = root / "pgbackrest.conf"
    text = configuration.read_text()
    configuration.write_text(text.replace("[global]\n", f"[global]\nrepo2-path={root}/a/second\n"))
    shell.run(["pgbackrest", f"--config={configuration}", "--stanza=orders", "stanza-create"], deadline=60.0)
    wait_until_archived(cluster)
    (folder,) = root.glob("a/second/archive/orders/15-1")
    shell.write(f"{folder}/00000002.history", f"1\t{write_lsn(lsn(cluster))}\tno recovery target specified\n")
    for member in ("b", "a"):
        cluster.crash(member)
        shutil.rmtree(cluster.sandbox.data(member))
    way = cluster.other_incident().way("physical", WISH)
    assert way.arguments and way.arguments["timeline"] == 2


def begin_a_timeline(cluster: Cluster) -> None:
    """Have the primary go on with timeline 2, as after a failover."""
    server = cluster.server("a")
    cluster.server("b").stop("fast")
    with server.session(writes=True) as connection:
        connection.execute("alter system set restore_command = 'false'")
    server.stop("fast")
    server.shell.run(["touch", f"{server.data}/recovery.signal"])
    server.start()
    with server.session() as connection:  # it lets sessions in before its recovery ends
        assert until(lambda: connection.execute("select pg_is_in_recovery()").fetchone() == (False,))


def history_of(cluster: Cluster) -> Path:
    """The file in the archive that tells of timeline 2."""
    (history,) = (cluster.sandbox.root / "repository").glob("archive/orders/15-1/00000002.history*")
    return history


def test_a_timeline_was_live_before_the_archive_took_its_history(cluster: Cluster) -> None:
    """As after a failover to a server whose archiver fails at first: what was written meanwhile can be gone back to."""
    begin_a_timeline(cluster)
    cluster.write("a", 1)
    moment = now(cluster)
    wait_until_archived(cluster)
    cluster.sandbox.shell.run(["touch", "-d", f"@{moment.timestamp() + 60}", str(history_of(cluster))])
    way = cluster.way("physical", replace(WISH, at=moment))
    assert way.arguments and way.arguments["timeline"] == 2


def test_a_repository_that_was_begun_anew_after_a_failover_is_restored_from(cluster: Cluster) -> None:
    """It has no history file of the timeline that is live: that was archived to the one that was lost."""
    begin_a_timeline(cluster)
    wait_until_archived(cluster)
    history_of(cluster).unlink()
    cluster.do("backup", kind="full")
    cluster.write("a", 5)
    wait_until_archived(cluster)
    assert Level.FAIL not in {finding.level for finding in stage(cluster)}
    assert cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE) == 5


def test_a_backup_goes_to_every_repository(cluster: Cluster) -> None:
    """pgBackRest alone takes the first one, and the second would have WAL and nothing to replay it onto."""
    root, shell = cluster.sandbox.root, cluster.sandbox.shell
    configuration = root / "pgbackrest.conf"
    text = configuration.read_text()
    configuration.write_text(text.replace("[global]\n", f"[global]\nrepo2-path={root}/a/second\n"))
    lacks = "no backup of this cluster in pgBackRest 2"
    assert ("stanza-create; then inv backup" in found(cluster)[lacks]) and lacking(cluster) == {lacks: "incr"}
    assert not shell.user or f"on this machine as {shell.user}: pgbackrest" in found(cluster)[lacks]
    configuration.write_text(configuration.read_text().replace("archive-timeout=30", "archive-timeout=1"))
    with pytest.raises(CannotError, match="while pgBackRest 2 lacks the stanza") as refused:
        cluster.do("backup", kind="incr")
    assert "stanza-create; then inv backup" in refused.value.hint
    configuration.write_text(configuration.read_text().replace("archive-timeout=1", "archive-timeout=30"))
    shell.run(["pgbackrest", f"--config={configuration}", "--stanza=orders", "stanza-create"], deadline=60.0)
    assert (found(cluster)[lacks], lacking(cluster)) == ("inv backup", {lacks: "incr"})
    shell.run(["chmod", "000", f"{root}/a/second/backup/orders"])
    assert "pgBackRest 2 cannot be read" in found(cluster) and not lacking(cluster)
    shell.run(["chmod", "500", f"{root}/a/second/backup/orders"])
    said = [one for one in cluster.do("backup", kind="incr") if isinstance(one, Finding)]
    assert [(one.level, one.figure) for one in said] == [(Level.WARN, "pgBackRest 2 does not have it")]
    shell.run(["chmod", "700", f"{root}/a/second/backup/orders"])
    assert not [one for one in cluster.do("backup", kind="incr") if isinstance(one, Finding)]
    assert lacks not in found(cluster) and not lacking(cluster)
    newest = {one.repository: one for one in reversed(cluster.system.backups())}
    assert {name: (one.kind, bool(one.fingerprint)) for name, one in newest.items()} == {
        "pgBackRest 1": ("incr", True),
        "pgBackRest 2": ("full", True),
    }
    shutil.rmtree(root / "repository")
    assert lacking(cluster) == {"no backup of this cluster in pgBackRest 1": "incr"}
    way = cluster.other_incident().way("physical", WISH)
    assert (way.possible, way.backup) == (True, newest["pgBackRest 2"].id)


def test_a_repository_that_does_not_answer_holds_up_none_that_does(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port takes connections, and says nothing. pgBackRest waits for it for minutes before it asks the next one."""
    monkeypatch.setattr(backrest, "_ANSWERING", 3.0)
    monkeypatch.setattr(silent, "_remembered", {})
    cluster.write("a", 5)
    cluster.crash("a")
    configuration = cluster.sandbox.root / "pgbackrest.conf"
    text = configuration.read_text()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        second = {
            "type": "s3",
            "s3-bucket": "orders",
            "s3-endpoint": "127.0.0.1",
            "s3-uri-style": "path",
            "storage-port": mute.getsockname()[1],
            "s3-region": "nowhere",
            "s3-key": "key",
            "s3-key-secret": "secret",
            "path": "/orders",
        }
        lines = "".join(f"repo2-{name}={value}\n" for name, value in second.items())
        configuration.write_text(text.replace("[global]\n", f"[global]\n{lines}"))
        findings = stage(cluster)
        assert Level.FAIL not in {finding.level for finding in findings}, findings
        way = cluster.way("physical", WISH)
        assert "pgBackRest 2 cannot be read (no answer)" in way.why
        assert cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE) == 5
        repository = cluster.system.site.repository(cluster.system.site.member("a"))
        with pytest.raises(CannotError, match="pgBackRest 2 was not asked for a backup: no answer"):
            list(backrest_work.take(repository, "full", 2, cluster.server("a"), "", keeps_all=True))


def found(cluster: Cluster) -> dict[str, str]:
    """What is amiss with its repositories."""
    audit = cluster.other_incident().system.audit(deep=False)
    return {one.figure: one.detail for one in audit if isinstance(one, Finding) and one.level is not Level.PASS}


def lacking(cluster: Cluster) -> dict[str, Any]:
    """What inv protect would back up, and why."""
    changes = backing_up.lacking(cluster.other_incident().system)
    return {str(one.why).removeprefix("there is "): one.arguments["kind"] for one in changes}


def test_configuration_outside_the_data_directory(cluster: Cluster) -> None:
    """As on Debian: postgresql.conf and pg_hba.conf lie elsewhere, and are not in the backup."""
    cluster.write("a", 5)
    server = cluster.server("a")
    server.stop("fast")
    folder = f"{cluster.sandbox.root}/a/etc"
    script = r"""
        set -eu; mkdir -m 700 "$2"
        mv "$1/postgresql.conf" "$1/pg_hba.conf" "$1/pg_ident.conf" "$2/"
        sed -i "s#'../member.conf'#'$2/../member.conf'#" "$2/postgresql.conf"
        printf "data_directory = '%s'\nhba_file = '%s'\nident_file = '%s'\nexternal_pid_file = '%s'\n" \
            "$1" "$2/pg_hba.conf" "$2/pg_ident.conf" "$2/main.pid" >> "$2/postgresql.conf"
    """
    cluster.sandbox.shell.run(["sh", "-c", script, "sh", server.data, folder])
    first, second = cluster.system.settings.members
    member = first.model_copy(update={"configuration": f"{folder}/postgresql.conf"})
    settings = cluster.system.settings.model_copy(update={"members": (member, second)})
    debian = Cluster(cluster.sandbox, Postgres("orders-db", settings, cluster.system.context), cluster.acknowledged)
    live = debian.system.site.member("a").server
    live.start()
    debian.do("backup", kind="full")
    moment = now(cluster)
    debian.write("a", 5)
    identity = debian.observe().identity
    way = debian.way("physical", Wish(at=moment))
    debian.do("fence", identity=identity)
    assert way.arguments
    debian.do("stage", **way.arguments)
    pid = cluster.sandbox.shell.read(f"{folder}/main.pid")
    assert pid and int(pid) in live.processes(), "the stage leaves the live server's files alone"
    debian.do("promote", **way.promote)
    assert is_up(debian.observe()) and len(debian.missing("a")) == 5
    debian.write("a", 1)
    debian.undo(way.promote_undo)
    assert debian.observe().identity == identity
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        debian.shop("a")
    debian.do("unfence", identity=identity)
    debian.write("a", 1)


def test_a_service_manager_owns_the_server(cluster: Cluster) -> None:
    server = cluster.server("a")
    calls = f"{cluster.sandbox.root}/a/calls"
    script = f'echo "$1" >> {calls}; exec {server.program("pg_ctl")} -D {server.data} -l {server.log} -w "$1"'
    cluster.sandbox.shell.write(f"{cluster.sandbox.root}/a/manager", f"#!/bin/sh\n{script}\n", mode=0o700)
    manager = f"{cluster.sandbox.root}/a/manager"
    update = {"start": (manager, "start"), "stop": (manager, "stop")}
    settings = cluster.system.settings.model_copy(update=update)
    managed = Cluster(cluster.sandbox, Postgres("orders-db", settings, cluster.system.context), cluster.acknowledged)
    managed.write("a", 5)
    way = managed.way("physical", WISH)
    managed.recover(way, managed.observe().identity)
    assert is_up(managed.observe()) and managed.missing("a") == set()
    assert cluster.sandbox.shell.read(calls) == "stop\nstart\n"
    managed.crash("a")
    locks = sorted(path.name for path in (cluster.sandbox.root / "a").rglob("*") if ".lock" in path.name)
    assert not locks, "the manager's server would refuse to start where that number is another process's by now"
    managed.undo(way.promote_undo)  # pg_ctl, too, takes a stop of what does not run for an error
    assert managed.observe().reachable is Reachable.UP and managed.observe().writable is False


def test_backups_of_whoever_is_the_primary(cluster: Cluster) -> None:
    cluster.write("a", 3)
    cluster.recover(cluster.way("failover", WISH), cluster.observe().identity)
    cluster.write("b", 3)
    progress = cluster.do("backup", kind="incr")
    assert progress
    newest, *_, oldest = cluster.system.backups()
    assert (newest.kind, oldest.kind, newest.way) == ("incr", "full", "physical")
    assert oldest.window and newest.usable and newest.size > 0
    with pytest.raises(CannotError, match=f"{newest.id} needs {oldest.id}, which would be removed"):
        cluster.do("expire", repository="pgBackRest 1", backups=[oldest.id])
    assert cluster.system.backups()[-1].id == oldest.id
    repository = cluster.system.site.repository(cluster.system.site.member("b"))
    assert repository.lacking(cluster.server("b").identity().partition("@")[0]) == {}
    assert repository.lacking("4711") == {1: "inv backup"}, "another cluster's is none"
    way = cluster.way("physical", WISH)
    assert way.backup == newest.id and way.address == "127.0.0.12"
    assert way.arguments and way.arguments["timeline"] == 2


def test_the_content_of_a_physical_backup_is_proven_at_its_restore_point(cluster: Cluster) -> None:
    writing = threading.Event()
    writing.set()

    def write() -> None:
        while writing.is_set():
            cluster.write("a", 5)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        progress = cluster.do("backup", kind="incr")
        cluster.write("a", 5)
        writing.clear()
        writer.result()
    assert not [one for one in progress if "no fingerprint" in one.label], progress
    newest = cluster.system.backups()[0]
    assert newest.fingerprint
    point = newest.fingerprint["restore_point"]
    cluster.do("backup", kind="incr")  # a newer one does not reach it

    wish = Wish(target=f"name:{point}")
    way = cluster.way("physical", wish)
    assert way.backup == newest.id and way.arguments
    cluster.do("stage", **way.arguments)

    def verdict() -> Finding:
        found = [one for one in cluster.system.verify(way, wish) if one.check == "content fingerprint"]
        assert found
        return max(found, key=lambda finding: finding.level is Level.FAIL)

    assert verdict().level in (Level.PASS, Level.WARN), verdict()
    assert "orders" not in verdict().detail
    staged = cluster.system.site.physical(cluster.system.site.member("a")).stage
    list(promotion.promoting(staged))
    with staged.session("orders", writes=True) as connection:
        connection.execute("update orders set note = 'changed' where id = 4711")
    assert verdict().level is Level.FAIL and "orders" in verdict().detail

    cluster.do("drop", stage=STAGE)
    findings = stage(cluster.other_incident())
    assert [one.figure for one in findings if one.check == "content fingerprint"] == ["not comparable"]


def test_a_writer_that_does_not_end_costs_the_backup_only_its_fingerprint(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_point, "_TRIES", 2)
    with cluster.shop("a") as busy, busy.transaction():
        busy.execute("insert into orders (reference, customer_id, amount, status) values ('busy', 1, 1, 'paid')")
        progress = cluster.do("backup", kind="incr")
    assert "the backup is whole, and has no fingerprint" in progress[-1].label
    newest = cluster.system.backups()[0]
    assert newest.kind == "incr" and newest.usable and newest.fingerprint is None


def test_a_stage_whose_port_is_taken_by_that_of_another_incident(cluster: Cluster) -> None:
    """Whoever answers on the side port is not believed to be ours. A drill ends nobody's stage, and a recovery that of
    a drill, which may have been killed.
    """
    stage(cluster)
    other = cluster.other_incident()
    other.system.context = replace(other.system.context, is_drill=True)
    way = other.way("physical", WISH)
    assert way.arguments
    with pytest.raises(CannotError, match="could not"):
        other.do("stage", **way.arguments)
    assert [one.complete for one in other.observe().staged if one.name == STAGE] == [False]
    with pytest.raises(CannotError, match="is that of"):
        other.system.ask("select 1", STAGE)
    cluster.do("drop", stage=STAGE)
    assert Level.FAIL not in {finding.level for finding in stage(other)}
    (told,) = (said for said in cluster.do("stage", **way.arguments) if isinstance(said, Finding))
    assert f"the copy of the drill {other.system.context.incident} held it, and was ended" in told.figure
    assert [one.complete for one in cluster.observe().staged if one.name == STAGE] == [True]


def test_a_synchronous_standby_that_is_not_there_is_said(cluster: Cluster) -> None:
    with cluster.server("a").session(writes=True) as connection:
        for asked, commit, waits in (
            ("ANY 1 (*)", "on", False),
            ("ANY 2 (*)", "on", True),
            ("ANY 2 (*)", "local", False),
            ("", "on", False),
        ):
            for name, value in (("synchronous_standby_names", asked), ("synchronous_commit", commit)):
                connection.execute(sql.SQL("alter system set {} = {}").format(sql.SQL(name), sql.Literal(value)))
            connection.execute("select pg_reload_conf()")
            time.sleep(0.2)
            assert cluster.observe().writable is (None if waits else True), (asked, commit)
    with cluster.server("b").session(writes=True) as connection:
        connection.execute("alter system set synchronous_standby_names = 'nobody'")
        connection.execute("select pg_reload_conf()")
    way = cluster.way("failover", WISH)
    cluster.do("fence", identity=cluster.observe().identity)
    with pytest.raises(CannotError, match=r"does not take writes: its commits wait for .* \(nobody\)") as error:
        cluster.do("promote", **way.promote)
    state = cluster.observe()
    assert state.writable is None and "commits wait for" in state.summary, "the same command again is not done either"
    mend, again = error.value.hint.split("; ")
    password = {"PGPASSWORD": cluster.server("b").operator.secret(), "PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-c", mend], env=password, check=True, timeout=10)
    assert again == "then the same command again"
    cluster.do("promote", **way.promote)
    assert cluster.observe().writable is True


def test_a_damaged_backup_is_named_and_harms_nothing(cluster: Cluster) -> None:
    """One bit, in the largest file of the backup."""
    files = (cluster.sandbox.root / "repository/backup").rglob("*F/pg_data/**/*")
    path = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = cluster.observe()
    with pytest.raises(CannotError, match=r"Backup \S+ cannot be restored: .*(checksum|corruption)") as raised:
        stage(cluster)
    assert "inv backups" in raised.value.hint and "verify" in raised.value.hint
    assert f"inv undo --incident={cluster.system.context.incident}, then" in raised.value.hint
    assert cluster.observe().identity == before.identity
    assert not [one for one in cluster.observe().staged if one.name == STAGE and one.complete]
    cluster.do("drop", stage=STAGE)
    cluster.write("a", 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_data_directory_whose_disk_is_not_mounted_is_not_lost(cluster: Cluster) -> None:
    cluster.write("a", 5)
    cluster.crash("a")
    data = cluster.sandbox.data("a")
    whole = data.rename(f"{data}.disk")
    data.mkdir()
    with fstab.naming(data):
        assert (
            f"its data directory is not there: {data}, which /etc/fstab names, is not mounted"
            in cluster.observe().summary
        )
        assert "is not mounted" in cluster.way("physical", WISH).why
        assert cluster.way("failover", WISH).possible
        with pytest.raises(CannotError, match="comes back with it") as raised:
            cluster.do("fence", identity=cluster.observe().identity)
        assert f"mount {data}" in raised.value.hint
        cluster.crash("b")
        with pytest.raises(CannotError, match="may be whole on that disk"):
            cluster.way("physical", WISH)
        by_name = replace(WISH, ways=("from_dump", "physical"))
        assert {way.possible for way in cluster.system.ways_back(by_name)} == {False}
    assert cluster.system.site.view().of("a").is_lost  # that disk is not used any more
    assert cluster.other_incident().way("physical", WISH).possible
    data.rmdir()
    whole.rename(data)


def test_a_server_that_still_replays_its_wal_is_waited_for(cluster: Cluster) -> None:
    cluster.write("a", 5)
    for member in ("a", "b"):
        cluster.crash(member)
    server = cluster.server("a")
    signal = cluster.sandbox.data("a") / "recovery.signal"
    signal.touch()  # a replay that takes its time
    if cluster.sandbox.run_as:
        shutil.chown(signal, cluster.sandbox.run_as)
    server.launch({"restore_command": "sleep 60"})
    assert until(lambda: "starting up" in cluster.other_incident().observe().summary)
    with pytest.raises(CannotError, match=r"still starting: .* and takes sessions by itself then") as raised:
        cluster.other_incident().way("physical", WISH)
    assert f"--ppid {server.processes()[0]} shows the segment" in raised.value.hint
    asked = replace(WISH, ways=("physical",))
    assert cluster.other_incident().way("physical", asked).possible
    server.kill()
    signal.unlink()

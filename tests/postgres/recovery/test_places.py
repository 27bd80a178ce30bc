"""Data that is not all in one folder: WAL and tablespaces on disks of their own, and disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from salvor.errors import CannotError, NoRoomError
from salvor.postgres import replay
from salvor.postgres.physical import STAGE
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up, wait_until_archived

WISH = Wish(rpo=30.0)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextmanager
def disk(cluster: Cluster, path: Path, size: str) -> Iterator[Path]:
    """A disk of that size, in which the servers' user may write."""
    cluster.sandbox.shell.run(["mkdir", "-p", "-m", "700", str(path)])
    owner = f"uid={path.stat().st_uid},gid={path.stat().st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700,{owner}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def lead_wal_to(cluster: Cluster, place: Path, member: str = "a") -> None:
    """Have the pg_wal of a member there, and a link in its place."""
    server = cluster.server(member)
    server.stop("fast")
    script = 'mkdir -p -m 700 "$(dirname "$2")"; mv -T "$1/pg_wal" "$2" && ln -s "$2" "$1/pg_wal"'
    cluster.sandbox.shell.run(["sh", "-c", script, "sh", server.data, str(place)])
    server.start()


def unarchived(cluster: Cluster) -> None:
    with cluster.server("a").session(writes=True) as connection:
        connection.execute("alter system set archive_command = 'false'")
        connection.execute("select pg_reload_conf()")


def test_pg_wal_on_another_disk_comes_back_there(cluster: Cluster) -> None:
    place = cluster.sandbox.root / "a/wal/pg_wal"
    lead_wal_to(cluster, place)
    link = Path(f"{cluster.server('a').data}/pg_wal")

    def there() -> list[str]:
        return sorted(one.name for one in place.parent.iterdir())

    cluster.write("a", 5)
    identity = cluster.observe().identity
    way = cluster.way("physical", WISH)
    cluster.recover(way, identity)
    mine = f"pg_wal.salvor-{cluster.system.context.incident}"
    assert link.readlink() == place.with_name(mine)
    assert is_up(cluster.observe()) and not cluster.missing("a")
    cluster.write("a", 5)
    later = set(cluster.acknowledged[-5:])
    cluster.undo(way.promote_undo)
    assert link.readlink() == place
    cluster.do("drop", stage=STAGE)
    assert there() == ["pg_wal"]
    cluster.do("unfence", identity=identity)
    assert cluster.missing("a") == later

    again = cluster.other_incident()
    again.recover(again.way("physical", WISH), identity)
    data = Path(cluster.server("a").data)
    assert list(data.parent.glob("data.salvor-*.log")), "what the stage said stays as long as what it replaced"
    again.do("discard", identity=identity, kept=again.observe().kept[0].name)
    assert not list(data.parent.glob("data.*-*"))
    assert there() == [f"pg_wal.salvor-{again.system.context.incident}"]
    cluster.server("a").stop("fast")
    cluster.server("a").start()
    again.write("a", 1)


def test_a_standby_that_is_copied_anew_has_its_wal_on_its_own_disk(cluster: Cluster) -> None:
    place = cluster.sandbox.root / "b/wal/pg_wal"
    lead_wal_to(cluster, place, "b")
    link = Path(f"{cluster.server('b').data}/pg_wal")
    for suffix in ("", "-again"):
        cluster.server("b").stop("fast")
        cluster.do("rebuild_standby", member="b")
        assert link.readlink() == place.with_name(f"pg_wal.salvor-{cluster.system.context.incident}{suffix}")
    kept = cluster.observe().kept[0]
    cluster.do("discard", identity=kept.identity, kept=kept.name)
    assert [one.name for one in place.parent.iterdir()] == [link.readlink().name]
    assert not list(cluster.system.redundancy())


def test_a_standby_is_copied_anew_again_and_again_with_its_tablespaces_beside(cluster: Cluster) -> None:
    cluster.server("b").stop("fast")  # on the same machine it cannot have the same path
    space = cluster.sandbox.root / "a/space"
    cluster.sandbox.shell.run(["mkdir", "-m", "700", str(space)])
    with cluster.server("a").session("orders", writes=True, deadline=20) as connection:
        connection.execute(f"create tablespace quick location '{space}'".encode())
        connection.execute("create table elsewhere tablespace quick as select generate_series(1, 1000) as n")
    turns = [cluster, cluster, cluster.other_incident()]
    for turn in turns:
        turn.do("rebuild_standby", member="b")
        assert turn.system.ask("select count(*) from elsewhere", "standby b") == 1000
        cluster.server("b").stop("fast")
    for kept in turns[-1].observe().kept:
        cluster.do("discard", identity=kept.identity, kept=kept.name)
    left = sorted(one.name for one in space.parent.glob("space*"))
    assert left == ["space", f"space.salvor-{turns[-1].system.context.incident}"]


@needs_root
def test_a_disk_that_fills_while_the_stage_replays_is_no_missing_wal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone on with once there is room."""
    monkeypatch.setattr(replay, "_GAP_SECONDS", 1.0)
    with disk(cluster, cluster.sandbox.root / "a/disk", "64m") as place:
        lead_wal_to(cluster, place / "pg_wal")
        with cluster.server("a").session(writes=True, deadline=20) as connection:
            for _ in range(15):  # segments of 1 MB
                connection.execute("select pg_logical_emit_message(false, 'test', repeat('x', 1000000))")
        cluster.write("a", 5)
        wait_until_archived(cluster)
        cluster.do("fence", identity=cluster.observe().identity)
        way = cluster.way("physical", WISH)
        assert way.arguments
        ballast = place / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(place).free - (8 << 20)))
        with pytest.raises(NoRoomError, match=r"The disk of .* is full: the copy there cannot replay its WAL"):
            cluster.do("stage", **way.arguments)
        ballast.unlink()
        cluster.do("stage", **way.arguments)
        assert cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE) == 5


@needs_root
def test_the_room_of_a_tablespace_is_measured_before_a_standby_is_copied_anew(cluster: Cluster) -> None:
    cluster.server("b").stop("fast")
    with disk(cluster, cluster.sandbox.root / "a/disk", "14m") as place:
        cluster.sandbox.shell.run(["mkdir", "-m", "700", f"{place}/space"])
        with cluster.server("a").session("orders", writes=True, deadline=20) as connection:
            connection.execute(f"create tablespace quick location '{place}/space'".encode())
            connection.execute(
                "create table elsewhere tablespace quick as select repeat('x', 999) from generate_series(1, 8000)"
            )
        with pytest.raises(CannotError, match=rf"needs \d+ MB beside {place}/ on .* where \d MB are free"):
            cluster.do("rebuild_standby", member="b")
        assert [one.name for one in place.iterdir()] == ["space"], "nothing was copied"
        with cluster.server("a").session("orders", writes=True, deadline=20) as connection:
            connection.execute("drop table elsewhere")
            connection.execute("drop tablespace quick")


def test_a_lost_data_directory_has_its_wal_where_the_backup_had_it(cluster: Cluster) -> None:
    place = cluster.sandbox.root / "a/wal/pg_wal"
    lead_wal_to(cluster, place)
    cluster.do("backup", kind="full")
    cluster.crash("a")
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("a").data])
    cluster.recover(cluster.way("physical", WISH), cluster.observe().identity)
    link = Path(f"{cluster.server('a').data}/pg_wal")
    assert link.readlink() == place.with_name(f"pg_wal.salvor-{cluster.system.context.incident}")
    assert not list(cluster.sandbox.data("a").parent.glob("data.*-*")), "nothing was kept, so discard has nothing to do"


def test_wal_that_cannot_be_read_is_named_and_its_loss_must_be_accepted(cluster: Cluster) -> None:
    unarchived(cluster)
    cluster.write("a", 5)
    cluster.crash("a")
    newest = max(one for one in Path(f"{cluster.server('a').data}/pg_wal").iterdir() if len(one.name) == 24)
    way = cluster.way("physical", WISH)
    newest.chmod(0)
    if os.geteuid() == 0:
        assert way.arguments
    with pytest.raises(CannotError, match=f"cannot be read .*{newest.name}"):
        cluster.do("stage", **(way.arguments or {}))
    newest.chmod(0o600)
    cluster.recover(way, cluster.observe().identity)
    assert not cluster.missing("a")


@needs_root
def test_wal_that_does_not_fit_is_an_error_and_the_same_command_goes_on(cluster: Cluster) -> None:
    unarchived(cluster)
    for _ in range(12):
        with cluster.server("a").session(writes=True) as connection:
            connection.execute("select pg_logical_emit_message(true, 'test', repeat('x', 900000)), pg_switch_wal()")
    cluster.write("a", 5)
    cluster.crash("a")
    way = cluster.way("physical", WISH)
    cluster.do("fence", identity=cluster.observe().identity)
    size = cluster.system.site.repository(cluster.system.site.member("a")).stored[0].size
    stage = Path(f"{cluster.server('a').data}.salvor-{cluster.system.context.incident}")
    assert way.arguments
    with disk(cluster, stage, f"{size // 1024 + 6000}k"):
        cluster.sandbox.shell.run(["touch", f"{stage}/PG_VERSION"])  # as if begun: it is then gone on with there
        with pytest.raises(CannotError, match="No space left on device") as error:
            cluster.do("stage", **way.arguments)
        assert "make room" in error.value.hint
        subprocess.run(["mount", "-o", "remount,size=512m", stage], check=True)
        cluster.do("stage", **way.arguments)
        there = cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE)
        assert there == 5
        cluster.system.site.physical(cluster.system.site.member("a")).stage.kill()


@needs_root
def test_a_server_that_stopped_on_a_full_disk_is_not_taken_back_to_a_backup(cluster: Cluster) -> None:
    cluster.server("b").stop("fast")
    with disk(cluster, cluster.sandbox.root / "a/wal", "160m") as place:
        lead_wal_to(cluster, place / "pg_wal")
        cluster.write("a", 5)
        filler = place / "filler"
        filler.write_bytes(b"\0" * (shutil.disk_usage(place).free - 3_000_000))
        with pytest.raises(psycopg.Error), cluster.server("a").session(writes=True) as connection:
            for _ in range(40):
                connection.execute("select pg_logical_emit_message(true, 'test', repeat('x', 900000))")
        while cluster.server("a").processes():
            time.sleep(0.1)
        assert "the disk of its pg_wal is full" in cluster.observe().summary
        with pytest.raises(CannotError, match=r"is full: .* MB are free") as error:
            cluster.system.ways_back(WISH)
        assert "--runbook=from_backup" in error.value.hint
        assert cluster.way("physical", Wish(ways=("physical",))).possible
        filler.unlink()
        cluster.server("a").start()
        assert not cluster.missing("a")
        cluster.crash("a")

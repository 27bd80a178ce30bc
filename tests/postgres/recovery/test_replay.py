"""The replay of WAL in a stage: where it comes from, where it ends, and what is missing."""

from __future__ import annotations

import os
import shutil
import threading
import time
from datetime import datetime, timedelta

import pytest
from salvor import clock
from salvor.change import Level
from salvor.errors import CannotError
from salvor.postgres import replay
from salvor.postgres.physical import STAGE
from salvor.postgres.restore_command import SPOOL, fetching_ahead
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up, lsn, now, wait_until_archived

WISH = Wish(rpo=30.0)


def test_a_record_that_goes_on_in_a_segment_that_was_never_archived_is_no_missing_wal(cluster: Cluster) -> None:
    with cluster.shop("a") as connection:
        connection.execute("update orders set amount = amount + 1 where id % 4 = 0")  # several segments of 1 MB
    archived = cluster.system.site.repository(cluster.system.site.member("a"))
    for _ in range(100):
        if archived.archive.reaches(1, 1 << 20) > lsn(cluster) - (2 << 20):
            break
        time.sleep(0.1)
    cluster.crash("a")
    shutil.rmtree(cluster.sandbox.data("a"))
    cluster.recover(cluster.way("physical", WISH), cluster.observe().identity)
    assert is_up(cluster.observe())


def test_nothing_acknowledged_is_lost_when_pg_wal_survives(cluster: Cluster) -> None:
    deploying = cluster.server("a").connect("orders", writes=True)
    deploying.execute("begin; alter table order_lines add column colour text")
    cluster.write("a", 200)
    cluster.crash("a")  # the last segment is not archived; the lock of what was under way is in it
    identity = cluster.observe().identity
    way = cluster.way("physical", WISH)
    cluster.do("fence", identity=identity)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    findings = list(cluster.system.verify(way, WISH))
    assert {finding.level for finding in findings} == {Level.PASS}, findings
    assert [finding.lacks for finding in findings if finding.check == "freshness"] == [0.0]
    launchers = "select count(*) from pg_stat_activity where backend_type = 'logical replication launcher'"
    assert cluster.system.ask(launchers, STAGE) == 0, "its subscriptions would take what the live server is to get"
    cluster.do("promote", **way.promote)
    assert is_up(cluster.observe())
    assert cluster.missing("a") == set()
    cluster.write("a", 1)


def test_a_dead_primary_is_replayed_to_its_end_when_it_died_before_the_damage_is_said_to_have_begun(
    cluster: Cluster,
) -> None:
    begun = now(cluster)
    cluster.write("a", 5)
    assert target_before(cluster, now(cluster)).startswith("before:"), "it lives: a commit may come"
    cluster.crash("a")
    assert target_before(cluster, now(cluster, "b")) == "latest"
    assert target_before(cluster, begun) == f"before:{clock.write_time(begun)}"


def target_before(cluster: Cluster, moment: datetime) -> str:
    cluster.observe()  # what was seen before the crash may be half a second old
    way = cluster.way("physical", Wish(rpo=30.0, live_is_sound=False, damaged_at=moment))
    return str((way.arguments or {})["target"])


def test_segments_that_were_renamed_for_later_use_are_not_copied(cluster: Cluster) -> None:
    """They look as if they waited for the archive, and can be as large as the data."""
    with cluster.server("a").session(deadline=30, writes=True) as connection:
        connection.execute("alter system set wal_keep_size = 0")
        connection.execute("select pg_reload_conf()")
        for _ in range(3):
            for number in range(3):
                connection.execute("select pg_logical_emit_message(true, 'test', %s)", [str(number)])
                connection.execute("select pg_switch_wal()")
            wait_until_archived(cluster)
            connection.execute("checkpoint")
    cluster.write("a", 20)
    cluster.crash("a")
    newest = max(segments(cluster, cluster.server("a").data))
    way = cluster.way("physical", WISH)
    assert way.arguments
    cluster.do("fence", identity=cluster.observe().identity)
    cluster.do("stage", **way.arguments)
    stage = f"{cluster.server('a').data}.salvor-{cluster.system.context.incident}"
    assert newest not in segments(cluster, stage)
    cluster.do("promote", **way.promote)
    assert cluster.missing("a") == set()


def segments(cluster: Cluster, data: str) -> list[str]:
    listed = cluster.sandbox.shell.run(["ls", f"{data}/pg_wal"]).stdout.split()
    return [name for name in listed if len(name) == 24]


def test_a_time_that_the_wal_does_not_reach_is_said_clearly(cluster: Cluster) -> None:
    cluster.write("a", 5)
    way = cluster.way("physical", Wish(at=clock.now() + timedelta(hours=1)))
    assert way.arguments
    with pytest.raises(CannotError, match="cannot be reached: the WAL ends before it"):
        cluster.do("stage", **way.arguments)
    assert is_up(cluster.observe())
    cluster.do("drop", stage=STAGE)


def test_a_time_after_the_last_commit_is_the_end_of_what_the_primary_wrote(cluster: Cluster) -> None:
    """And not what was committed later, however often the copy is started."""
    cluster.write("a", 5)
    wish = Wish(at=now(cluster))
    way = cluster.way("physical", wish)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    findings = list(cluster.system.verify(way, wish))
    assert {finding.level for finding in findings} == {Level.PASS}, findings
    assert [finding.lacks for finding in findings if "none came after it" in finding.detail] == [0.0]
    cluster.write("a", 3)
    wait_until_archived(cluster)
    cluster.system.site.physical(cluster.system.site.member("a")).stage.kill()
    cluster.do("stage", **way.arguments)
    cluster.do("fence", identity=cluster.observe().identity)
    cluster.do("promote", **way.promote)
    assert is_up(cluster.observe()) and cluster.missing("a") == set(cluster.acknowledged[-3:])


def test_a_backup_that_is_not_consistent_without_a_lost_segment_is_said(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_GAP_SECONDS", 1.0)
    stop = cluster.system.site.repository(cluster.system.site.member("a")).stored[0].wal[1]
    cluster.crash("a")
    shutil.rmtree(cluster.sandbox.data("a"))
    (lost,) = cluster.sandbox.root.glob(f"repository/archive/*/*/*/{stop}-*")
    lost.unlink()
    way = cluster.way("physical", WISH)
    assert way.arguments
    with pytest.raises(CannotError, match=f"{stop}, without which the copy is not consistent") as error:
        cluster.do("stage", **way.arguments)
    assert "older backup" in error.value.hint


def far_away(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Its repository answers each time later than PostgreSQL would rest between two tries. (An older build waited for
    such a rest, for a day.)
    """
    monkeypatch.setattr(replay, "_REPLAY_SECONDS", 25.0)
    program = cluster.sandbox.root / "far"
    program.write_text('#!/bin/sh\ncase "$*" in *archive-get*) sleep 0.6 ;; esac\nexec pgbackrest "$@"\n')
    program.chmod(0o755)
    assert cluster.system.settings.pgbackrest
    pgbackrest = cluster.system.settings.pgbackrest.model_copy(update={"program": str(program)})
    settings = cluster.system.settings.model_copy(update={"pgbackrest": pgbackrest})
    return Cluster(cluster.sandbox, Postgres("orders-db", settings, cluster.system.context), cluster.acknowledged)


def test_the_end_of_an_archive_that_is_far_away_is_found(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.write("a", 5)
    cluster.crash("a")
    far = far_away(cluster, monkeypatch)
    way = far.way("physical", WISH)
    assert way.arguments
    far.do("stage", **way.arguments)
    found = f"select count(*) from orders where reference = '{cluster.acknowledged[-1]}'"  # noqa: S608  a name of our own
    assert far.system.ask(found, STAGE) == 1


def test_wal_comes_one_by_one_where_it_cannot_be_fetched_ahead(cluster: Cluster) -> None:
    wait_until_archived(cluster)
    shell, data = cluster.sandbox.shell, cluster.server("b").data
    shell.write(f"{data}/{SPOOL}", "no folder can be made here")
    command = fetching_ahead(cluster.system.site.repository(cluster.system.site.member("b")), data)
    segment = max(path.name[:24] for path in cluster.sandbox.root.glob("repository/archive/*/*/*/0*-*"))
    try:
        for name, exit_code in ((segment, 0), ("0000000100000099000000AA", 1)):
            asked = command.replace("%f", name).replace("%p", f"{data}/pg_wal/came")
            assert shell.run(["sh", "-c", asked], check=False).exit_code == exit_code
        assert shell.exists(f"{data}/pg_wal/came")
    finally:
        shell.run(["rm", "-f", "--", f"{data}/{SPOOL}", f"{data}/pg_wal/came"])


def test_a_segment_that_takes_long_to_come_is_not_missing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_GAP_SECONDS", 1.0)
    stop = cluster.system.site.repository(cluster.system.site.member("a")).stored[0].wal[1]
    (segment,) = cluster.sandbox.root.glob(f"repository/archive/*/*/*/{stop}-*")
    content = segment.read_bytes()
    segment.unlink()
    os.mkfifo(segment)
    way = cluster.way("physical", WISH)
    assert way.arguments
    slow = threading.Timer(4.0, lambda: segment.write_bytes(content))
    slow.start()
    begun = time.monotonic()
    cluster.do("stage", **way.arguments)
    assert time.monotonic() - begun > 3.0


def test_an_archive_that_fails_midway_is_no_end_of_the_wal(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.write("a", 3)
    wait_until_archived(cluster)
    cluster.write("a", 3)
    at, count = now(cluster), cluster.system.ask("select count(*) from orders", "live")
    cluster.write("a", 3)
    wait_until_archived(cluster)
    way = cluster.way("physical", Wish(at=at))
    assert way.arguments
    segment = max(cluster.sandbox.root.glob("repository/archive/*/*/*/0*-*"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-9])
    cluster.crash("a")  # nobody says up to where it wrote: what the archive refused is all that tells of more
    with monkeypatch.context() as patience:
        patience.setattr(replay, "_GAP_SECONDS", 1.0)
        with pytest.raises(CannotError, match=f"did not give the next WAL.*ERROR.*{segment.name[:24]}") as error:
            cluster.do("stage", **way.arguments)
    assert "earlier" not in error.value.hint and "the same command again" in error.value.hint
    threading.Timer(3.0, lambda: segment.write_bytes(whole)).start()
    cluster.do("stage", **way.arguments)
    assert cluster.system.ask("select count(*) from orders", STAGE) == count

from __future__ import annotations

import os
import shutil
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from salvor import clock
from salvor.change import ABSENT, Level, Reachable
from salvor.errors import CannotError
from salvor.postgres import replay
from salvor.postgres.backrest import SPOOL
from salvor.postgres.physical import STAGE
from salvor.sandbox import processes
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up

WISH = Wish(rpo=30.0)


def test_a_dropped_database_is_there_just_before_its_drop_with_commits_elsewhere_meanwhile(cluster: Cluster) -> None:
    """Its files are gone, and it is marked, before the DROP commits: no time between two commits is early enough."""
    cluster.write("a", 20)
    stop = threading.Event()

    def commit_elsewhere() -> None:
        with cluster.server("a").connect("postgres", deadline=60.0, writes=True) as connection:
            connection.execute("create table if not exists busy (at timestamptz)")
            while not stop.wait(0.001):
                connection.execute("insert into busy values (now())")

    others = threading.Thread(target=commit_elsewhere)
    seen: list[datetime] = []

    def see_it_marked() -> None:
        with cluster.server("a").connect("postgres", deadline=60.0) as connection:
            while not seen and not stop.is_set():
                question = "select clock_timestamp() from pg_database where datconnlimit = -2"
                seen.extend(at for (at,) in connection.execute(question))

    watcher = threading.Thread(target=see_it_marked)
    for thread in (others, watcher):
        thread.start()
    with cluster.server("a").session("postgres", deadline=30.0, writes=True) as connection:
        time.sleep(0.2)
        connection.execute("drop database orders with (force)")
        time.sleep(0.2)  # commits behind it, or the WAL would end before the moment asked for
    stop.set()
    for thread in (others, watcher):
        thread.join()
    assert seen
    _is_back_before_its_drop(cluster, seen[0])


def test_a_database_that_is_dropped_after_a_restore_is_back_from_the_same_backup(cluster: Cluster) -> None:
    """The WAL of its second drop is on another timeline than that of the backup."""
    cluster.write("a", 5)
    for turn in (cluster, cluster.other_incident()):
        with cluster.server("a").session("postgres", deadline=30.0, writes=True) as connection:
            connection.execute("drop database orders with (force)")
            ((at,),) = connection.execute("select timestamp from pg_last_committed_xact()").fetchall()
        _is_back_before_its_drop(turn, at - timedelta(microseconds=1))
        turn.write("a", 5)


def test_a_password_that_is_wrong_midway_is_said_at_once_and_the_same_call_goes_on(cluster: Cluster) -> None:
    cluster.write("a", 5)
    way = cluster.way("physical", WISH)
    cluster.do("fence", identity=cluster.observe().identity)
    assert way.arguments
    secret = Path(cluster.sandbox.root) / "secrets/operator.password"
    right = secret.read_text()
    secret.write_text("wrong")
    try:
        with pytest.raises(CannotError, match=r"does not let the operator in: .*authentication failed"):
            cluster.do("stage", **way.arguments)
    finally:
        secret.write_text(right)
    cluster.do("stage", **way.arguments)
    cluster.do("promote", **way.promote)
    assert not cluster.missing("a")


def _is_back_before_its_drop(cluster: Cluster, moment: datetime) -> None:
    wish = Wish(rpo=30.0, live_is_sound=False, damaged_at=moment)
    way = cluster.way("physical", wish)
    identity = cluster.observe().identity
    cluster.do("fence", identity=identity)
    assert way.arguments and way.loses == 0.0, "what came after the failure is no loss of the way back"
    cluster.do("stage", **way.arguments)
    findings = list(cluster.system.verify(way, wish))
    assert {finding.level for finding in findings} == {Level.PASS}, findings
    assert any("just before the DROP of the database orders" in finding.detail for finding in findings)
    cluster.do("stage", **way.arguments)  # finds its work done
    cluster.do("promote", **way.promote)
    assert is_up(cluster.observe())
    assert not cluster.missing("a")


def test_a_wrong_update_is_undone_to_the_moment_before(cluster: Cluster) -> None:
    cluster.write("a", 20)
    with cluster.shop("a") as connection:
        before = connection.execute("select clock_timestamp()").fetchone()
        time.sleep(0.05)
        connection.execute("update orders set amount = 0")
    cluster.write("a", 20)
    late = set(cluster.acknowledged[-20:])
    assert before
    identity = cluster.observe().identity
    wish = Wish(rpo=30.0, live_is_sound=False)
    assert not cluster.way("failover", wish).possible
    assert "--at" in cluster.way("physical", wish).why
    wish = Wish(rpo=30.0, live_is_sound=False, at=before[0])
    way = cluster.way("physical", wish)
    cluster.do("fence", identity=identity)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    staged = next(one for one in cluster.observe().staged if one.name == STAGE)
    assert staged.complete and staged.fresh and staged.fresh < before[0]
    assert cluster.system.ask("select count(*) from orders where amount = 0", STAGE) == 0
    assert cluster.system.ask("select count(*) from orders where amount > 0", "live") == 20
    findings = list(cluster.system.verify(way, wish))
    assert {finding.level for finding in findings} == {Level.PASS}, findings
    assert {finding.evidence for finding in findings} == {staged.identity}
    data, stage = (f"{cluster.server('a').data}{end}" for end in ("", f".salvor-{cluster.system.context.incident}"))
    assert cluster.sandbox.shell.exists(f"{stage}/{SPOOL}/archive/orders/in"), "WAL is fetched ahead"

    cluster.do("promote", **way.promote)
    assert not cluster.sandbox.shell.exists(f"{data}/{SPOOL}")
    log = cluster.sandbox.shell.read(f"{stage}.log")
    assert log and "archive command failed" not in log, "a failing command holds up the stop for two seconds"
    state = cluster.observe()
    assert is_up(state) and state.identity == staged.identity and state.origin == cluster.system.context.incident
    assert [one.identity for one in state.kept] == [identity]
    assert cluster.missing("a") == late
    cluster.write("a", 1)
    cluster.do("promote", **way.promote)  # finds its work done
    auto = cluster.sandbox.shell.read(f"{data}/postgresql.auto.conf") or ""
    assert "recovery_target" not in auto and "restore_command" not in auto

    cluster.undo(way.promote_undo)
    state = cluster.observe()
    assert (state.identity, state.writable, state.origin) == (identity, False, None)
    cluster.undo(way.promote_undo)
    cluster.do("drop", stage=STAGE)
    cluster.do("unfence", identity=identity)
    state = cluster.observe()
    assert is_up(state) and state.kept == () and [one.name for one in state.staged] == ["standby b"]
    assert cluster.system.ask("select count(*) from orders where amount > 0", "live") == 20


def test_after_a_restore_to_a_time_the_standby_is_rebuilt_and_nobody_fails_over_to_it_before(cluster: Cluster) -> None:
    moment = now(cluster)
    cluster.write("a", 10)
    cluster.recover(cluster.way("physical", Wish(at=moment)), cluster.observe().identity)
    way = cluster.way("failover", WISH)
    assert not way.possible and "b was left behind on timeline 1" in way.why
    assert "standby b" not in [one.name for one in cluster.observe().staged], "its data says nothing of what is live"
    planned = list(cluster.system.redundancy())
    assert [dict(change.arguments) for change in planned] == [{"member": "b"}]
    list(cluster.system.apply(planned[0]))
    assert list(cluster.system.redundancy()) == []
    assert cluster.system.ask("select count(*) from orders", "standby b") == 80000
    assert sorted(one.name.partition(":")[0] for one in cluster.observe().kept) == ["a", "b"]


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


def test_a_standby_that_was_left_behind_before_the_primary_was_lost_is_told_by_the_archive(cluster: Cluster) -> None:
    moment = now(cluster)
    cluster.write("a", 5)
    cluster.recover(cluster.way("physical", Wish(at=moment)), cluster.observe().identity)
    cluster.write("a", 5)
    wait_until_archived(cluster)
    cluster.crash("a")
    shutil.rmtree(cluster.sandbox.data("a"))
    way = cluster.way("failover", WISH)
    assert not way.possible and "the archive has timeline 2" in way.why
    way = cluster.way("physical", WISH)
    assert way.arguments and way.arguments["timeline"] == 2


def test_after_a_restore_of_the_newest_state_the_standby_follows_by_itself(cluster: Cluster) -> None:
    cluster.write("a", 10)
    cluster.crash("a")
    cluster.recover(cluster.way("physical", WISH), cluster.observe().identity)
    assert list(cluster.system.redundancy()) == []


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


def test_a_lost_data_directory_is_restored_and_put_back(cluster: Cluster) -> None:
    cluster.write("a", 20)
    with cluster.server("a").session(writes=True) as connection:
        connection.execute("select pg_switch_wal()")
    wait_until_archived(cluster)
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("a").data])
    way = cluster.way("physical", WISH)
    cluster.recover(way, ABSENT)
    assert is_up(cluster.observe())
    assert cluster.missing("a") == set()
    cluster.undo(way.promote_undo)
    state = cluster.observe()
    assert (state.identity, state.reachable, state.writable) == (ABSENT, Reachable.DOWN, False)


def test_what_somebody_brought_back_meanwhile_is_not_replaced(cluster: Cluster) -> None:
    """Both members were lost, and `absent` is the one that still is."""
    way = cluster.way("physical", WISH)
    cluster.do("stage", **(way.arguments or {}))
    cluster.crash("b")
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("b").data])
    cluster.write("a", 1)
    with pytest.raises(CannotError, match=r"/a/data takes writes, .* brought it back meanwhile"):
        cluster.do("promote", **{**way.promote, "identity": ABSENT, "member": "b"})  # beside it, there would be two
    with pytest.raises(CannotError, match="brought it back meanwhile"):
        cluster.do("promote", **{**way.promote, "identity": ABSENT})
    assert is_up(cluster.observe()) and cluster.missing("a") == set()


def test_a_second_restore_goes_back_to_a_time_before_the_first_went_live(cluster: Cluster) -> None:
    """recovery_target_timeline=latest would end at the first restore's time, without a word."""
    first = now(cluster)
    cluster.write("a", 10)
    wanted = now(cluster)
    cluster.write("a", 10)
    later = set(cluster.acknowledged[-10:])
    way = cluster.way("physical", Wish(at=first))
    cluster.recover(way, cluster.observe().identity)
    assert len(cluster.missing("a")) == 20
    cluster.write("a", 5)
    after_it_went_live = set(cluster.acknowledged[-5:])
    wait_until_archived(cluster)

    again = cluster.other_incident()
    way = again.way("physical", Wish(at=wanted))
    again.recover(way, again.observe().identity)
    assert again.missing("a") == later | after_it_went_live


def test_after_an_undone_restore_the_newest_state_is_that_of_the_old_timeline(cluster: Cluster) -> None:
    moment = now(cluster)
    cluster.write("a", 10)
    way = cluster.way("physical", Wish(at=moment))
    identity = cluster.observe().identity
    cluster.recover(way, identity)
    wait_until_archived(cluster)
    cluster.undo(way.promote_undo)
    cluster.do("drop", stage=STAGE)
    cluster.do("unfence", identity=identity)
    cluster.write("a", 5)
    cluster.crash("a")

    again = cluster.other_incident()
    again.recover(again.way("physical", WISH), again.observe().identity)
    assert again.missing("a") == set()


def test_a_standby_that_follows_a_restore_is_none_of_the_primary_that_its_undo_brings_back(cluster: Cluster) -> None:
    cluster.write("a", 5)
    cluster.crash("a")
    way, identity = cluster.way("physical", WISH), cluster.observe().identity
    cluster.recover(way, identity)
    assert processes.until(lambda: cluster.system.site.view().of("b").timeline == 2, 20)
    cluster.undo(way.promote_undo)
    cluster.do("unfence", identity=identity)
    failover = cluster.other_incident().way("failover", WISH)
    assert not failover.possible and "b was left behind on timeline 2" in failover.why, failover.why


def test_a_closed_way_says_why(cluster: Cluster) -> None:
    for wish, why in (
        (Wish(at=clock.now() - timedelta(days=400)), "the oldest usable backup can be recovered to"),
        (Wish(source="20200101-000000F"), "is not in the repository"),
        (Wish(source="/backups/dump.sql"), "is no pgBackRest backup"),
    ):
        way = cluster.way("physical", wish)
        assert not way.possible and why in way.why


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
    command = cluster.system.site.repository(cluster.system.site.member("b")).archive_get_ahead(data)
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


def now(cluster: Cluster, member: str = "a"):  # type: ignore[no-untyped-def]
    time.sleep(0.05)
    with cluster.server(member).session() as connection:
        row = connection.execute("select clock_timestamp()").fetchone()
    time.sleep(0.05)
    assert row
    return row[0]


def lsn(cluster: Cluster) -> int:
    with cluster.server("a").session() as connection:
        row = connection.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    assert row
    return int(row[0])


def wait_until_archived(cluster: Cluster, member: str = "a") -> None:
    with cluster.server(member).session(deadline=30, writes=True) as connection:
        row = connection.execute("select pg_walfile_name(pg_switch_wal() - 1)").fetchone()
        for _ in range(100):
            done = connection.execute("select coalesce(last_archived_wal, '') from pg_stat_archiver").fetchone()
            if row and done and done[0] >= row[0]:
                return
            time.sleep(0.1)
    raise AssertionError("the archive does not take WAL")


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
    with monkeypatch.context() as patience:
        patience.setattr(replay, "_GAP_SECONDS", 1.0)
        with pytest.raises(CannotError, match=f"did not give the next WAL.*ERROR.*{segment.name[:24]}") as error:
            cluster.do("stage", **way.arguments)
    assert "earlier" not in error.value.hint and "the same command again" in error.value.hint
    threading.Timer(3.0, lambda: segment.write_bytes(whole)).start()
    cluster.do("stage", **way.arguments)
    assert cluster.system.ask("select count(*) from orders", STAGE) == count


def test_the_application_is_kept_from_a_stage(cluster: Cluster) -> None:
    way = cluster.way("physical", WISH)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        psycopg.connect(
            host="127.0.0.11",
            port=cluster.sandbox.side_port,
            user="shop",
            password=cluster.sandbox.secret("shop.password"),
            dbname="orders",
        )
    assert is_up(cluster.observe())
    cluster.write("a", 1)


def test_a_restore_that_was_killed_in_its_first_moments_is_begun_anew(cluster: Cluster) -> None:
    """pgBackRest goes on with what it knows for its own work, and refuses a folder in which there is anything else."""
    cluster.write("a", 5)
    way = cluster.way("physical", WISH)
    stage = f"{cluster.server('a').data}.salvor-{cluster.system.context.incident}"
    there = cluster.server("a").shell
    there.run(["mkdir", "-p", "-m", "700", f"{stage}/base/1"])
    there.run(["touch", f"{stage}/base/1/112"])
    cluster.do("fence", identity=cluster.observe().identity)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    assert next(one for one in cluster.observe().staged if one.name == STAGE).complete

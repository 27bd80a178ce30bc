from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from salvor import clock
from salvor.change import ABSENT, Level, Reachable
from salvor.errors import CannotError
from salvor.postgres import failover
from salvor.postgres.physical import STAGE
from salvor.postgres.restore_command import SPOOL
from salvor.sandbox import processes
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up, now, wait_until_archived

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


def test_what_is_written_after_a_restore_is_archived_in_time(cluster: Cluster) -> None:
    way, identity = cluster.way("physical", WISH), cluster.observe().identity
    assert way.arguments
    cluster.do("fence", identity=identity)
    cluster.do("stage", **way.arguments)
    staged = f"{cluster.server('a').data}.salvor-{cluster.system.context.incident}"
    script = """echo "archive_timeout = '1s'" >> "$1/postgresql.auto.conf\""""
    cluster.sandbox.shell.run(["sh", "-c", script, "sh", staged])
    cluster.do("promote", **way.promote)
    cluster.write("a", 1)
    with cluster.server("a").session(deadline=20) as connection:
        ((segment,),) = connection.execute("select pg_walfile_name(pg_current_wal_lsn())").fetchall()
        for _ in range(80):
            ((archived,),) = connection.execute("select last_archived_wal from pg_stat_archiver").fetchall()
            if (archived or "") >= segment:
                return
            time.sleep(0.1)
    raise AssertionError("it waits for a checkpoint")


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
    cluster.do("stage", **(way.arguments or {}))
    cluster.do("promote", **way.promote, unfenced_because="nobody writes there, said Kim")
    wait_until_archived(cluster)
    [kept] = cluster.sandbox.data("a").parent.glob("data.kept-*")
    away = kept.rename(kept.with_name("away"))
    with pytest.raises(CannotError, match="There is nothing to go back to"):
        cluster.undo(way.promote_undo)
    assert is_up(cluster.observe()), "what is live stays live"
    away.rename(kept)
    cluster.undo(way.promote_undo)
    assert (cluster.observe().identity, cluster.observe().writable) == (identity, False), "nobody had fenced it before"
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
    assert cluster.observe().left_behind == ("b follows timeline 2, which was taken back: a is on timeline 1",)


def test_a_closed_way_says_why(cluster: Cluster) -> None:
    for wish, why in (
        (Wish(at=clock.now() - timedelta(days=400)), "the oldest usable backup can be recovered to"),
        (Wish(source="20200101-000000F"), "is not in the repository"),
        (Wish(source="/backups/dump.sql"), "is no pgBackRest backup"),
    ):
        way = cluster.way("physical", wish)
        assert not way.possible and why in way.why
    data = cluster.sandbox.data("a")
    data.rename(f"{data}.disk")
    data.symlink_to(f"{data}.disk")
    assert "is a mount point or a link, so it cannot be renamed" in cluster.other_incident().way("physical", WISH).why
    data.unlink()
    data.with_name(f"{data.name}.disk").rename(data)
    for wish in (Wish(at=clock.now()), Wish(source="20200101-000000F"), Wish(target="name:before")):
        assert "another one was asked for" in cluster.way("failover", wish).why
    view = cluster.system.site.view()
    standby = view.of("b")
    assert standby.look and standby.look.control
    control = {**standby.look.control, "Database system identifier": "4711"}
    of_another = replace(standby, look=replace(standby.look, control=control))
    way = failover.way(replace(view, sightings=(view.of("a"), of_another)), WISH)
    assert not way.possible and "b is a standby of another cluster" in way.why


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
    before = cluster.observe()
    with pytest.raises(CannotError, match="no whole stage"):
        cluster.do("promote", **way.promote)
    after = cluster.observe()
    assert (after.identity, after.reachable) == (before.identity, Reachable.UP)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    assert next(one for one in cluster.observe().staged if one.name == STAGE).complete

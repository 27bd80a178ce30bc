"""What clusters carry along from earlier days: settings of an older recovery, transactions that nobody ended, slots."""

from __future__ import annotations

import re
import time

import pytest
from salvor.change import Level
from salvor.errors import CannotError
from salvor.postgres import rebuild
from salvor.postgres.physical import STAGE
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, now

WISH = Wish(rpo=30.0)

_SETTINGS = """
data_directory = '{data}'
port = 29999
recovery_target_name = 'of-last-year'
recovery_min_apply_delay = '1h'
promote_trigger_file = '{data}/PG_VERSION'
archive_cleanup_command = 'touch {data}/cleaned-up'
recovery_end_command = 'touch {data}/cleaned-up'
"""


def test_settings_of_an_older_recovery_do_not_bind_this_one(cluster: Cluster) -> None:
    data = cluster.server("a").data
    with open(f"{data}/postgresql.conf", "a") as file:  # noqa: PTH123
        file.write(_SETTINGS.format(data=data))
    cluster.do("backup", kind="full")
    time.sleep(1.1)  # it ended within that second: a time within it is one of the backup before
    cluster.write("a", 5)
    moment = now(cluster)
    cluster.write("a", 5)
    for wish, there in ((WISH, 10), (Wish(at=moment), 5)):
        way = cluster.way("physical", wish)
        assert way.arguments, way.why
        cluster.do("stage", **way.arguments)
        assert cluster.system.ask("select count(*) from orders where reference like 'test-%'", STAGE) == there
        assert cluster.system.ask("select pg_is_in_recovery()", STAGE)
    (port,) = (one for one in cluster.system.verify(way, wish) if one.check == "port")
    assert (port.level, port.figure) == (Level.FAIL, "29999")
    assert not cluster.sandbox.shell.exists(f"{data}/cleaned-up")
    assert not cluster.missing("a")
    cluster.server("a").stop("fast")
    with pytest.raises(CannotError, match=r"runs and listens on \S+:29999, not on"):
        cluster.server("a").start()


def need_what_is_missing(cluster: Cluster) -> None:
    """A library and an extension, as on the machine that the backup is of."""
    ours = f"{cluster.sandbox.root}/a/ours"
    with cluster.server("a").session("orders", writes=True) as connection:
        ((folder,),) = connection.execute("select setting from pg_config where name = 'PKGLIBDIR'").fetchall()
        cluster.sandbox.shell.run(["cp", f"{folder}/amcheck.so", f"{ours}.so"])
        connection.execute(
            f"create function verify(regclass) returns void as '{ours}', 'bt_index_check' language c".encode()
        )
        connection.execute("create extension amcheck")
        connection.execute("update pg_extension set extname = 'gone' where extname = 'amcheck'")
    cluster.sandbox.shell.run(["rm", f"{ours}.so"])


def test_a_prepared_transaction_that_locks_a_table_and_missing_libraries_are_named(cluster: Cluster) -> None:
    server = cluster.server("a")
    with server.session(writes=True) as connection:
        connection.execute("alter system set max_prepared_transactions = 5")
    cluster.server("b").stop("fast")
    server.stop("fast")
    server.start()
    with server.session("orders", writes=True) as connection:
        connection.execute("begin; create table parcels (id int); prepare transaction 'shop-41'")
        connection.execute("begin; alter table order_lines add column colour text; prepare transaction 'shop-42'")
        connection.execute("begin; alter table products add column colour text; prepare transaction 'shop-43'")
    need_what_is_missing(cluster)
    cluster.crash("a")
    way = cluster.way("physical", WISH)
    assert way.arguments
    cluster.do("stage", **way.arguments)

    (missing,) = (one for one in cluster.system.verify(way, WISH) if one.check == "libraries")
    assert (missing.level, missing.figure) == (Level.WARN, "2 missing")
    assert re.search(r"extension gone: its control file in orders; functions: \S+/ours in orders. HINT", missing.detail)

    def integrity() -> list[tuple[Level, str]]:
        found = cluster.system.verify(way, WISH)
        return [(one.level, one.detail) for one in found if one.check == "integrity of orders"]

    ((level, detail),) = integrity()
    assert level is Level.FAIL and "order_lines" in detail and "ROLLBACK PREPARED 'shop-42', 'shop-43'" in detail
    assert "shop-41" not in detail, "it made a table, which nobody can read yet"
    staged = cluster.system.site.physical(cluster.system.site.member("a")).stage
    with staged.session("orders", writes=True) as connection:
        connection.execute("rollback prepared 'shop-42'")
        connection.execute("commit prepared 'shop-43'")
    ((level, _),) = integrity()
    assert level is Level.PASS


def test_slots_and_newer_settings_are_in_no_backup_which_is_said_and_a_standby_gets_its_own_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.server("a").session(writes=True) as connection:
        connection.execute("alter system set wal_level = 'logical'")
    for name, line in (
        ("postgresql.conf", "shop.key 'hunter2' # new"),
        ("pg_hba.conf", "host  all all 10.0.0.1/32 md5"),
    ):
        with open(f"{cluster.server('a').data}/{name}", "a") as file:  # noqa: PTH123
            file.write(f"{line}\n")
    with open(f"{cluster.sandbox.root}/b/member.conf", "a") as file:  # noqa: PTH123
        file.write("primary_slot_name = 'b'\n")
    for member in ("b", "a"):
        cluster.server(member).stop("fast")
    cluster.server("a").start()
    with cluster.server("a").session("orders", writes=True) as connection:
        connection.execute("select pg_create_logical_replication_slot('changes', 'pgoutput')")
        connection.execute("select pg_create_physical_replication_slot('b')")
    cluster.server("b").start()
    cluster.write("a", 5)
    cluster.crash("a")
    identity, copied = cluster.observe().identity, cluster.server("b").identity()
    standby = cluster.system.verify(cluster.way("failover", WISH), WISH)
    assert {one.check: one.figure for one in standby if one.level is not Level.PASS} == {
        "replication slots": "1 slot lost"
    }
    way = cluster.way("physical", WISH)
    cluster.do("fence", identity=identity)
    assert way.arguments
    cluster.do("stage", **way.arguments)
    warned = {one.check: one for one in cluster.system.verify(way, WISH) if one.level is not Level.PASS}
    assert {one.level for one in warned.values()} == {Level.WARN} and warned.keys() == {
        "replication slots",
        "configuration",
    }
    assert warned["replication slots"].detail.startswith("changes:")
    assert warned["configuration"].figure == "2 settings, 1 line of pg_hba.conf differ"
    assert warned["configuration"].detail.startswith("shop.key, wal_level will be as in the backup. HINT: diff")
    assert "hunter2" not in str(warned)
    cluster.do("promote", **way.promote)
    with monkeypatch.context() as patience:
        patience.setattr(rebuild, "_RECONNECT_SECONDS", 1.0)
        waits: list[str] = []
        planned = list(cluster.system.redundancy(waits.append))
    assert waits == ["orders-db: waiting whether b comes to follow a by itself, 1 s at most"]
    assert [dict(change.arguments) for change in planned] == [{"member": "b"}]
    list(cluster.system.apply(planned[0]))
    assert cluster.system.ask("select string_agg(slot_name, '') from pg_replication_slots where active", "live") == "b"
    assert cluster.server("b").identity() == copied, "it was not copied anew"
    assert list(cluster.system.redundancy()) == []

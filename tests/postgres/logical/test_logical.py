from __future__ import annotations

import shutil
from pathlib import Path

import boto3
import psycopg
import pytest
from moto import mock_aws
from salvor.change import Level, Reachable, State, WayBack
from salvor.errors import CannotError, UsageError
from salvor.postgres import loading, logical_place, side_cluster, side_database
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.logical.world import World


def test_a_shared_cluster_gets_a_side_database_and_all_can_be_undone(shared: World) -> None:
    before = shared.describe()
    state = shared.system.observe()
    assert (state.reachable, state.writable) == (Reachable.UP, True)
    assert "/" in state.identity
    way = shared.way()
    assert way.possible and way.stage == side_database.STAGE, way.why
    with shared.shop() as connection:
        connection.execute("delete from orders where id > 3")
    damaged = shared.system.ways_back(Wish(live_is_sound=False))
    (physical,) = [one for one in damaged if one.name == "physical"]
    assert (
        "accounts shares the cluster and works: this way takes it back too, with --override='restore-whole-cluster"
        in physical.why
    )
    settings = shared.system.settings.model_copy(update={"database": "nowhere"})
    assert Postgres("nowhere", settings, shared.system.context).observe().summary.startswith("there is no database now")

    with shared.shop() as application, shared.shop("accounts") as other:
        for _ in range(2):
            shared.do("fence", identity=state.identity)
        with pytest.raises(psycopg.OperationalError):
            application.execute("select 1")
        other.execute("select 1")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        shared.shop()
    assert shared.system.observe().writable is False
    assert shared.system.ask("select count(*) from orders", "live") == 3

    shared.do("stage", **(way.arguments or {}))
    (staged,) = [one for one in shared.system.observe().staged if one.name == way.stage]
    assert staged.complete
    assert staged.fresh == shared.system.backups()[0].taken
    assert shared.system.ask("select count(*) from orders", way.stage) == 500
    assert set(shared.levels(way).values()) <= {Level.PASS, Level.WARN}
    assert shared.levels(way)["content fingerprint"] is Level.PASS
    shared.do("stage", **(way.arguments or {}))  # finds its work done
    assert staged in shared.system.observe().staged

    for _ in range(2):
        shared.do("promote", **way.promote)
    state_after = shared.system.observe()
    assert (state_after.writable, state_after.origin) == (True, shared.system.context.incident)
    assert state_after.identity == staged.identity
    assert [kept.identity for kept in state_after.kept] == [state.identity]
    assert shared.count() == 500
    with shared.shop() as connection:
        connection.execute("insert into orders (note) values ('new')")
        row = connection.execute("select current_setting('work_mem'), current_setting('search_path')").fetchone()
        assert row == ("7MB", '"a b", public')
    with shared.server.connect() as connection:
        assert connection.execute(
            "select pg_get_userbyid(datdba) from pg_database where datname = 'orders'"
        ).fetchone() == ("shop",)

    for _ in range(2):
        shared.undo(way.promote_undo)
    assert shared.system.observe().identity == state.identity
    assert shared.system.observe().writable is False
    for _ in range(2):
        shared.do("drop", stage=way.stage)
        shared.do("unfence", identity=state.identity)
    with shared.shop() as connection:
        connection.execute("insert into orders (note) select md5(g::text) from generate_series(4, 500) g")
    assert shared.describe() == before


def test_what_was_kept_is_discarded_by_identity_only(shared: World) -> None:
    """Also where the database is a template for others, as copies for the developers are made of it."""
    with shared.server.connect(writes=True) as connection:
        connection.execute("alter database orders is_template true")
    state = shared.system.observe()
    assert state.writable and "there is no database" not in state.summary
    identity = state.identity
    way = shared.way()
    shared.do("fence", identity=identity)
    shared.do("stage", **(way.arguments or {}))
    shared.do("promote", **way.promote)
    (kept,) = shared.system.observe().kept
    with pytest.raises(CannotError, match="not removed"):
        shared.do("discard", identity="another", kept=kept.name)
    with pytest.raises(CannotError, match="not removed"):
        shared.do("discard", identity=shared.system.observe().identity, kept="orders")
    for _ in range(2):
        shared.do("discard", identity=kept.identity, kept=kept.name)
    assert shared.system.observe().kept == ()
    with pytest.raises(CannotError, match=f"nothing to go back to: the database {kept.name} is gone"):
        shared.undo(way.promote_undo)
    with shared.server.connect() as connection:
        rows = connection.execute("select datname from pg_database where datistemplate order by 1").fetchall()
    assert rows == [("orders",), ("template0",), ("template1",)]
    with shared.server.connect(writes=True) as connection:
        connection.execute("alter database orders is_template false")
    assert shared.count() == 500
    # It is live, and shares the cluster as before: a restore of the other one is not to replace it.
    settings = shared.system.settings.model_copy(update={"database": "accounts"})
    accounts = Postgres("accounts-db", settings, shared.system.context)
    assert "/" in accounts.observe().identity
    physical = next(way for way in accounts.ways_back(Wish()) if way.name == "physical")
    assert physical.why.startswith("orders shares the cluster and works")


def test_the_database_postgres_is_restored_and_can_be_undone(shared: World) -> None:
    """It is where the operator works on all others, and nobody can rename the one that he is connected to."""
    settings = shared.system.settings.model_copy(update={"database": "postgres"})
    shared.system = Postgres("orders-db", settings, shared.system.context)
    with shared.server.connect(writes=True) as connection:
        connection.execute("create table here as select 1 as id")
    with pytest.raises(UsageError, match="orders-db makes no backup of kind 'snapshot'") as of_files:
        shared.do("backup", kind="snapshot")
    assert "each of them makes a snapshot of the service's files as well" in of_files.value.hint
    shared.do("backup", kind="dump")
    identity = shared.system.observe().identity
    way = shared.way()
    shared.do("fence", identity=identity)
    shared.do("stage", **(way.arguments or {}))
    shared.do("promote", **way.promote)
    assert identity != shared.system.observe().identity
    with shared.server.connect() as connection:
        assert connection.execute("select id from here").fetchone() == (1,)
    shared.undo(way.promote_undo)
    shared.do("drop", stage=way.stage)
    shared.do("unfence", identity=identity)
    assert shared.system.observe().identity == identity
    shutil.rmtree(shared.home / "dumps" / str(way.backup))


def test_a_subscription_is_left_out_of_a_restored_dump_and_holds_what_was_kept(shared: World) -> None:
    with shared.server.connect("orders", writes=True) as connection:
        connection.execute(
            "create subscription fetches connection 'host=nowhere password=its-secret' publication p "
            "with (connect = false, slot_name = 's')"
        )
    before = set((shared.home / "dumps").iterdir())
    shared.do("backup", kind="dump")
    way = shared.way()
    shared.do("fence", identity=shared.system.observe().identity)
    shared.do("stage", **(way.arguments or {}))
    with shared.server.connect("orders", writes=True) as connection:
        connection.execute("alter subscription fetches enable")
        told = {one.check: one.detail for one in shared.system.verify(way, Wish())}
        connection.execute("alter subscription fetches disable")
    assert "subscription fetches" in told["left out of the dump"] and "its-secret" not in told["left out of the dump"]
    goes_on = told["subscriptions of what is kept"]
    shared.do("promote", **way.promote)
    (kept,) = shared.system.observe().kept
    assert f"-d {kept.name} -c 'alter subscription \"fetches\" disable'" in goes_on
    with pytest.raises(CannotError, match="used by logical replication subscription"):
        shared.do("discard", identity=kept.identity, kept=kept.name)
    with shared.server.connect(kept.name, writes=True) as connection:
        connection.execute("alter subscription fetches set (slot_name = none)")
        connection.execute("drop subscription fetches")
    shared.do("discard", identity=kept.identity, kept=kept.name)
    assert shared.count() == 500
    for dump in set((shared.home / "dumps").iterdir()) - before:
        shutil.rmtree(dump)


def test_a_database_that_was_dropped_comes_back(shared: World) -> None:
    with shared.server.connect(writes=True) as connection:
        connection.execute("drop database orders with (force)")
    state = shared.system.observe()
    assert state.identity.endswith("/absent")
    way = shared.way()
    shared.do("fence", identity=state.identity)
    shared.do("stage", **(way.arguments or {}))
    shared.do("promote", **way.promote)
    assert shared.count() == 500
    with shared.server.connect() as connection:
        row = connection.execute(
            "select pg_get_userbyid(datdba), datacl::text from pg_database where datname = 'orders'"
        ).fetchone()
    assert row and row[0] == "shop" and "auditor=c*" in row[1]


def test_nothing_is_swapped_while_the_applications_may_write_or_a_transaction_is_prepared(shared: World) -> None:
    way = shared.way()
    shared.do("stage", **(way.arguments or {}))
    with pytest.raises(CannotError, match="may still write"):
        shared.do("promote", **way.promote)
    with pytest.raises(CannotError, match="was other when"):
        shared.do("promote", **{**way.promote, "identity": "other"})
    shared.do("drop", stage=way.stage)
    shared.do("fence", identity=shared.system.observe().identity)
    with pytest.raises(CannotError, match="no whole stage"):
        shared.do("promote", **way.promote)
    shared.do("unfence", identity=shared.system.observe().identity)
    assert shared.count() == 500


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_load_that_was_broken_off_is_no_stage_and_is_built_anew(shared: World, after: int) -> None:
    way = shared.way()
    shared.do_until("stage", lambda number, progress: number == after, way)
    assert not any(one.complete for one in shared.system.observe().staged)
    shared.do("stage", **(way.arguments or {}))
    assert [one.complete for one in shared.system.observe().staged] == [True]
    with shared.server.connect() as connection:
        role = loading.role_of(shared.system.context.incident)
        assert connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone() is None
    assert "Salvor's load" not in str(shared.server.shell.read(f"{shared.data}/pg_hba.conf"))
    shared.do("drop", stage=way.stage)


HOSTILE = """
-- PostgreSQL database dump
-- Dumped from database version 15.1
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION public.trap() RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$ begin
    begin execute 'reset role'; execute 'reset session authorization'; exception when others then null; end;
    begin execute 'create role trapped superuser'; exception when others then null; end;
    begin execute 'copy (select 1) to program ''touch {mark}'''; exception when others then null; end;
    begin execute 'alter database orders rename to gone'; exception when others then null; end;
    return 1; end $$;
ALTER FUNCTION public.trap() OWNER TO salvor;
CREATE TABLE public.orders (id integer DEFAULT public.trap(), CHECK (public.trap() = 1));
ALTER TABLE public.orders OWNER TO nobody_here;
COPY public.orders (id) FROM stdin;
1
\\.
CREATE INDEX i ON public.orders (public.trap());
-- PostgreSQL database dump complete
"""


def test_a_hostile_dump_does_nothing_outside_its_stage(shared: World, tmp_path: Path) -> None:
    mark = shared.home / "touched"
    dump = tmp_path / "hostile.sql"
    dump.write_text(HOSTILE.replace("{mark}", str(mark)))
    before = shared.describe()
    way = shared.way(Wish(source=str(dump)))
    assert way.possible
    shared.do("stage", **(way.arguments or {}))
    levels = shared.levels(way, Wish(source=str(dump)))
    assert levels["content fingerprint"] is Level.WARN
    assert levels["left out of the dump"] is Level.WARN
    assert [level for check, level in levels.items() if check.startswith("integrity of ")] == [Level.PASS]
    owner = shared.system.ask("select pg_get_userbyid(proowner) from pg_proc where proname = 'trap'", way.stage)
    assert owner == "shop"
    shared.do("drop", stage=way.stage)
    assert shared.describe() == before
    assert not mark.exists()


def test_a_load_that_failed_is_taken_away_with_its_role(shared: World, tmp_path: Path) -> None:
    dump, before = tmp_path / "broken.sql", shared.describe()
    dump.write_text(HOSTILE.replace("COPY public.orders", "COPY public.nothing"))
    way = shared.way(Wish(source=str(dump)))
    with pytest.raises(CannotError, match="nothing"):
        shared.do("stage", **(way.arguments or {}))
    shared.do("drop", stage=way.stage)
    assert not shared.system.observe().staged
    assert shared.describe() == before
    with shared.server.connect() as connection:
        assert connection.execute("select 1 from pg_roles where rolname ~ '^salvor_load_'").fetchone() is None


def test_of_a_dump_in_a_bucket_nothing_stays_on_this_machine(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    folder = Path(shared.system.backups()[0].location)
    fetched = shared.system.context.folder / "fetched"
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="off-site")
        for path in folder.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "off-site", f"orders/{folder.name}/{path.relative_to(folder)}")
        wish = Wish(source=f"s3://off-site/orders/{folder.name}")
        way = shared.way(wish)
        shared.do("stage", **(way.arguments or {}))
        assert not list(fetched.rglob("dump")), "it is loaded, and the rows of customers lie about nowhere"
        assert shared.levels(way, wish)["content fingerprint"] is Level.PASS
        shared.do("drop", stage=way.stage)
    assert not [path for path in fetched.rglob("*") if path.is_file()]


def test_a_dump_of_another_database_or_of_nothing_is_no_way_back(shared: World, tmp_path: Path) -> None:
    assert not shared.way(Wish(source="/no/such/dump")).possible
    other = tmp_path / "dumps" / "other"
    shutil.copytree(next((shared.home / "dumps").iterdir()), other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace('"database": "orders"', '"database": "accounts"'))
    way = shared.way(Wish(source=str(other)))
    assert not way.possible and "accounts" in way.why


def cut_over(world: World, way: WayBack, state: State) -> None:
    world.do("fence", identity=state.identity)
    world.do("stage", **(way.arguments or {}))
    levels = world.levels(way)
    assert levels["content fingerprint"] is Level.PASS
    assert Level.FAIL not in levels.values()
    with logical_place.staged_side_cluster(world.system).stage.connect(writes=False) as connection:
        assert connection.execute("show fsync").fetchone() == ("off",)  # as postgresql.conf says
        assert connection.execute("show full_page_writes").fetchone() == ("on",)
    with logical_place.staged_side_cluster(world.system).stage.connect("orders") as connection:
        found = connection.execute("select distinct tablename from pg_stats where schemaname = 'public'").fetchall()
        assert ("orders",) in found  # the planner has statistics
    world.do("promote", **way.promote)


def test_a_database_that_is_alone_gets_a_side_cluster_and_all_can_be_undone(
    alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_too = side_cluster._FLUSH.replace("+1024k", "+1k")
    monkeypatch.setattr(side_cluster, "_FLUSH", f'{small_too} && echo once > "$1.flushed"')
    monkeypatch.setattr(side_cluster, "_FLUSHED_EVERY", 0.01)
    before, disk = alone.describe(), alone.home / "wal-disk"
    alone.server.stop("fast")
    script = 'mkdir -m 700 "$2"; mv -T "$1/pg_wal" "$2/pg_wal" && ln -s "$2/pg_wal" "$1/pg_wal"'
    alone.run("sh", "-c", script, "sh", alone.data, disk)
    alone.server.start()
    state = alone.system.observe()
    way = alone.way()
    assert way.possible and way.stage == side_cluster.STAGE, way.why
    (physical,) = (one for one in alone.system.ways_back(Wish(live_is_sound=False)) if one.name == "physical")
    assert physical.why.endswith("(pgbackrest:)"), "a time of the damage would open nothing"
    cut_over(alone, way, state)
    assert (alone.data / "pg_wal").readlink() == disk / f"pg_wal.salvor-{alone.system.context.incident}"
    assert [path.read_text() for path in alone.home.glob("data.salvor-*.flushed")] == ["once\n"]
    after = alone.system.observe()
    assert (after.reachable, after.writable, after.origin) == (Reachable.UP, True, alone.system.context.incident)
    assert after.identity != state.identity
    assert alone.count() == 500
    with alone.shop() as connection:
        assert connection.execute("show work_mem").fetchone() == ("7MB",)
        connection.execute("insert into orders (note) values ('new')")
    alone.do("promote", **way.promote)
    (kept,) = alone.home.glob("data.kept-*")
    kept.rename(alone.home / "by-hand")
    with pytest.raises(CannotError, match=f"nothing to go back to: {kept} is gone"):
        alone.undo(way.promote_undo)
    assert alone.count() == 501
    (alone.home / "by-hand").rename(kept)
    (known,) = alone.system.observe().kept
    with pytest.raises(CannotError, match="it was not removed"):
        alone.do("discard", identity="another", kept=known.name)
    for _ in range(2):
        alone.undo(way.promote_undo)
    assert alone.system.observe().identity == state.identity
    alone.do("drop", stage=way.stage)
    assert [one.name for one in disk.iterdir()] == ["pg_wal"]
    alone.do("unfence", identity=state.identity)
    assert alone.describe() == before
    assert alone.count() == 500


def test_a_side_cluster_that_was_broken_off_is_built_anew(alone: World) -> None:
    way = alone.way()
    alone.do_until("stage", lambda number, progress: number == 3, way)
    assert not any(one.complete for one in alone.system.observe().staged)
    identity = alone.system.observe().identity
    alone.do("fence", identity=identity)
    with pytest.raises(CannotError, match="no whole stage"):
        alone.do("promote", **way.promote)
    alone.do("unfence", identity=identity)
    alone.do("stage", **(way.arguments or {}))
    with pytest.raises(CannotError, match="not known that the old primary cannot write"):
        alone.do("promote", **way.promote)
    assert alone.system.observe().identity == identity
    newest = alone.system.backups()[0].taken
    assert [(one.complete, one.fresh) for one in alone.system.observe().staged] == [(True, newest)]
    alone.do("drop", stage=way.stage)
    assert alone.system.observe().staged == ()


def test_a_cluster_that_is_lost_comes_back_with_its_roles_and_settings(alone: World) -> None:
    """The last test of this module's cluster: its data directory is removed."""
    alone.server.kill()
    alone.data.rename(alone.home / "lost")
    state = alone.system.observe()
    way = alone.way()
    assert way.possible and way.stage == side_cluster.STAGE, way.why
    cut_over(alone, way, state)
    assert alone.count() == 500
    with alone.shop() as connection:
        assert connection.execute("show work_mem").fetchone() == ("7MB",)
    with alone.server.connect() as connection:
        assert connection.execute("show data_checksums").fetchone() == ("on",)
        assert connection.execute("select count(*) from pg_roles where rolname in ('shop', 'auditor')").fetchone() == (
            2,
        )

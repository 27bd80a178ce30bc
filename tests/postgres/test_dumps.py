from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ResponseStreamingError
from botocore.response import StreamingBody
from moto import mock_aws
from pydantic import ValidationError
from salvor.change import Level, Progress
from salvor.errors import CannotError, UsageError
from salvor.postgres import analyze, dump_find, dump_manifest, dumps, fingerprint, integrity, rows
from salvor.postgres.dump_store import open_store
from salvor.postgres.fingerprint import Fingerprint
from salvor.postgres.gauge import Gauge
from salvor.postgres.server import Server
from salvor.postgres.settings import PostgresSettings
from salvor.wish import Wish

from tests.postgres.conftest import PostgresServer
from tests.waiting import until, within


def finished(work: Generator[Progress, None, Any]) -> Any:
    """What a verb returns at its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    name = "shop 'of' \"all\""
    postgres_server.run("createdb", name)
    with psycopg.connect(postgres_server.database("postgres"), dbname=name, autocommit=True) as connection:
        connection.execute("create table orders (id serial primary key, note text)")
        connection.execute("insert into orders (note) select md5(g::text) from generate_series(1, 2000) g")
        connection.execute(
            "create sequence \"odd 'one\"; select setval('\"odd ''one\"', 42, false); select lo_create(7)"
        )
    yield name


@pytest.fixture
def execute(postgres_server: PostgresServer, database: str) -> Iterator[Callable[[str], Any]]:
    with psycopg.connect(postgres_server.database("postgres"), dbname=database, autocommit=True) as connection:
        yield lambda text: connection.execute(text.encode())


def test_a_dump_is_listed_private_whole_and_of_one_moment(
    server: Server, database: str, tmp_path: Path, execute: Callable[[str], Any]
) -> None:
    place = tmp_path / "a" / "dumps"
    work = dumps.take(server, database, str(place), jobs=2)
    seen = [next(work)]
    execute("insert into orders (note) values ('after the snapshot')")
    identifier = finished(work)
    (backup,) = open_store(str(place)).backups("orders-db")
    assert (backup.id, backup.way, backup.kind, backup.system) == (identifier, "logical", "dump", "orders-db")
    assert backup.taken.utcoffset() == timedelta(0)
    folder = place / identifier
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"
    }
    assert (
        backup.size
        == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        - (folder / "manifest.json").stat().st_size
    )
    assert "CREATE ROLE postgres" in (folder / "globals.sql").read_text()
    assert seen[0].unit == "bytes"
    cluster = json.loads((folder / "cluster.json").read_text())
    assert cluster["database"]["owner"] == "postgres"
    assert "trust" in cluster["hba"]
    execute("delete from orders where note = 'after the snapshot'")


def test_the_fingerprint_is_what_the_dump_restores(
    server: Server, postgres_server: PostgresServer, database: str, tmp_path: Path, execute: Callable[[str], Any]
) -> None:
    moving = threading.Event()

    def move() -> None:
        with psycopg.connect(postgres_server.database("postgres"), dbname=database, autocommit=True) as connection:
            while not moving.wait(0.01):
                connection.execute("insert into orders (note) values ('moving')")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        identifier = finished(dumps.take(server, database, str(tmp_path)))
    finally:
        moving.set()
        mover.join()
    copy = f"copy_{uuid.uuid4().hex[:8]}"
    postgres_server.run("createdb", "-T", "template0", copy)
    postgres_server.run("pg_restore", "-d", copy, tmp_path / identifier / "dump")
    expected = Fingerprint.from_json(json.loads((tmp_path / identifier / "fingerprint.json").read_text()))
    found = fingerprint.take(server.connect, copy)
    assert [finding.level for finding in fingerprint.compare(expected, found)] == [Level.PASS]
    assert found.sequences['public."odd \'one"'] == (42, False)
    execute("delete from orders where note = 'moving'")


def test_a_failed_dump_leaves_nothing_and_a_killed_one_is_removed_by_the_next(
    server: Server, database: str, tmp_path: Path
) -> None:
    killed = tmp_path / ".partial-killed"
    (killed / "dump").mkdir(parents=True)
    (killed / "manifest.json").write_text("{}")
    with pytest.raises(CannotError, match=r"no such database|does not exist"):
        finished(dumps.take(server, "no such database", str(tmp_path)))
    assert open_store(str(tmp_path)).backups("x") == []
    abandoned = dumps.take(server, database, str(tmp_path))
    next(abandoned)
    (working,) = (path for path in tmp_path.iterdir() if path != killed)
    finished(dumps.take(server, database, str(tmp_path)))
    assert working.exists()  # that one is still at work
    abandoned.close()
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [False]


@pytest.mark.timeout(60)
def test_a_dump_that_is_stopped_waits_for_no_program(server: Server, database: str, tmp_path: Path) -> None:
    """A pg_dump of hours, or one that hangs: Ctrl-C waited for it."""
    place = tmp_path.name

    def dumping() -> list[int]:
        said = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
        return [int(line.split()[0]) for line in said.splitlines() if "pg_dump " in line and f"{place}/" in line]

    stopped = dumps.take(server, database, str(tmp_path))
    next(stopped)
    assert until(dumping)
    for process in dumping():
        os.kill(process, signal.SIGSTOP)
    within(15.0, stopped.close)
    assert not dumping() and list(tmp_path.iterdir()) == []


def test_a_dump_of_a_table_that_is_locked_or_a_server_that_is_gone_says_so(server: Server, tmp_path: Path) -> None:
    gone = Server(server.shell, server.programs, server.data, server.address, 1, server.operator)
    with pytest.raises(CannotError, match="cannot be dumped"):
        finished(dumps.take(gone, "postgres", str(tmp_path)))


def test_a_backup_is_on_disk_before_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))

    monkeypatch.setattr(os, "fsync", fsync)
    store = open_store(str(tmp_path))
    folder = store.begin("one")
    (folder / "dump").mkdir()
    (folder / "dump" / "toc.dat").write_bytes(b"x")
    list(store.finish(folder, {"id": "one", "size": 1, "files": {}}))
    building = folder.name
    new = next(name for name in flushed if name.endswith(".new"))
    assert flushed == [f"{building}/dump/toc.dat", f"{building}/dump", new, building, "."]
    assert [path.name for path in (tmp_path / "one").iterdir() if path.is_file()] == ["manifest.json"]


def test_two_of_one_second_have_two_names(server: Server, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with server.connect() as leader:
        rows.begin(leader)
        taken = dumps._now(leader)
    first = dumps._new_id(store, "a/b", taken)
    assert first.startswith("a%2Fb-")
    (tmp_path / first).mkdir()
    manifest = {
        "id": first,
        "taken": "2026-11-21T03:00:00+00:00",
        "database": "",
        "server_version": "",
        "size": 0,
        "files": {},
        "fingerprint": {},
    }
    (tmp_path / first / "manifest.json").write_text(json.dumps(manifest))
    assert dumps._new_id(store, "a/b", taken) == f"{first}-2"


@pytest.fixture(scope="module")
def kept(server: Server, database: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    place = tmp_path_factory.mktemp("kept")
    return place, finished(dumps.take(server, database, str(place))), finished(dumps.take(server, database, str(place)))


def test_the_source_that_is_meant_is_found(kept: tuple[Path, str, str], database: str, tmp_path: Path) -> None:
    place, first, second = str(kept[0]), kept[1], kept[2]
    taken = {backup.id: backup.taken for backup in open_store(place).backups("x")}
    newest = max(taken, key=lambda name: (taken[name], name))
    assert dump_find.find(place, database, Wish()).name == newest
    assert dump_find.find(place, database, Wish(source=first)).name == first
    assert dump_find.find(place, database, Wish(source=f"{place}/{second}")).name == f"{place}/{second}"
    assert dump_find.find(place, database, Wish(at=taken[first])).taken == taken[first]
    loose = tmp_path / "a dump.sql.gz"
    loose.write_bytes(b"x")
    assert dump_find.find(place, database, Wish(source=str(loose))).size == 1
    assert dump_find.find("", database, Wish(source=f"file://{tmp_path}/a%20dump.sql.gz")).name == str(loose)
    with pytest.raises(UsageError, match="a folder without a file"):
        dump_find.find(place, database, Wish(source=str(tmp_path)))
    for wish in (
        Wish(source="nothing"),
        Wish(source="/no/such/file"),
        Wish(at=min(taken.values()) - timedelta(seconds=1)),
        Wish(target="lsn:0/1"),
        Wish(source="../no such file"),
    ):
        with pytest.raises(UsageError):
            dump_find.find(place, database, wish)
    with pytest.raises(UsageError):
        dump_find.find(place, "another database", Wish())


def test_a_damaged_file_is_named_before_anything_is_restored(
    kept: tuple[Path, str, str], database: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    shutil.copytree(kept[0], place)
    source = dump_find.find(str(place), database, Wish(source=kept[1]))
    assert finished(dump_find.bring(str(place), source, tmp_path)) == place / kept[1] / "dump"
    victim = max((place / kept[1] / "dump").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CannotError, match=victim.name):
        finished(dump_find.bring(str(place), source, tmp_path))
    victim.unlink()
    with pytest.raises(CannotError, match=victim.name):
        finished(dump_find.bring(str(place), source, tmp_path))


def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    manifest = {"id": "x", "size": 1, "files": {"../../etc/passwd": {"size": 1, "sha256": ""}}}
    with pytest.raises(CannotError, match="outside"):
        finished(dump_manifest.check(tmp_path, manifest))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        {"files": []},
        {"files": None},
        {"files": {"globals.sql": {"size": "x", "sha256": ""}}},
        {"files": {"globals.sql": {"size": 7}}},
        {"taken": "yesterday"},
        {"taken": 7},
        {"size": -1},
        {"size": 10**400},
        {"size": "7"},
        {"id": None},
        {"fingerprint": 7},
    ],
)
def test_a_damaged_manifest_hides_no_other_backup(damage: dict[str, Any], tmp_path: Path) -> None:
    """`inv backups --check` ended in a fault of its own for all systems, and no dump of the place could be listed."""
    sound = {"taken": "2026-11-21T03:00:00+00:00", "database": "db", "server_version": "15.8", "size": 7, "files": {}}
    for name, more in (("sound", {}), ("damaged", damage)):
        (tmp_path / name).mkdir()
        manifest = {**sound, "id": name, "fingerprint": {}, **more}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    store = open_store(str(tmp_path))
    assert [one.id for one in store.backups("db")] == ["sound"]
    assert not [store.damaged(one, deep=False) for one in store.manifests() if one["id"] != "sound"]


_BEGINS_AND_DIES = """
import boto3, os
from moto import mock_aws
from salvor.postgres.dump_store import Bucket
with mock_aws():
    boto3.client("s3").create_bucket(Bucket="backups")
    store = Bucket("s3://backups/of/orders")
    (store.begin("orders-1") / "dump").write_text("all orders")
    os.kill(os.getpid(), 9)
"""


def breaks(body: StreamingBody, amt: int | None = None) -> bytes:
    raise ResponseStreamingError(error="Connection reset by peer")


def test_a_bucket_does_what_a_folder_does(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="backups")
        place = "s3://backups/of/orders"
        s3.put_object(Bucket="backups", Key="of/orders/half/cluster.json", Body=b"{}")  # killed before its manifest
        s3.put_object(Bucket="backups", Key="of/orders/stranger/manifest.json", Body=b"[]")
        (here := tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(here))
        argv, environment = [sys.executable, "-c", _BEGINS_AND_DIES], os.environ | {"TMPDIR": str(here)}
        assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == -9
        assert [path.name for path in here.glob("*/*")] == ["dump"]
        identifier = finished(dumps.take(server, database, place))
        assert [backup.id for backup in open_store(place).backups("x")] == [identifier]
        assert list(here.iterdir()) == []
        by_uri = dump_find.find("", database, Wish(source=f"{place}/{identifier}"))
        for source in (dump_find.find(place, database, Wish()), by_uri):
            scratch = tmp_path / str(len(list(tmp_path.iterdir())))
            dump = finished(dump_find.bring(place, source, scratch))
            assert dump_find.read_beside(dump, "fingerprint.json")["tables"]
            assert {stat.S_IMODE(path.stat().st_mode) for path in scratch.rglob("*") if path.is_file()} == {0o600}
        s3.put_object(Bucket="backups", Key="loose.sql", Body=b"select 1")
        loose = dump_find.find(place, database, Wish(source="s3://backups/loose.sql"))
        assert finished(dump_find.bring(place, loose, tmp_path / "loose")).read_bytes() == b"select 1"
        dump_find.forget(tmp_path / "loose")
        dump_find.forget(scratch)
        assert list((tmp_path / "loose").iterdir()) == []
        assert not dump.exists() and dump_find.read_beside(dump, "fingerprint.json"), "what it is proven by stays"
        with pytest.raises(CannotError, match=r"s3://backups/loose.sql is downloaded to .* which needs .* are free"):
            finished(dump_find.bring(place, replace(loose, size=10**18), tmp_path / "loose"))
        with monkeypatch.context() as broken:
            broken.setattr(StreamingBody, "read", breaks)
            with pytest.raises(
                CannotError, match=r"s3://backups/loose\.sql does not give .* Connection reset"
            ) as caught:
                finished(dump_find.bring(place, loose, tmp_path / "loose"))
        assert "then the same command again" in caught.value.hint
        assert list((tmp_path / "loose").iterdir()) == [], "nothing half made is left"
        with pytest.raises(UsageError):
            dump_find.find(place, database, Wish(source="s3://backups/nothing"))
        with pytest.raises(CannotError, match="nowhere"):
            open_store("s3://nowhere/x").backups("x")


def test_every_row_is_read_where_pages_have_no_checksums(server: Server, database: str) -> None:
    """As Debian sets clusters up. Catalogs have columns of types without a binary form."""
    assert (server.control() or {})["Data page checksum version"] == "0"
    with Gauge(server, lambda progress: None, "reading") as gauge:
        found = integrity.every_page("orders-db", server, database, "1", gauge)
    assert (found.level, found.figure) == (Level.PASS, "readable"), found.detail


def test_the_planner_knows_every_table_and_partitioned_ones_as_a_whole(
    server: Server, database: str, execute: Callable[[str], Any]
) -> None:
    execute("create table parted (a int) partition by range (a)")
    execute("create table part partition of parted for values from (0) to (1000)")
    execute("insert into parted select generate_series(0, 999)")
    for _ in analyze.analyze(server, database, jobs=2):
        pass
    known = execute("select tablename from pg_stats where schemaname = 'public' and attname in ('a', 'note')")
    assert {name for (name,) in known} == {"orders", "parted", "part"}
    execute("drop table parted")


@pytest.mark.parametrize("place", ["dumps", "s3:/bucket/dumps", "~/dumps"])
def test_a_place_that_can_hold_no_dumps_is_refused_when_the_inventory_is_read(place: str) -> None:
    """Nothing was ever found there, which was said first when a dump was needed."""
    described = {
        "kind": "postgres",
        "database": "orders",
        "members": [{"name": "a", "address": "127.0.0.1", "data": "/srv/a"}],
        "side_port": 5499,
        "programs": "/usr/lib/postgresql/15/bin",
        "operator": {"user": "salvor", "password": "env:PASSWORD"},
    }
    assert PostgresSettings.model_validate({**described, "dumps": "s3://bucket/dumps"}).dumps == "s3://bucket/dumps"
    with pytest.raises(ValidationError, match="neither the absolute path of a folder nor s3://"):
        PostgresSettings.model_validate({**described, "dumps": place})

"""A whole service back from one archive: a database, two trees and a file, through the chain that an operator runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.response import StreamingBody
from salvor import clock, console, maintenance
from salvor.change import Level
from salvor.errors import SalvorError
from salvor.journal import Journal
from salvor.roles import Restorable
from salvor.session import Session, aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.system import System
from salvor.wish import Wish

from tests.archive import made
from tests.archive.made import PASSWORD, encrypt, listing
from tests.postgres.conftest import programs
from tests.postgres.logical import world

pytestmark = pytest.mark.timeout(120)
TAKEN = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)
MEMBERS = {"media": "uploads", "build": "build", "environment": ".env"}


class Shop:
    """A cluster with 500 orders, what a shop has on its disk, and last night's archive of all of it."""

    def __init__(self, root: Path, made_: world.World) -> None:
        self.root, self.database = root, made_
        self.top = made.platform(root)
        self.before = {name: listing(self.top / member) for name, member in MEMBERS.items()}
        self.folder = root / "backup"
        self.folder.mkdir(mode=0o700)
        (root / "password").write_text(PASSWORD)
        (root / "password").chmod(0o600)
        (root / "inventory").mkdir()
        (root / "inventory/shop.yaml").write_text(yaml.safe_dump(self.inventory()))

    def inventory(self) -> dict[str, Any]:
        archives = {"folder": str(self.folder), "password": f"file:{self.root}/password"}
        settings = self.database.system.settings.model_dump(mode="json", exclude={"dumps"}, exclude_defaults=True)
        trees = {
            name: {"kind": "files", "path": str(self.top / member), "archives": archives | {"member": member}}
            for name, member in MEMBERS.items()
        }
        database = settings | {"kind": "postgres", "archives": archives | {"member": "database.sql.gz"}}
        service = {
            "rto": "1h",
            "rpo": "1d",
            "systems": ["database", *trees],
            "checks": [
                {"name": "orders", "system": "database", "sql": "select count(*) from orders", "at_least": 500},
                {"name": "pictures", "system": "media", "ask": "files *.jpg", "at_least": 2},
                {"name": "the address", "system": "environment", "ask": "lines ^DATABASE_URL=", "at_least": 1},
            ],
        }
        return {"systems": {"database": database, **trees}, "services": {"shop": service}}

    def dump(self, target: Path, *options: str) -> None:
        environment = os.environ | {"PGPASSWORD": world.PASSWORD}
        argv = [str(programs() / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.database.port), "-U", "salvor", "orders"]
        with target.open("wb") as file:
            subprocess.run([*argv, *options], env=environment, stdout=file, check=True, timeout=60)

    def back_up(self, taken: datetime = TAKEN, *options: str) -> Path:
        """What the customer's script does."""
        plain = self.top / "database.sql"
        self.dump(plain)
        made.run("gzip", "-f", plain)
        archive = made.pack(self.top, self.folder / f"o4o_backup_{taken.astimezone():%Y%m%d_%H%M%S}.tar.gz")
        (self.top / "database.sql.gz").unlink()
        if options:
            plain, archive = archive, encrypt(archive, *options)
            plain.unlink()
        return archive

    def destroy(self) -> None:
        with self.database.shop() as connection:
            connection.execute("update orders set note = 'gone'")
            connection.execute("delete from orders where id > 20")
        shutil.rmtree(self.top / "uploads")
        (self.top / "build/index.html").write_text("pay 3 bitcoin")
        (self.top / ".env").write_text("")

    def session(self, **wishes: Any) -> Session:
        return open_session("shop", Plain(), platform="shop", wish=Wish(**wishes))

    def restore(self, **wishes: Any) -> Session:
        session = self.session(**wishes)
        console.recover(session, Plain(), yes=True)
        return session

    def now(self) -> dict[str, Any]:
        return {name: listing(self.top / member) for name, member in MEMBERS.items() if (self.top / member).exists()}

    def count(self) -> int:
        """By the operator, whom no fence keeps out."""
        with self.database.server.connect("orders") as connection:
            row = connection.execute("select count(*) from orders").fetchone()
        assert row
        return int(row[0])


@pytest.fixture(scope="module")
def cluster() -> Iterator[world.World]:
    home = Path(tempfile.mkdtemp(prefix="salvor-archive-"))
    home.chmod(0o755)
    run_as = "postgres" if os.geteuid() == 0 else None
    if run_as:
        shutil.chown(home, run_as, run_as)
    running = world.World(home, run_as)
    try:
        running.make()
        with running.server.connect(writes=True) as connection:
            connection.execute("create database accounts")  # others share the cluster: the database alone is replaced
        yield running
    finally:
        for data in home.glob("data*"):
            if data.is_dir():
                replace(running.server, data=str(data)).kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def shop(cluster: world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path / "inventory"))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    with cluster.shop() as connection:
        connection.execute("truncate orders restart identity")
        connection.execute("insert into orders (note) select md5(g::text) from generate_series(1, 500) g")
    return Shop(tmp_path, cluster)


def test_a_service_comes_back_from_one_archive_and_goes_back_again(shop: Shop) -> None:
    archive = shop.back_up(TAKEN, "-pbkdf2")
    shop.destroy()
    destroyed = shop.now()
    (shop.root / "password").write_text("a guess")
    with pytest.raises(SalvorError, match="cannot be decrypted"):
        shop.restore(source=str(archive))
    assert not list((shop.root / "incidents").rglob("journal*"))  # nothing was begun, so nothing is fenced
    (shop.root / "password").write_text(PASSWORD)
    session = shop.restore(source=str(archive))
    assert shop.now() == shop.before
    assert shop.count() == 500
    assert not list((shop.root / "incidents").rglob("*.sql.gz"))  # nothing of the dump stays behind
    aftermath.undo(session.incident.id, Plain(), yes=True)
    assert shop.now() == destroyed
    assert shop.count() == 20


def test_latest_is_the_newest_archive_and_at_the_newest_before(shop: Shop) -> None:
    old, new = shop.back_up(TAKEN - timedelta(days=1)), shop.back_up(TAKEN)
    (shop.folder / "o4o_backup_20991231_000000.tar.gz").touch()  # empty: a backup that failed
    (shop.folder / "notes_20991231.txt").touch()
    shutil.copy(old, shop.folder / "o4o_backup_20981231_000000.tar.gz")  # its clock was wrong
    (shop.folder / f"{new.name}.sha256").write_text(hashlib.sha256(new.read_bytes()).hexdigest())
    for system in shop.session().incident.systems:
        listed = [(one.id, one.usable, one.taken) for one in system.backups()]
        assert listed[2:] == [(new.name, True, TAKEN), (old.name, True, TAKEN - timedelta(days=1))]
        assert listed[0][1] is False
        for wish, chosen in (
            (Wish(), new),
            (Wish(at=TAKEN), new),
            (Wish(at=TAKEN - timedelta(seconds=1)), old),
            (Wish(source=old.name), old),
            (Wish(damaged_at=TAKEN, live_is_sound=False), new if system.name == "database" else old),
        ):
            assert [way.backup for way in system.ways_back(wish) if way.possible] in ([chosen.name], [str(chosen)])
        assert not any(way.possible for way in system.ways_back(Wish(at=TAKEN - timedelta(days=9))))


def test_a_damaged_archive_leaves_everything_as_it_was(shop: Shop) -> None:
    archive = shop.back_up()
    content = archive.read_bytes()
    archive.write_bytes(content[:-2000])
    with pytest.raises(SalvorError, match="truncated") as error:
        shop.restore(source=str(archive))
    assert "HINT" in str(error.value)
    assert not any(staged.complete for system in shop.session().incident.systems for staged in system.observe().staged)
    assert (shop.top / "uploads/one.jpg").exists()
    assert shop.count() == 500
    assert not list((shop.root / "incidents").rglob("*.sql*"))
    assert not list(shop.top.glob("*.salvor-*/*"))
    archive.write_bytes(content)  # the same command again goes on
    shop.restore(source=str(archive))
    assert shop.now() == shop.before


DIES = """
import os, sys
from salvor import console
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.wish import Wish

class Dies(Plain):
    def ended(self, change, *outcome):
        if change.verb == "stage":
            os.kill(os.getpid(), 9)

shown = Dies(sys.stdout)
console.recover(open_session("shop", shown, platform="shop", wish=Wish(source=sys.argv[1])), shown, yes=True)
"""


def test_killed_when_the_first_is_staged_and_called_again_it_ends_as_undisturbed(shop: Shop) -> None:
    archive = shop.back_up(TAKEN, "-pbkdf2")
    changed = clock.write_time(datetime.fromtimestamp(archive.stat().st_mtime, UTC))
    shop.destroy()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", DIES, str(archive)]
    assert subprocess.run(argv, env=environment, timeout=60, check=False).returncode == -9
    assert not (shop.top / "uploads").exists()
    shop.restore(source=str(archive))
    assert shop.now() == shop.before
    assert shop.count() == 500
    assert not list((shop.root / "incidents").rglob("*.sql.gz"))
    (journal,) = (shop.root / "incidents").rglob("journal.jsonl")  # gone on with
    found = [line["finding"] for line in Journal.read(journal.parent).of("finding")]
    read_from = {one["subject"]: one["figure"] for one in found if one["check"] == "read from"}
    assert read_from.keys() == {"database", *MEMBERS}
    assert set(read_from.values()) == {f"{archive.stat().st_size:,} bytes of {changed}"}


def carry_out(system: System, verb: str, **arguments: Any) -> None:
    for _ in system.apply(system.change(verb, why="-", no_undo="-", **arguments)):
        pass


@pytest.mark.parametrize("options", [("-Fc",), ()])
def test_the_dump_may_have_any_form(shop: Shop, options: tuple[str, ...]) -> None:
    """Whatever the member is called."""
    shop.dump(shop.top / "database.sql.gz", *options)
    archive = made.pack(shop.top, shop.folder / "o4o_backup_20260101_000000.tar.gz")
    with shop.database.shop() as connection:
        connection.execute("delete from orders")
    database = shop.session(source=str(archive)).incident.systems[0]
    way = next(way for way in database.ways_back(Wish(source=str(archive))) if way.possible)
    carry_out(database, "stage", **(way.arguments or {}))
    assert database.ask("select count(*) from orders", way.stage) == 500
    levels = {finding.check: finding.level for finding in database.verify(way, Wish(source=str(archive)))}
    assert levels["freshness"] is Level.PASS
    carry_out(database, "drop", stage=way.stage)


def test_what_is_staged_again_is_found(shop: Shop) -> None:
    archive = shop.back_up()
    media = shop.session(source=str(archive)).incident.system("media")
    way = media.ways_back(Wish(source=str(archive)))[0]  # type: ignore[attr-defined]
    for _ in range(2):
        carry_out(media, "stage", **way.arguments)
    (staged,) = media.observe().staged
    assert staged.complete
    assert clock.write_time(staged.fresh or TAKEN) == clock.write_time(TAKEN)


def test_an_archive_that_is_written_is_one_that_anybody_can_read(shop: Shop) -> None:
    maintenance.backup("shop", "shop", "archive", Plain())
    (archive,) = shop.folder.glob("*.enc")
    assert archive.name.startswith("shop_backup_")
    assert {path.stat().st_mode & 0o777 for path in shop.folder.iterdir()} == {0o600}
    assert {path.name for path in shop.folder.iterdir()} == {archive.name, f"{archive.name}.sha256"}
    made.run("sh", "-c", 'cd "$1" && sha256sum -c --quiet *.sha256', "sh", shop.folder)
    by_hand = shop.root / "by hand"
    by_hand.mkdir()
    script = 'openssl enc -d -aes-256-cbc -pbkdf2 -in "$1" -pass env:P | tar -xzf - -C "$2"'
    made.run("sh", "-c", script, "sh", archive, by_hand, P=PASSWORD)
    for name, member in MEMBERS.items():
        assert listing(by_hand / member) == shop.before[name]
    made.run("sh", "-c", 'gunzip -c "$1" | grep -q "database dump complete"', "sh", by_hand / "database.sql.gz")
    assert not list((shop.root / "incidents").rglob("*.sql.gz"))
    media = shop.session().incident.system("media")
    assert isinstance(media, Restorable)
    (way,) = (way for way in media.ways_back(Wish()) if way.possible)
    assert way.backup == archive.name


def test_an_archive_in_a_bucket_is_read_once_for_all_of_a_service(
    shop: Shop, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop.top / "uploads/large").write_bytes(os.urandom(20 << 20))
    before, archive = shop.now(), shop.back_up()
    s3.upload_file(str(archive), "off-site", archive.name)
    shop.destroy()
    sizes: list[int] = []
    read = StreamingBody.read

    def counted(body: StreamingBody, amount: int | None = None) -> bytes:
        piece = bytes(read(body, amount))
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(StreamingBody, "read", counted)
    shop.restore(source=f"s3://off-site/{archive.name}")
    assert shop.now() == before
    assert shop.count() == 500
    first_look = 4 << 20  # is it an archive, and is the password its own: with the plan
    assert 0 <= sum(sizes) - archive.stat().st_size < first_look

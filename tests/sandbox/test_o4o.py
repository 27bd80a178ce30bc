"""The stand-in of o4o: what stands, what each disaster hurts and leaves alone, and that nothing stays behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from salvor import change, checks, clock, inventory, shell
from salvor.errors import CannotError, UsageError
from salvor.host import instances, services
from salvor.sandbox import o4o, processes, traces, writer
from salvor.sandbox.o4o import backups, content, customers, database, disasters, pm2, survivors
from salvor.sandbox.o4o.layout import APPLICATIONS, Layout
from salvor.sandbox.survivors import Survivors
from salvor.sandbox.writer import Line
from salvor.show import Plain
from salvor.system import Context
from salvor.watch import actions
from salvor.watch.episode import sitting

from tests.conftest import an_o4o, half_an_o4o
from tests.running_here import command_lines
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def down_now() -> set[str]:
    """The parts that do not do their work."""
    return {part.name for part in o4o.status() if not part.up}


def ask(found: Layout, question: str, *arguments: object) -> Any:
    with database.server(found).session(database.NAME) as connection:
        row = connection.execute(question.encode(), arguments or None).fetchone()
        assert row
        return row[0]


def acknowledged(found: Layout) -> int:
    return min(len(writer.acknowledged(found.acknowledged, kind)) for kind in ("orders", "payments", "uploads"))


def pm2_of(found: Layout) -> services.Environment:
    return {"PM2_HOME": f"{found.root}/pm2", "PATH": f"{found.root}/bin:/usr/bin:/bin"}


@pytest.fixture(scope="module")
def standing(o4o_cluster: Path) -> Iterator[Layout]:
    """A stand-in for all tests; at the end it is taken down, and nothing of it may be left."""
    with an_o4o(o4o_cluster) as found:
        yield found
        _leave_a_staged_server(found)
        assert len(traces.of(found)) > 10
        o4o.down()
        assert until(lambda: not traces.of(found), 2)


@pytest.fixture(scope="module")
def kept(standing: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The media and the settings, for tests that break them."""
    folder = tmp_path_factory.mktemp("kept")
    shell.local().run(["cp", "-a", str(standing.media), str(standing.settings), str(folder)])
    return folder


@pytest.fixture
def whole(standing: Layout, kept: Path) -> Iterator[Layout]:
    """The stand-in, which is mended by hand after the test."""
    assert down_now() == set()
    yield standing
    if "media" in down_now():
        mended = standing.media.with_name("mended")
        shell.local().run(["cp", "-a", str(kept / "media"), str(mended)])
        while standing.media.exists():  # customers go on uploading into it
            shutil.rmtree(standing.media, ignore_errors=True)
        mended.rename(standing.media)
    shutil.copy(kept / ".env", standing.settings)
    server = database.server(standing)
    with server.session(deadline=30, writes=True) as connection:
        (there,) = connection.execute("select count(*) from pg_database where datname = 'o4o'").fetchone() or (0,)
        if not there:
            connection.execute("create database o4o owner o4o")
    if not there:
        rows = (Path(o4o.__file__).parent / "data.sql").read_bytes()
        psql = [server.program("psql"), "-X", "-q", "-h", str(standing.data.parent), "-p", str(server.port), "o4o"]
        standing.shell.run(psql, input=b"set role o4o;\n" + rows)
    o4o.up(tell=lambda text: None)
    assert until(lambda: down_now() == set())


def _leave_a_staged_server(found: Layout) -> None:
    """As a recovery may leave one."""
    server, side = database.server(found), found.root / "database" / "data.staged"
    found.shell.run(["cp", "-a", str(found.data), str(side)])
    found.shell.run(["rm", "-f", f"{side}/postmaster.pid"])
    options = f"-c port={found.side_port} -c archive_mode=off -c unix_socket_directories=''"
    start = [server.program("pg_ctl"), "-D", str(side), "-W", "-s", "-l", f"{side}.log", "-o", options, "start"]
    found.shell.run(start)
    assert until(lambda: len(processes.working_in(side)) > 0)


# --------------------------------------------------------------------------------------------------- as it stands


def test_every_part_is_up_and_the_second_up_is_quick(standing: Layout) -> None:
    assert down_now() == set()
    before = pm2.running(standing)
    begun = clock.monotonic()
    o4o.up(tell=lambda text: None)
    assert clock.monotonic() - begun < 6
    assert pm2.running(standing) == before


def test_every_check_of_the_inventory_passes(standing: Layout, tmp_path: Path) -> None:
    platform = inventory.load("o4o")
    assert [service.name for service in platform.in_order()][:3] == ["database", "settings", "authentication"]
    tiers = {service.name: service.tier for service in platform.in_order()}
    assert {name for name, tier in tiers.items() if tier == 4} == {"logs", "analytics", "reports"}
    found = []
    for service in platform.services.values():
        for check in service.checks:
            system: Any = platform.open(check.system, Context("none", tmp_path, dict)) if check.system else None
            found.append(checks.run(check, ask=system.ask if system else _nobody, where="live"))
    assert len(found) >= len(platform.services)
    assert [finding for finding in found if finding.level is not change.Level.PASS] == []


def _nobody(statement: str, where: str) -> Any:
    raise NotImplementedError


def test_every_action_of_its_rules_can_be_done(standing: Layout) -> None:
    """There was no cache to clear."""
    platform = inventory.load("o4o")
    for name, rule in platform.watch.items():
        episode = sitting(platform, name, None, "bad", clock.now(), Plain()).incident
        for action in (*rule.immediately, *rule.then):
            assert actions.change(action, episode, "", "").system == action.system


def test_what_is_on_the_disk_is_closed_to_others(standing: Layout) -> None:
    for top in (standing.place, standing.root):
        for folder in sorted(path for path in top.iterdir() if path.is_dir()):
            assert folder.stat().st_mode & 0o077 == 0, folder
    for path in (standing.settings, *(standing.root / "secrets").iterdir(), *standing.archives.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_no_secret_stands_in_any_argv_nor_in_what_pm2_keeps(standing: Layout) -> None:
    values = [line.partition("=")[2] for line in standing.settings.read_text().splitlines() if "SECRET" in line]
    secrets = [text.encode() for text in (*values, *(standing.secret(name) for name in Layout.SECRETS))]
    assert len(secrets) >= 7
    words = [word for each in command_lines().values() for word in each]
    assert not any(secret in word for secret in secrets for word in words)
    kept = [path.read_bytes() for path in (standing.root / "pm2").rglob("*") if path.is_file()]
    assert not any(secret in text for secret in secrets for text in kept)


def test_pm2_is_the_real_one_at_home_in_its_own_folder(standing: Layout) -> None:
    told = json.loads(pm2.run(standing, "jlist"))
    assert {one["name"]: one["pm2_env"]["status"] for one in told} == dict.fromkeys(APPLICATIONS, "online")
    (daemon,) = [process for process in pm2.running(standing) if _is_daemon(process)]
    home = f"PM2_HOME={standing.root}/pm2".encode()
    assert home in Path(f"/proc/{daemon.pid}/environ").read_bytes()
    assert not Path("~/.pm2/pm2.pid").expanduser().exists()


def _is_daemon(process: processes.Process) -> bool:
    return b"God Daemon" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_the_archive_of_the_night_holds_everything(standing: Layout) -> None:
    (path,) = standing.archives.iterdir()
    name = path.name.removesuffix(".tar.gz")
    assert time.strptime(name, "o4o_backup_%Y%m%d_%H%M%S")
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive.getmembers()}
        dump = archive.extractfile(members[f"{name}/database.sql.gz"])
        settings = archive.extractfile(members[f"{name}/.env"])
        picture = archive.extractfile(members[f"{name}/media/products/0007.jpg"])
        assert dump and settings and picture
        assert b"COPY public.payments" in gzip.decompress(dump.read())
        assert settings.read() == standing.settings.read_bytes()
        assert picture.read() == (standing.media / "products" / "0007.jpg").read_bytes()
    assert members[f"{name}/media/banner.jpg"].linkname == "products/0001.jpg"
    assert sum(one.name.startswith(f"{name}/media/") and one.isreg() for one in members.values()) == 1999
    assert f"{name}/build/manifest.json" in members
    assert f"{name}/logs/api.log" in members


def test_both_repositories_have_a_snapshot_of_all_trees(standing: Layout) -> None:
    for repository in standing.repositories.values():
        restic = ["restic", "--repo", str(repository), "--no-cache", "--no-lock", "--password-file"]
        told = shell.local().run([*restic, f"{standing.root}/secrets/restic.password", "snapshots", "--json"]).stdout
        (snapshot,) = json.loads(told)
        trees = (standing.settings, standing.media, standing.build, standing.logs)
        assert snapshot["paths"] == sorted(map(str, trees))


def test_a_later_snapshot_holds_what_was_uploaded_meanwhile(standing: Layout) -> None:
    before = acknowledged(standing)
    assert until(lambda: acknowledged(standing) > before)
    *_, (reference, _) = writer.acknowledged(standing.acknowledged, customers.UPLOADS)
    (path,) = standing.media.rglob(f"{reference}.jpg")
    local = standing.repositories["local"]
    copy = standing.repositories["local"].with_name("copy")
    shutil.copytree(local, copy)
    try:
        backups._snapshot(standing, copy)
        restic = ["restic", "--repo", str(copy), "--no-cache", "--password-file"]
        dump = [*restic, f"{standing.root}/secrets/restic.password", "dump", "latest", str(path)]
        said = subprocess.run(dump, capture_output=True, check=True).stdout
    finally:
        shutil.rmtree(copy)
    assert hashlib.sha256(said).hexdigest() == reference


def test_the_applications_take_what_makes_sense_from_those_who_logged_in(standing: Layout) -> None:
    auth, api, payments = (Line(standing.port(name)) for name in ("auth", "api", "payments"))
    who = {"email": "user7@example.com", "password": "password-7"}
    assert auth.post("/login", {**who, "password": "guess"})[0] == 403
    status, said = auth.post("/login", who)
    assert status == 200
    token = said["token"]
    order = {"reference": "mine", "product": 7}
    assert api.post("/orders", order)[0] == 400
    assert api.post("/orders", order, Authorization="8" + token[1:])[0] == 400
    assert api.post("/orders", order, Authorization=token)[0] == 201
    assert api.post("/orders", order, Authorization=token)[0] == 409
    assert payments.post("/payments", {"reference": "p", "order": "nobody's"}, Authorization=token)[0] == 503
    assert payments.post("/payments", {"reference": "mine-paid", "order": "mine"}, Authorization=token)[0] == 201
    paid = ask(standing, "select o.user_id from payments p join orders o on o.reference = order_reference"
               " where p.reference = 'mine-paid' and p.amount = o.amount")  # fmt: skip
    assert paid == 7
    picture = content.PICTURE + b"x" * 100
    assert api.post("/uploads/../../x.jpg", picture, Authorization=token)[0] == 400
    assert api.post("/uploads/my-picture", b"MZ", Authorization=token)[0] == 400
    assert api.post("/uploads/my-picture", picture, Authorization=token)[0] == 201
    assert [path.read_bytes() for path in standing.media.rglob("my-picture.jpg")] == [picture]


def test_nothing_that_was_acknowledged_is_missing(standing: Layout) -> None:
    before, since = acknowledged(standing), clock.now()
    assert until(lambda: acknowledged(standing) > before + 1)
    counted = survivors.survivors(clock.now(), since)
    assert set(counted) == {"api", "payments", "media"}
    assert all(one.before > 1 and one.lost == 0 for one in counted.values()), counted


# ------------------------------------------------------------------------------------------------------- disasters


def struck(found: Layout, name: str) -> Callable[[], dict[str, Survivors]]:
    """Strike once customers were at work, and check what every disaster has in common. Returns how to count what
    survived of what was acknowledged since.
    """
    before, since = acknowledged(found), clock.now()
    assert until(lambda: acknowledged(found) > before)
    begun = clock.now()
    moment = disasters.strike(name)
    assert begun <= moment <= clock.now()
    assert disasters.struck(found)[-1] == disasters.Struck(name, moment, "o4o")
    return lambda: survivors.survivors(moment, since)


def checks_that_fail() -> set[str]:
    """The services of which a check that asks an application fails."""
    return {
        service.name
        for service in inventory.load("o4o").services.values()
        for check in service.checks
        if check.http and checks.run(check, ask=_nobody, where="live").level is not change.Level.PASS
    }


def test_drop_database(whole: Layout) -> None:
    count = struck(whole, "drop-database")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        ask(whole, "select 1")
    assert until(lambda: down_now() == {"database", "auth", "api", "payments", "admin", "analytics", "reports"}, 5)
    assert checks_that_fail() == {"authentication", "api", "payments", "admin", "analytics", "reports"}
    with pytest.raises(CannotError, match=r"cannot be counted"):
        count()
    with pytest.raises(CannotError, match="cannot be dropped"):
        disasters.strike("drop-database")


def test_lose_media(whole: Layout) -> None:
    count = struck(whole, "lose-media")
    assert not whole.media.exists()
    assert until(lambda: down_now() == {"media", "api", "web", "admin"}, 5)
    orders = len(writer.acknowledged(whole.acknowledged, customers.ORDERS))
    uploads = len(writer.acknowledged(whole.acknowledged, customers.UPLOADS))
    assert until(lambda: len(writer.acknowledged(whole.acknowledged, customers.ORDERS)) > orders + 3)
    assert len(writer.acknowledged(whole.acknowledged, customers.UPLOADS)) == uploads
    assert not whole.media.exists(), "the applications do not make it anew"
    counted = count()
    assert counted["media"].before_survived == 0 < counted["media"].before
    assert counted["api"].lost == counted["payments"].lost == 0


def test_ransomware(whole: Layout) -> None:
    before = {path.read_bytes() for path in whole.media.rglob("*.jpg")}
    count = struck(whole, "ransomware")
    locked = list(whole.media.rglob("*.locked"))
    assert len(locked) >= 1999
    assert len([path for path in locked if ".jpg" not in path.name]) > 200, "some bear another name"
    assert not before & {path.read_bytes() for path in locked}
    notes = list(whole.media.rglob(disasters.RANSOM_NOTE))
    assert len(notes) == 1 + sum(path.is_dir() for path in whole.media.rglob("*"))
    assert until(lambda: down_now() == {"media", "api", "web", "admin"}, 5)
    assert count()["media"].before_survived == 0


def test_empty_env(whole: Layout) -> None:
    struck(whole, "empty-env")
    assert whole.settings.read_bytes() == b""
    assert until(lambda: down_now() == {"settings", *APPLICATIONS}, 10)
    here = shell.local()
    assert until(lambda: services.see(here, "api", pm2_of(whole)).state == "failed", 15)
    assert "does not say DATABASE_URL" in (whole.root / "pm2" / "logs" / "api-error.log").read_text()
    assert down_now() == {"settings", *APPLICATIONS}
    with pytest.raises(CannotError, match="nothing left to break"):
        disasters.strike("empty-env")


def test_kill_applications_and_start_two_of_them_at_once(whole: Layout) -> None:
    """pm2's daemon is dead: what it had saved is stopped, and can be started one by one, by one daemon."""
    struck(whole, "kill-applications")
    assert pm2.running(whole) == []
    assert down_now() == set(APPLICATIONS)
    here, home = shell.local(), pm2_of(whole)
    for stale in ("pm2.pid", "pids/api-1.pid"):  # their numbers are of other processes now
        (whole.root / "pm2" / stale).write_text(str(os.getpid()))
    assert services.see(here, "api", home) == services.Service("api", "pm2", "stopped")
    assert services.see(here, "nobody", home).state == "unknown"
    with ThreadPoolExecutor(2) as side_by_side:
        for done in [
            side_by_side.submit(services.act, here, name, "start", deadline=30.0, environment=home)
            for name in ("auth", "api")
        ]:
            done.result()
    assert len([process for process in pm2.running(whole) if _is_daemon(process)]) == 1
    assert until(lambda: down_now() == set(APPLICATIONS) - {"auth", "api"})
    assert services.see(here, "web", home) == services.Service("web", "pm2", "stopped")
    assert services.see(here, "nobody", home).state == "absent"
    services.act(here, "web", "restart", deadline=30.0, environment=home)
    # what runs on without its daemon holds its port: another must not be started
    processes.kill([process for process in pm2.running(whole) if _is_daemon(process)])
    before = {name: services.see(here, name, home) for name in ("auth", "web")}
    assert [one.state for one in before.values()] == ["running"] * 2
    services.act(here, "web", "start", deadline=30.0, environment=home)
    services.act(here, "api", "restart", deadline=30.0, environment=home)  # by a new daemon, which knows api alone
    assert {name: services.see(here, name, home) for name in before} == before
    services.act(here, "web", "restart", deadline=30.0, environment=home)
    assert services.see(here, "web", home).run != before["web"].run
    assert len(processes.find(pm2.commands(whole)["web"])) == 1
    services.act(here, "auth", "stop", deadline=30.0, environment=home)
    assert processes.find(pm2.commands(whole)["auth"]) == []


def test_pm2_that_is_frozen_is_given_up_and_named(whole: Layout) -> None:
    limit = whole.root / "bin" / "timeout"
    limit.write_text('#!/bin/sh\nshift; exec /usr/bin/timeout 1 "$@"\n')
    limit.chmod(0o700)
    (daemon,) = [process for process in pm2.running(whole) if _is_daemon(process)]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with pytest.raises(CannotError, match="pm2 is there and does not answer") as refused:
            services.act(shell.local(), "web", "start", deadline=30.0, environment=pm2_of(whole))
        assert "kill -9 $(cat ${PM2_HOME:-~/.pm2}/pm2.pid)" in refused.value.hint
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_a_program_is_scaled_by_the_real_pm2(standing: Layout) -> None:
    here, home = shell.local(), pm2_of(standing)
    pm2.run(standing, "start", "/bin/sleep", "--name", "worker", "--interpreter", "none", "--", "600")
    try:
        for wanted in (3, 1):
            instances.scale(here, "worker", wanted, deadline=30, environment=home)
            told = json.loads(pm2.run(standing, "jlist"))
            runs = [one["pm2_env"]["status"] for one in told if one["name"] == "worker"]
            assert len(runs) == wanted and set(runs) <= {"online", "launching"}
        with pytest.raises(CannotError, match="has no nobody under pm2"):
            instances.scale(here, "nobody", 2, deadline=30, environment=home)
    finally:
        pm2.run(standing, "delete", "worker")


def test_everything(whole: Layout) -> None:
    struck(whole, "everything")
    assert down_now() == {"database", "settings", "media", *APPLICATIONS}
    assert pm2.running(whole) == []


def test_an_unknown_disaster_and_no_stand_in_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ransomware"):
        disasters.strike("meteor")
    monkeypatch.setenv("SALVOR_O4O", str(tmp_path / "none"))
    with pytest.raises(CannotError, match=r"HINT: inv sandbox\.up --platform=o4o"):
        disasters.strike("ransomware")
    assert o4o.status() == []
    o4o.down()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ down


UP = "from salvor.sandbox import o4o; o4o.up(tell=print)"
ONLY_PM2 = (
    "from salvor.sandbox.o4o import content, layout, pm2; found = layout.Layout.find(layout.Layout.home());"
    " content.make(found); pm2.start(found, print)"
)


@pytest.mark.parametrize(
    ("program", "until_there_is"), [(UP, "backup/restic/config"), (ONLY_PM2, "pm2/pm2.pid")], ids=["backups", "pm2"]
)
def test_down_leaves_nothing_of_a_killed_up_and_another_stand_in_alone(
    standing: Layout, o4o_cluster: Path, program: str, until_there_is: str
) -> None:
    """Killed while the files are backed up, and while pm2 starts."""
    with half_an_o4o(o4o_cluster) as mine:
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, cwd=ROOT / "lib")
        assert until(lambda: child.poll() is not None or (mine.root / until_there_is).exists(), 30)
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        with pytest.raises(CannotError, match="no sandbox"):
            o4o.find()
        assert len(traces.of(mine)) > 2
        o4o.down()
        assert until(lambda: not traces.of(mine), 2)
        o4o.down()
    assert down_now() == set()
    assert len(traces.of(standing)) > 10

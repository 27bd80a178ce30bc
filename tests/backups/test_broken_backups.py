"""Real backups that something happens to: each is found by `inv backups --check`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salvor import journal, maintenance
from salvor.backups import report as backup_report
from salvor.backups import retention_work
from salvor.change import Finding, Level
from salvor.drill import rehearsal
from salvor.drill import report as drill_report
from salvor.errors import NotProvenError, SalvorError, WarnedError
from salvor.journal import Journal
from salvor.journal.folders import incidents_folder
from salvor.notebook.paper import Paper
from salvor.sandbox import configuration, database
from salvor.sandbox.layout import Layout
from salvor.show import Plain

from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
INVENTORY = Path(__file__).parents[2] / "inventory" / "sandbox" / "platform.yaml"
POLICY = """
    keep: {daily: 7, weekly: 4, monthly: 12}
    expect: {smallest: 1KB}
"""


@pytest.fixture(scope="module")
def place(sandbox: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A sandbox whose database has a policy, a pgBackRest backup and a dump."""
    folder = tmp_path_factory.mktemp("inventory") / "sandbox"
    folder.mkdir()
    text = INVENTORY.read_text()
    dumps = '    dumps: "${root}/dumps"\n'
    assert dumps in text
    (folder / "platform.yaml").write_text(text.replace(dumps, dumps + POLICY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALVOR_INVENTORY", str(folder.parent))
        maintenance.backup("orders", "sandbox", "dump", Plain(io.StringIO()))
        yield sandbox


def look(**more: Any) -> list[Finding]:
    looks, unkept = backup_report.look("orders", "sandbox", Plain(io.StringIO()), **more)
    assert unkept is None
    return [one for each in looks for one in each.findings]


def bad(found: list[Finding]) -> dict[str, str]:
    """The checks that failed or could not be made, and what they say."""
    return {one.check: f"{one.figure} {one.detail}" for one in found if one.level in (Level.FAIL, Level.UNKNOWN)}


@pytest.fixture
def sound(place: Layout) -> Iterator[Layout]:
    """It is all right again after a test, and so before the next one."""
    yield place
    assert until(lambda: not bad(look()), 30), bad(look())


def newest_full(place: Layout) -> Path:
    return next(path for path in (place.root / "repository/backup/orders").iterdir() if path.name.endswith("F"))


def dumps(place: Layout) -> list[Path]:
    return sorted(path.parent for path in (place.root / "dumps").glob("*/manifest.json"))


def test_what_is_right_only_wants_a_proof(sound: Layout) -> None:
    found = look(deep=True)
    assert [one.check for one in found if one.level is Level.WARN] == ["proven"]
    checks = {one.check for one in found}
    assert checks >= {"age", "size", "retention", "integrity", "permissions", "space", "wal"}
    looks, _ = backup_report.look("orders", "sandbox", Plain(io.StringIO()))
    with pytest.raises(WarnedError) as warned:
        backup_report.verdict(looks, "sandbox")
    assert "inv backups --check --platform=sandbox" in warned.value.hint


def test_a_pgbackrest_backup_that_vanished(sound: Layout) -> None:
    full = newest_full(sound)
    full.rename(sound.root / "away")
    assert f"{full.name} is not there any more" in bad(look())["integrity"]
    looks, _ = backup_report.look("orders", "sandbox", Plain(io.StringIO()))
    with pytest.raises(NotProvenError, match="orders-db integrity"):
        backup_report.verdict(looks, "sandbox")
    (sound.root / "away").rename(full)


def test_a_truncated_file_of_pgbackrest(sound: Layout) -> None:
    bundle = newest_full(sound) / "bundle" / "1"
    content = bundle.read_bytes()
    os.truncate(bundle, len(content) - 100)
    assert "lacks 100 of" in bad(look())["integrity"]
    assert "status: invalid" in bad(look(deep=True))["integrity"]
    bundle.write_bytes(content)


def test_the_next_drill_finds_a_backup_with_another_byte(sound: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paper, "make", lambda self, folder: "")  # a kernel takes seconds
    bundle = newest_full(sound) / "bundle" / "1"
    content = bundle.read_bytes()
    middle = len(content) // 2
    bundle.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(SalvorError):
        rehearsal.run("orders", "sandbox", Plain(io.StringIO()), "physical")
    bundle.write_bytes(content)
    failed = next(journal.incidents(incidents_folder()))
    assert failed.name in bad(look())["proven"]
    report = drill_report.read(failed)
    # What of it notices depends on where the byte lies: the decryption, the decompression or the checksum.
    assert report.verdict is Level.FAIL
    assert re.search("cannot be restored|checksum", report.mends[0].figure), report.mends
    assert {each.level for each in report.cleaning} == {Level.PASS}, "what was staged of it is gone"
    shutil.rmtree(failed)  # as if it had not been: a drill that proves the backup takes seconds


def test_a_rehearsed_failover_restores_no_backup(sound: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paper, "make", lambda self, folder: "")
    said = io.StringIO()
    rehearsal.run("orders", "sandbox", Plain(said), "failover")
    assert said.getvalue().splitlines()[-1] == "orders: standby b was proven; failover restores nothing."


def test_a_dump_that_vanished(sound: Layout) -> None:
    folder = dumps(sound)[-1]
    folder.rename(sound.root / "away")
    assert folder.name in bad(look())["retention"]
    assert folder.name in bad(look())["retention"], "it is still missing"
    (sound.root / "away").rename(folder)


def test_a_truncated_dump_and_one_with_another_byte(sound: Layout) -> None:
    victim = next(path for path in sorted((dumps(sound)[-1] / "dump").iterdir()) if path.stat().st_size > 100)
    content = victim.read_bytes()
    os.truncate(victim, 50)
    assert f"{victim} has 50 bytes" in bad(look())["integrity"]
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not bad(look())
    assert f"{victim} is not what was written" in bad(look(deep=True))["integrity"]
    victim.write_bytes(content)


def test_a_dump_that_others_can_read(sound: Layout) -> None:
    path = dumps(sound)[0] / "globals.sql"
    path.chmod(0o644)
    assert f"644 {path}" in bad(look())["permissions"]
    path.chmod(0o600)
    (sound.root / "repository").chmod(0o755)
    assert f"755 {sound.root / 'repository'}" in bad(look())["permissions"]
    (sound.root / "repository").chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
def test_a_repository_that_its_user_may_not_read(sound: Layout) -> None:
    repository = sound.root / "repository" / "backup"
    repository.chmod(0)
    assert "cannot" in bad(look())["integrity"]
    repository.chmod(0o750)


def in_postgres(place: Layout, *statements: str) -> None:
    with database.server(place, "a").session(deadline=10, writes=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_an_archiver_that_fails_and_one_that_lies(sound: Layout) -> None:
    for command, said in (("/bin/false", "the archiver fails"), ("/bin/true", "does not arrive in the repository")):
        in_postgres(sound, f"alter system set archive_command = '{command}'", "select pg_reload_conf()")
        in_postgres(sound, "select pg_switch_wal()")
        assert until(lambda said=said: said in bad(look()).get("wal", "")), bad(look())  # type: ignore[misc]
    in_postgres(sound, "alter system reset archive_command", "select pg_reload_conf()", "select pg_switch_wal()")
    # What the liar threw away is a gap: nothing past it can be reached, until there is any new backup.
    assert until(lambda: "a gap in the archive: " in bad(look()).get("wal", "")), bad(look())
    maintenance.backup("orders", "sandbox", "incr", Plain(io.StringIO()))
    (warned,) = [one for one in look() if one.check == "wal"]
    assert warned.level is Level.WARN and "all later moments can" in warned.detail
    maintenance.backup("orders", "sandbox", "full", Plain(io.StringIO()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk(place: Layout, tmp_path: Path) -> None:
    folder = place.root / "dumps"
    away = place.root / "dumps-away"
    folder.rename(away)
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", folder], check=True, timeout=20)
    try:
        for path in away.iterdir():
            shutil.copytree(path, folder / path.name)
        (folder / "filler").touch(mode=0o600)
        with pytest.raises(OSError, match="No space"), (folder / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert "0 B free" in bad(look())["space"]
    finally:
        subprocess.run(["umount", folder], check=True, timeout=20)
        folder.rmdir()
        away.rename(folder)


def test_the_policy_is_carried_out_by_pgbackrest_and_a_backup_that_is_left_comes_back(sound: Layout) -> None:
    for kind in ("incr", "full", "dump"):
        maintenance.backup("orders", "sandbox", kind, Plain(io.StringIO()))
    said = io.StringIO()
    retention_work.carry_out("orders", "sandbox", Plain(said), plan_only=True)
    assert "GOES" in said.getvalue() and "newest good, daily 1, weekly 1, monthly 1" in said.getvalue()
    oldest = min(backup_ids())
    opened: dict[str, Any] = {"platform": "sandbox", "service": "orders", "purpose": "incident", "runbook": "restore"}
    folder = incidents_folder() / "20261121T000000Z-orders-0001"
    journal = Journal.create(folder, by="-", mirror=None, tell=print, **opened)
    journal.append("decision", decision={"system": "orders-db", "way": {"name": "physical", "backup": oldest}})
    said = io.StringIO()
    retention_work.carry_out("orders", "sandbox", Plain(said), plan_only=True)
    assert f"{folder.name} restores from it" in said.getvalue()
    journal.append("closed")
    journal.close()
    before = backup_ids()
    retention_work.carry_out("orders", "sandbox", Plain(io.StringIO()), yes=True)
    after = backup_ids()
    assert len(before) > len(after) == 2, "of one day: the newest dump, and the newest full backup"
    assert after == before & after
    said = io.StringIO()
    retention_work.carry_out("orders", "sandbox", Plain(said), yes=True)
    assert "Nothing to do" in said.getvalue()
    argv = ["pgbackrest", f"--config={sound.root}/pgbackrest.conf", f"--stanza={configuration.STANZA}", "info"]
    left = json.loads(sound.shell.run([*argv, "--output=json"]).stdout)[0]
    (kept,) = left["backup"]
    assert left["archive"][0]["min"] == kept["archive"]["start"], "the WAL before it went, and none after it"
    restored = sound.root / "b" / "restored"
    sound.shell.run([*argv[:3], f"--pg1-path={restored}", "--type=immediate", "restore"], deadline=60)
    assert (restored / "PG_VERSION").exists()
    sound.shell.run(["rm", "-rf", str(restored)])


def backup_ids() -> set[str]:
    looks, _ = backup_report.look("orders", "sandbox", Plain(io.StringIO()))
    return {one.id for each in looks for one in each.backups}

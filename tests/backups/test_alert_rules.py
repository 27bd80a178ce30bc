"""The alert rules that are shipped, by the real promtool; and that they ask for figures that there are."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from salvor import clock, monitoring, prometheus
from salvor.backups import metrics as backup_metrics
from salvor.backups import report as backup_report
from salvor.backups.audit import Room
from salvor.backups.checks import CHECKS, Known
from salvor.backups.policy import Expect
from salvor.backups.report import Looked
from salvor.change import Backup, Finding, Level
from salvor.errors import CannotError, UsageError
from salvor.show import Plain

RULES = Path(monitoring.__file__).parent / "salvor.rules.yaml"
TESTS = Path(__file__).with_name("rules.yaml")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="Prometheus is not installed")


def promtool(*words: str | Path, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *map(str, words)], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures() -> str:
    def dump(day: int) -> Backup:
        taken = NOW.replace(day=day)
        more = {"proven": NOW, "repository": 'a "b"\\c'}
        return Backup(f"d{day}", "db", "logical", "dump", taken, 10**6 * day, "here", **more)  # type: ignore[arg-type]

    known = Known(30.0, expect=Expect.model_validate({"oldest": "12h", "smallest": "1MB"}))
    found = [Finding("db", check, Level.WARN) for check in CHECKS]
    looked = Looked("db", known, [dump(20), dump(19), dump(18)], found, [Room("r", "/r", 1000, 500)])
    return prometheus.text(backup_metrics.metrics("o4o", [looked], NOW))


@needs_promtool
def test_prometheus_accepts_the_rules_and_they_fire_when_they_should() -> None:
    assert "13 rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", TESTS)


@needs_promtool
def test_prometheus_accepts_the_figures() -> None:
    promtool("check", "metrics", given=figures())


def test_a_size_that_its_engine_does_not_say_is_no_size_of_zero() -> None:
    def snapshot(day: int, size: int) -> Backup:
        return Backup(f"s{day}", "media", "snapshot", "snapshot", NOW.replace(day=day), size, "here", repository="r")

    looked = Looked("media", Known(30.0), [snapshot(20, 0), snapshot(19, 7), snapshot(18, 9)], [], [])
    said = prometheus.text(backup_metrics.metrics("o4o", [looked], NOW))
    assert "salvor_backup_newest_size_bytes{" not in said
    assert 'salvor_backup_median_size_bytes{platform="o4o",system="media",repository="r",kind="snapshot"} 8' in said
    assert "salvor_backup_newest_timestamp_seconds{" in said


def test_a_backup_of_a_time_to_come_hides_from_no_rule_how_old_the_newest_is() -> None:
    """By one that was made under a wrong clock, SalvorBackupTooOld never fired again."""

    def dump(taken: datetime, size: int) -> Backup:
        return Backup(f"{taken:%Y}", "db", "logical", "dump", taken, size, "here", repository="r")

    backups = [
        dump(NOW.replace(year=2031), 1),
        dump(NOW, 8),
        dump(NOW.replace(day=20), 6),
        dump(NOW.replace(day=19), 6),
    ]
    with clock.use(lambda: NOW):
        said = prometheus.text(backup_metrics.metrics("o4o", [Looked("db", Known(30.0), backups, [])], NOW))
    of = '{platform="o4o",system="db",repository="r",kind="dump"}'
    assert f"salvor_backup_newest_timestamp_seconds{of} {NOW.timestamp()}\n" in said
    assert f"salvor_backup_newest_size_bytes{of} 8.0\n" in said
    assert f"salvor_backup_usable{of} 3.0\n" in said


def test_a_damage_in_one_repository_is_one_while_another_cannot_be_asked() -> None:
    """It was said to be unknown, which the rule for a damage does not fire for."""
    found = [Finding("db", "integrity", level) for level in (Level.PASS, Level.FAIL, Level.UNKNOWN)]
    said = prometheus.text(backup_metrics.metrics("o4o", [Looked("db", Known(30.0), [], found, [])], NOW))
    assert 'salvor_backup_check{platform="o4o",system="db",check="integrity"} 2.0' in said


def test_figures_that_cannot_be_written_hide_nothing_of_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("open sesame\n")
    (tmp_path / "place.yaml").write_text(f"""
systems:
  media:
    kind: files
    path: {tmp_path}/media
    repositories: [{{name: r, location: {tmp_path}/none, password: "file:{secret}"}}]
services: {{shop: {{rto: 5m, rpo: 1d, systems: [media]}}}}
""")
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    said = io.StringIO()
    with pytest.raises(CannotError, match="The figures cannot be written"):
        backup_report.report("", "place", Plain(said), prometheus=str(tmp_path / "none/salvor.prom"))
    assert "FAIL    media: integrity: not there" in said.getvalue()
    assert "1 system: 1 failed, 2 unknown." in said.getvalue()
    with pytest.raises(UsageError, match="leave out --service"):
        backup_report.report("shop", "place", Plain(said), prometheus=str(tmp_path / "salvor.prom"))


def test_every_rule_asks_for_what_is_written_and_is_tested() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    written = set(re.findall(r"^(salvor_\w+)", figures(), re.MULTILINE))
    asked = {name for rule in rules for name in re.findall(r"salvor_\w+", rule["expr"])}
    assert asked <= written
    checks = {one for rule in rules for one in re.findall(r'check=~?"([a-z|]+)"', rule["expr"])}
    assert {part for one in checks for part in one.split("|")} == set(CHECKS) - {"size"}, (
        "sizes have a rule of their own"
    )
    tested: list[dict[str, list[dict[str, str]]]] = yaml.safe_load(TESTS.read_text())["tests"]
    fired = {one["alertname"] for each in tested for one in each["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in rules}

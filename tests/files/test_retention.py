"""The policy of a tree's backups, carried out by restic: what stays can be restored, what goes is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor import clock
from salvor.backups.policy import Keep
from salvor.backups.retention import decide
from salvor.change import Backup, Verdict
from salvor.errors import CannotError
from salvor.systems.files import Files

from tests.files.lab import Lab, act, restic
from tests.files.test_tree import promote, staged

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)
PLACES = ("local", "off-site", "azure")


@pytest.fixture(autouse=True, scope="module")
def fixed_clock() -> Iterator[None]:
    """It is an hour past NOW, whatever the clock says: nothing here is of a time to come."""
    with clock.use(lambda: NOW + timedelta(hours=1)):
        yield


@pytest.fixture
def lab(tmp_path: Path, empty_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A small tree and three repositories."""
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "password").write_text("only-for-these-tests")
    (tmp_path / "password").chmod(0o600)
    for name in PLACES:
        shutil.copytree(empty_repository, tmp_path / name)
    made = Lab(tmp_path, {name: str(tmp_path / name) for name in PLACES})
    made.tree.mkdir(parents=True)
    return made


def opened(lab: Lab, **keeps: dict[str, int]) -> Files:
    repositories = [
        {"name": name, "location": location, "password": f"file:{lab.root / 'password'}"}
        | ({"keep": keeps[name]} if name in keeps else {})
        for name, location in lab.repositories.items()
    ]
    return lab.open(repositories=repositories, keep={"daily": 2})


def back_up(lab: Lab, days: int) -> None:
    (lab.tree / "file").write_text(f"as it was {days} days ago")
    with clock.use(lambda: NOW - timedelta(days=days)):
        act(lab.open(), "backup", kind="snapshot")


def retain(system: Files) -> list[Any]:
    """Carry the policy out; what it planned."""
    keep = system.settings.keep
    assert keep
    changes = list(system.expiry(decide(system.backups(), keep, system.settings.own_policies)))
    for change in changes:
        list(system.apply(change))
    return changes


def left(system: Files) -> dict[str, list[int]]:
    """The days ago of each repository's backups."""
    return {
        name: sorted((NOW - one.taken).days for one in system.backups() if one.repository == name) for name in PLACES
    }


def test_restic_forgets_what_the_policy_lets_go_and_keeps_the_rest_whole(lab: Lab) -> None:
    for days in (3, 2, 1):
        back_up(lab, days)
    system = opened(lab)
    assert len(retain(system)) == 3, "one change for each repository"
    assert left(system) == {"local": [1, 2], "off-site": [1, 2], "azure": [1, 2]}
    assert not retain(opened(lab)), "a second time there is nothing to do"
    for name in PLACES:
        restic(lab.repositories[name], "check", "--read-data")
    restic(lab.repositories["azure"], "restore", "latest", "--target", str(lab.root / "out"))
    assert (lab.root / "out" / str(lab.tree).lstrip("/") / "file").read_text() == "as it was 1 days ago"


def test_a_local_copy_goes_earlier_when_two_others_have_it(lab: Lab) -> None:
    back_up(lab, 2)
    (lab.root / "azure").rename(lab.root / "away")
    (lab.root / "azure").touch()  # where no repository can be made
    back_up(lab, 1)
    (lab.root / "azure").unlink()
    (lab.root / "away").rename(lab.root / "azure")
    back_up(lab, 0)
    system = opened(lab, local={"daily": 1})
    assert left(system) == {"local": [0, 1, 2], "off-site": [0, 1, 2], "azure": [0, 2]}
    verdicts = decide(system.backups(), Keep(daily=2), system.settings.own_policies)
    (spared,) = [one for one in verdicts if one.reasons and "other repositories" in one.reasons[0]]
    assert (spared.backup.repository, spared.reasons) == ("local", ("1 of 2 other repositories have it",))
    retain(system)
    assert left(system) == {"local": [0, 1], "off-site": [0, 1], "azure": [0, 2]}


def test_a_backup_of_a_time_to_come_says_nothing_of_what_is_live(lab: Lab) -> None:
    back_up(lab, -400)
    back_up(lab, 1)
    back_up(lab, 0)
    system = lab.open()
    assert system.ask("changed", "live") == 0
    promote(system, staged(system))
    assert [one.verb for one in system.redundancy()] == ["backup"]
    near = Lab(lab.root, {"local": lab.repositories["local"]})
    act(near.open(), "backup", kind="snapshot")
    with pytest.raises(CannotError, match="only local has the newest backup"):
        act(system, "expire", repository="local", backups=["00000000"])


def test_of_a_bucket_it_is_said_that_its_lock_is_not_known(lab: Lab) -> None:
    places = {"local": lab.repositories["local"], "cloud": "s3:https://127.0.0.1/bucket/shop"}
    password = f"file:{lab.root / 'password'}"
    repositories = [{"name": name, "location": place, "password": password} for name, place in places.items()]
    system = lab.open(repositories=repositories, keep={"daily": 1})
    old = [Backup("12345678", system.name, "snapshot", "snapshot", NOW, 1, "", repository=name) for name in places]
    local, cloud = (change.why for change in system.expiry([Verdict(one, ()) for one in old]))
    assert "object lock" in cloud and "object lock" not in local

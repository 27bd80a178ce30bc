"""Backups in S3 under object lock: what cannot be removed yet is left, and said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import boto3
import pytest
from moto import mock_aws
from salvor import bucket, clock, shell
from salvor.archive import audit, listing
from salvor.archive.settings import ArchivesSettings
from salvor.backups.policy import Keep
from salvor.backups.retention import decide
from salvor.errors import CannotError
from salvor.postgres import logical
from salvor.postgres.dump_store import Bucket
from salvor.systems.postgres import Postgres

PLACE = "s3://dumps/shop"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="dumps", ObjectLockEnabledForBucket=True)
        yield client


def put(s3: Any, days: int, *, locked: bool) -> str:
    """A dump that was taken so many days ago; its id."""
    taken = clock.now() - timedelta(days=days)
    name = f"shop-{taken:%Y%m%dT%H%M%SZ}"
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of `test`
    manifest = {
        "id": name, "taken": clock.write_time(taken), "database": "shop", "server_version": "15.18", "size": 4,
        "files": {"dump/toc.dat": {"size": 4, "sha256": digest}},
        "fingerprint": {},
    }  # fmt: skip
    until = clock.now() + timedelta(days=30)
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until} if locked else {}
    for key, body in (("dump/toc.dat", b"test"), ("manifest.json", json.dumps(manifest).encode())):
        s3.put_object(Bucket="dumps", Key=f"shop/{name}/{key}", Body=body, **lock)
    return name


def versions(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_object_versions(Bucket="dumps").get("Versions", [])]


def test_what_is_locked_stays_and_what_is_not_goes_with_its_versions(s3: Any) -> None:
    newest, open_, locked = put(s3, 0, locked=False), put(s3, 5, locked=False), put(s3, 6, locked=True)
    store = Bucket(PLACE)
    verdicts = {one.backup.id: one for one in decide(store.backups("shop-db"), Keep(daily=1))}
    assert verdicts[newest].stays and not verdicts[open_].stays
    assert verdicts[locked].reasons[0].startswith("object lock until 20")
    store.remove(open_)
    store.remove(open_)
    assert not [key for key in versions(s3) if open_ in key], "its very versions are gone, so that the room is free"
    assert {one.id for one in store.backups("shop-db")} == {newest, locked}


def test_s3_itself_refuses_what_is_locked_and_it_stays_whole(s3: Any) -> None:
    locked = put(s3, 6, locked=True)
    store = Bucket(PLACE)
    with pytest.raises(CannotError, match="AccessDenied"):
        store.remove(locked)
    assert [one.id for one in store.backups("shop-db")] == [locked]
    (manifest,) = store.manifests()
    assert not store.damaged(manifest, deep=True)


def test_what_a_removal_could_not_finish_goes_with_a_later_backup_which_never_fails_for_it(s3: Any) -> None:
    name = put(s3, 6, locked=False)
    data = f"shop/{name}/dump/toc.dat"
    s3.put_object(Bucket="dumps", Key=f"shop/{name}/cluster.json", Body=b"{}")
    s3.put_object_legal_hold(Bucket="dumps", Key=data, LegalHold={"Status": "ON"})
    store = Bucket(PLACE)
    with pytest.raises(CannotError, match="AccessDenied") as refused:
        store.remove(name)
    assert "the next backup removes what is left" in refused.value.safe
    assert not store.backups("shop-db")
    later = clock.now() + timedelta(days=3)
    with clock.use(lambda: later):
        store.give_up(store.begin("shop-later"))
        assert set(versions(s3)) == {data, f"shop/{name}/cluster.json"}, "it is known still whose it is"
        s3.put_object_legal_hold(Bucket="dumps", Key=data, LegalHold={"Status": "OFF"})
        store.give_up(store.begin("shop-later"))
    assert versions(s3) == []


def test_one_that_is_refused_hinders_no_other(s3: Any) -> None:
    locked, open_ = put(s3, 6, locked=True), put(s3, 5, locked=False)
    store, system = Bucket(PLACE), cast("Postgres", SimpleNamespace(settings=SimpleNamespace(dumps=PLACE)))
    with pytest.raises(CannotError, match=f"1 of 2 backups were not removed, {locked}: .*AccessDenied"):
        list(logical.expire(system, [locked, open_]))
    assert [one.id for one in store.backups("shop-db")] == [locked]


def test_archives_go_with_their_versions_and_what_is_locked_stays_and_is_said(s3: Any) -> None:
    using, here = ArchivesSettings(folder="s3://dumps/o4o", member="uploads"), shell.local()
    locked, newest = "o4o_backup_20261101_000000.tar.gz", "o4o_backup_20261102_000000.tar.gz"
    until = clock.now() + timedelta(days=30)
    kept = "o4o_backup_20261103_000000.tar.gz"
    for name in (locked, newest, kept):
        for key in (name, f"{name}.sha256"):
            s3.put_object(Bucket="dumps", Key=f"o4o/{key}", Body=b"x")
    s3.put_object_retention(
        Bucket="dumps", Key=f"o4o/{locked}", Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until}
    )
    held = {one.id: one.hold for one in listing.backups(using, here, system="media", way="archive")}
    assert held[locked].startswith("object lock until 20") and not held[newest]
    with pytest.raises(CannotError, match=f"1 of 2 backups were not removed, {locked}: .*AccessDenied"):
        list(audit.remove(using, here, [locked, newest]))
    assert versions(s3) == [f"o4o/{name}{end}" for name in (locked, kept) for end in ("", ".sha256")]


def test_a_lock_that_is_over_and_a_legal_hold(s3: Any) -> None:
    name = put(s3, 6, locked=False)
    key = f"shop/{name}/manifest.json"
    s3.put_object_legal_hold(Bucket="dumps", Key=key, LegalHold={"Status": "ON"})
    assert Bucket(PLACE).backups("shop-db")[0].hold == "legal hold"
    s3.put_object_legal_hold(Bucket="dumps", Key=key, LegalHold={"Status": "OFF"})
    until = clock.now() + timedelta(days=1)
    s3.put_object_retention(Bucket="dumps", Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until})
    assert Bucket(PLACE).backups("shop-db")[0].hold
    later = clock.now() + timedelta(days=2)
    with clock.use(lambda: later):
        assert Bucket(PLACE).backups("shop-db")[0].hold == ""


def test_what_is_damaged_in_the_bucket_is_found(s3: Any) -> None:
    name = put(s3, 1, locked=False)
    store = Bucket(PLACE)
    (manifest,) = store.manifests()
    assert not store.damaged(manifest, deep=True)
    s3.put_object(Bucket="dumps", Key=f"shop/{name}/dump/toc.dat", Body=b"tesT")
    assert not store.damaged(manifest, deep=False)
    assert "is not what was written" in store.damaged(manifest, deep=True)
    s3.put_object(Bucket="dumps", Key=f"shop/{name}/dump/toc.dat", Body=b"te")
    assert "has 2 bytes, not 4" in store.damaged(manifest, deep=False)
    s3.delete_object(Bucket="dumps", Key=f"shop/{name}/dump/toc.dat")
    assert "has None bytes, not 4" in store.damaged(manifest, deep=False)


def test_a_dump_that_is_replaced_while_it_is_downloaded_is_told_and_nothing_of_it_stays(
    s3: Any, tmp_path: Path
) -> None:
    s3.put_object(Bucket="dumps", Key="orders.sql", Body=bytes(9 << 20))  # it comes in two parts
    parts = []

    def replaced(**_: object) -> None:
        parts.append(1)
        if len(parts) == 2:
            s3.put_object(Bucket="dumps", Key="orders.sql", Body=b"1" * (9 << 20))

    with pytest.raises(CannotError, match="did not match expected ETag"), bucket.moving("s3://dumps/orders.sql") as by:
        by.meta.events.register("before-send.s3.GetObject", replaced)
        list(bucket.download(by, "dumps", "orders.sql", tmp_path / "orders.sql"))
    assert list(tmp_path.iterdir()) == []

"""How the page comes to them, also amid an incident."""

from __future__ import annotations

import io
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from salvor import clock, console
from salvor.errors import CannotError, UsageError
from salvor.incident import Incident
from salvor.show import Plain
from salvor.status import publish

from tests import page_reader
from tests.status.of_a_world import platform, published, published_now
from tests.waiting import until
from tests.world import GOOD, World


def test_it_is_replaced_whole_for_a_web_server_to_read(place: World) -> None:
    for _ in range(2):
        _, where = publish.publish(platform())
    assert where == str(place.root / "www/index.html")
    assert stat.S_IMODE(Path(where).stat().st_mode) == 0o644
    assert [path.name for path in (place.root / "www").iterdir()] == ["index.html"]


def test_many_who_publish_at_once_leave_a_whole_page(place: World) -> None:
    here = platform()
    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(lambda _: publish.publish(here), range(12)):
            page_reader.read(published(place))


def test_a_place_that_does_not_take_it_keeps_what_it_has(place: World) -> None:
    before = published_now(place)
    (place.root / "www").rename(place.root / "gone")
    with pytest.raises(CannotError, match="there is no such folder") as refused:
        publish.publish(platform())
    assert not (place.root / "www").exists(), "a share that is not mounted is not made"
    assert "says how old it is" in refused.value.safe
    assert (place.root / "gone/index.html").read_text() == before


def test_to_a_bucket(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="status")
        _, where = publish.publish(platform(), "s3://status/world/")
        assert where == "s3://status/world/index.html"
        kept = s3.get_object(Bucket="status", Key="world/index.html")
        assert kept["ContentType"] == "text/html; charset=utf-8" and "max-age=15" in kept["CacheControl"]
        page_reader.read(kept["Body"].read().decode())
        with pytest.raises(CannotError, match="nowhere"):
            publish.publish(platform(), "s3://nowhere/world")


def test_a_bucket_that_hangs_is_given_up(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(publish, "_DEADLINE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(CannotError, match="it gave no answer in time"):
            publish.publish(platform(), "s3://status/world")
        assert time.monotonic() - begun < 5


def test_an_earlier_look_never_replaces_a_later_one(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, go_on = threading.Event(), threading.Event()
    observe_all = Incident.observe_all

    def slowly(self: Incident, systems: Any) -> Any:
        if not looks.is_set():
            looks.set()
            go_on.wait(20)
        return observe_all(self, systems)

    monkeypatch.setattr(Incident, "observe_all", slowly)
    with ThreadPoolExecutor(2) as pool:
        earlier = pool.submit(publish.publish, platform())
        assert looks.wait(10)
        later = pool.submit(publish.publish, platform())
        with pytest.raises(TimeoutError):
            later.result(0.5)
        go_on.set()
        earlier.result(20)
        seen, _ = later.result(20)
    assert f'data-made="{clock.write_time(seen.as_of)}"' in published(place)


@pytest.mark.parametrize("wrong", ["s3:///x", "s3://b/x?y=1"])
def test_what_is_no_place_is_refused(place: World, wrong: str) -> None:
    with pytest.raises(UsageError, match="--publish"):
        publish.publish(platform(), wrong)


def test_it_is_published_when_an_incident_is_declared_and_recovered(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    put = publish._put

    def noted(where: str, content: bytes) -> str:
        said.append(page_reader.texts(page_reader.read(content.decode())))
        return put(where, content)

    monkeypatch.setattr(publish, "_put", noted)
    place.damage()
    session = place.session()
    act = session.act

    def slowly(name: str) -> Any:
        done = act(name)
        if name == "notify" and not said:
            until = time.monotonic() + 10
            while not said and time.monotonic() < until:
                time.sleep(0.02)
        return done

    monkeypatch.setattr(session, "act", slowly)
    console.recover(session, Plain(io.StringIO()), yes=True)
    assert len(said) == 2
    assert "Being restored" in said[0] and "일부 장애" in said[0]
    assert "Resolved" in said[1] and "모든 서비스가 정상입니다" in said[1]


def test_a_place_that_hangs_holds_no_recovery_up_and_is_owed(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr(publish, "_put", lambda where, content: str(hold.wait(30)))
    monkeypatch.setattr("salvor.session.STATUS_DEADLINE", 0.5)
    place.damage()
    begun = time.monotonic()
    console.recover(place.session(), Plain(io.StringIO()), yes=True)
    assert time.monotonic() - begun < 8
    assert place.live == GOOD
    assert [line["what"] for line in place.journals()[0].of("owed")] == ["the status page"]
    hold.set()


def test_what_is_late_is_owed_once(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal is closed by the time at which it fails at last."""
    hold = threading.Event()

    def late(where: str, content: bytes) -> str:
        hold.wait(20)
        raise CannotError("The disk is gone.")

    monkeypatch.setattr(publish, "_put", late)
    owed: list[str] = []
    refresher = publish.Refresher("world", lambda what, why: owed.append(why))
    refresher.ask()
    refresher.finish(0.2)
    hold.set()
    assert until(lambda: "status page" not in [each.name for each in threading.enumerate()])
    assert owed == ["it was not published within 0 s"]


def test_a_place_that_is_gone_is_owed(place: World) -> None:
    (place.root / "www").rmdir()
    place.damage()
    console.recover(place.session(), Plain(io.StringIO()), yes=True)
    assert place.live == GOOD
    owed = place.journals()[0].of("owed")
    assert owed and all("there is no such folder" in line["why"] for line in owed)

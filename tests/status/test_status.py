"""The status page: what it calls each service, what it tells customers and what not, and how it comes to them."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from salvor import clock, console, inventory
from salvor.change import Finding, Level, Reachable, State
from salvor.errors import CannotError, NotProvenError, UsageError
from salvor.incident import Incident
from salvor.inventory import Platform
from salvor.show import Json, Plain
from salvor.status import look, page, publish, told
from salvor.status.settings import Words
from salvor.status.states import Seen, Status, judge, worst

from tests import page_reader, past, world
from tests.browser import CHROMIUM, chromium
from tests.waiting import until
from tests.world import GOOD, World

STATUS = """
status:
  title: {{en: World, ko: 세계}}
  services: {{things: {{en: Your things, ko: 물건 보관}}}}
  publish: {place}
  follow: https://status.world.example
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = world.make(tmp_path)
    (tmp_path / "www").mkdir()
    say(made, STATUS.format(place=tmp_path / "www"))
    return made


def say(place: World, text: str) -> None:
    """Add to the inventory."""
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text() + text)


def platform() -> Platform:
    return inventory.load("world")


def status_of_things() -> Status:
    return look.report(platform()).all["things"]


def published(place: World) -> str:
    return (place.root / "www/index.html").read_text()


# ------------------------------------------------------------------------------------------ what it is called

UP = State(Reachable.UP, "one", True, "up")
DOWN = State(Reachable.DOWN, "one", None, "down")
HIDDEN = State(Reachable.UNKNOWN, "unknown", None, "no answer")
READ_ONLY = State(Reachable.UP, "one", False, "it takes no writes")
PASS, FAIL, UNKNOWN = (Finding("x", "y", level) for level in (Level.PASS, Level.FAIL, Level.UNKNOWN))


@pytest.mark.parametrize(
    ("seen", "more", "expected"),
    [
        (Seen({"db": UP}, (PASS,), (PASS,)), {}, Status.OPERATIONAL),
        (Seen({}), {}, Status.OPERATIONAL),
        (Seen({"db": DOWN, "web": UP}, (PASS,)), {}, Status.OUTAGE),
        (Seen({"db": UP}, (FAIL, FAIL)), {}, Status.OUTAGE),
        (Seen({"db": UP}, (FAIL, PASS)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (FAIL, UNKNOWN)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,), (FAIL, FAIL)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (), (FAIL,)), {}, Status.DEGRADED),
        (Seen({"db": READ_ONLY}, (PASS,)), {}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"has_incident": True}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"needs": [Status.OUTAGE]}, Status.DEGRADED),
        (Seen({"db": UP}, (PASS,)), {"needs": [Status.DEGRADED, Status.MAINTENANCE]}, Status.OPERATIONAL),
        (Seen({"db": HIDDEN}, (PASS,)), {}, Status.UNKNOWN),
        (Seen({"db": UP}, (UNKNOWN, PASS)), {}, Status.UNKNOWN),
        (Seen({}, is_complete=False), {}, Status.UNKNOWN),
        (Seen({"db": DOWN}, (FAIL,)), {"in_maintenance": True, "has_incident": True}, Status.MAINTENANCE),
    ],
)
def test_the_status_of_a_service(seen: Seen, more: dict[str, Any], expected: Status) -> None:
    told_of: dict[str, Any] = {"in_maintenance": False, "has_incident": False, "needs": [], **more}
    assert judge(seen, **told_of) is expected


def test_the_headline_is_the_worst() -> None:
    assert worst([]) is Status.OPERATIONAL
    assert worst([Status.MAINTENANCE, Status.DEGRADED, Status.OPERATIONAL]) is Status.DEGRADED
    assert set(page.STATES) == set(page.HEADLINES) == set(Status)


def test_as_the_world_changes(place: World) -> None:
    assert status_of_things() is Status.OPERATIONAL
    place.damage()
    assert status_of_things() is Status.DEGRADED  # it answers, and its data is wrong
    (place.store / "live/data").unlink()
    assert status_of_things() is Status.OUTAGE


def test_what_hangs_is_not_called_down(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "DEADLINE", 0.3)
    over = threading.Event()
    monkeypatch.setattr("salvor.incident.Incident.observe_all", lambda self, systems: over.wait(20))
    begun = time.monotonic()
    assert status_of_things() is Status.UNKNOWN
    assert time.monotonic() - begun < 3
    over.set()


# ------------------------------------------------------------------------------------------ what customers read


def test_the_page_says_it_in_both_languages_and_names_nothing_of_ours(place: World) -> None:
    place.damage()
    console.recover(place.session(), Plain(io.StringIO()), yes=True)
    place.damage()
    text = published_now(place)
    words = page_reader.texts(page_reader.read(text))
    for expected in (
        "물건 보관",
        "Your things",
        "일부 장애",
        "Degraded",
        "복구 완료",
        "Resolved",
        "세계",
        "World",
        " UTC",
        " KST",
    ):
        assert expected in words
    for ours in (
        "store",
        "sign",
        "things is",
        "tester",
        "127.0.0.1",
        "10.0.0.1",
        str(place.root),
        socket.gethostname(),
    ):
        assert ours not in words.replace("Your things", "")
    assert place.journals()[0].folder.name not in text
    assert not re.search(r"\bthings\b", text.replace("Your things", ""))
    without_script = '<noscript><meta http-equiv="refresh" content="30"></noscript>'
    assert re.findall(r'.*http-equiv="refresh".*', text) == [without_script], "it cannot be paused"


def published_now(place: World) -> str:
    publish.publish(platform())
    return published(place)


def test_the_page_is_valid_and_can_be_used_without_seeing_it(place: World) -> None:
    now = clock.now()
    say(
        place,
        f"notices:\n  move:\n    from: {(now - timedelta(hours=1)).isoformat()}\n"
        f"    until: {(now + timedelta(hours=1)).isoformat()}\n    affects: [things]\n"
        "    text: {en: We move., ko: 이전 작업을 합니다.}\n",
    )
    place.damage()
    console.recover(place.session(), Plain(io.StringIO()), yes=True)
    root = page_reader.read(published_now(place))
    allowed = {"there is a script", "a leads away: https://status.world.example"}
    assert set(page_reader.faults(root)) <= allowed
    languages = {each.get("lang") for each in root.iter() if each.get("lang")}
    assert languages == {"en", "ko"}
    assert len([clock.read_time(str(each.get("datetime"))) for each in root.iter("time")]) > 5
    words = page_reader.texts(root)
    assert "We move." in words and "이전 작업을 합니다." in words and "점검 중" in words and "Expected end" in words


def test_words_of_the_inventory_are_only_words(place: World) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("en: Your things", 'en: "<script>alert(1)</script> \\u202e&amp;"'))
    text = published_now(place)
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text and "\u202e" not in text
    page_reader.read(text)


def test_a_service_that_is_not_named_is_not_shown(place: World) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("  services: {things: {en: Your things, ko: 물건 보관}}\n", ""))
    assert look.report(platform()).rows == ()  # it has no title
    path.write_text(path.read_text().replace("  things:\n", "  things:\n    title: All things\n"))
    assert [row.words.ko for row in look.report(platform()).rows] == ["All things"]


def with_a_service_backstage(place: World) -> None:
    path = place.root / "inventory/world.yaml"
    added = "services:\n  backstage: {rto: 5m, rpo: 1d, systems: [store]}\n  things:\n"
    path.write_text(path.read_text().replace("services:\n  things:\n", added))


def test_it_tells_of_incidents_that_customers_met_and_of_no_others(place: World) -> None:
    with_a_service_backstage(place)
    now, day = clock.now().replace(microsecond=0), timedelta(days=1)
    write = partial(past.write, place.root / "incidents", platform="world")
    write(now - 16 * day, service="things", back=600.0)
    write(now - 3 * day, service="gone", back=None, end="")
    for purpose in ("drill", "maintenance"):
        write(now - 2 * day, service="things", purpose=purpose, back=None, end="")
    write(now - day, service="things", blind=60.0, back=600.0)
    with place.session().begin():
        pass  # nothing was broken
    seen = look.report(platform())
    assert seen.all == {"backstage": Status.OPERATIONAL, "things": Status.OPERATIONAL}
    lasted = (now - day - timedelta(seconds=60), now - day + timedelta(seconds=600))
    assert [(each.began, each.ended) for each in seen.disruptions] == [lasted]
    write(now - timedelta(hours=1), service="backstage", back=None, end="")
    seen = look.report(platform())
    assert seen.all == {"backstage": Status.DEGRADED, "things": Status.OPERATIONAL}
    assert len(seen.disruptions) == 1 and "Your things" in published_now(place)


def test_maintenance_to_come_is_told_two_weeks_ahead_and_changes_nothing_yet(place: World) -> None:
    with_a_service_backstage(place)
    now = clock.now()
    for name, ahead in (("soon", timedelta(hours=1)), ("later", timedelta(days=15))):
        begin, end = (now + ahead, now + ahead + timedelta(hours=2))
        text = {"en": f"It moves {name}.", "ko": "이전"}
        more = {"from": begin.isoformat(), "until": end.isoformat(), "affects": ["things", "backstage"], "text": text}
        told.notice("world", name, given(**more), Plain(io.StringIO()), remove=False)
    seen = look.report(platform())
    assert [notice.text.en for notice, _ in seen.notices] == ["It moves soon."]
    assert set(seen.all.values()) == {Status.OPERATIONAL}
    assert "It moves soon." in published(place) and "backstage" not in page_reader.texts(
        page_reader.read(published(place))
    )


# ------------------------------------------------------------------------------------------ how old it is


def made_at(place: World, ago: timedelta) -> Path:
    moment = clock.now() - ago
    with clock.use(lambda: moment):
        file = place.root / f"{int(ago.total_seconds())}.html"
        file.write_text(page.html(look.report(platform())))
    return file


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: apt-get install chromium")
def test_a_page_that_nobody_makes_any_more_says_so(place: World) -> None:
    new, old = made_at(place, timedelta()), made_at(place, timedelta(minutes=47))
    seen = "getComputedStyle(document.querySelector('.stale')).display"
    with chromium(place.root) as browser:
        browser.open(new.as_uri())
        assert browser.evaluate(seen) == "none"
        browser.open(old.as_uri())
        assert browser.evaluate(seen) == "block"
        said = browser.evaluate("document.querySelector('.stale').innerText")
        assert "47분 동안 갱신되지 않았습니다" in said and "for 47 minutes" in said
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(old.as_uri())
        made = page._utc(clock.now() - timedelta(minutes=47))[:-6]
        assert made in browser.evaluate("document.body.innerText"), "without a script, the time itself says it"


_PAUSE = "document.getElementById('pause')"
_SETTLE = f"({_PAUSE}.focus(), scrollTo(0, 40), true)"
_NOW = f"""document.documentElement.dataset.made === '%s' && ({_PAUSE}.checked = true)
    && {_PAUSE}.dispatchEvent(new Event('change')) && JSON.stringify({{
        scroll: scrollY, focus: document.activeElement.id, said: document.querySelector('.made').innerText}})"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: apt-get install chromium")
def test_readers_get_the_newer_page_where_they_are_unless_they_pause_it(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "REFRESH", 0.7)
    file = place.root / "www/index.html"

    def publish_of(minutes_ago: int) -> str:
        """Put the page of then in place of what is there; the moment that it says."""
        made_at(place, timedelta(minutes=minutes_ago)).replace(file)
        moment = time.time() - 60 * minutes_ago
        os.utime(file, (moment, moment))  # HTTP tells files apart by their seconds
        return str(re.findall('data-made="([^"]*)"', file.read_text())[0])

    serve = partial(SimpleHTTPRequestHandler, directory=str(file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server, chromium(place.root, 420, 300) as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for address in (file.as_uri(), f"http://127.0.0.1:{server.server_port}/index.html"):
            publish_of(47)
            browser.open(address)
            browser.wait_for(_SETTLE)
            newer = publish_of(2)
            seen = json.loads(browser.wait_for(_NOW % newer))
            assert (seen["scroll"], seen["focus"]) == (40, "pause")
            assert "(2 min ago)" in seen["said"] and "(2분 전)" in seen["said"]
            publish_of(1)
            time.sleep(1.2)
            assert browser.evaluate("document.documentElement.dataset.made") == newer, "it is paused"
        server.shutdown()
        browser.call("Network.enable")
        browser.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        browser.evaluate(f"{_PAUSE}.click()")
        time.sleep(1.2)
        assert "Your things" in browser.evaluate("document.body.innerText"), "what is there stays, without a network"


# ------------------------------------------------------------------------------------------ how it comes to them


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


# ------------------------------------------------------------------------------------------ in an incident


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


# ------------------------------------------------------------------------------------------ notices


def given(**more: Any) -> Mapping[str, object]:
    now = clock.now()
    return {
        "from": (now - timedelta(minutes=5)).isoformat(),
        "until": (now + timedelta(hours=1)).isoformat(),
        "affects": ["things"],
        "text": {"en": "We move.", "ko": "이전 작업을 합니다."},
        **more,
    }


def test_a_notice_by_command_is_told_at_once_until_its_end(place: World) -> None:
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=False)
    assert "We move." in published(place) and "점검 중" in published(place)
    place.damage()
    told.status("world", Plain(io.StringIO()), publish=False, place="", check=True)  # nobody is called
    (place.store / "live/data").write_text(GOOD)
    later = clock.now() + timedelta(hours=2)
    with clock.use(lambda: later):
        assert "We move." not in published_now(place)
        assert status_of_things() is Status.OPERATIONAL
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=True)
    assert "We move." not in published(place)
    with pytest.raises(UsageError, match="no notice 'move-1'"):
        told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"from": ""}, "^--from is missing"),
        (
            {"from": "tomorrow"},
            r"^--from: 'tomorrow' is not a time; write it as ISO 8601.* example \d{4}-\d\d-\d\dT",
        ),
        ({"until": "2020-01-01T00:00:00+00:00"}, "it ends before it begins"),
        ({"from": "2020-01-01T00:00:00+00:00", "until": "2020-01-02T00:00:00+00:00"}, "is over already"),
        ({"affects": ["nothing"]}, "no service 'nothing'"),
        ({"text": {"en": "", "ko": ""}}, "^--en is missing"),
        ({"text": {"en": "password=hunter2hunter2", "ko": "x"}}, "looks like a secret"),
    ],
)
def test_a_notice_that_makes_no_sense_is_refused(place: World, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        told.notice("world", "move-1", given(**wrong), Plain(io.StringIO()), remove=False)
    for name in ("../x", "", "a b", "a" * 64):
        with pytest.raises(UsageError, match="no name"):
            told.notice("world", name, given(), Plain(io.StringIO()), remove=False)
    assert not list(place.root.rglob("move-1.json"))


def test_a_notice_stands_although_its_page_cannot_be_put_anywhere(place: World) -> None:
    (place.root / "www").rmdir()
    said = io.StringIO()
    told.notice("world", "move-1", given(), Plain(said), remove=False)
    assert "The notice move-1 stands until" in said.getvalue() and "owed: the status page" in said.getvalue()
    assert status_of_things() is Status.MAINTENANCE


def test_a_damaged_notice_stops_no_page(place: World) -> None:
    told.notice("world", "move-1", given(), Plain(io.StringIO()), remove=False)
    (file,) = place.root.rglob("move-1.json")
    for content in (b"", b"{}", b"[]", b"x" * 100_000):
        file.write_bytes(content)
        assert "We move." not in published_now(place)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("status: {publish: www}", "status.publish|publish: write a folder's whole path"),
        ("status: {follow: http://plain.example}", "https://HOST"),
        ("status: {follow: https:///status}", "https://HOST"),
        ("status: {services: {nothing: x}}", "there is no service 'nothing'"),
        ("status: {colour: red}", "no such setting"),
        ("notices: {n: {from: 2026-01-02T00:00Z, until: 2026-01-01T00:00Z, text: x}}", "ends before it begins"),
        ("notices: {n: {from: 2026-01-02T00:00Z, until: 2026-01-03T00:00Z, text: x, affects: [y]}}", "no service 'y'"),
    ],
)
def test_the_inventory_refuses_what_makes_no_sense(place: World, wrong: str, said: str) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().split("\nstatus:")[0] + f"\n{wrong}\n")
    with pytest.raises(UsageError, match=said) as refused:
        platform()
    assert re.search(r"world\.yaml:\d+:\d+", refused.value.what)


# ------------------------------------------------------------------------------------------ for operators


def test_the_command_says_it_and_ends_with_its_exit_code(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    told.status("world", Plain(), publish=False, place="", check=True)
    assert "things" in capsys.readouterr().out
    place.damage()
    with pytest.raises(NotProvenError, match=r"things \(degraded\)"):
        told.status("world", Json(), publish=True, place="", check=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["status"] for each in said if each["kind"] == "service"] == ["degraded"]
    assert "일부 장애" in unescape(published(place))


def test_by_the_command_itself(place: World) -> None:
    def inv(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "processes")}
        argv = [sys.executable, "-m", "invoke", *words, "--platform=world"]
        folder = Path(__file__).parents[2]
        return subprocess.run(
            argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )

    done = inv("status", "--publish")
    assert done.returncode == 0 and f"Published: {place.root}/www/index.html" in done.stdout, done.stderr
    (place.root / "other").mkdir()
    assert inv("status", f"--publish={place.root}/other").returncode == 0
    page_reader.read((place.root / "other/index.html").read_text())


def test_words_may_be_the_same_in_both_languages() -> None:
    assert Words.model_validate("API") == Words(en="API", ko="API")

"""What customers read, and how old it may be."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
import time
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from salvor import clock, console
from salvor.show import Plain
from salvor.status import look, page, told
from salvor.status.states import Status

from tests import page_reader, past
from tests.browser import CHROMIUM, chromium
from tests.status.of_a_world import given, platform, published, published_now, say
from tests.world import World


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

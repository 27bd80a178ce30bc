"""The receiver of Alertmanager's webhook: with the real Prometheus and Alertmanager, and with whoever else posts."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from salvor import inventory
from salvor.errors import UsageError
from salvor.session import takeover
from salvor.show import Plain
from salvor.watch import alertmanager, commands
from salvor.watch.alertmanager import Access
from salvor.watch.watcher import Watcher

from tests.waiting import until
from tests.watch.place import PLATFORM, Place

RULES = (
    PLATFORM[: PLATFORM.index("watch:")]
    + """
watch:
  crowded:
    service: shop
    metric: {{alert: TooManySessions, labels: {{instance: shop}}}}
    immediately: [{{clear: pages, allow: true}}]
    then: [{{restart: program}}]
    better_within: 1h
"""
)
ACCESS = Access("127.0.0.1", 0, "Bearer of good alerts")


@contextmanager
def watching(place: Place, access: Access = ACCESS) -> Iterator[tuple[Watcher, int]]:
    """A watcher that goes on and receives, and its port."""
    place.write(text=RULES)
    watcher = Watcher(inventory.load("place"), Plain(io.StringIO()))
    errors: list[BaseException] = []
    with alertmanager.receiving(access, watcher) as port:
        thread = threading.Thread(target=watcher.loop, args=(60.0, errors.append))
        thread.start()
        try:
            yield watcher, port
        finally:
            watcher.stop()
            thread.join(20)
    assert not errors
    assert not thread.is_alive()


def post(port: int, body: bytes, authorization: str = ACCESS.authorization) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/alerts", body, {"Authorization": authorization})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def alert(status: str = "firing", name: str = "TooManySessions", since: str = "", **labels: str) -> bytes:
    labels = {"alertname": name, "instance": "shop", **labels}
    one = {"status": status, "labels": labels, "fingerprint": " ".join(labels.values()), "startsAt": since}
    return json.dumps({"alerts": [one]}).encode()


def test_firing_acts_and_resolved_ends_the_episode(place: Place) -> None:
    with watching(place) as (_, port):
        assert post(port, alert()) == 200
        assert until(lambda: place.pages == 0)
        assert post(port, alert("resolved")) == 200
        assert until(lambda: place.journals()[0].lines[-1]["kind"] == "closed")
        assert place.restarts == 0


def test_what_fires_is_known_after_the_watcher_was_killed(place: Place) -> None:
    place.write(text=RULES)
    watcher, _ = place.watcher()
    watcher.alerts.take(json.loads(alert())["alerts"], {"TooManySessions"})
    (kept,) = place.root.glob("incidents/.watch/place/.alerts.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "damaged": 5}))
    again, _ = place.watcher()
    again.once()
    assert place.pages == 0
    again.alerts.take(json.loads(alert("resolved"))["alerts"], {"TooManySessions"})
    assert place.watcher()[0].once()[0].move.kind == "close", "so is what fires no more"


def test_only_who_may_posts_and_only_what_a_rule_names_acts(place: Place) -> None:
    with watching(place) as (watcher, port):
        for authorization in ("", "Bearer of bad alerts", "Basic of good alerts", "bearer of good alerts", "\u00e9"):
            assert post(port, alert(), authorization) == 401
        assert isinstance(watcher.shown, Plain)
        assert isinstance(watcher.shown.stream, io.StringIO)
        assert watcher.shown.stream.getvalue().count("Alerts from 127.0.0.1 are refused") == 1, "told once"
        assert post(port, alert(name="SomethingElse")) == 200
        assert "Alerts that no rule names: SomethingElse\n" in watcher.shown.stream.getvalue()
        assert not watcher.alerts.firing("SomethingElse", {})
        assert "left 37 alerts out" not in watcher.shown.stream.getvalue()
        for _ in range(2):
            assert post(port, b'{"alerts": [], "truncatedAlerts": 37}') == 200
        assert watcher.shown.stream.getvalue().count("left 37 alerts out of one post") == 1, "told once"
        nameless = {"labels": {"severity": "page"}, "status": "firing", "fingerprint": "1"}
        another = json.loads(alert(instance="another"))["alerts"]
        assert post(port, json.dumps({"alerts": [nameless, *another]}).encode()) == 200, "what it stands beside counts"
        assert watcher.alerts.firing("TooManySessions", {"instance": "another"})
        assert post(port, alert("resolved", instance="another")) == 200
        assert post(port, alert(instance="another")) == 200
        for body in (b"", b"[]", b"{}", b'{"alerts": 3}', b'{"alerts": [{}]}', b"\xff", b'{"alerts": [{"labels": 1}]}'):
            assert post(port, body) == 400
        assert post(port, b"[" * 100_000) == 400, "to 500 Alertmanager would say it again and again"
        assert post(port, b'{"alerts": []}' + b" " * 9_000_000) == 413
        assert "8.6 MiB at once are more than the 8 that are taken" in watcher.shown.stream.getvalue()
        assert watcher.shown.stream.getvalue().count("they are not as Alertmanager writes them") == 1, "told once"
        assert not watcher.alerts.firing("TooManySessions", {"instance": "shop"})
        with socket.create_connection(("127.0.0.1", port)) as silent:  # who says nothing holds nobody up
            silent.sendall(b"POST /alerts HTTP/1.1\r\n")
            assert post(port, alert()) == 200
        assert until(lambda: place.pages == 0)


def test_an_alert_that_was_said_to_another_machine_is_not_taken_for_resolved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took the watch over told people that it is better, and closed the episode."""
    place.write(text=RULES)
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    watcher, _ = place.watcher()
    watcher.alerts.take(json.loads(alert())["alerts"], {"TooManySessions"})
    watcher.once()
    (episode,) = place.journals()
    monkeypatch.setenv("SALVOR_INCIDENTS", str(place.root / "incidents-there"))  # another machine's
    takeover.take(episode.folder.name, lambda text: None)
    there, _ = place.watcher()
    assert there.once()[0].reading.bad is None
    there.alerts.take(json.loads(alert("resolved"))["alerts"], {"TooManySessions"})
    assert there.once()[0].move.kind == "close"


@pytest.mark.parametrize("content", ["", "[]", None])
def test_when_it_is_not_known_what_was_said_nobody_hears_that_it_is_better(place: Place, content: str | None) -> None:
    place.write(text=RULES)
    watcher, _ = place.watcher()
    watcher.alerts.take(json.loads(alert())["alerts"], {"TooManySessions"})
    watcher.once()
    (kept,) = place.root.glob("incidents/.watch/place/.alerts.json")
    kept.unlink() if content is None else kept.write_text(content)
    again, _ = place.watcher()
    assert again.once()[0].reading.bad is None
    again.alerts.take(json.loads(alert("resolved"))["alerts"], {"TooManySessions"})
    assert again.once()[0].move.kind == "close"


def test_an_alert_of_before_the_watch_stood_still_acts_on_nothing_until_it_is_said_again(place: Place) -> None:
    """It may have ended meanwhile: Alertmanager, restarted itself, would never say so."""
    place.write(text=RULES.replace("better_within: 1h", "better_within: 1m"))

    def say(watcher: Watcher, seconds: float, status: str = "firing") -> str:
        with place.at(seconds):
            watcher.alerts.take(json.loads(alert(status))["alerts"], {"TooManySessions"})
        return place.look(watcher, seconds).move.kind

    assert say(place.watcher()[0], 0) == "act"
    assert place.look(place.watcher()[0], 50).move.kind == "wait"
    for seconds in (86400, 86410):  # killed again
        watcher, _ = place.watcher()
        seen = place.look(watcher, seconds)
        assert (seen.move.kind, seen.reading.bad, place.restarts) == ("wait", None, 0)
    assert say(watcher, 86420) == "act"
    assert place.restarts == 1
    assert say(watcher, 86430, "resolved") == "close"
    assert place.look(place.watcher()[0], 99999).reading.bad is False


def test_an_alert_that_fires_anew_begins_an_episode_though_nobody_said_that_it_had_ended(place: Place) -> None:
    """Alertmanager says nothing of what ends while it is silenced: nobody was called when it came back."""
    place.write(text=RULES)

    def look(seconds: int, *bodies: bytes) -> str:
        watcher, _ = place.watcher()
        for body in bodies:
            with place.at(seconds):
                watcher.alerts.take(json.loads(body)["alerts"], {"TooManySessions"})
        return place.look(watcher, seconds).move.kind

    assert look(0, alert(since="2026-11-21T02:59:00.123456789Z")) == "act"
    assert look(60, alert(since="2026-11-21T02:58:00Z"), alert(since="2026-11-21T02:59:00.123456789Z")) == "wait"
    place.fill()
    assert look(3000, alert(since="2026-11-21T03:49:00Z")) == "close"
    assert "it had ended" in place.journals()[0].lines[-1]["result"]
    assert place.pages == 2
    watcher, _ = place.watcher()
    assert place.look(watcher, 3005).move.kind == "wait"  # it cools down
    assert [place.look(watcher, seconds).move.kind for seconds in (4900, 4910)] == ["act", "wait"]
    assert place.pages == 0
    both = alert(since="2026-11-21T04:20:00Z"), alert(since="2026-11-21T04:00:00Z", instance="shop", job="another")
    assert look(5000, *both) == "wait"


def test_a_storm_of_alerts_is_taken_and_hides_no_other(place: Place) -> None:
    """A post of more than a mebibyte was refused, and after a thousand alerts no other name was taken."""
    labels = [{"alertname": "TooManySessions", "instance": f"shop-{number}"} for number in range(1500)]
    storm = [
        {"status": "firing", "labels": one, "fingerprint": one["instance"], "annotations": {"summary": "x" * 700}}
        for one in labels
    ]
    with watching(place) as (watcher, port):
        assert post(port, json.dumps({"alerts": storm}).encode()) == 200
        assert watcher.alerts.firing("TooManySessions", {"instance": "shop-7"})
        (another,) = json.loads(alert(name="DiskFull"))["alerts"]
        watcher.alerts.take([{**another, "fingerprint": "another"}], {"DiskFull"})
        assert watcher.alerts.firing("DiskFull", {})


def test_a_watch_that_does_not_listen_takes_no_alert_for_good(place: Place) -> None:
    """It said "does not fire", for ever: nobody was called, and none was told why."""
    place.write(text=RULES)
    said = io.StringIO()
    commands.watch("place", Plain(said), once=True)
    assert "unknown" in said.getvalue()
    assert "this watch does not listen to Alertmanager (--alertmanager)" in said.getvalue()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    commands.watch("place", Plain(said))
    assert "Nothing is heard of the alerts of crowded: whether they fire cannot be told." in said.getvalue()
    assert "HINT: inv watch --alertmanager=PORT" in said.getvalue()


def test_one_look_receives_nothing_and_says_so(place: Place) -> None:
    with pytest.raises(UsageError, match="--once looks once"):
        commands.watch("place", Plain(io.StringIO()), once=True, access=ACCESS)


def test_a_user_and_a_password_do_too(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("open sesame\n")
    secret.chmod(0o600)
    with pytest.raises(UsageError, match="who may post"):
        alertmanager.access("127.0.0.1:9", "", "", "")
    with pytest.raises(UsageError, match="who may post"):
        alertmanager.access("127.0.0.1:9", f"file:{secret}", "am", f"file:{secret}")
    with pytest.raises(UsageError, match="HOST:PORT"):
        alertmanager.access("nowhere", f"file:{secret}", "", "")
    pair = base64.b64encode(b"am:open sesame").decode()
    access = alertmanager.access("127.0.0.1:1", "", "am", f"file:{secret}")
    alone = alertmanager.access("9099", f"file:{secret}", "", "")
    assert (alone.host, alone.port) == ("127.0.0.1", 9099)
    near, far = ("127.0.0.1", "::1", "localhost"), ("10.0.0.9", "::", "ops-1")
    assert {host: Access(host, 1, "").is_loopback for host in near + far} == dict.fromkeys(near, True) | dict.fromkeys(
        far, False
    )
    with watching(place, Access("127.0.0.1", 0, access.authorization)) as (_, port):
        assert post(port, alert(), f"Basic {pair}") == 200
        assert until(lambda: place.pages == 0)


# ------------------------------------------------------------------------------------------ the real ones


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


PROMETHEUS = """
global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
rule_files: [{folder}/rules.yml]
scrape_configs: [{{job_name: shop, static_configs: [{{targets: ["127.0.0.1:{shop}"], labels: {{instance: shop}}}}]}}]
"""
ALERTS = """
groups: [{name: shop, rules: [{alert: TooManySessions, expr: shop_sessions > 10, for: 500ms}]}]
"""
ALERTMANAGER = """
route: {{receiver: salvor, group_wait: 100ms, group_interval: 500ms, repeat_interval: 1h}}
receivers:
  - name: salvor
    webhook_configs:
      - url: http://127.0.0.1:{salvor}/alerts
        http_config: {{authorization: {{type: Bearer, credentials: of good alerts}}}}
"""


@contextmanager
def prometheus(folder: Path, salvor: int, shop: int) -> Iterator[int]:
    """A Prometheus that scrapes the shop, and its Alertmanager that posts to us; gives Prometheus' port."""
    if not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")):
        pytest.skip("not installed here: prometheus, prometheus-alertmanager")
    port, other = free_port(), free_port()
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(alertmanager=other, folder=folder, shop=shop))
    (folder / "rules.yml").write_text(ALERTS)
    (folder / "alertmanager.yml").write_text(ALERTMANAGER.format(salvor=salvor))
    listening = "--web.listen-address=127.0.0.1"
    own = [f"--storage.tsdb.path={folder}/data", f"{listening}:{port}"]
    others = [f"--storage.path={folder}/kept", f"{listening}:{other}", "--cluster.listen-address="]
    commands = [
        ["prometheus", f"--config.file={folder}/prometheus.yml", *own],
        ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", *others],
    ]
    with (folder / "said").open("wb") as said:
        running = [subprocess.Popen(command, stdout=said, stderr=said) for command in commands]
        try:
            yield port
        finally:
            for process in running:
                process.kill()
                process.wait(10)


@contextmanager
def a_shop(sessions: list[int]) -> Iterator[int]:
    """A shop that tells Prometheus how many sessions it has."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"shop_sessions {sessions[0]}\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_real_prometheus_and_alertmanager(place: Place, tmp_path: Path) -> None:
    sessions = [3]
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with watching(place) as (_, port), a_shop(sessions) as shop, prometheus(folder, port, shop) as asked:
        query = PLATFORM.replace("http://127.0.0.1:{port}", f"http://127.0.0.1:{asked}").replace(
            "query: memory", "query: 'shop_sessions{{instance=\"shop\"}}'"
        )

        def seen() -> Any:
            place.write(text=query)
            (one,) = Watcher(inventory.load("place"), Plain(io.StringIO())).see_all()
            return one.reading

        assert until(lambda: seen().figure == "3"), (folder / "said").read_text()[-2000:]
        assert seen().bad is False
        assert place.pages == 2
        sessions[0] = 99
        begun = time.monotonic()
        assert until(lambda: place.pages == 0), (folder / "said").read_text()[-2000:]
        assert time.monotonic() - begun < 15
        assert until(lambda: seen().bad is True)
        sessions[0] = 1
        assert until(lambda: place.journals()[0].lines[-1]["kind"] == "closed"), (folder / "said").read_text()[-2000:]

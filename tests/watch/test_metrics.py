"""What a metric is read as: bad, good, or that it cannot be told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from salvor import clone, inventory
from salvor.errors import CannotError
from salvor.host.facts import Disk, Facts
from salvor.host.fence import Seen
from salvor.host.services import Service
from salvor.systems.host import Host
from salvor.watch import metrics
from salvor.watch.alerts import Alerts
from salvor.watch.metrics import Metrics, Reading
from salvor.watch.rules import Action, Escalation, Metric, Rule

from tests.watch.place import Place

FACTS = Facts(
    machine="m",
    boot="b",
    up=1.0,
    load=3.0,
    processors=2,
    memory=1000,
    memory_free=150,
    system="Linux",
    clock_offset=0.0,
    clock_error=0.1,
    disks=(Disk("/", 100, 50, 50, 100, 3), Disk("/srv", 100, 90, 10)),
    failed_units=(),
    services=(),
    fence=Seen(stands=False, written=False, kept=False),
)

PLATFORM = """
systems:
  web: {{kind: host}}
  api: {{kind: application, service: shop}}
services:
  shop:
    rto: 5m
    rpo: 1d
    applications: [api]
    checks:
      - {{name: answers, command: [cat, {root}/answer], equals: fine}}
      - {{name: slow, command: [sleep, "60"], deadline: 300ms}}
watch: {{}}
"""


@pytest.fixture
def read(place: Place) -> Callable[..., Reading]:
    """Reads a metric, with a limit."""
    place.write(text=PLATFORM)
    reader = Metrics(inventory.load("place"), Alerts("place", print))

    def one(metric: dict[str, Any], **limit: float) -> Reading:
        said = {"service": "shop", "metric": metric, "for": "1m", "escalate": "x", **limit}
        return reader.read(Rule.model_validate(said))

    return one


@pytest.mark.parametrize(
    ("metric", "value", "figure"),
    [
        ({"figure": "memory"}, 85, "85.0 %"),
        ({"figure": "load"}, 1.5, "1.50 a processor"),
        ({"figure": "disk"}, 90, "/srv 90.0 %"),
        ({"figure": "disk", "path": "/"}, 50, "/ 50.0 %"),
        ({"figure": "inodes"}, 97, "/ 97.0 %"),
    ],
)
def test_a_figure_of_a_machine(
    read: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch, metric: dict[str, str], value: float, figure: str
) -> None:
    monkeypatch.setattr(Host, "look", lambda self: FACTS)
    metric = {"host": "web", **metric}
    assert read(metric, above=value - 0.1) == Reading(True, figure, f"above {value - 0.1:g}")
    assert read(metric, above=value + 0.1).bad is False
    assert read(metric, below=value + 0.1).bad is True
    assert read(metric, below=value - 0.1).bad is False


def test_what_a_machine_does_not_say_cannot_be_told(
    read: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "look", lambda self: FACTS)
    said = read({"host": "web", "figure": "disk", "path": "/nowhere"}, above=1)
    assert (said.bad, said.detail) == (None, "web has no file system mounted at /nowhere.")

    def fails(self: Host) -> Facts:
        raise CannotError("web cannot be reached")

    monkeypatch.setattr(Host, "look", fails)
    assert read({"host": "web", "figure": "memory"}, above=1).bad is None
    monkeypatch.setattr(metrics, "DEADLINE", 0.2)
    monkeypatch.setattr(Host, "look", lambda self: time.sleep(2))
    assert read({"host": "web", "figure": "memory"}, above=1).detail == "no answer within 0.2 s"


def test_this_machine_itself(read: Callable[..., Reading]) -> None:
    said = read({"host": "web", "figure": "memory"}, above=0.01)
    assert said.bad is True
    assert 0 < float(said.figure.split()[0]) < 100


@pytest.mark.parametrize(
    ("state", "bad"),
    [("running", False), ("stopped", True), ("failed", True), ("starting", True), ("absent", True), ("unknown", None)],
)
def test_a_service_runs_or_not(
    read: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch, state: str, bad: bool | None
) -> None:
    monkeypatch.setattr(Host, "service", lambda self, name: Service(name, "systemd", state))
    assert read({"host": "web", "running": "nginx"}) == Reading(bad, state, "running")


def test_a_check_of_the_service(read: Callable[..., Reading], place: Place) -> None:
    for answer, bad in (("fine", False), ("broken", True)):
        (place.root / "answer").write_text(answer)
        assert read({"check": "answers"}).bad is bad
    assert read({"check": "slow"}).bad is None


def test_one_look_at_a_machine_serves_all_who_ask_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def look(self: Host) -> Facts:
        looks.append(time.monotonic())
        time.sleep(0.3)
        return FACTS

    monkeypatch.setattr(Host, "look", look)
    place.write(text=PLATFORM)
    reader = Metrics(inventory.load("place"), Alerts("place", print))
    said = {"service": "shop", "metric": {"host": "web", "figure": "load"}, "above": 1, "for": "1m", "escalate": "x"}
    rule = Rule.model_validate(said)
    threads = [threading.Thread(target=reader.read, args=(rule,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 1
    reader.read(rule)
    assert len(looks) == 2


# ------------------------------------------------------------------------------------------ Prometheus


@pytest.fixture
def answers() -> Iterator[tuple[int, list[Any]]]:
    """A server that answers what is said, and what it was asked: a port, and the answer (status, body, seconds)."""
    answer: list[Any] = [200, {}, 0.0, ""]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer[3] = f"{self.path} {self.headers.get('Authorization', '')}"
            time.sleep(answer[2])
            body = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            with suppress(BrokenPipeError):  # who asked has given up
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port, answer
        server.shutdown()


def vector(*values: str) -> dict[str, Any]:
    found = [{"metric": {}, "value": [1, value]} for value in values]
    return {"status": "success", "data": {"resultType": "vector", "result": found}}


@pytest.mark.parametrize(
    ("answer", "bad"),
    [
        (vector("9", "11"), True),
        (vector("9", "10"), False),
        (vector("NaN", "11"), True),
        (vector("+Inf"), True),
        ({"status": "success", "data": {"resultType": "scalar", "result": [1, "11"]}}, True),
        (vector(), None),
        (vector("NaN"), None),
        (vector("many"), None),
        (
            {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "11"]]}]}},
            None,
        ),
        ({"status": "error"}, None),
        ([], None),
        (b"<html>", None),
        (b"", None),
        (b"[" * 100_000, None),
    ],
)
def test_what_prometheus_answers(
    read: Callable[..., Reading], answers: tuple[int, list[Any]], answer: Any, bad: bool | None
) -> None:
    port, said = answers
    said[1] = answer
    assert read({"prometheus": f"http://127.0.0.1:{port}", "query": "a > 1 & b"}, above=10).bad is bad
    assert said[3] == "/api/v1/query?query=a%20%3E%201%20%26%20b "


def test_of_several_series_those_beyond_the_limit_are_named_the_worst_first(
    read: Callable[..., Reading], answers: tuple[int, list[Any]]
) -> None:
    """People are called once for all of them, and have to know where."""
    port, said = answers
    said[1] = vector("12", "3", "40")
    for one, shop in zip(said[1]["data"]["result"], "abc", strict=True):
        one["metric"] = {"__name__": "queue", "shop": shop, "job": "x"}
    metric = {"prometheus": f"http://127.0.0.1:{port}", "query": "queue"}
    assert read(metric, above=10).figure == "40 (job=x shop=c); 12 (job=x shop=a)"
    assert read(metric, above=50).figure == "40"


def test_prometheus_that_fails_or_is_slow_cannot_be_told(
    read: Callable[..., Reading], answers: tuple[int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, said = answers
    metric = {"prometheus": f"http://127.0.0.1:{port}", "query": "up", "token": "env:SALVOR_TEST_TOKEN"}
    assert read(metric, above=10).bad is None  # its token is not there
    monkeypatch.setenv("SALVOR_TEST_TOKEN", "open-sesame-of-prometheus")
    said[0], said[1] = 503, vector("11")
    found = read(metric, above=10)
    assert (found.bad, "status 503" in found.detail) == (None, True)
    assert said[3].endswith(" Bearer open-sesame-of-prometheus")
    said[0] = 302
    assert "status 302" in read(metric, above=10).detail, "its token goes nowhere else"
    said[0], said[1] = 200, vector(*["11"] * 40_000)
    assert "too many series" in read(metric, above=10).detail
    said[1], said[2] = vector("11"), 1.0
    monkeypatch.setattr(metrics, "DEADLINE", 0.3)
    assert read(metric, above=10).bad is None
    found = read({**metric, "prometheus": "http://127.0.0.1:1"}, above=10)
    assert (found.bad, found.detail) == (None, "http://127.0.0.1:1 cannot be asked: Connection refused.")


# ------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    "change",
    [
        {"metric": {}},
        {"metric": {"host": "web"}},
        {"metric": {"host": "web", "figure": "memory", "running": "x"}},
        {"metric": {"host": "web", "figure": "memory", "path": "/"}},
        {"metric": {"check": "a", "alert": "b"}},
        {"metric": {"prometheus": "http://h:1"}},
        {"metric": {"prometheus": "http://u:p@h:1", "query": "a"}},
        {"metric": {"prometheus": "ftp://h:1", "query": "a"}},
        {"metric": {"check": "a"}},
        {"above": None},
        {"below": 3},
        {"for": "0s"},
        {"escalate": None},
        {"cool_down": "10s"},
        {"then": [{"run": ["a"], "host": "web"}]},
        {"then": [{"run": ["a"], "allow": True}]},
        {"then": [{"run": ["a", "--password=hunter22"], "host": "web", "allow": True}]},
        {"then": [{"restart": "a", "clear": "b", "allow": True}]},
        {"then": [{"reset_connections": "db", "allow": True}]},
        {"then": [{"scale": "api"}]},
        {"then": [{"restart": "--all", "host": "web"}]},
        {"then": [{"runbook": "restore"}]},
        {"then": [{"runbook": "restore", "allow": True}, {"restart": "api"}]},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    good = {"service": "shop", "metric": {"host": "web", "figure": "memory"}, "above": 8, "for": "1m", "escalate": "x"}
    Rule.model_validate(good)
    with pytest.raises(ValidationError):
        Rule.model_validate({**good, **change})


def test_the_page_that_explains_rules_shows_rules_that_are_right() -> None:
    page = (clone.root() / "docs/watch.md").read_text()
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    for rule in example["watch"].values():
        Rule.model_validate(rule)
    for escalation in example["escalation"].values():
        Escalation.model_validate(escalation)
    rows = [row.split("`")[1] for row in page.splitlines() if row.startswith("| `{")]
    for row in map(yaml.safe_load, rows):
        if {"figure", "running", "prometheus", "check", "alert"} & set(row):
            Metric.model_validate(row)
        else:
            Action.model_validate(row)
    assert len(rows) == 12

"""What the rules watch, read within a deadline each; a machine that several rules ask about is asked once."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from salvor import clock, secrets, web
from salvor.change import Level
from salvor.deadline import within
from salvor.errors import CannotError
from salvor.host.facts import Disk, Facts
from salvor.incident import Incident
from salvor.inventory import Platform
from salvor.journal.folders import incidents_folder
from salvor.plain import in_words, one_line
from salvor.watch.alerts import Alerts
from salvor.watch.rules import Metric, Rule
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.host import Host

DEADLINE = 10.0
"""Seconds after which a metric that was not told is unknown."""
_MOST_BYTES = 1024 * 1024
_MOST_SHOWN = 400
"""Letters of the series that are beyond the limit."""


@dataclass(frozen=True)
class Reading:
    """What a rule's metric was: bad or not, or None when that cannot be told; in words, with its limit."""

    bad: bool | None
    figure: str
    limit: str
    detail: str = ""


class Metrics:
    """Reads the metrics of a platform's rules. Whoever opened a machine for one look has it opened for the next."""

    def __init__(self, platform: Platform, alerts: Alerts) -> None:
        self.platform, self.alerts = platform, alerts
        self._lookers: dict[str, Incident] = {}
        self._asked: dict[str, Future[Facts]] = {}
        self._lock = threading.Lock()

    def read(self, rule: Rule) -> Reading:
        """The metric of a rule, within DEADLINE seconds. Never raises."""
        try:
            return within(DEADLINE, lambda: self._read(rule))
        except TimeoutError:
            detail = f"no answer within {clock.write_duration(DEADLINE)}"
        except Exception as error:  # noqa: BLE001  whatever a library or a server does, the metric cannot be told
            detail = one_line(in_words(error))
        return Reading(None, "cannot tell", rule.limit, detail)

    def _read(self, rule: Rule) -> Reading:
        metric = rule.metric
        if metric.alert:
            firing = self.alerts.firing(metric.alert, metric.labels)
            return Reading(bool(firing), firing or "does not fire", "")
        if metric.check:
            return self._check(rule.service, metric.check)
        if metric.running:
            now = self._host(rule).service(metric.running)
            return Reading(None if now.state == "unknown" else not now.runs, now.state, "running")
        if metric.prometheus:
            found = sorted(_ask_prometheus(metric), reverse=rule.above is not None)
            beyond = [f"{value:g}{of and f' ({of})'}" for value, of in found if _is_beyond(rule, value)]
            worst = found[0][0]
            return _judged(rule, worst, one_line("; ".join(beyond), most=_MOST_SHOWN) or f"{worst:g}")
        value, figure = _figure(metric, self._facts(self._host(rule)))
        return _judged(rule, value, figure)

    def _looker(self, service: str) -> Incident:
        """What opens systems to look at them; nothing of it is ever written."""
        if service not in self._lookers:
            of = self.platform.service(service)
            self._lookers[service] = Incident(
                "watch", self.platform, of, Wish(), "watch", "watch", incidents_folder() / ".watch", purpose="watch"
            )
        return self._lookers[service]

    def _check(self, service: str, name: str) -> Reading:
        looker = self._looker(service)
        check = next(each for each in looker.service.checks if each.name == name)
        found = looker.check(check, "live")
        bad = {Level.PASS: False, Level.WARN: False, Level.FAIL: True}.get(found.level)
        return Reading(bad, found.figure or str(found.level), found.limit, found.detail)

    def _host(self, rule: Rule) -> Host:
        from salvor.systems.host import Host

        host = self._looker(rule.service).system(rule.metric.host or "")
        assert isinstance(host, Host)
        return host

    def _facts(self, host: Host) -> Facts:
        """What a machine says of itself: who asks while it is being asked gets the same answer."""
        with self._lock:
            asked = self._asked.get(host.name)
            is_mine = asked is None
            if asked is None:
                asked = self._asked[host.name] = Future()
        if is_mine:
            try:
                asked.set_result(host.look())
            except BaseException as error:  # noqa: BLE001  raised below, to everybody who waits for it
                asked.set_exception(error)
            finally:
                with self._lock:
                    del self._asked[host.name]
        return asked.result()


def _judged(rule: Rule, value: float, figure: str) -> Reading:
    return Reading(_is_beyond(rule, value), figure, rule.limit)


def _is_beyond(rule: Rule, value: float) -> bool:
    return value > rule.above if rule.above is not None else value < (rule.below or 0.0)


def _figure(metric: Metric, facts: Facts) -> tuple[float, str]:
    """A figure of a machine, and as people read it. Raises CannotError for a file system that is not there."""
    if metric.figure == "memory":
        value = 100 * (1 - facts.memory_free / facts.memory)
    elif metric.figure == "load":
        return facts.load / facts.processors, f"{facts.load / facts.processors:.2f} a processor"
    else:
        disks = [disk for disk in facts.disks if metric.path in (None, disk.path)]
        if not disks:
            raise CannotError(f"{metric.host} has no file system mounted at {metric.path}.")

        def share(disk: Disk) -> float:
            return disk.inodes_full if metric.figure == "inodes" else disk.full

        fullest = max(disks, key=share)
        return 100 * share(fullest), f"{fullest.path} {100 * share(fullest):.1f} %"
    return value, f"{value:.1f} %"


def _ask_prometheus(metric: Metric) -> list[tuple[float, str]]:
    """The values of an instant query, each with the labels of its series in words. Raises CannotError when there
    are none: that is not the same as good.
    https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
    """
    import urllib.error
    import urllib.request

    url = f"{str(metric.prometheus).rstrip('/')}/api/v1/query?query={quote(metric.query or '', safe='')}"
    headers = {"Authorization": f"Bearer {secrets.resolve(metric.token)}"} if metric.token else {}
    until = clock.monotonic() + DEADLINE
    try:
        with web.opener(follow=False).open(urllib.request.Request(url, headers=headers), timeout=DEADLINE) as response:  # noqa: S310  its scheme was checked
            said = web.body(response, until, most=_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            told = web.body(error, until, most=1000).decode("utf-8", "replace")
        raise CannotError(f"{metric.prometheus} answers with status {error.code}: {one_line(told)}") from error
    except urllib.error.URLError as error:
        raise CannotError(f"{metric.prometheus} cannot be asked: {in_words(error)}.") from error
    if len(said) >= _MOST_BYTES:
        raise CannotError(f"{metric.prometheus} answers with too many series: put max() or min() round the query.")
    try:
        answer: Mapping[str, Any] = json.loads(said)
        data = answer["data"]
        series = [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]
        found = [(float(one["value"][1]), _in_words(one["metric"])) for one in series]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CannotError(
            f"{metric.prometheus} answers what is no vector: {one_line(said[:300].decode(errors='replace'))}"
        ) from error
    found = [(value, of) for value, of in found if not math.isnan(value)]
    if not found:
        raise CannotError(f"{metric.prometheus} has no value for {metric.query}.")
    return found


def _in_words(labels: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "__name__")

"""The alerts that fire now, as Alertmanager last said."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from salvor import clock
from salvor.errors import UsageError
from salvor.plain import one_line
from salvor.watch.kept import Kept

_MOST = 1000
"""Alerts of one name that are kept: each may fire for many labels."""


@dataclass(frozen=True)
class _Firing:
    """An alert that fires: since when, by Alertmanager's clock, and by ours when that was `heard` last, and when it was
    said that it fires `anew`, without a word that it had ended. Of what ends while it is silenced, Alertmanager says
    nothing.
    """

    labels: dict[str, str] = field(default_factory=dict)
    since: datetime | None = None
    anew: datetime | None = None
    heard: datetime | None = None

    def followed_by(self, firing: _Firing) -> _Firing:
        """This alert, as it is said now. Of two Alertmanagers one may know it for longer: an earlier time is no end."""
        if self.since and firing.since and firing.since > self.since:
            return replace(firing, anew=clock.now())
        return replace(firing, since=self.since or firing.since, anew=self.anew)

    def is_like(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether it is of that name, with these labels."""
        return {"alertname": name, **labels}.items() <= self.labels.items()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        times = {"since": self.since, "anew": self.anew, "heard": self.heard}
        return {"labels": self.labels, **{name: clock.write_time(at) for name, at in times.items() if at}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> _Firing:
        """What `to_json` wrote, or an older Salvor: the labels alone."""
        labels = found if isinstance(found := data.get("labels"), dict) else data
        return _Firing(dict(labels), *(_moment(data.get(name)) for name in ("since", "anew", "heard")))


def _moment(said: object) -> datetime | None:
    with suppress(UsageError):
        return clock.read_time(str(said))
    return None


class Alerts:
    """Kept on disk before Alertmanager is answered: it says a thing once, and again only after hours."""

    def __init__(self, platform: str, tell: Callable[[str], None]) -> None:
        self._kept = Kept(platform, ".alerts", tell)
        self._lock = threading.Lock()
        self._heard: dict[str, _Firing] = {}
        self._firing = {key: _Firing.from_json(one) for key, one in self._kept.read().items() if isinstance(one, dict)}
        self.is_known = self._kept.is_known
        """Whether what was said to the watcher before this one is known."""

    def take(self, alerts: Iterable[Mapping[str, Any]], known: set[str]) -> tuple[int, set[str]]:
        """Take in the alerts of one message. How many were of a `known` name, and the names that were not.

        Raises ValueError, LookupError or TypeError when they are no alerts.
        """
        with self._lock:
            firing, count, unknown = dict(self._firing), 0, set()
            names = Counter(one.labels.get("alertname") for one in firing.values())
            for alert in alerts:
                labels = {str(name): str(value)[:200] for name, value in alert["labels"].items()}
                name = labels.get("alertname", "")
                if name not in known:
                    unknown.add(one_line(name, most=60) or "one without alertname")
                    continue
                count += 1
                key = str(alert["fingerprint"])[:64]
                said = _Firing(labels, _moment(alert.get("startsAt")), heard=clock.now())
                if len(self._heard) < _MOST:
                    self._heard[key] = said
                if alert["status"] == "resolved":
                    firing.pop(key, None)
                elif alert["status"] != "firing":
                    raise ValueError(f"an alert is firing or resolved, not {alert['status']!r}")
                elif key in firing:
                    firing[key] = firing[key].followed_by(said)
                elif names[name] < _MOST:
                    names[name] += 1
                    firing[key] = said
            if firing != self._firing:
                self._kept.write({key: one.to_json() for key, one in firing.items()})
                self._firing = firing
        return count, unknown

    def is_heard_of(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether anything was said of such an alert, since this process began."""
        return any(one.is_like(name, labels) for one in list(self._heard.values()))

    def heard_at(self, name: str, labels: Mapping[str, str]) -> datetime | None:
        """When it was last said that one of those that fire does; None when that is not known."""
        return max((one.heard for one in self._like(name, labels) if one.heard), default=None)

    def firing(self, name: str, labels: Mapping[str, str]) -> str:
        """The labels of those that fire, in words; empty when none does."""
        found = self._like(name, labels)
        words = [
            " ".join(f"{key}={value}" for key, value in sorted(one.labels.items()) if key != "alertname")
            for one in found
        ]
        return one_line(f"fires: {'; '.join(words) or name}") if found else ""

    def fires_anew_at(self, name: str, labels: Mapping[str, str]) -> datetime | None:
        """When all of those that fire had ended once, though nobody said so; None where one goes on."""
        anew = [one.anew for one in self._like(name, labels)]
        return None if None in anew else min((at for at in anew if at), default=None)

    def _like(self, name: str, labels: Mapping[str, str]) -> list[_Firing]:
        return [one for one in list(self._firing.values()) if one.is_like(name, labels)]

"""The alerts that fire now, as Alertmanager last said."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from salvor.plain import one_line
from salvor.watch.kept import Kept

_MOST = 1000
"""Alerts of one name that are kept: each may fire for many labels."""


class Alerts:
    """Kept on disk before Alertmanager is answered: it says a thing once, and again only after hours."""

    def __init__(self, platform: str, tell: Callable[[str], None]) -> None:
        self._kept = Kept(platform, ".alerts", tell)
        self._lock = threading.Lock()
        self._heard: dict[str, dict[str, str]] = {}
        self._firing: dict[str, dict[str, str]] = {
            key: labels for key, labels in self._kept.read().items() if isinstance(labels, dict)
        }

    def take(self, alerts: Iterable[Mapping[str, Any]], known: set[str]) -> tuple[int, set[str]]:
        """Take in the alerts of one message. How many were of a `known` name, and the names that were not.

        Raises ValueError, LookupError or TypeError when they are no alerts.
        """
        with self._lock:
            firing, count, unknown = dict(self._firing), 0, set()
            names = Counter(one.get("alertname") for one in firing.values())
            for alert in alerts:
                labels = {str(name): str(value)[:200] for name, value in alert["labels"].items()}
                if labels["alertname"] not in known:
                    unknown.add(one_line(labels["alertname"], most=60))
                    continue
                count += 1
                key = str(alert["fingerprint"])[:64]
                if len(self._heard) < _MOST:
                    self._heard[key] = labels
                if alert["status"] == "resolved":
                    firing.pop(key, None)
                elif alert["status"] != "firing":
                    raise ValueError(f"an alert is firing or resolved, not {alert['status']!r}")
                elif key in firing or names[labels["alertname"]] < _MOST:
                    names[labels["alertname"]] += key not in firing
                    firing[key] = labels
            if firing != self._firing:
                self._kept.write(firing)
                self._firing = firing
        return count, unknown

    def is_heard_of(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether anything was said of such an alert, since this process began."""
        wanted = {"alertname": name, **labels}.items()
        return any(wanted <= one.items() for one in list(self._heard.values()))

    def firing(self, name: str, labels: Mapping[str, str]) -> str:
        """The labels of those that fire, in words; empty when none does."""
        wanted = {"alertname": name, **labels}.items()
        found = [one for one in list(self._firing.values()) if wanted <= one.items()]
        words = [
            " ".join(f"{key}={value}" for key, value in sorted(one.items()) if key != "alertname") for one in found
        ]
        return one_line(f"fires: {'; '.join(words) or name}") if found else ""

"""The status page of the small world: what it is, and what customers read on it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from salvor import clock, inventory
from salvor.inventory import Platform
from salvor.status import look, publish
from salvor.status.states import Status

from tests.world import World

STATUS = """
status:
  title: {{en: World, ko: 세계}}
  services: {{things: {{en: Your things, ko: 물건 보관}}}}
  publish: {place}
  follow: https://status.world.example
"""


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


def published_now(place: World) -> str:
    publish.publish(platform())
    return published(place)


def given(**more: Any) -> Mapping[str, object]:
    now = clock.now()
    return {
        "from": (now - timedelta(minutes=5)).isoformat(),
        "until": (now + timedelta(hours=1)).isoformat(),
        "affects": ["things"],
        "text": {"en": "We move.", "ko": "이전 작업을 합니다."},
        **more,
    }

"""A place to watch: a figure that we say, a cache of files, a program, people who are called; and a clock of ours."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

from salvor import clock, inventory, journal
from salvor.journal import Journal
from salvor.show import Plain
from salvor.watch.watcher import Seen, Watcher

BEGIN = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)

PLATFORM = """
systems:
  pages: {{kind: cache, path: {root}/pages}}
  program: {{kind: daemon, path: {root}/program}}
  people:
    kind: outbox
    channels:
      team: {{url: "json://127.0.0.1:{port}/team", severities: [warning, info]}}
      devops: {{url: "json://127.0.0.1:{port}/devops"}}
      lead: {{url: "json://127.0.0.1:{port}/lead", language: ko}}
      tickets: {{url: "json://127.0.0.1:{port}/tickets"}}
services:
  shop: {{title: Shop, rto: 5m, rpo: 1d, applications: [program], messages: people}}
watch:
  memory:
    title: Memory of the shop
    service: shop
    metric: {{prometheus: "http://127.0.0.1:{port}", query: memory}}
    above: 85
    for: 5m
    immediately: [{{clear: pages, allow: true}}]
    then: [{{restart: program}}]
    better_within: 2m
    escalate: on-call
    unknown_for: 10m
    cool_down: 30m
    most_per_hour: {most}
escalation:
  on-call:
    messages: people
    people: [{{channel: devops}}, {{channel: lead, after: 10m}}]
    ticket: tickets
"""


@dataclass
class Place:
    """The platform `place` below `root`."""

    root: Path
    port: int

    def write(self, *, most: int = 6, text: str = PLATFORM) -> None:
        """Its inventory."""
        (self.root / "inventory").mkdir(exist_ok=True)
        (self.root / "inventory/place.yaml").write_text(text.format(root=self.root, port=self.port, most=most))

    def say(self, value: object) -> None:
        """What the figure is from now on; None: nobody answers."""
        (self.root / "figure").write_text("" if value is None else str(value))

    def fill(self) -> None:
        """Put pages into the cache."""
        (self.root / "pages/deep").mkdir(parents=True, exist_ok=True)
        for name in ("a", "deep/b"):
            page = self.root / "pages" / name
            page.write_text("a page")
            os.utime(page, (page.stat().st_mtime - 10,) * 2)  # what is of this very second stays

    @property
    def pages(self) -> int:
        """How many pages are in the cache."""
        return sum(path.is_file() for path in (self.root / "pages").rglob("*"))

    @property
    def restarts(self) -> int:
        """How often the program was restarted."""
        return len((self.root / "program").read_text().splitlines())

    @property
    def calls(self) -> list[str]:
        """Who was told what, in the order in which it came."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def watcher(self) -> tuple[Watcher, StringIO]:
        """A new watcher, and what it says."""
        said = StringIO()
        return Watcher(inventory.load("place"), Plain(said)), said

    def journals(self) -> list[Journal]:
        """The episodes, the newest first."""
        return [Journal.read(path) for path in journal.incidents(self.root / "incidents")]

    @contextmanager
    def at(self, seconds: float) -> Iterator[None]:
        """So many seconds after the beginning, by a clock that stands still."""
        with clock.use(lambda: BEGIN + timedelta(seconds=seconds)):
            yield

    def look(self, watcher: Watcher, seconds: float) -> Seen:
        """One look at that time."""
        with self.at(seconds):
            (seen,) = watcher.once()
        return seen


def environment(root: Path) -> dict[str, str]:
    """What points Salvor at the place."""
    return {
        "SALVOR_INVENTORY": str(root / "inventory"),
        "SALVOR_INCIDENTS": str(root / "incidents"),
        "SALVOR_OPERATOR": "watcher@here",
    }


@contextmanager
def standing(root: Path) -> Iterator[Place]:
    """A place whose figure is answered, and whose people receive, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = (root / "figure").read_text()
            result = [{"metric": {}, "value": [0, value]}] if value else []
            self._answer(200, {"status": "success", "data": {"resultType": "vector", "result": result}})

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_deaf = (root / "deaf").exists() and self.path[1:] in (root / "deaf").read_text()
            moment = said["moment"] if "moment" in said else self.headers["X-Salvor-Message"].split("/")[1]
            with (root / "calls").open("a") as calls:
                calls.write(f"{self.path[1:]} {moment}{' refused' if is_deaf else ''}\n")
            (root / "last-message").write_text(f"{said['title']}\n{said['message']}")
            self._answer(500 if is_deaf else 200, {})

        def _answer(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        place = Place(root, server.server_port)
        place.write()
        place.say(10)
        place.fill()
        (root / "program").write_text("")
        try:
            yield place
        finally:
            server.shutdown()

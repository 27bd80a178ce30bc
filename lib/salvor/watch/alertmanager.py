"""What Alertmanager posts to: its webhook. https://prometheus.io/docs/alerting/latest/configuration/#webhook_config"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from salvor import clock, secrets
from salvor.address import host_and_port
from salvor.errors import CannotError, UsageError
from salvor.plain import one_line

if TYPE_CHECKING:
    from salvor.watch.watcher import Watcher

_MOST_BYTES = 8 * 1024 * 1024
"""Of one post: when much breaks at once it holds thousands of alerts. More is read, and dropped, so that whoever posts
reads the answer.
"""
_MOST_READ = 1 << 40
_SECONDS = 10.0
_STARTS = 10.0
_TOLD_AGAIN = 600.0
"""Seconds after which posts that are refused, or not whole, are told again."""


@dataclass(frozen=True)
class Access:
    """Where to listen, and what whoever posts has to bring: the whole header Authorization."""

    host: str
    port: int
    authorization: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def access(address: str, token: str, user: str, password: str) -> Access:
    """From what the operator said: HOST:PORT, or a PORT of loopback; and a bearer `token`, or a `user` and its
    `password`, by references.

    Raises UsageError, or CannotError when a secret is not there.
    """
    try:
        host, port = host_and_port(f"127.0.0.1:{address}" if address.isdecimal() else address)
    except ValueError as error:
        raise UsageError(f"--alertmanager: {error}.", hint="for example --alertmanager=9099") from error
    if bool(token) == bool(user and password):
        raise UsageError(
            "--alertmanager needs to know who may post: a token, or a user and a password.",
            hint="add --token=file:PATH, or --user=NAME --password=file:PATH",
        )
    if token:
        return Access(host, port, f"Bearer {secrets.resolve(token)}")
    pair = base64.b64encode(f"{user}:{secrets.resolve(password)}".encode()).decode()
    secrets.remember(pair)
    return Access(host, port, f"Basic {pair}")


@contextmanager
def receiving(access: Access, watcher: Watcher) -> Iterator[int]:
    """Receive in a thread of its own while the block runs; gives the port. Raises CannotError when it cannot listen."""
    started = threading.Event()
    found: list[Any] = []

    def run() -> None:
        asyncio.run(_serve(access, watcher, started, found))

    thread = threading.Thread(target=run, name="alertmanager", daemon=True)
    thread.start()
    if not started.wait(_STARTS) or isinstance(found[0], OSError):
        why = found[0].strerror if found else "it does not start"
        raise CannotError(f"Nothing can listen on {access.host}:{access.port}: {why}.", hint="choose another port")
    port, loop, over = found
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(_STARTS)


async def _serve(access: Access, watcher: Watcher, started: threading.Event, found: list[Any]) -> None:
    import tornado.web
    from tornado.httpserver import HTTPServer

    known = {rule.metric.alert for rule in watcher.platform.watch.values() if rule.metric.alert}

    @tornado.web.stream_request_body
    class Alerts(tornado.web.RequestHandler):
        told_at: ClassVar[dict[int | str, float]] = {}

        def prepare(self) -> None:
            self.size, self.body = 0, bytearray()
            said = self.request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            self.may_post = hmac.compare_digest(said, access.authorization.encode())

        def data_received(self, chunk: bytes) -> None:
            self.size += len(chunk)
            if self.may_post and self.size <= _MOST_BYTES:
                self.body += chunk

        def post(self) -> None:
            if not self.may_post:
                self.set_header("WWW-Authenticate", access.authorization.partition(" ")[0])
                self.refuse(
                    401,
                    "they do not bring the token or password that is asked for here. "
                    "If that is your Alertmanager, see its http_config.",
                )
                return
            if self.size > _MOST_BYTES:
                self.refuse(
                    413,
                    f"{self.size / 1024**2:.1f} MiB at once are more than the {_MOST_BYTES // 1024**2} that are taken, "
                    "and none of them is known here. In Alertmanager, group_by: with more labels makes it less.",
                )
                return
            try:
                said = json.loads(self.body)
                count, unknown = watcher.alerts.take(said["alerts"], known)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                self.refuse(400, f"they are not as Alertmanager writes them: {type(error).__name__}.")
                return
            watcher.wake.set()
            if unknown:
                watcher.shown.tell(f"Alerts that no rule names: {', '.join(sorted(unknown)[:10])}")
            if left_out := said.get("truncatedAlerts"):
                self.tell_seldom(
                    "truncated",
                    f"Alertmanager left {one_line(str(left_out), most=20)} alerts out of one post: a rule may miss its "
                    "own.\nHINT: in alertmanager.yml, webhook_configs: no max_alerts, or group_by: with more labels",
                )
            self.finish(f"{count} taken\n")

        def refuse(self, status: int, why: str) -> None:
            self.tell_seldom(status, f"Alerts from {self.request.remote_ip} are refused: {why}")
            self.set_status(status)
            self.finish(f"{why}\n")

        def tell_seldom(self, about: int | str, text: str) -> None:
            if clock.monotonic() - self.told_at.get(about, -math.inf) > _TOLD_AGAIN:
                self.told_at[about] = clock.monotonic()
                watcher.shown.tell(text)

        def log_exception(self, *_: object) -> None: ...

    application = tornado.web.Application([(r"/alerts", Alerts)], log_function=lambda handler: None)
    server = HTTPServer(
        application,
        max_body_size=_MOST_READ,
        max_buffer_size=2 * _MOST_BYTES,
        max_header_size=16 * 1024,
        idle_connection_timeout=_SECONDS,
        body_timeout=_SECONDS,
    )
    over = asyncio.Event()
    try:
        import tornado.netutil

        sockets = tornado.netutil.bind_sockets(access.port, access.host)
        server.add_sockets(sockets)
        found += [sockets[0].getsockname()[1], asyncio.get_running_loop(), over]
    except OSError as error:
        found.append(error)
        return
    finally:
        started.set()
    await over.wait()
    server.stop()
    await server.close_all_connections()

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request

import psycopg
import pytest
from pydantic import ValidationError
from salvor import secrets, web
from salvor.change import Finding, Level
from salvor.checks import Check, run, tells_of_damage
from salvor.errors import CannotError, OutcomeUnknownError, SecretError


def never(statement: str, where: str) -> Any:
    raise AssertionError(f"{statement} must not be asked of {where}")


def asked(value: Any, **limits: Any) -> Finding:
    check = Check.model_validate({"name": "rows", "system": "orders-db", "sql": "select 1", **limits})
    return run(check, ask=lambda statement, where: value, where="live")


def look(where: str = "live", **check: Any) -> Finding:
    return run(Check.model_validate({"name": "it answers", **check}), ask=never, where=where)


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ({}, "this one has none"),
        ({"http": "http://h/", "tcp": "h:1"}, "this one has http and tcp"),
        ({"sql": "select 1", "at_least": 1}, "sql and system go together"),
        ({"http": "http://h/", "system": "orders-db"}, "sql and system go together"),
        ({"sql": "select 1", "system": "orders-db"}, "could not fail"),
        ({"ask": "files", "at_least": 1}, "ask and system"),
        ({"ask": "files", "system": "media"}, "could not fail"),
        ({"ask": "files", "sql": "select 1", "system": "media"}, "this one has sql and ask"),
        ({"http": "http://h/", "at_least": 1}, "at_least, at_most and equals are for"),
        ({"tcp": "h:1", "contains": "x"}, "status and contains are for http"),
        ({"http": "ftp://h/"}, "write it as http://"),
        ({"http": "file:///etc/passwd"}, "write it as http://"),
        ({"http": "http://"}, "write it as http://"),
        ({"http": "http://h/\r\nHost: x"}, "no spaces or control characters"),
        ({"http": "http://u:hunter22@h/"}, "no user and no password"),
        ({"http": "http://h/", "status": 99}, "greater than or equal to 100"),
        ({"tcp": "h"}, "not HOST:PORT"),
        ({"tcp": "h:0"}, "not HOST:PORT"),
        ({"tcp": "h:65536"}, "not HOST:PORT"),
        ({"tcp": "::1:5432"}, "not HOST:PORT"),
        ({"command": []}, "at least 1"),
        ({"tcp": "h:1", "deadline": "soon"}, "not a duration"),
        ({"tcp": "h:1", "deadline": 0}, "greater than 0"),
        ({"tcp": "h:1", "atleast": 1}, "not permitted"),
    ],
)
def test_a_check_that_makes_no_sense_says_why(check: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        Check.model_validate({"name": "x", **check})
    assert "hunter22" not in caught.value.errors(include_input=False)[0]["msg"]


def test_a_stage_answers_only_queries() -> None:
    http = Check(name="x", http="http://127.0.0.1:1/")
    assert "only asked of what is live" in run(http, ask=never, where="side-data").detail
    assert [run(http, ask=never, where=where).figure for where in ("live", "route")] == ["refused", "refused"]


# ------------------------------------------------------------------------------------------ queries


@pytest.mark.parametrize(
    ("value", "limits", "level"),
    [
        (1000, {"at_least": 1000}, Level.PASS),
        (999, {"at_least": 1000}, Level.FAIL),
        (0, {"at_most": 0}, Level.PASS),
        (1, {"at_most": 0}, Level.FAIL),
        (5, {"at_least": 1, "at_most": 4}, Level.FAIL),
        (Decimal("0.1"), {"at_least": 0.1, "at_most": 0.1}, Level.PASS),
        (2**53 + 1, {"equals": 2**53}, Level.FAIL),
        (None, {"at_least": 0}, Level.FAIL),
        (None, {"equals": "None"}, Level.FAIL),
        (float("nan"), {"at_least": 0}, Level.FAIL),
        (Decimal("NaN"), {"at_most": 0}, Level.FAIL),
        (float("inf"), {"at_least": 1}, Level.PASS),
        ("many", {"at_least": 1}, Level.FAIL),
        (True, {"at_least": 1}, Level.FAIL),
        (True, {"equals": True}, Level.PASS),
        (1, {"equals": True}, Level.FAIL),
        ("ready", {"equals": "ready"}, Level.PASS),
        (7, {"equals": "7"}, Level.PASS),
        (Decimal("7.0"), {"equals": 7}, Level.PASS),
    ],
)
def test_limits(value: Any, limits: dict[str, Any], level: Level) -> None:
    assert asked(value, **limits).level is level


def test_figure_and_limit_are_text() -> None:
    finding = asked(999, at_least=1000, at_most=2000)
    assert (finding.subject, finding.check) == ("orders-db", "rows")
    assert (finding.figure, finding.limit) == ("999", "at least 1000, at most 2000")


def test_the_question_goes_where_it_is_meant_to() -> None:
    questions = []
    check = Check(name="x", system="orders-db", sql="select 1", equals=1)
    run(check, ask=lambda statement, where: questions.append((statement, where)), where="side-data")
    assert questions == [("select 1", "side-data")]


def raised(error: Exception, cause: BaseException | None) -> Finding:
    def ask(statement: str, where: str) -> Any:
        raise error from cause

    return run(Check(name="x", system="orders-db", sql="select 1", equals=1), ask=ask, where="live")


class Cancelled(Exception):
    sqlstate = "57014"


class ConnectionTimeout(Exception):
    """Has the name of psycopg's own."""


@pytest.mark.parametrize("cause", [None, ConnectionRefusedError(), RuntimeError("relation does not exist")])
def test_refused_or_wrong_is_a_failure(cause: BaseException | None) -> None:
    finding = raised(CannotError("orders-db: relation orders does not exist"), cause)
    assert finding.level is Level.FAIL and "relation orders does not exist" in finding.detail


@pytest.mark.parametrize(
    ("cause", "figure", "tells"),
    [
        (psycopg.errors.UndefinedTable(), "an error", True),
        (psycopg.errors.DataCorrupted(), "an error", True),
        (psycopg.errors.AdminShutdown(), "no answer", False),
        (psycopg.errors.InsufficientPrivilege(), "no answer", False),
        (psycopg.OperationalError("connection refused"), "no answer", False),
        (TimeoutError(), "no answer within 5.0 s", False),
    ],
)
def test_only_who_answers_tells_of_damage(cause: BaseException, figure: str, tells: bool) -> None:
    finding = raised(CannotError("orders-db: it did not go well"), cause)
    assert (finding.figure, tells_of_damage(finding)) == (figure, tells)


@pytest.mark.parametrize(
    "cause", [TimeoutError(), Cancelled(), ConnectionTimeout(), OutcomeUnknownError("?"), SecretError("not set")]
)
def test_no_answer_in_time_or_no_secret_to_ask_with_is_unknown(cause: BaseException) -> None:
    assert raised(CannotError("no answer"), cause).level is Level.UNKNOWN


def test_a_query_that_is_no_sql_says_nothing_of_the_data() -> None:
    """A word forgotten in the inventory called healthy data broken, and it was to be replaced."""
    finding = raised(CannotError("orders-db: syntax error"), psycopg.errors.SyntaxError())
    assert (finding.level, finding.figure) == (Level.UNKNOWN, "its sql is wrong")


def test_a_question_for_which_a_whole_tree_is_read_gets_more_time() -> None:
    """The newest backup of 200,000 files is not listed and compared within the 5 seconds of a query."""
    assert Check(name="x", system="media", ask="changed", at_most=0).deadline == 60.0
    assert Check(name="x", system="media", ask="changed", at_most=0, deadline="2s").deadline == 2.0
    assert Check(name="x", system="orders-db", sql="select 1", equals=1).deadline == 5.0


def test_a_query_without_end_is_unknown_after_its_deadline() -> None:
    check = Check(name="x", system="orders-db", sql="select 1", equals=1, deadline="200ms")
    stop = threading.Event()
    begun = time.monotonic()
    finding = run(check, ask=lambda statement, where: stop.wait(20), where="live")
    stop.set()
    assert time.monotonic() - begun < 2
    assert (finding.level, finding.figure) == (Level.UNKNOWN, "no answer within 0.2 s")


def test_what_is_shown_is_masked_and_harmless() -> None:
    secrets.remember("hunter22hunter22")
    finding = asked("\x1b]0;owned\x07\x1b[31mhunter22hunter22\x1b[0m\r\nsecond line\x9b" + "x" * 999, equals="ok")
    assert finding.figure.startswith("[secret] second line xxx") and len(finding.figure) <= 200
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in finding.figure)


# ------------------------------------------------------------------------------------------ HTTP


class Handler(BaseHTTPRequestHandler):
    """Answers by the path: a status; where to go; or what a sick server does."""

    def do_GET(self) -> None:
        what, _, rest = self.path.lstrip("/").partition("/")
        if what == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif what == "drip":
            self.send_response(200)
            self.end_headers()
            self._drip(b"x")
        elif what == "drip-headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            self._drip(b"X-Slow: 1\r\n")
        elif what == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(10_000):
                    self.wfile.write(b"needless " * 1000)
            except OSError:
                return
            self.server.swallowed_all = True  # type: ignore[attr-defined]
        elif what == "nonsense":
            self.wfile.write(b"\x1b[31mthis is not HTTP\r\n\r\n")
        else:
            self.send_response(int(what))
            self.end_headers()
            self.wfile.write(b"\x1b[31mall is well: \xff\xfe")

    def _drip(self, piece: bytes) -> None:
        try:
            for _ in range(30):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None: ...


Url = Callable[[str], str]


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> Url:
    return lambda path: f"http://127.0.0.1:{server.server_port}/{path}"


@pytest.mark.parametrize(
    ("path", "limits", "level", "figure"),
    [
        ("200", {}, Level.PASS, "status 200"),
        ("204", {}, Level.PASS, "status 204"),
        ("204", {"status": 200}, Level.FAIL, "status 204"),
        ("503", {}, Level.FAIL, "status 503"),
        ("503", {"status": 503}, Level.PASS, "status 503"),
        ("200", {"contains": "all is well"}, Level.PASS, "status 200"),
        ("200", {"contains": "on fire"}, Level.FAIL, "status 200, without it"),
        ("302", {"status": 302}, Level.PASS, "status 302"),
        ("to//200", {}, Level.PASS, "status 200"),
        ("to//503", {}, Level.FAIL, "status 503"),
        ("to//200", {"status": 302}, Level.PASS, "status 302"),
    ],
)
def test_http(url: Url, path: str, limits: dict[str, Any], level: Level, figure: str) -> None:
    finding = look(http=url(path), **limits)
    assert (finding.level, finding.figure) == (level, figure)
    assert "\x1b" not in finding.detail


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_not_followed(url: Url, target: str) -> None:
    finding = look(http=url(f"to/{target}"))
    assert finding.level is Level.FAIL and "root:" not in finding.detail


@pytest.mark.parametrize(("scheme", "followed"), [("http", False), ("https", True)])
def test_a_redirect_from_https_stays_there(scheme: str, followed: bool) -> None:
    opener: Any = web.opener(follow=True)
    (redirects,) = (each for each in opener.handlers if isinstance(each, HTTPRedirectHandler))
    with nullcontext() if followed else pytest.raises(URLError, match="not followed"):
        redirects.redirect_request(Request("https://h/"), BytesIO(), 302, "Found", HTTPMessage(), f"{scheme}://h/x")


def test_a_redirect_without_end(url: Url) -> None:
    assert look(http=url("to//to//to//to//to//to//to//to//to//to//to//to//200")).level is Level.FAIL


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_a_server_that_drips_is_not_waited_for(url: Url, path: str) -> None:
    begun = time.monotonic()
    finding = look(http=url(path), deadline="400ms")
    assert time.monotonic() - begun < 1.5
    assert (finding.level, finding.figure) == (Level.UNKNOWN, "no answer within 0.4 s")


def test_only_the_beginning_of_a_body_is_read(url: Url, server: ThreadingHTTPServer) -> None:
    finding = look(http=url("endless"), contains="on fire")
    assert finding.level is Level.FAIL
    assert not hasattr(server, "swallowed_all")


def test_what_is_not_http(url: Url) -> None:
    finding = look(http=url("nonsense"))
    assert finding.level is Level.FAIL and "\x1b" not in finding.detail


def test_proxies_of_the_environment_are_not_asked(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert look(http=url("200")).level is Level.PASS


# ------------------------------------------------------------------------------------------ TCP and who is there


@pytest.fixture
def silent() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_tcp(silent: int) -> None:
    finding = look(tcp=f"127.0.0.1:{silent}")
    assert finding.level is Level.PASS and finding.figure.startswith("connected in ")


@pytest.mark.parametrize("check", [{"tcp": "127.0.0.1:1"}, {"http": "http://127.0.0.1:1/"}])
def test_refused_is_a_failure(check: dict[str, Any]) -> None:
    finding = look(**check)
    assert (finding.level, finding.figure) == (Level.FAIL, "refused")


def test_silence_is_unknown(silent: int) -> None:
    assert look(http=f"http://127.0.0.1:{silent}/", deadline=0.3).level is Level.UNKNOWN
    assert look(http=f"https://127.0.0.1:{silent}/", deadline=0.3).level is Level.UNKNOWN


def test_a_server_without_tls(url: Url) -> None:
    assert look(http=url("200").replace("http:", "https:")).level is Level.FAIL


@pytest.mark.parametrize(("errno", "level"), [(socket.EAI_NONAME, Level.FAIL), (socket.EAI_AGAIN, Level.UNKNOWN)])
@pytest.mark.parametrize("check", [{"tcp": "db.invalid:1"}, {"http": "http://db.invalid/"}])
def test_a_name_that_does_not_exist_and_a_resolver_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, check: dict[str, Any], errno: int, level: Level
) -> None:
    def resolve(*arguments: Any, **more: Any) -> Any:
        raise socket.gaierror(errno, "no luck")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert look(**check).level is level


# ------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    ("command", "limits", "level", "figure"),
    [
        (["true"], {}, Level.PASS, "exit code 0"),
        (["sh", "-c", "echo no >&2; exit 7"], {}, Level.FAIL, "exit code 7"),
        (["echo", "12"], {"at_least": 12}, Level.PASS, "12"),
        (["echo", "12"], {"equals": 12}, Level.PASS, "12"),
        (["echo", "12"], {"at_most": 11}, Level.FAIL, "12"),
        (["sh", "-c", "echo 12; exit 1"], {"at_least": 12}, Level.FAIL, "exit code 1"),
        (["echo", "$HOME"], {"equals": "$HOME"}, Level.PASS, "$HOME"),
        (["printf", "\\033[31mred"], {"equals": "ready"}, Level.FAIL, "red"),
        (["yes"], {}, Level.FAIL, "more than 64 KB"),
        (["/nowhere/at-all"], {}, Level.UNKNOWN, "no answer"),
        (["sleep", "20"], {"deadline": 0.3}, Level.UNKNOWN, "no answer within 0.3 s"),
    ],
)
def test_command(command: list[str], limits: dict[str, Any], level: Level, figure: str) -> None:
    finding = look(command=command, **limits)
    assert (finding.level, finding.figure) == (level, figure)
    assert finding.subject == command[0]

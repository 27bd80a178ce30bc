from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from salvor import durable, messages, notifier
from salvor.change import Level, Reachable
from salvor.errors import CannotError, UsageError
from salvor.system import Context
from salvor.systems.outbox import Outbox, OutboxSettings

from tests.systems.conftest import free_port
from tests.waiting import until

FACTS = {
    "incident": "20261121T003300Z-orders-3f2a",
    "title": "Orders",
    "operator": "kim@desk",
    "purpose": "incident",
    "broken": "orders-db: table orders is gone",
    "way": "physical",
    "detected_at": "2026-11-21T00:33:00.000000+00:00",
    "failed_at": None,
    "rto": "3 min 05 s",
    "rpo": "0.4 s",
    "rto_target": "15 min 00 s",
    "rpo_target": "30 s",
    "good_at": "2026-11-21T00:36:05.000000+00:00",
}


class Receiver:
    """A webhook's receiver. A path's word says how it answers: ok, bad (500), away (to a page), drip, hang and slow
    (until `go`).
    """

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any], str]] = []
        self.go = threading.Event()
        self.reached = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                with suppress(ConnectionError):  # who sent was killed, or waits no longer
                    super().handle()

            def do_POST(self) -> None:
                data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.got.append((self.path.rstrip("/"), data, self.headers.get("X-Salvor-Message", "")))
                receiver.reached.set()
                if self.path.startswith("/hang") or (self.path.startswith("/slow") and not receiver.go.is_set()):
                    receiver.go.wait(30)
                while self.path.startswith("/drip") and not receiver.go.wait(0.2):
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.send_response({"bad": 500, "away": 302}.get(self.path.split("/")[1], 200))
                self.send_header("Location", "/page")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"json://127.0.0.1:{self.server.server_port}/{path}"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.go.set()
    receiver.server.shutdown()
    receiver.server.server_close()


class Mailbox:
    """What aiosmtpd took in."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"


@pytest.fixture
def mail() -> Iterator[tuple[Mailbox, str]]:
    """A mailbox, and the URL form of the sandbox's inventory that leads to it."""
    mailbox, port = Mailbox(), free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield mailbox, f"mailto://127.0.0.1:{port}/?from=status@sandbox.test&to=customers@sandbox.test"
    controller.stop()


Open = Callable[..., Outbox]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_(facts: dict[str, Any] = FACTS, **channels: dict[str, Any]) -> Outbox:
        context = Context(FACTS["incident"] or "", tmp_path / "incident", lambda: facts)
        return Outbox("people", OutboxSettings(kind="outbox", channels=channels), context)

    return open_


def oncall(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "severities": ["critical", "warning", "info"], **more}


def customers(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "severities": ["customer"], **more}


def test_who_is_told_what(opened: Open, receiver: Receiver) -> None:
    outbox = opened(
        oncall=oncall(receiver.url("ok"), next="lead"),
        lead={"url": receiver.url("ok")},
        customers=customers(receiver.url("ok")),
    )
    told = {
        moment: [(change.arguments["channel"], change.arguments["severity"]) for change in outbox.messages(moment)]
        for moment in ("declared", "recovered", "failed", "undone")
    }
    assert told == {
        "declared": [("oncall", "critical"), ("customers", "customer")],
        "recovered": [("oncall", "info"), ("customers", "customer")],
        "failed": [("oncall", "critical")],
        "undone": [("oncall", "warning")],
    }
    assert all(change.no_undo == "a message cannot be taken back" for change in outbox.messages("declared"))
    assert not outbox.verbs()["send"].waits
    assert outbox.observe().reachable is Reachable.UP
    assert not outbox.context.folder.exists(), "a plan writes nothing"
    assert receiver.got == []


def test_a_drill_tells_operators_that_it_is_one_and_customers_nothing(opened: Open, receiver: Receiver) -> None:
    outbox = opened(
        {**FACTS, "purpose": "drill"}, oncall=oncall(receiver.url("ok")), customers=customers(receiver.url("ok"))
    )
    (change,) = outbox.messages("declared")
    list(outbox.apply(change))
    assert receiver.got[0][1]["title"] == "[DRILL] Orders: incident declared"


def test_sends_once_with_its_key(opened: Open, receiver: Receiver) -> None:
    outbox = opened(oncall=oncall(receiver.url("ok")))
    (change,) = outbox.messages("declared")
    for _ in range(2):
        list(outbox.apply(change))
    assert outbox.messages("declared") == []
    (again,) = (opened(oncall=oncall(receiver.url("ok"))),)
    assert again.messages("declared") == [], "another process knows it too"
    list(again.apply(change))
    ((_, data, header),) = receiver.got
    assert header == data["key"] == "20261121T003300Z-orders-3f2a/declared/oncall"
    assert (data["type"], data["severity"], data["possibly_repeated"]) == ("failure", "critical", "no")
    assert data["title"] == "Orders: incident declared"
    assert "What is broken: orders-db: table orders is gone" in data["message"]
    assert "Detected: 2026-11-21 00:33:00 UTC" in data["message"]
    assert "Failed: -" in data["message"]
    (outbox.folder / "declared.oncall.sending").touch()  # as a crash leaves it
    assert outbox.observe().details == {"sent": ["declared.oncall"], "sending": [], "failed": []}


def test_a_second_person_is_asked_once_for_each_plan(opened: Open, receiver: Receiver) -> None:
    facts = {**FACTS, "plan": "0a1b2c3d4e5f"}
    outbox = opened(facts, oncall=oncall(receiver.url("ok")))
    for plan in ("0a1b2c3d4e5f", "ffffffffffff"):
        facts["plan"] = plan
        (change,) = outbox.messages("asked")
        list(outbox.apply(change))
        assert outbox.messages("asked") == []
    assert [(data["moment"], header[-19:]) for _, data, header in receiver.got] == [
        ("asked", "0a1b2c3d4e5f/oncall"),
        ("asked", "ffffffffffff/oncall"),
    ]
    assert "Plan: ffffffffffff" in receiver.got[1][1]["message"]


def test_what_is_kept_is_ours_alone(opened: Open, receiver: Receiver) -> None:
    outbox = opened(oncall=oncall(receiver.url("ok")))
    outbox.send("declared", "oncall", "critical")
    assert [path.name for path in outbox.folder.iterdir()] == ["declared.oncall.sent"]
    assert stat.S_IMODE(outbox.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((outbox.folder / "declared.oncall.sent").stat().st_mode) == 0o600


def test_mail_to_customers_in_korean(opened: Open, mail: tuple[Mailbox, str]) -> None:
    """They know the service by the name that their status page has."""
    mailbox, url = mail
    outbox = opened({**FACTS, "title_ko": "주문", "title_en": "Shop"}, customers=customers(url, language="ko"))
    for moment in ("declared", "recovered"):
        for change in outbox.messages(moment):
            list(outbox.apply(change))
    first, second = mailbox.mails
    assert (first["From"], first["To"]) == ("status@sandbox.test", "customers@sandbox.test")
    assert first["Subject"] == "[주문] 서비스 장애 안내"
    assert "현재 주문 서비스를 정상적으로 이용하실 수 없습니다." in first.get_content()
    assert "복구되어 지금부터" in second.get_content()
    assert first["X-Salvor-Message"].endswith("/declared/customers")
    for each in (first, second):
        for internal in ("orders-db", "physical", "kim@desk", "3f2a"):
            assert internal not in each.get_content(), "customers are told nothing internal"


def test_what_salvor_says_itself_is_korean_to_operators_in_korean() -> None:
    facts = {**FACTS, "way": "physical, restart", "rto": "3 min 05 s", "figure": "cannot tell", "limit": "above 0.5"}
    recovered, called = (
        messages.render(moment, "operators", "ko", {**facts, "done": "nothing"}).body
        for moment in ("recovered", "called")
    )
    assert "복구 방법: 물리 백업 복원(physical), 프로그램 재시작(restart)\n" in recovered
    assert "복구에 걸린 시간: 3분 05초 " in recovered
    assert "측정값: 확인할 수 없음 (기준: 0.5 초과)" in called and "지금까지 실행한 조치: 없음\n" in called
    for known in ("good", "below 5", "at least 1000"):
        assert not re.search("기준: .*[a-z]", messages.render("called", "operators", "ko", {"limit": known}).body)


def test_facts_are_data(opened: Open, mail: tuple[Mailbox, str]) -> None:
    mailbox, url = mail
    nasty = {
        **FACTS,
        "title": "Orders\r\nBcc: all@example.com",
        "broken": "${operator} {{ 7*7 }} {0} %(operator)s \x1b[31mred\x1b[0m <script>\n" + "x" * 9999,
    }
    opened(nasty, oncall=oncall(url)).send("declared", "oncall", "critical")
    (got,) = mailbox.mails
    assert got["Bcc"] is None and got["Subject"] == "Orders Bcc: all@example.com: incident declared"
    text = got.get_content()
    assert "${operator} {{ 7*7 }} {0} %(operator)s red <script> xxx" in text
    assert "\x1b" not in text and len(text) < 1500


def test_a_failing_channel_is_owed_and_the_next_one_is_told_once(opened: Open, receiver: Receiver) -> None:
    outbox = opened(
        oncall=oncall(receiver.url("bad"), next="lead"),
        lead={"url": receiver.url("bad/lead"), "next": "chief"},
        chief={"url": receiver.url("ok/chief"), "language": "ko"},
    )
    for _ in range(2):
        (change,) = outbox.messages("declared")
        with pytest.raises(CannotError, match=r"(?s)oncall \(.*error=500\); lead \(.*chief was told instead") as caught:
            list(outbox.apply(change))
    assert "HINT:" in str(caught.value)
    assert receiver.paths() == ["/bad", "/bad/lead", "/ok/chief", "/bad", "/bad/lead"]
    data = receiver.got[2][1]
    assert data["title"] == "Orders: 장애 선언" and "oncall, lead" in data["message"]
    assert receiver.got[3][1]["possibly_repeated"] == "yes"
    assert outbox.observe().details == {
        "sent": ["declared.chief"],
        "sending": [],
        "failed": ["declared.lead", "declared.oncall"],
    }


def test_who_follows_two_channels_that_fail_at_once_is_told_once(opened: Open, receiver: Receiver) -> None:
    outbox = opened(
        oncall=oncall(receiver.url("bad"), next="lead"),
        chat=oncall(receiver.url("bad/chat"), next="lead"),
        lead=oncall(receiver.url("slow")),
    )
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(outbox.send, "declared", name, "critical") for name in ("oncall", "chat")]
        assert until(lambda: len(receiver.got) >= 3)
        time.sleep(0.2)  # the other one is there by now
        receiver.go.set()
    assert all("lead was told instead" in str(one.exception()) for one in sent)
    assert receiver.paths().count("/slow") == 1


def test_customers_are_told_nothing_of_a_channel_that_failed(opened: Open, receiver: Receiver) -> None:
    outbox = opened(bulk=customers(receiver.url("bad"), next="spare"), spare=customers(receiver.url("ok/spare")))
    with pytest.raises(CannotError, match="spare was told instead"):
        outbox.send("declared", "bulk", "customer")
    assert "bulk" not in receiver.got[1][1]["message"]


def test_a_webhook_that_leads_elsewhere_has_not_taken_the_message(opened: Open, receiver: Receiver) -> None:
    """Followed, what was posted becomes a question that any page answers, and nobody is told."""
    with pytest.raises(CannotError, match="error=302"):
        opened(oncall=oncall(receiver.url("away"))).send("declared", "oncall", "critical")


def test_what_failed_is_sent_when_the_channel_works_again(opened: Open, receiver: Receiver) -> None:
    broken = opened(oncall=oncall("json://127.0.0.1:1/none"))
    with pytest.raises(CannotError, match=r"(?s)Connection error .*nobody was told instead"):
        broken.send("declared", "oncall", "critical")
    mended = opened(oncall=oncall(receiver.url("ok")))
    for change in mended.messages("declared"):
        list(mended.apply(change))
    assert receiver.got[0][1]["possibly_repeated"] == "yes"
    assert mended.observe().details == {"sent": ["declared.oncall"], "sending": [], "failed": []}


def test_a_receiver_that_hangs(opened: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "DEADLINE", 0.5)
    outbox = opened(oncall=oncall(receiver.url("hang"), next="lead"), lead={"url": receiver.url("ok")})
    begun = time.monotonic()
    with pytest.raises(CannotError, match=r"(?s)no answer within 0\.5 s.*lead was told instead"):
        outbox.send("declared", "oncall", "critical")
    assert time.monotonic() - begun < 3
    assert receiver.paths() == ["/hang", "/ok"]


_SEND = """
import sys
from pathlib import Path
from salvor import notifier
from salvor.system import Context
from salvor.systems.outbox import Outbox, OutboxSettings
notifier.DEADLINE = float(sys.argv[3])
context = Context("20261121T003300Z-orders-3f2a", Path(sys.argv[1]), dict)
channels = {"oncall": {"url": sys.argv[2], "severities": ["critical"]}}
Outbox("people", OutboxSettings(kind="outbox", channels=channels), context).send("declared", "oncall", "critical")
"""


def test_killed_in_the_middle_of_a_send(opened: Open, receiver: Receiver) -> None:
    """Nobody knows whether it went out: it is sent again, saying so, with the same key."""
    outbox = opened(oncall=oncall(receiver.url("slow")))
    argv = [sys.executable, "-c", _SEND, str(outbox.context.folder), receiver.url("slow"), "10"]
    process = subprocess.Popen(argv)
    assert receiver.reached.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)
    receiver.go.set()
    assert outbox.observe().details["sending"] == ["declared.oncall"]
    (change,) = outbox.messages("declared")
    list(outbox.apply(change))
    assert outbox.messages("declared") == []
    first, second = (data for _, data, _ in receiver.got)
    assert first["key"] == second["key"]
    assert [first["possibly_repeated"], second["possibly_repeated"]] == ["no", "yes"]
    assert "may be a repeat" in second["message"] and "may be a repeat" not in first["message"]


def test_a_process_ends_while_a_receiver_hangs(opened: Open, receiver: Receiver) -> None:
    outbox = opened(oncall=oncall(receiver.url("drip")))
    argv = [sys.executable, "-c", _SEND, str(outbox.context.folder), receiver.url("drip"), "2"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    assert receiver.reached.wait(30)
    begun = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10, "it must not wait for the answer"
    assert b"no answer within 2.0 s" in said


def test_a_full_disk_stops_no_message(opened: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(durable, "replace", full)
    outbox = opened(oncall=oncall(receiver.url("ok")))
    (amiss,) = outbox.send("declared", "oncall", "critical")
    assert amiss.level is Level.WARN and "it went out, and this cannot be kept" in amiss.detail
    assert outbox.messages("declared") == [], "this process remembers"
    assert not list(outbox.send("declared", "oncall", "critical"))
    assert len(receiver.got) == 1


def test_an_outbox_that_cannot_be_read(opened: Open, receiver: Receiver) -> None:
    outbox = opened(oncall=oncall(receiver.url("ok")))
    outbox.context.folder.mkdir()
    outbox.folder.write_text("a file, where a folder should be")
    state = outbox.observe()
    assert state.reachable is Reachable.UNKNOWN and "cannot be read" in state.summary


def test_a_secret_url_is_read_when_it_is_used_and_never_shown(
    opened: Open, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "url"
    url.write_text(receiver.url("ok/T0K3Nabcdef") + "\n")
    url.chmod(0o600)
    outbox = opened(oncall=oncall(f"file:{url}"))
    outbox.send("declared", "oncall", "critical")
    assert receiver.paths() == ["/ok/T0K3Nabcdef"]
    url.write_text("pover://nothing-like-this/T0K3Nabcdef\n")
    with pytest.raises(CannotError) as caught:
        outbox.send("failed", "oncall", "critical")
    assert "does not understand its URL" in str(caught.value) and "T0K3N" not in str(caught.value)
    monkeypatch.setenv("PAGER", "json://operator:pa55word@127.0.0.1:1/hook/T0K3Nabcdef")
    with pytest.raises(CannotError) as caught:
        opened(oncall=oncall("env:PAGER")).send("undone", "oncall", "warning")
    assert "pa55word" not in str(caught.value) and "T0K3N" not in str(caught.value)
    url.unlink()
    outbox = opened(oncall=oncall(f"file:{url}", next="lead"), lead=oncall(receiver.url("ok/lead")))
    with pytest.raises(CannotError, match=r"cannot be read.*\n.*lead was told instead"):
        outbox.send("recovered", "oncall", "info")
    written = "".join(path.read_text() for path in outbox.folder.iterdir())
    assert "T0K3N" not in written and "pa55word" not in written


@pytest.mark.parametrize(
    "url",
    [
        "json://user:hunter22@127.0.0.1/hook",
        "mailto://127.0.0.1/?from=a@b.c&to=d@e.f&pass=hunter22",
        "json://127.0.0.1/hook?+Authorization=hunter22",
        "json://127.0.0.1/hook?-token=hunter22",
        "slack://hunter22/hunter22/hunter22",
        "hunter22",
    ],
)
def test_a_url_with_a_secret_is_refused_with_the_mend_and_not_shown(opened: Open, url: str) -> None:
    with pytest.raises(ValueError, match="write file:PATH here") as caught:
        opened(oncall=oncall(url))
    assert "hunter22" not in caught.value.errors(include_input=False)[0]["msg"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("channels", "told"),
    [
        ({"a": {"url": "json://h/x", "next": "b"}}, "no channel 'b'"),
        ({"a": {"url": "json://h/x", "next": "b"}, "b": {"url": "json://h/x", "next": "a"}}, "circle: a -> b -> a"),
        ({"a": {"url": "json://h/x", "next": "a"}}, "circle: a -> a"),
        (
            {"a": {"url": "json://h/x", "next": "b"}, "b": {"url": "json://h/x", "next": "b"}},
            "circle: a -> b -> b",
        ),
        ({"a": {"url": "json://h/x", "severities": ["info", "customer"]}}, "for customers or for operators"),
        ({"a/b": {"url": "json://h/x"}}, "not a channel's name"),
        ({"a": {"url": "json://h/x", "language": "fr"}}, "'en' or 'ko'"),
        ({}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(opened: Open, channels: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        opened(**channels)


@pytest.mark.parametrize(
    "arguments", [("launched", "oncall", "critical"), ("declared", "nobody", "critical"), ("undone", "oncall", "info")]
)
def test_messages_that_do_not_exist(opened: Open, receiver: Receiver, arguments: tuple[str, str, str]) -> None:
    with pytest.raises(UsageError):
        opened(oncall=oncall(receiver.url("ok"))).send(*arguments)
    assert receiver.got == []


def test_a_receiver_that_closes_at_once(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        outbox = opened(oncall=oncall(f"json://127.0.0.1:{listener.getsockname()[1]}/x"))
        with pytest.raises(CannotError, match="Connection error"):
            outbox.send("declared", "oncall", "critical")


def test_a_reason_holds_no_part_of_a_url_that_could_be_a_token() -> None:
    url = "slack://bot@T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ?key=hunter22"
    said = notifier._without(
        url, "Failed for T1JJ3T3L2 at https://x/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ?key=hunter22, 404"
    )
    assert said.startswith("Failed for ") and said.endswith(", 404")
    for token in ("T1JJ3T3L2", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7FQ", "hunter22"):
        assert token not in said


def test_contacts_that_cannot_be_reached_are_told_without_sending(
    opened: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PLACE", "slack://a-token-of-nobody")
    outbox = opened(
        oncall=oncall(receiver.url("ok")),
        chat=oncall("env:NO_PLACE"),
        lead=oncall("env:THERE_IS_NO_SUCH_VARIABLE"),
    )
    found = outbox.unreachable()
    assert list(found) == ["chat", "lead"]
    assert found["chat"] == "apprise does not understand its URL"
    assert "is empty or not set" in found["lead"]
    assert receiver.got == []
    assert "a-token-of-nobody" not in "".join([*found.values(), *capfd.readouterr()])

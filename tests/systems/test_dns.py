from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dns import rcode
from dns.flags import AA
from dns.message import from_wire, make_response
from dns.rrset import from_text
from salvor import authoritative, clock
from salvor.change import Reachable
from salvor.errors import CannotError, NotConvergedError, OutcomeUnknownError, UsageError
from salvor.system import Context
from salvor.systems import dns
from salvor.systems.dns import Dns, DnsSettings

from tests.systems.conftest import SECRET, Knot, StartKnot, free_port
from tests.waiting import until


@pytest.fixture
def opened(context: Context, secret: str) -> Any:
    """A system that is led to by `servers`, with settings of its own where a test names them."""

    def open_(*servers: str, secret_text: str = SECRET, key: str = "salvor", **settings: Any) -> Dns:
        Path(secret.removeprefix("file:")).write_text(secret_text + "\n")
        whole = {
            "kind": "dns",
            "leads_to": "orders-db",
            "zone": "sandbox.test",
            "record": "orders-db.sandbox.test",
            "ttl": 30,
            "servers": servers,
            "key": {"name": key, "algorithm": "hmac-sha256", "secret": secret},
        }
        return Dns("orders-dns", DnsSettings.model_validate(whole | settings), context)

    return open_


def test_shows_value_ttl_and_serial(knot: Knot, opened: Any) -> None:
    state = opened(knot.server).observe()
    assert (state.reachable, state.identity, state.address) == (Reachable.UP, "127.0.0.11", "127.0.0.11")
    assert (state.details["ttl"], state.details["serial"], state.details["agreed"]) == (5, 1, True)
    assert state.summary == f"orders-db.sandbox.test: {knot.server} leads to 127.0.0.11 (TTL 5.0 s)"


def test_points_and_points_back(knot: Knot, opened: Any) -> None:
    system = opened(knot.server)
    change = system.change_to("127.0.0.12", system.observe())
    assert change.arguments == {"address": "127.0.0.12", "expected": "127.0.0.11"}
    assert "5.0 s" in change.why
    list(system.apply(change))
    assert system.observe().address == "127.0.0.12"
    assert system.change_to("127.0.0.12", system.observe()) is None
    serial = system.observe().details["serial"]
    list(system.apply(change))
    assert system.observe().details["serial"] == serial, "the second call must send nothing"
    assert change.undo.verb == "point"
    system.point(**change.undo.arguments)
    state = system.observe()
    assert (state.address, state.details["ttl"]) == ("127.0.0.11", 5), "as it was, with its TTL"


def test_a_forecast_needs_no_more_change(knot: Knot, opened: Any) -> None:
    system = opened(knot.server)
    state = system.observe()
    change = system.change_to("127.0.0.12", state)
    foreseen = system.forecast(state, change)
    assert system.change_to("127.0.0.12", foreseen) is None
    assert foreseen.address == foreseen.identity == "127.0.0.12"


def test_creates_a_record_only_where_there_is_none_and_takes_it_away_again(knot: Knot, opened: Any) -> None:
    system = opened(knot.server, record="new.sandbox.test")
    state = system.observe()
    assert (state.reachable, state.address, state.details["ttl"]) == (Reachable.UP, None, None)
    change = system.change_to("127.0.0.12", state)
    assert change.arguments["expected"] is None
    list(system.apply(change))
    assert system.observe().address == "127.0.0.12"
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.12, not to nothing"):
        system.point(address="127.0.0.13", expected=None)
    system.point(**change.undo.arguments)
    assert system.observe().address is None


def test_never_tramples_what_somebody_else_wrote(knot: Knot, opened: Any) -> None:
    system = opened(knot.server)
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.11, not to 127\.0\.0\.99") as caught:
        system.point(address="127.0.0.12", expected="127.0.0.99")
    assert "HINT:" in str(caught.value) and "left as it is" in str(caught.value)
    assert system.observe().address == "127.0.0.11"


def test_the_server_itself_refuses_when_somebody_was_quicker(knot: Knot, opened: Any) -> None:
    """The prerequisite, without our own look before: what counts is what the server checks."""
    system = opened(knot.server)
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.11, not to 127\.0\.0\.99"):
        system._update(("127.0.0.12",), ("127.0.0.99",), 5)
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.11, not to nothing"):
        system._update(("127.0.0.12",), (), 5)
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.11, not to 127\.0\.0\.99"):
        system._look_whether_made(("127.0.0.12",), ("127.0.0.99",), TimeoutError())
    system._update(("127.0.0.11",), ("127.0.0.99",), 5)  # somebody was quicker, and wanted the same
    assert system.observe().address == "127.0.0.11"


def test_part_of_the_old_values_is_not_the_old_value(knot: Knot, opened: Any) -> None:
    system = opened(knot.server, record="pair.sandbox.test")
    assert system.observe().address == "127.0.0.11, 127.0.0.12"
    with pytest.raises(CannotError, match=r"it leads to 127\.0\.0\.11, 127\.0\.0\.12"):
        system._update(("127.0.0.13",), ("127.0.0.11",), 5)
    change = system.change_to("127.0.0.12", system.observe())
    list(system.apply(change))
    assert system.observe().address == "127.0.0.12"
    system.point(**change.undo.arguments)
    assert system.observe().address == "127.0.0.11, 127.0.0.12"


@pytest.mark.parametrize(
    ("record", "type_", "old", "new"),
    [("six", "AAAA", "::1", "FE80:0::2"), ("alias", "CNAME", "orders-db.sandbox.test", "Other.Example.com.")],
)
def test_other_types(knot: Knot, opened: Any, record: str, type_: str, old: str, new: str) -> None:
    system = opened(knot.server, record=f"{record}.sandbox.test", type=type_)
    assert system.observe().address == old
    change = system.change_to(new, system.observe())
    list(system.apply(change))
    assert system.change_to(new, system.observe()) is None
    assert system.observe().address == ("fe80::2" if type_ == "AAAA" else "other.example.com")


def test_an_address_where_a_cname_is_would_be_ignored_silently(knot: Knot, opened: Any) -> None:
    system = opened(knot.server, record="alias.sandbox.test")
    state = system.observe()
    assert state.reachable is Reachable.UNKNOWN and "is a CNAME, and the inventory says A" in state.summary
    with pytest.raises(CannotError, match="nobody can tell"):
        system.change_to("127.0.0.12", state)
    with pytest.raises(CannotError, match="is a CNAME"):
        system.point(address="127.0.0.12", expected=None)


@pytest.mark.parametrize("address", ["db.example.com", "::1", "127.0.0.1\nx", "127.0.0.1, db"])
def test_a_value_that_the_type_cannot_hold(knot: Knot, opened: Any, address: str) -> None:
    system = opened(knot.server)
    with pytest.raises(CannotError, match="cannot lead to"):
        system.change_to(address, system.observe())
    with pytest.raises(CannotError, match="cannot lead to"):
        system.point(address=address, expected="127.0.0.11")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"key": "stranger"}, r"does not take the key stranger \(hmac-sha256\)"),
        ({"secret_text": "d3JvbmcgYnV0IHdlbGwgZm9ybWVk"}, "has another secret for the key salvor"),
        ({"secret_text": "not base64!"}, "is not base64 text"),
        ({"key": "reader"}, "does not take the key reader"),
    ],
)
def test_a_key_that_is_wrong(knot: Knot, opened: Any, settings: dict[str, str], told: str) -> None:
    system = opened(knot.server, **settings)
    with pytest.raises(CannotError, match=told) as caught:
        system.point(address="127.0.0.12", expected="127.0.0.11")
    assert "HINT:" in str(caught.value)
    assert settings.get("secret_text", SECRET) not in str(caught.value)
    assert system.observe().address == "127.0.0.11"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (rcode.REFUSED, "may not change it"),
        (rcode.NOTAUTH, "does not serve"),
        (rcode.NOTZONE, "is not in"),
        (rcode.SERVFAIL, "SERVFAIL: its log says why"),
    ],
)
def test_an_update_that_the_server_refuses_was_not_made(opened: Any, code: rcode.Rcode, told: str) -> None:
    with pytest.raises(CannotError, match=told) as caught:
        opened("127.0.0.1")._judge(code, ("127.0.0.12",), ("127.0.0.11",))
    assert "as it was" in str(caught.value)


def test_a_zone_that_the_server_does_not_have(knot: Knot, opened: Any) -> None:
    system = opened(knot.server, zone="elsewhere.test", record="orders-db.elsewhere.test")
    state = system.observe()
    assert (
        state.reachable is Reachable.UNKNOWN
        and "does not serve the zone elsewhere.test: it answers REFUSED" in state.summary
    )
    with pytest.raises(CannotError, match="does not serve the zone"):
        system.point(address="127.0.0.12", expected=None)


def test_down_is_not_silent(knot: Knot, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoritative, "ASKING", 0.5)
    system = opened(knot.server)
    os.kill(knot.process.pid, signal.SIGSTOP)
    try:
        assert until(lambda: system.observe().reachable is Reachable.UNKNOWN)  # it stops a moment after its signal
    finally:
        os.kill(knot.process.pid, signal.SIGCONT)
    knot.stop()
    state = system.observe()
    assert state.reachable is Reachable.DOWN and "refuses the connection" in state.summary
    with pytest.raises(CannotError, match="nobody can tell"):
        system.point(address="127.0.0.12", expected="127.0.0.11")
    monkeypatch.setattr(dns, "_SILENCE", 0.1)
    with pytest.raises(OutcomeUnknownError, match="no server can be asked"):
        system._ask_back(("127.0.0.12",), clock.monotonic() + 0.3)
    with pytest.raises(CannotError, match="cannot be reached"):  # it was never sent
        system._update(("127.0.0.12",), ("127.0.0.11",), 5)


def test_waits_for_the_servers_that_transfer_the_zone(start_knot: StartKnot, opened: Any) -> None:
    port = free_port()
    leader = start_knot(follower=port)
    follower = start_knot(port=port, leader=leader.port)
    system = opened(leader.server, follower.server)
    system.point(address="127.0.0.12", expected="127.0.0.11")
    servers = system.observe().details["servers"]
    assert [servers[each.server]["values"] for each in (leader, follower)] == [("127.0.0.12",), ("127.0.0.12",)]


def test_servers_that_differ_are_shown_and_not_called_done(
    start_knot: StartKnot, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, stale = start_knot(address="127.0.0.12"), start_knot(address="127.0.0.11")
    system = opened(leader.server, stale.server)
    state = system.observe()
    assert state.address == "127.0.0.12" and not state.details["agreed"]
    assert f"{stale.server} leads to 127.0.0.11" in state.summary
    change = system.change_to("127.0.0.12", state)
    assert system.change_to("127.0.0.12", system.forecast(state, change)) is None
    monkeypatch.setattr(dns, "_POINTING", 0.5)
    with pytest.raises(NotConvergedError, match=f"{stale.server} leads to 127.0.0.11"):
        list(system.apply(change))


def test_a_dead_second_server_does_not_hold_up_the_recovery(
    start_knot: StartKnot, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, dead = start_knot(), start_knot()
    dead.stop()
    monkeypatch.setattr(dns, "_SILENCE", 0.5)
    system = opened(leader.server, dead.server)
    begun = clock.monotonic()
    system.point(address="127.0.0.12", expected="127.0.0.11")
    assert clock.monotonic() - begun > 0.5, "it may come back, with the old value"
    state = system.observe()
    assert state.address == "127.0.0.12" and "refuses the connection" in state.summary
    assert system.change_to("127.0.0.12", state) is None


def test_while_the_first_server_is_dead_another_says_where_users_are_led(start_knot: StartKnot, opened: Any) -> None:
    dead, live = start_knot(address="127.0.0.12"), start_knot()
    dead.stop()
    system = opened(dead.server, live.server)
    state = system.observe()
    assert (state.reachable, state.identity, state.address) == (Reachable.DOWN, "127.0.0.11", "127.0.0.11")
    with pytest.raises(CannotError, match="nobody can tell where"):
        system.change_to("127.0.0.11", state)


class Proxy(threading.Thread):
    """Hands connections on to a server, and swallows the answers to updates; with `deaf`, the updates too."""

    def __init__(self, port: int, *, deaf: bool) -> None:
        super().__init__(daemon=True)
        self.port, self.deaf, self.swallowed = port, deaf, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, socket.create_connection(("127.0.0.1", self.port)) as server:
            while question := connection.recv(65536):
                is_update = question[4] >> 3 == 5
                if is_update and self.deaf:
                    self.swallowed += 1
                    return
                server.sendall(question)
                answer = server.recv(65536)
                if is_update:
                    self.swallowed += 1
                    return
                connection.sendall(answer)


@pytest.fixture(params=[False, True], ids=["answer lost", "update lost"])
def proxy(request: pytest.FixtureRequest, knot: Knot) -> Iterator[Proxy]:
    proxy = Proxy(knot.port, deaf=request.param)
    proxy.start()
    yield proxy
    proxy.listener.close()


def test_an_outcome_that_is_unknown_is_looked_at_and_never_repeated(
    proxy: Proxy, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "_UPDATING", 0.7)
    system = opened(proxy.server)
    if proxy.deaf:
        with pytest.raises(OutcomeUnknownError, match="no word came whether") as caught:
            system.point(address="127.0.0.12", expected="127.0.0.11")
        assert "leads to 127.0.0.11" in str(caught.value)
    else:
        system.point(address="127.0.0.12", expected="127.0.0.11")
    assert proxy.swallowed == 1
    assert system.observe().address == ("127.0.0.11" if proxy.deaf else "127.0.0.12")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"record": "orders-db.example.com"}, "not in the zone"),
        ({"zone": "sand box"}, "not a domain name"),
        ({"servers": ["127.0.0.1:99999"]}, "not HOST:PORT"),
        ({"servers": []}, "at least 1"),
        ({"key": {"name": "k", "secret": "c2VjcmV0"}}, "never written here"),
        ({"type": "TXT"}, "'A', 'AAAA' or 'CNAME'"),
    ],
)
def test_settings_that_make_no_sense(opened: Any, settings: dict[str, Any], told: str) -> None:
    good = opened("127.0.0.1").settings.model_dump()
    with pytest.raises(ValueError, match=told) as caught:
        DnsSettings.model_validate(good | settings)
    assert "c2VjcmV0" not in caught.value.errors(include_input=False)[0]["msg"]  # type: ignore[attr-defined]


def test_an_unknown_verb(opened: Any) -> None:
    with pytest.raises(UsageError, match="cannot 'fence'; it can point"):
        opened("127.0.0.1").change("fence", why="", no_undo="-")


def test_a_server_that_drips_is_silent(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoritative, "ASKING", 0.5)

    def drip() -> None:
        with listener.accept()[0] as connection, suppress(OSError):
            connection.sendall(b"\xff\xff")  # the length of an answer that never ends
            while not stop.wait(0.2):
                connection.sendall(b"\0")

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        begun = clock.monotonic()
        state = opened(f"127.0.0.1:{listener.getsockname()[1]}").observe()
        assert clock.monotonic() - begun < 1.5
    stop.set()
    assert state.reachable is Reachable.UNKNOWN and "no answer within 0.5 s" in state.summary


def test_a_server_that_hangs_up_cannot_be_asked(opened: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        state = opened(f"127.0.0.1:{listener.getsockname()[1]}").observe()
    assert state.reachable is Reachable.UNKNOWN and "cannot be asked" in state.summary


def test_a_resolver_that_does_not_answer_holds_nobody_up(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*asked: object, **how: object) -> list[Any]:
        over.wait(20)
        return []

    monkeypatch.setattr(authoritative, "ASKING", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", hang)
        begun = clock.monotonic()
        state = opened("ns.example.com").observe()
        assert clock.monotonic() - begun < 2
    over.set()
    assert state.reachable is Reachable.UNKNOWN and "gives no answer" in state.summary


@pytest.mark.parametrize("serves", ["nothing", "the zone", "the record"])
def test_a_second_hand_answer_is_not_believed(opened: Any, serves: str) -> None:
    """A resolver answers from its memory, and a zone's server may have left the record to others: only servers with
    authority know what it says now.
    """

    def remember() -> None:
        with listener.accept()[0] as connection:
            soa = "ns.sandbox.test. hostmaster.sandbox.test. 1 3600 600 86400 1"
            for about, value in (("the zone", soa), ("the record", "127.0.0.11")):
                question = from_wire(connection.recv(65536)[2:])
                answer = make_response(question)
                answer.flags |= AA if about == serves else 0
                asked = question.question[0]
                answer.answer.append(from_text(asked.name, 5, "IN", asked.rdtype, value))
                wire = answer.to_wire()
                connection.sendall(len(wire).to_bytes(2, "big") + wire)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=remember, daemon=True).start()
        state = opened(f"127.0.0.1:{listener.getsockname()[1]}").observe()
    assert state.reachable is Reachable.UNKNOWN and "its answers are second-hand" in state.summary

"""Route 53 is EMULATED here. moto takes change batches, but it checks no value of a DELETE, lets a CREATE add a second
set of records, is INSYNC at once and does not answer TestDNSAnswer. What depends on these is tried with botocore's
Stubber, which plays what Amazon documents. Nothing here was tried on Amazon's servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from botocore.stub import Stubber
from moto import mock_aws
from salvor import amazon, bucket
from salvor.change import Reachable
from salvor.errors import CannotError, NotConvergedError, OutcomeUnknownError
from salvor.system import Context
from salvor.systems import route53
from salvor.systems.route53 import Route53, Route53Settings

ZONE = "Z0123456789ABCDEFGHIJ"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(route53, "_PAUSE", 0.01)
    monkeypatch.setattr(route53, "_POINTING", 5.0)


def opened(context: Context, zone: str = ZONE, **settings: Any) -> Route53:
    whole = {"kind": "route53", "leads_to": "orders-db", "record": "db.example.com", "hosted_zone": zone, "ttl": 30}
    return Route53("orders-dns", Route53Settings.model_validate(whole | settings), context)


def record(value: str = "192.0.2.1", **settings: Any) -> dict[str, Any]:
    return {"Name": "db.example.com.", "Type": "A", "TTL": 5, "ResourceRecords": [{"Value": value}]} | settings


# ------------------------------------------------------------------------------------------ moto


@pytest.fixture
def zone() -> Iterator[str]:
    with mock_aws():
        client = boto3.client("route53", region_name="us-east-1")
        made = client.create_hosted_zone(Name="example.com", CallerReference="test")["HostedZone"]["Id"]
        first = {"Changes": [{"Action": "UPSERT", "ResourceRecordSet": record()}]}
        client.change_resource_record_sets(HostedZoneId=made, ChangeBatch=first)
        yield made.removeprefix("/hostedzone/")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("sleep 3", "its credentials did not come within 0.2 s"),
        ("/no/such/program", "No such file or directory: '/no/such/program'"),
        ("echo please log in", "Expecting value"),
    ],
)
def test_credentials_that_a_program_does_not_give(
    program: str, why: str, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore waits for ever for the program of credential_process, and lets through what is wrong with it."""
    (tmp_path / "config").write_text(f"[profile dns]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr(amazon, "ANSWERING", 0.2 if program.startswith("sleep") else 5.0)
    state = opened(context, profile="dns").observe()
    assert state.reachable is Reachable.UNKNOWN and why in state.summary
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "dns")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(CannotError, match=why), bucket.asking("s3://dumps/shop"):
        pass


def test_points_and_points_back(zone: str, context: Context) -> None:
    system = opened(context, zone)
    state = system.observe()
    assert (state.reachable, state.address, state.details["ttl"]) == (Reachable.UP, "192.0.2.1", 5)
    change = system.change_to("192.0.2.2", state)
    assert change is not None and change.undo is not None and "5.0 s" in change.why
    for _ in range(2):
        list(system.apply(change))
        assert system.observe().address == "192.0.2.2"
    assert system.observe().details["ttl"] == 5, "only the value changes, so that undo brings all of it back"
    assert system.change_to("192.0.2.2", system.observe()) is None
    system.point(**change.undo.arguments)  # type: ignore[arg-type]
    assert system.observe().address == "192.0.2.1"


def test_creates_and_takes_away(zone: str, context: Context) -> None:
    system = opened(context, zone, record="new.example.com", type="CNAME")
    assert (system.observe().reachable, system.observe().address) == (Reachable.UP, None)
    system.point(address="db.example.com", expected=None)
    assert (system.observe().address, system.observe().details["ttl"]) == ("db.example.com", 30)
    system.point(address=None, expected="db.example.com")
    assert system.observe().address is None


def test_somebody_else_changed_it(zone: str, context: Context) -> None:
    system = opened(context, zone)
    with pytest.raises(CannotError, match=r"leads to 192\.0\.2\.1, not to 192\.0\.2\.9"):
        system.point(address="192.0.2.2", expected="192.0.2.9")
    assert system.observe().address == "192.0.2.1"


def test_a_zone_that_is_not_there(zone: str, context: Context) -> None:
    system = opened(context, "ZNOTTHERE")
    assert system.observe().reachable is Reachable.UNKNOWN
    with pytest.raises(CannotError, match="there is no hosted zone ZNOTTHERE"):
        system.point(address="192.0.2.2", expected=None)


# ------------------------------------------------------------------------------------------ Stubber


class Played(Route53):
    """Answers as Amazon documents them, in order. `asked` is what was sent."""

    def __init__(self, context: Context) -> None:
        super().__init__("orders-dns", opened(context).settings, context)
        self.stub = Stubber(self.client)
        self.stub.activate()

    def lists(self, *records: dict[str, Any]) -> None:
        answer = {"ResourceRecordSets": list(records), "IsTruncated": False, "MaxItems": "1"}
        self.stub.add_response("list_resource_record_sets", answer)

    def changes(self, *batch: tuple[str, dict[str, Any]]) -> None:
        wanted = {
            "HostedZoneId": ZONE,
            "ChangeBatch": {"Changes": [{"Action": action, "ResourceRecordSet": each} for action, each in batch]},
        }
        answer = {"ChangeInfo": {"Id": "/change/C1", "Status": "PENDING", "SubmittedAt": 0}}
        self.stub.add_response("change_resource_record_sets", answer, wanted if batch else None)

    def is_(self, status: str) -> None:
        answer = {"ChangeInfo": {"Id": "/change/C1", "Status": status, "SubmittedAt": 0}}
        self.stub.add_response("get_change", answer, {"Id": "C1"})

    def answers(self, *values: str) -> None:
        answer = {
            "Nameserver": "ns-1.awsdns-01.org",
            "RecordName": "db.example.com",
            "RecordType": "A",
            "RecordData": list(values),
            "ResponseCode": "NOERROR" if values else "NXDOMAIN",
            "Protocol": "UDP",
        }
        self.stub.add_response("test_dns_answer", answer)

    def fails(self, method: str, code: str, status: int = 400) -> None:
        self.stub.add_client_error(method, code, "in Amazon's words", http_status_code=status)


@pytest.fixture
def played(context: Context) -> Iterator[Played]:
    played = Played(context)
    yield played
    played.stub.assert_no_pending_responses()


def test_one_batch_deletes_exactly_the_old_and_creates_the_new(played: Played) -> None:
    played.lists(record())
    played.changes(("DELETE", record()), ("CREATE", record("192.0.2.2")))
    played.is_("PENDING")
    played.fails("get_change", "InternalError", 500)
    played.is_("INSYNC")
    played.answers("192.0.2.1")
    played.answers("192.0.2.2")
    played.point(address="192.0.2.2", expected="192.0.2.1")


def test_somebody_was_quicker(played: Played) -> None:
    played.lists(record())
    played.fails("change_resource_record_sets", "InvalidChangeBatch")
    played.lists(record("192.0.2.9"))
    with pytest.raises(CannotError, match=r"somebody else changed .* leads to 192\.0\.2\.9"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_a_batch_that_is_wrong_for_another_reason(played: Played) -> None:
    played.lists()
    played.fails("change_resource_record_sets", "InvalidChangeBatch")
    played.lists()
    with pytest.raises(CannotError, match="in Amazon's words"):
        played.point(address="192.0.2.2", expected=None)


def test_busy_is_not_taken_and_may_be_sent_again(played: Played) -> None:
    played.lists(record())
    played.fails("change_resource_record_sets", "PriorRequestNotComplete")
    played.fails("change_resource_record_sets", "Throttling")
    played.changes()
    played.is_("INSYNC")
    played.fails("test_dns_answer", "InvalidInput")  # a private zone
    played.point(address="192.0.2.2", expected="192.0.2.1")


def test_busy_for_too_long_is_said_and_was_not_taken(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route53, "_POINTING", 0.0)
    played.lists(record())
    played.fails("change_resource_record_sets", "Throttling", 503)
    with pytest.raises(CannotError, match="in Amazon's words"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_somebody_was_quicker_and_wanted_the_same(played: Played) -> None:
    played.lists(record())
    played.fails("change_resource_record_sets", "InvalidChangeBatch")
    played.lists(record("192.0.2.2"))
    played.answers("192.0.2.2")
    played.point(address="192.0.2.2", expected="192.0.2.1")


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchHostedZone", "ExpiredToken"])
def test_refused(played: Played, code: str) -> None:
    played.lists(record())
    played.fails("change_resource_record_sets", code, 403)
    with pytest.raises(CannotError, match="in Amazon's words") as caught:
        played.point(address="192.0.2.2", expected="192.0.2.1")
    assert "as it was" in str(caught.value)


def test_a_lost_answer_is_looked_at(played: Played) -> None:
    played.lists(record())
    played.fails("change_resource_record_sets", "InternalError", 500)
    played.lists(record())
    played.fails("list_resource_record_sets", "InternalError", 500)
    played.lists(record("192.0.2.2"))
    played.answers("192.0.2.2")
    played.point(address="192.0.2.2", expected="192.0.2.1")
    played.lists(record())
    played.fails("change_resource_record_sets", "InternalError", 500)
    played.lists(record("192.0.2.9"))
    with pytest.raises(CannotError, match=r"somebody else changed .* leads to 192\.0\.2\.9"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_a_lost_answer_that_leaves_no_trace_is_unknown(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        played.lists(record())
    sent = []

    def lose(**request: Any) -> None:
        sent.append(request)
        raise ReadTimeoutError(endpoint_url="https://route53.amazonaws.com")

    monkeypatch.setattr(played.client, "change_resource_record_sets", lose)
    with pytest.raises(OutcomeUnknownError, match=r"its list shows 192\.0\.2\.1"):
        played.point(address="192.0.2.2", expected="192.0.2.1")
    assert len(sent) == 1


def test_not_on_all_servers_in_time(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route53, "_PAUSE", 0.2)
    monkeypatch.setattr(route53, "_POINTING", 0.5)
    played.lists(record())
    played.changes()
    for _ in range(3):
        played.is_("PENDING")
    with pytest.raises(NotConvergedError, match=r"not all servers .*: PENDING"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_servers_that_go_on_answering_the_old_value(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route53, "_POINTING", 0.0)
    played.lists(record("192.0.2.2"))
    played.answers("192.0.2.1")
    with pytest.raises(NotConvergedError, match=r"its servers still answer 192\.0\.2\.1"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_on_its_way_needs_another_look(played: Played) -> None:
    played.lists(record("192.0.2.2"))
    played.answers("192.0.2.1")
    state = played.observe()
    assert "its servers still answer 192.0.2.1" in state.summary
    assert played.change_to("192.0.2.2", state) is not None


@pytest.mark.parametrize(
    "written",
    [
        record(SetIdentifier="blue", Weight=10),
        {
            "Name": "db.example.com.",
            "Type": "A",
            "AliasTarget": {"HostedZoneId": ZONE, "DNSName": "x.", "EvaluateTargetHealth": False},
        },
    ],
)
def test_what_is_not_a_simple_record_is_left_alone(played: Played, written: dict[str, Any]) -> None:
    played.lists(written)
    played.lists(written)
    state = played.observe()
    assert state.reachable is Reachable.UNKNOWN and "an alias" in state.summary
    with pytest.raises(CannotError, match="an alias"):
        played.point(address="192.0.2.2", expected="192.0.2.1")


def test_cannot_be_reached(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**request: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://route53.amazonaws.com")

    played.lists(record())
    with monkeypatch.context() as patch, pytest.raises(CannotError, match="as it was"):  # it was never sent
        patch.setattr(played.client, "change_resource_record_sets", refuse)
        played.point(address="192.0.2.2", expected="192.0.2.1")
    monkeypatch.setattr(played.client, "list_resource_record_sets", refuse)
    assert played.observe().reachable is Reachable.UNKNOWN
    with pytest.raises(CannotError, match="nobody can tell"):
        played.point(address="192.0.2.2", expected="192.0.2.1")

"""A DNS record in Amazon Route 53."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from salvor import amazon, clock
from salvor.authoritative import said
from salvor.change import Reachable, State
from salvor.dns_record import ABSENT, UNKNOWN, DnsRecord, RecordSettings
from salvor.errors import CannotError, NotConvergedError, OutcomeUnknownError
from salvor.system import verb

_POINTING = 120.0
"""Seconds until Route 53 must say that all its servers have the change; it usually takes less than 60."""
_PAUSE = 2.0
"""Seconds between two questions: an account has five requests a second for all that it does with Route 53."""


class Route53Settings(RecordSettings):
    """`hosted_zone` is the zone's id. Credentials are found as Amazon's command line does; `profile` names some."""

    kind: Literal["route53"]
    hosted_zone: str = Field(pattern=r"^[A-Z0-9]{1,32}$")
    profile: str | None = None


@dataclass(frozen=True)
class Listed:
    """What the zone's list says of the record, as Route 53 wrote it (None: no record), and its values."""

    written: dict[str, Any] | None
    values: tuple[str, ...]


class Route53(DnsRecord):
    """One simple record of a hosted zone."""

    Settings = Route53Settings
    settings: Route53Settings

    def observe(self) -> State:
        """What the zone's list says, with changes that are still on their way, and what the servers answer."""
        details = {"record": self.settings.record, "type": self.settings.type, "ttl": None}
        try:
            listed = self._list()
        except CannotError as error:
            return State(Reachable.UNKNOWN, UNKNOWN, None, error.what, details=details)
        answered = self._answered()
        address, ttl = self.write(listed.values), (listed.written or {}).get("TTL")
        told = f"leads to {address or 'nothing'}"
        if address:
            told += f" (TTL {clock.write_duration(ttl)})"
        if answered not in (None, listed.values):
            told += f"; its servers still answer {self.write(answered or ()) or 'nothing'}"
        return State(
            reachable=Reachable.UP,
            identity=address or ABSENT,
            writable=None,
            summary=f"{self.settings.record}: {told}",
            address=address,
            details={**details, "ttl": ttl, "agreed": answered in (None, listed.values), "answered": answered},
        )

    @verb(deadline=_POINTING + 30)
    def point(self, address: str | None, expected: str | None) -> None:
        """Replace the value `expected` by `address` (None: no record), and wait until every server has it.

        Route 53 has no conditional change, but its change batches are all or nothing, and a DELETE fails unless it says
        exactly what is there, and a CREATE when anything is there. So DELETE of the old and CREATE of the new in one
        batch never trample what somebody else wrote meanwhile. (Amazon Route 53 API Reference,
        ChangeResourceRecordSets: "Change Batches and Transactional Changes", "Deleting Resource Record Sets".)

        Raises CannotError when the record says something else or the change is refused: nothing was changed.
        OutcomeUnknownError when no answer came and the list does not show it. NotConvergedError when it was taken and
        is not on every server after 120 s.
        """
        until = clock.monotonic() + _POINTING
        wanted, old = self.wanted(address), self.values(expected)
        listed = self._list()
        if listed.values != wanted:
            if listed.values != old:
                raise self.trampled(listed.values, expected)
            change = self._change(listed, wanted, until)
            if change:
                self._wait_for_all_servers(change, until)
        self._ask_back(wanted, until)

    # --- asking ------------------------------------------------------------------------------------------------------

    @cached_property
    def client(self) -> Any:
        """The boto3 client. It repeats nothing by itself: a change whose answer was lost is looked at first."""
        import boto3
        from botocore.config import Config

        config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
        # Route 53 is one service for all regions of a partition; the region only tells which partition.

        def make() -> Any:
            session = boto3.session.Session(profile_name=self.settings.profile)
            return session.client("route53", region_name=session.region_name or "us-east-1", config=config)

        return amazon.client(make)

    def _list(self) -> Listed:
        """What the zone's list says. Raises CannotError when it cannot be read, or the record is not a simple one."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self.client.list_resource_record_sets(
                HostedZoneId=self.settings.hosted_zone,
                StartRecordName=self.settings.record,
                StartRecordType=self.settings.type,
                MaxItems="1",
            )["ResourceRecordSets"]
        except (BotoCoreError, ClientError) as error:
            raise self._cannot(f"nobody can tell what it says now: {self._reason(error)}") from error
        for written in found:
            if (
                written["Name"].lower().removesuffix(".") == self.settings.record
                and written["Type"] == self.settings.type
            ):
                if "SetIdentifier" in written or "ResourceRecords" not in written:
                    raise self._cannot("it is an alias, or one of several by weight or place", "name a simple record")
                return Listed(written, self.values(", ".join(value["Value"] for value in written["ResourceRecords"])))
        return Listed(None, ())

    def _answered(self) -> tuple[str, ...] | None:
        """What the zone's servers answer; None where that cannot be asked: a private zone, or no permission to."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self.client.test_dns_answer(
                HostedZoneId=self.settings.hosted_zone, RecordName=self.settings.record, RecordType=self.settings.type
            )
        except (BotoCoreError, ClientError):
            return None
        if answer["ResponseCode"] not in ("NOERROR", "NXDOMAIN"):
            return None
        return self.values(", ".join(answer["RecordData"]))

    # --- changing ----------------------------------------------------------------------------------------------------

    def _change(self, listed: Listed, wanted: tuple[str, ...], until: float) -> str | None:
        """Send the change. Returns its id, or None when no answer came and the list shows that it was made."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError

        batch = []
        if listed.written:
            batch.append({"Action": "DELETE", "ResourceRecordSet": listed.written})
        if wanted:
            dot = "." if self.settings.type == "CNAME" else ""
            new = {"Name": f"{self.settings.record}.", "Type": self.settings.type, "TTL": self.settings.ttl}
            record = {**new, **(listed.written or {}), "ResourceRecords": [{"Value": value + dot} for value in wanted]}
            batch.append({"Action": "CREATE", "ResourceRecordSet": record})
        while True:
            try:
                answer = self.client.change_resource_record_sets(
                    HostedZoneId=self.settings.hosted_zone, ChangeBatch={"Changes": batch}
                )
                return str(answer["ChangeInfo"]["Id"])
            except ClientError as error:
                code = error.response["Error"]["Code"]
                busy = code in ("Throttling", "ThrottlingException", "PriorRequestNotComplete")
                if busy and clock.monotonic() < until:
                    time.sleep(_PAUSE)  # it was not taken, so it may be sent again
                elif error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 and not busy:
                    lost: Exception = error
                    break
                elif code == "InvalidChangeBatch" and (now := self._list().values) != listed.values:
                    if now == wanted:
                        return None
                    raise self.trampled(now, self.write(listed.values)) from error
                else:
                    raise self._cannot(self._reason(error)) from error
            except (EndpointConnectionError, ConnectTimeoutError) as error:
                raise self._cannot(self._reason(error)) from error
            except BotoCoreError as error:
                lost = error
                break
        self._look_whether_made(listed, wanted, lost)
        return None

    def _look_whether_made(self, listed: Listed, wanted: tuple[str, ...], error: Exception) -> None:
        """The change was sent and no answer came: see what the list says now, and send nothing again."""
        now: tuple[str, ...] | None = None
        for _ in range(3):
            time.sleep(_PAUSE)
            try:
                now = self._list().values
            except CannotError:
                continue
            if now == wanted:
                return
            if now != listed.values:
                raise self.trampled(now, self.write(listed.values)) from error
        shown = "its list cannot be read" if now is None else f"its list shows {self.write(now) or 'nothing'}"
        raise OutcomeUnknownError(
            f"{self.name}: Route 53 did not say whether it changed {self.settings.record} ({said(error)}); {shown}.",
            safe="a change replaces only the old value, so sending it once more does no harm",
            hint="run the same command again",
        ) from error

    def _wait_for_all_servers(self, change: str, until: float) -> None:
        """Wait until Route 53 says INSYNC: every one of its servers has the change."""
        from botocore.exceptions import BotoCoreError, ClientError

        status = "PENDING"
        while clock.monotonic() < until:
            try:
                status = self.client.get_change(Id=change.removeprefix("/change/"))["ChangeInfo"]["Status"]
            except (BotoCoreError, ClientError) as error:
                status = self._reason(error)
            if status == "INSYNC":
                return
            time.sleep(_PAUSE)
        raise NotConvergedError(
            f"{self.name}: not all servers of Route 53 have the change of {self.settings.record}: {status}.",
            safe="Route 53 took it, and it arrives by itself; until then some users are led to the old place",
            hint=f"aws route53 get-change --id {change.removeprefix('/change/')}; then run the same command again",
        )

    def _ask_back(self, wanted: tuple[str, ...], until: float) -> None:
        """Wait until the servers answer `wanted`, where they can be asked."""
        while (answered := self._answered()) not in (None, wanted):
            if clock.monotonic() > until:
                now = self.write(answered or ()) or "nothing"
                raise NotConvergedError(
                    f"{self.name}: {self.settings.record} was changed, and its servers still answer {now}.",
                    safe="some users are still led to the old place",
                    hint="run the same command again",
                )
            time.sleep(_PAUSE)

    def _reason(self, error: Exception) -> str:
        """What went wrong, in Route 53's words, with the mend where it is known."""
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        known = {
            "NoSuchHostedZone": f"there is no hosted zone {self.settings.hosted_zone} in this account",
            "AccessDenied": "these credentials may not do this",
            "InvalidClientTokenId": "these credentials are not valid",
            "ExpiredToken": "these credentials have expired",
        }
        return f"{known[code]} ({said(error)})" if code in known else said(error)

    def _cannot(self, what: str, mend: str = "see that profile: and hosted_zone: are right") -> CannotError:
        return CannotError(
            f"{self.name}: {self.settings.record} was not changed: {what}.",
            safe="the record is as it was",
            hint=f"{mend}, then run the same command again",
        )

"""A DNS record on servers that take signed updates (RFC 2136 with TSIG): BIND, Knot, PowerDNS, Windows."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from salvor import authoritative, clock, secrets
from salvor.address import host_and_port
from salvor.authoritative import Answer
from salvor.change import Reachable, State
from salvor.dns_record import ABSENT, UNKNOWN, DnsRecord, Domain, RecordSettings
from salvor.errors import CannotError, NotConvergedError, OutcomeUnknownError
from salvor.system import verb

if TYPE_CHECKING:
    from dns.message import Message
    from dns.rcode import Rcode

_UPDATING = 5.0
"""Seconds that the first server has for an update's answer; and again to show that it was made, when none came."""
_SILENCE = 5.0
"""Seconds that a server which answers nothing at all is waited for: it hands out no old value either."""
_POINTING = 30.0
"""Seconds until all servers must answer the new value: time for a NOTIFY and a transfer, with room."""
_PAUSE = 0.2


def _server(text: str) -> str:
    host_and_port(text, default=53)
    return text


class Key(BaseModel):
    """The TSIG key that signs updates; `secret` names where its base64 text is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Domain
    algorithm: Literal["hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"] = "hmac-sha256"
    secret: secrets.SecretReference


class DnsSettings(RecordSettings):
    """`servers` are all the authoritative ones (`HOST` or `HOST:PORT`); the first takes the updates."""

    kind: Literal["dns"]
    zone: Domain
    servers: tuple[Annotated[str, AfterValidator(_server)], ...] = Field(min_length=1)
    key: Key

    @model_validator(mode="after")
    def _record_in_zone(self) -> DnsSettings:
        if self.record != self.zone and not self.record.endswith(f".{self.zone}"):
            raise ValueError(f"the record {self.record} is not in the zone {self.zone}")
        return self


class Dns(DnsRecord):
    """One record and all the servers that answer for it."""

    Settings = DnsSettings
    settings: DnsSettings

    def observe(self) -> State:
        """Ask every authoritative server. The first one's value counts, because it takes the updates; all are shown."""
        answers = self._look()
        first = answers[0]
        spoke = [answer for answer in answers if answer.values is not None]
        live = first if first.values is not None or not spoke else spoke[0]
        address = self.write(live.values or ())
        alike = len({(answer.values, answer.error) for answer in answers}) == 1
        down = Reachable.DOWN if first.refused else Reachable.UNKNOWN
        return State(
            reachable=down if first.values is None else Reachable.UP,
            identity=UNKNOWN if live.values is None else address or ABSENT,
            writable=None,
            summary=f"{self.settings.record}: {self._told([live] if alike else answers)}",
            address=address,
            details={
                "record": self.settings.record,
                "type": self.settings.type,
                "ttl": max((answer.ttl for answer in spoke if answer.ttl is not None), default=None),
                "serial": live.serial,
                "agreed": len({answer.values for answer in spoke}) <= 1,
                "servers": {answer.server: answer.to_json() for answer in answers},
            },
        )

    def _look(self) -> list[Answer]:
        with ThreadPoolExecutor(max_workers=len(self.settings.servers)) as pool:
            return list(pool.map(self._ask, self.settings.servers))

    def _ask(self, server: str) -> Answer:
        answer = authoritative.ask(server, self.settings.zone, self.settings.record, self.settings.type)
        return answer if answer.values is None else replace(answer, values=self.values(", ".join(answer.values)))

    def _told(self, answers: list[Answer]) -> str:
        def one(answer: Answer) -> str:
            if answer.values is None:
                return answer.error
            ttl = f" (TTL {clock.write_duration(answer.ttl)})" if answer.ttl is not None else ""
            return f"leads to {self.write(answer.values) or 'nothing'}{ttl}"

        return "; ".join(f"{answer.server} {one(answer)}" for answer in answers)

    @verb(deadline=_POINTING + 3 * _UPDATING)
    def point(self, address: str | None, expected: str | None) -> None:
        """Replace the value `expected` by `address` (None: no record), and wait until every server answers it.

        The update carries the old value as its prerequisite (RFC 2136, 2.4), so the server itself refuses to trample
        what somebody else wrote meanwhile. A server that answers nothing at all is waited for 5 s only.

        Raises CannotError when the record says something else, the key is wrong or the update is refused: nothing was
        changed. OutcomeUnknownError when the update's answer was lost and the server does not show it.
        NotConvergedError when it was made and another server still hands out the old value after 30 s.
        """
        until = clock.monotonic() + _POINTING
        wanted, old = self.wanted(address), self.values(expected)
        first = self._ask(self.settings.servers[0])
        if first.values is None:
            raise self._cannot(f"nobody can tell what it says now: {self._told([first])}", "bring that server back")
        if first.values != wanted:
            if first.values != old:
                raise self.trampled(first.values, expected)
            self._update(wanted, old, first.ttl or self.settings.ttl)
        self._ask_back(wanted, until)

    def _update(self, wanted: tuple[str, ...], old: tuple[str, ...], ttl: int) -> None:
        """Send the update to the first server. Returns when it was made, or is found to have been made."""
        from dns.exception import DNSException
        from dns.tsig import PeerBadKey, PeerBadSignature, PeerBadTime, PeerError

        server, key = self.settings.servers[0], self.settings.key
        message = self._message(wanted, old, ttl)
        sent = False
        try:
            with authoritative.connected(server) as connection:
                sent = True
                code = authoritative.exchange(connection, message, _UPDATING).rcode()
        except PeerError as error:
            what, mend = {
                PeerBadKey: (
                    f"{server} does not take the key {key.name} ({key.algorithm}) for it",
                    f"mend key: of {self.name}",
                ),
                PeerBadSignature: (f"{server} has another secret for the key {key.name}", f"mend {key.secret}"),
                PeerBadTime: (f"the clocks of {server} and of this machine differ", "set them right"),
            }.get(type(error), (f"{server} does not accept the signature: {error}", f"mend key: of {self.name}"))
            raise self._cannot(what, mend) from error
        except (OSError, EOFError, DNSException) as error:
            if not sent:
                raise self._cannot(f"{server} cannot be reached: {error}", "bring that server back") from error
            self._look_whether_made(wanted, old, error)
        else:
            self._judge(code, wanted, old)

    def _judge(self, code: Rcode, wanted: tuple[str, ...], old: tuple[str, ...]) -> None:
        """What the server answered to the update."""
        from dns.rcode import NOERROR, NOTAUTH, NOTZONE, NXRRSET, REFUSED, YXRRSET, to_text

        server, key = self.settings.servers[0], self.settings.key
        if code == NOERROR:
            return
        if code in (NXRRSET, YXRRSET):  # the prerequisite does not hold: somebody was quicker
            found = self._ask(server).values
            if found == wanted:
                return
            raise self.trampled(found, self.write(old))
        why, mend = {
            REFUSED: (f"the key {key.name} may not change it", f"allow that key to update it on {server}"),
            NOTAUTH: (
                f"it does not serve {self.settings.zone}, or not to this key",
                f"mend zone: or key: of {self.name}",
            ),
            NOTZONE: (f"it is not in {self.settings.zone}", f"mend zone: of {self.name}"),
        }.get(code, ("its log says why", f"read the log of {server}"))
        raise self._cannot(f"{server} answers {to_text(code)}: {why}", mend)

    def _message(self, wanted: tuple[str, ...], old: tuple[str, ...], ttl: int) -> Message:
        """The signed update: replace `old` by `wanted`, if it is `old` and nothing else."""
        import binascii

        from dns import name, rdataset, rdatatype, tsigkeyring, update

        key = self.settings.key
        try:
            keyring = tsigkeyring.from_text({key.name: secrets.resolve(key.secret)})
        except binascii.Error as error:
            raise self._cannot(
                f"the secret {key.secret} is not base64 text", "write it as the server has it"
            ) from error
        owner, kind = name.from_text(self.settings.record), rdatatype.from_text(self.settings.type)
        dot = "." if self.settings.type == "CNAME" else ""

        def records(values: tuple[str, ...], ttl: int) -> rdataset.Rdataset:
            return rdataset.from_text_list("IN", kind, ttl, [value + dot for value in values])

        message = update.UpdateMessage(self.settings.zone, keyring=keyring, keyalgorithm=key.algorithm)
        if old:
            message.present(owner, records(old, ttl=0))  # RFC 2136, 2.4.2: any other TTL is a FORMERR
        else:
            message.absent(owner, kind)
        if wanted:
            message.replace(owner, records(wanted, ttl))
        else:
            message.delete(owner, kind)
        return message

    def _look_whether_made(self, wanted: tuple[str, ...], old: tuple[str, ...], error: BaseException) -> None:
        """The update was sent and no answer came: see what the server says now, and send nothing again."""
        until = clock.monotonic() + _UPDATING
        while (answer := self._ask(self.settings.servers[0])).values != wanted:
            if answer.values not in (None, old):
                raise self.trampled(answer.values, self.write(old)) from error
            if clock.monotonic() > until:
                raise OutcomeUnknownError(
                    f"{self.name}: no word came whether the update of {self.settings.record} was made "
                    f"({authoritative.said(error)}); now {self._told([answer])}.",
                    safe="an update replaces only the old value, so sending it once more does no harm",
                    hint="run the same command again",
                ) from error
            time.sleep(_PAUSE)

    def _ask_back(self, wanted: tuple[str, ...], until: float) -> None:
        """Wait until every authoritative server that answers at all answers `wanted`."""
        patience = clock.monotonic() + _SILENCE
        while True:
            answers = self._look()
            late = [answer for answer in answers if answer.values not in (None, wanted)]
            silent = [answer for answer in answers if answer.values is None]
            if not late and (not silent or (clock.monotonic() > patience and len(silent) < len(answers))):
                return
            if clock.monotonic() > until:
                break
            time.sleep(_PAUSE)
        if late:
            raise NotConvergedError(
                f"{self.name}: the update was made, and servers still hand out another value: {self._told(late)}.",
                safe="users of the other servers are led to the new place; users of these are not",
                hint=f"see that they transfer the zone {self.settings.zone}, then run the same command again",
            )
        raise OutcomeUnknownError(
            f"{self.name}: no server can be asked what {self.settings.record} says now: {self._told(silent)}.",
            hint="bring one back, then run the same command again",
        )

    def _cannot(self, what: str, mend: str) -> CannotError:
        return CannotError(
            f"{self.name}: {self.settings.record} was not changed: {what}.",
            safe="the record is as it was",
            hint=f"{mend}, then run the same command again",
        )

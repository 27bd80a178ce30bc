"""A route that is one DNS record, whoever serves it: what it leads to, and the change that points it elsewhere."""

from __future__ import annotations

import ipaddress
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from salvor import clock
from salvor.change import Change, Reachable, State, Undo
from salvor.errors import CannotError
from salvor.roles import Route
from salvor.system import Outcome, Settings

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def _domain(text: str) -> str:
    name = text.lower().removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{text!r} is not a domain name, for example orders-db.example.com")
    return name


Domain = Annotated[str, AfterValidator(_domain)]
"""A domain name in small letters, without the final dot."""


class RecordSettings(Settings):
    """The record that leads users to the system `leads_to`. `ttl` (seconds) is for a record that is not there yet."""

    leads_to: str
    record: Domain
    type: Literal["A", "AAAA", "CNAME"] = "A"
    ttl: int = Field(default=60, ge=1, le=86400)


class DnsRecord(Route):
    """What all DNS records share. An address is the record's values, with `, ` between them; None is no record."""

    settings: RecordSettings

    @abstractmethod
    def point(self, address: str | None, expected: str | None) -> Outcome:
        """Replace the value `expected` by `address`; what is neither is left alone. The record keeps its TTL."""

    def change_to(self, address: str, state: State) -> Change | None:
        """The change that points the record at `address`, undone by swapping the two; None when it leads there already.

        Raises CannotError when nobody can tell what the record says now, or it cannot hold `address`.
        """
        wanted = self.write(self.wanted(address))
        if state.reachable is not Reachable.UP:
            raise CannotError(
                f"{self.name}: nobody can tell where {self.settings.record} leads: {state.summary}.",
                safe="the record is as it was",
                hint="bring the DNS service back, then run the same command again",
            )
        if state.address == wanted and state.details.get("agreed", True):
            return None
        held = clock.write_duration(state.details.get("ttl"))
        return self.change(
            "point",
            why=f"it leads to {state.address or 'nothing'}; who asked before may hold that answer for {held}",
            undo=Undo("point", {"address": state.address, "expected": wanted}),
            address=wanted,
            expected=state.address,
        )

    def forecast(self, state: State, change: Change) -> State:
        """After `point`, every server answers the new value."""
        address = change.arguments["address"]
        found = None if address is None else str(address)
        details: Mapping[str, Any] = {
            **state.details,
            "ttl": state.details.get("ttl") or self.settings.ttl,
            "agreed": True,
        }
        return replace(state, identity=found or ABSENT, address=found, details=details)

    def wanted(self, address: str | None) -> tuple[str, ...]:
        """The values of `address`, to be written. Raises CannotError when a record of this type cannot hold one."""
        values = self.values(address)
        for value in values:
            try:
                _HOLDS[self.settings.type](value)
            except ValueError as error:
                raise CannotError(
                    f"{self.name}: a record of type {self.settings.type} cannot lead to {value!r}: {error}.",
                    safe="the record is as it was",
                    hint=f"mend type: of {self.name} (A, AAAA or CNAME), or the address of {self.settings.leads_to}",
                ) from error
        return values

    @staticmethod
    def values(address: str | None) -> tuple[str, ...]:
        """The values of `address` in order, each in the one way to write it."""
        return tuple(sorted(_plain(value) for value in (address or "").split(", ") if value))

    @staticmethod
    def write(values: tuple[str, ...]) -> str | None:
        """Values as one address; None for none."""
        return ", ".join(values) or None

    def trampled(self, found: tuple[str, ...] | None, expected: str | None) -> CannotError:
        """The error for a record that somebody else changed; `found` None: what it says now cannot be told."""
        record = self.settings.record
        now = "what cannot be told" if found is None else self.write(found) or "nothing"
        return CannotError(
            f"{self.name}: somebody else changed {record}: it leads to {now}, not to {expected or 'nothing'}.",
            safe="the record was left as it is",
            hint="ask who changed it; then look at the new plan with --plan, and run the same command again",
        )


def _target(name: str) -> str:
    if re.fullmatch(r"[0-9.]+|.*:.*", name):
        raise ValueError("it is an IP address")
    return _domain(name)


_HOLDS = {"A": ipaddress.IPv4Address, "AAAA": ipaddress.IPv6Address, "CNAME": _target}


def _plain(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value.lower().removesuffix(".")


ABSENT = "no record"
UNKNOWN = "not known"
"""The identity of a record that is not there, and of one that cannot be told."""

"""Ask one authoritative DNS server what it says of a record.

Over TCP, which tells a server that is down from one that is silent, and whose answers cannot be forged blindly. Every
authoritative server speaks it (RFC 7766).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.address import host_and_port
from salvor.deadline import within

if TYPE_CHECKING:
    from dns.message import Message

ASKING = 2.0
"""Seconds that a server has to take the connection, and again for each answer."""


@dataclass(frozen=True)
class Answer:
    """What one server said: the record's values as DNS writes them (None: cannot be told, see `error`), and its TTL.

    `serial` is the zone's, from its SOA. `refused` says that nothing listens there, which is more than silence.
    """

    server: str
    values: tuple[str, ...] | None = None
    ttl: int | None = None
    serial: int | None = None
    error: str = ""
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for State.details."""
        return asdict(self)


def ask(server: str, zone: str, record: str, type_: str) -> Answer:
    """What `server` (`HOST` or `HOST:PORT`) says of `record`. Never raises: what goes wrong is in the answer."""
    from dns.exception import DNSException, Timeout

    try:
        # The outer deadline is for resolving the server's own name, which has none.
        return within(3 * ASKING, lambda: _answer(server, zone, record, type_))
    except (TimeoutError, Timeout):
        return Answer(server, error=f"gives no answer within {clock.write_duration(ASKING)}")
    except ConnectionRefusedError:
        return Answer(server, error="refuses the connection: no DNS server runs there", refused=True)
    except (OSError, EOFError, DNSException) as error:
        return Answer(server, error=f"cannot be asked: {said(error)}")


def _answer(server: str, zone: str, record: str, type_: str) -> Answer:
    from dns.flags import AA
    from dns.message import make_query
    from dns.rcode import NOERROR, NXDOMAIN, to_text
    from dns.rdatatype import CNAME, SOA, from_text

    kind = from_text(type_)
    with connected(server) as connection:
        about_zone = exchange(connection, make_query(zone, SOA, flags=0), ASKING)
        found = exchange(connection, make_query(record, kind, flags=0), ASKING)
    for response in (about_zone, found):
        code = response.rcode()
        if code not in (NOERROR, NXDOMAIN) or not response.flags & AA:
            why = "its answers are second-hand" if code == NOERROR else f"it answers {to_text(code)}"
            return Answer(server, error=f"does not serve the zone {zone}: {why}")
    serial = next((records[0].serial for records in about_zone.answer if records.rdtype == SOA), None)
    owned = {records.rdtype: records for records in found.answer if records.name == found.question[0].name}
    if kind != CNAME and CNAME in owned:
        # RFC 2136, 3.4.2.2: adding an address where a CNAME is would be ignored, without an error.
        return Answer(server, error=f"says that {record} is a CNAME, and the inventory says {type_}")
    records = owned.get(kind)
    values = tuple(sorted(value.to_text() for value in records)) if records else ()
    return Answer(server, values, records.ttl if records else None, serial)


@contextmanager
def connected(server: str) -> Iterator[socket.socket]:
    """A connection to `server`. Raises OSError when there is none within ASKING seconds."""
    with closing(socket.create_connection(host_and_port(server, default=53), timeout=ASKING)) as connection:
        connection.setblocking(False)
        yield connection


def exchange(connection: socket.socket, message: Message, seconds: float) -> Message:
    """Send one message and return its answer. Raises DNSException (Timeout is one), OSError or EOFError."""
    from dns.query import tcp

    return tcp(message, "", timeout=seconds, sock=connection)


def said(error: BaseException) -> str:
    """An error's text, or its name when it has none."""
    return str(error) or type(error).__name__

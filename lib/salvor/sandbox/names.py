"""The sandbox's DNS: an authoritative Knot server for the zone `sandbox.test`, which takes signed updates."""

from __future__ import annotations

import shutil

from salvor.errors import CannotError
from salvor.sandbox import folders, layout, processes
from salvor.sandbox.layout import Layout

ZONE = "sandbox.test"
DATABASE = "orders-db.sandbox.test"
"""The name of the database: what the shop connects to, and what a recovery points elsewhere."""
TIME_TO_LIVE = 5

_CONFIGURATION = """\
server:
    rundir: "{folder}"
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
key:
  - id: salvor
    algorithm: hmac-sha256
    secret: "{secret}"
acl:
  - id: operator
    key: salvor
    action: [transfer, update]
database:
    storage: "{folder}"
    journal-db-max-size: 16M
    kasp-db-max-size: 8M
    timer-db-max-size: 8M
    catalog-db-max-size: 8M
zone:
  - domain: {zone}
    storage: "{folder}"
    file: {zone}.zone
    zonefile-sync: 0  # an update is in the zone file at once, for people to read
    acl: operator
"""

_RECORDS = """\
$TTL {ttl}
@ SOA ns.{zone}. operator.{zone}. 1 60 30 3600 {ttl}
@ NS ns.{zone}.
ns A 127.0.0.1
orders-db A {address}
"""


def start(sandbox: Layout) -> None:
    """Start it unless it runs; the zone is made once, with the name leading to member `a`."""
    folder = sandbox.place / "names"
    folder.mkdir(mode=0o700, exist_ok=True)
    folders.write(
        folder / "knot.conf",
        _CONFIGURATION.format(folder=folder, port=sandbox.dns_port, secret=sandbox.secret("tsig.secret"), zone=ZONE),
    )
    zone = folder / f"{ZONE}.zone"
    if not zone.exists():
        folders.write(zone, _RECORDS.format(zone=ZONE, ttl=TIME_TO_LIVE, address=layout.ADDRESSES["a"]))
    if not processes.find(argv(sandbox)):
        # A killed server leaves it, and refuses to start when that number is another process's by now, or a zombie's.
        (folder / "knot.pid").unlink(missing_ok=True)
    processes.start(argv(sandbox), sandbox.log("names"))


def program() -> str:
    """The path of Knot, also for users whose PATH does not hold it."""
    return shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin:/usr/local/sbin") or "knotd"


def argv(sandbox: Layout) -> list[str]:
    """How the server is called, and found again."""
    return [program(), "-c", str(sandbox.place / "names" / "knot.conf")]


def answers(sandbox: Layout) -> bool:
    """Whether it answers for the database's name."""
    try:
        resolve(sandbox)
    except CannotError:
        return False
    return True


def resolve(sandbox: Layout) -> tuple[str, int]:
    """The address that the database's name has now, and for how many seconds that may be believed.

    Raises CannotError when the server does not answer within a second.
    """
    import dns.exception
    import dns.message
    import dns.query
    import dns.rdatatype

    question = dns.message.make_query(DATABASE, dns.rdatatype.A)
    try:
        answer = dns.query.udp(question, "127.0.0.1", port=sandbox.dns_port, timeout=1)
        record = answer.get_rrset(
            answer.answer, question.question[0].name, question.question[0].rdclass, dns.rdatatype.A
        )
    except (OSError, dns.exception.DNSException) as error:
        raise CannotError(
            f"The sandbox's DNS server, 127.0.0.1 port {sandbox.dns_port}, does not answer: {error}.",
            hint="inv sandbox.status",
        ) from error
    if not record:
        raise CannotError(f"{DATABASE} has no address.", hint=f"dig @127.0.0.1 -p {sandbox.dns_port} {ZONE} AXFR")
    return str(record[0].address), record.ttl

"""Journals for tests, written by the real Journal as a real recovery writes them, on a clock that we move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.change import Change, Decision, Finding, Level, Undo, WayBack, plan_hash
from salvor.journal import Journal
from salvor.wish import Wish

BEGIN = datetime(2026, 11, 21, 0, 33, 0, tzinfo=UTC)
IDENTITY = "7412345678901234567@64769:1311"
STAGED = "7412345678901234567@64769:2622"

FENCE = Change(
    "orders-db", "fence", {"identity": IDENTITY}, "it still takes writes", Undo("unfence", {"identity": IDENTITY})
)
STAGE = Change(
    "orders-db",
    "stage",
    {"stage": "side-cluster", "backup": "20261121-003000F", "at": "2026-11-21T00:31:59.120000+00:00"},
    "physical: pgBackRest full backup of 3 min ago, then WAL to the moment before the damage",
    Undo("drop", {"stage": "side-cluster"}),
)
PROMOTE = Change(
    "orders-db",
    "promote",
    {"identity": IDENTITY, "stage": "side-cluster"},
    "side-cluster is proven; what is live now is kept",
    Undo("demote", {"identity": IDENTITY}),
)
POINT = Change(
    "orders-dns",
    "point",
    {"old": "10.0.0.5", "address": "10.0.0.6"},
    "it leads to 10.0.0.5, and orders-db is at 10.0.0.6",
    Undo("point", {"old": "10.0.0.6", "address": "10.0.0.5"}),
)
DECLARED = Change(
    "pager",
    "send",
    {"moment": "declared", "channel": "on-call"},
    "the incident was declared",
    None,
    "a message that was read cannot be unread",
)
RECOVERED = Change(
    "pager",
    "send",
    {"moment": "recovered", "channel": "on-call"},
    "the service is back",
    None,
    "a message that was read cannot be unread",
)

PHYSICAL = WayBack(
    "physical",
    True,
    "the WAL reaches to the moment before the damage",
    stage="side-cluster",
    backup="20261121-003000F",
    arguments=STAGE.arguments,
    promote=PROMOTE.arguments,
    promote_undo=PROMOTE.undo,
    takes=201.0,
    loses=0.0,
)
LOGICAL = WayBack(
    "logical",
    True,
    "dump orders-2026-11-20.sql.zst",
    stage="side-database",
    backup="orders-2026-11-20.sql.zst",
    takes=540.0,
    loses=86400.0,
)
FAILOVER = WayBack("failover", False, "the standby has the same damage: a statement did it")
DECISION = Decision("orders-db", IDENTITY, "orders not zero: 0 (limit at least 1)", PHYSICAL, (LOGICAL, FAILOVER))


class Teller:
    """Writes a journal line by line; `wait` moves its clock."""

    def __init__(self, folder: Path, *, by: str = "kim@ops1", failed_at: datetime | None = None, **opened: Any) -> None:
        self.now = BEGIN
        self.folder = folder
        self.by = by
        service = {
            "incident": folder.name,
            "platform": "sandbox",
            "service": "orders",
            "title": "Orders",
            "purpose": "incident",
            "runbook": "restore",
        }
        wish = Wish(damaged_at=failed_at).to_json()
        times = {
            "detected_at": clock.write_time(BEGIN),
            "failed_at": clock.write_time(failed_at) if failed_at else None,
        }
        with clock.use(lambda: self.now):
            self.journal = Journal.create(
                folder, by=by, **(service | {"wish": wish, "targets": {"rto": 900.0, "rpo": 60.0}} | times | opened)
            )

    def wait(self, seconds: float) -> Teller:
        self.now += timedelta(seconds=seconds)
        return self

    def line(self, kind: str, **data: Any) -> Teller:
        with clock.use(lambda: self.now):
            self.journal.append(kind, **data)
        return self

    def resume(self, by: str, where: str) -> Teller:
        """Another command goes on with the incident."""
        self.journal.close()
        self.by = by
        with clock.use(lambda: self.now):
            self.journal = Journal.open(self.folder, by=by, tell=lambda text: None)
        return self.line("resumed", where=where)

    def step(
        self, name: str, inside: Callable[[], Any] = lambda: None, planned: int = 0, planning: float = 0.0
    ) -> Teller:
        begun = self.now - timedelta(seconds=planning)
        self.line("step", step=name, phase="begun", planned=planned)
        inside()
        self.wait(0.1)
        return self.line("step", step=name, phase="ended", seconds=(self.now - begun).total_seconds())

    def found(
        self,
        step: str,
        subject: str,
        check: str,
        level: Level,
        figure: str = "",
        limit: str = "",
        detail: str = "",
        evidence: str = "",
    ) -> Teller:
        return self.line(
            "finding", step=step, finding=Finding(subject, check, level, figure, limit, detail, evidence).to_json()
        )

    def act(
        self, step: str, change: Change, seconds: float, outcome: str = "done", error: str = "", **extra: Any
    ) -> Teller:
        self.line("intent", step=step, change=change.to_json(), **extra).wait(seconds)
        said = {"error": error} if error else {}
        return self.line("outcome", step=step, key=change.key, outcome=outcome, seconds=seconds, **said, **extra)

    def approve(self, *changes: Change, how: str = "typed at the terminal") -> Teller:
        return self.line("approved", hash=plan_hash(changes), how=how, changes=[change.to_json() for change in changes])

    # --- the parts of a usual recovery ---------------------------------------------------------------------------

    def assess(self) -> Teller:
        def inside() -> None:
            self.found(
                "assess", "auth-db", "answers", Level.PASS, "up", detail="accepts connections (Orders depends on Auth)"
            )
            self.found(
                "assess", "orders-dns", "answers", Level.PASS, "up", detail="10.0.0.5, TTL 30 s on 2 of 2 servers"
            )
            self.found(
                "assess",
                "orders-db",
                "answers",
                Level.PASS,
                "up",
                detail="PostgreSQL 15, timeline 1",
                evidence=IDENTITY,
            )
            self.found("assess", "orders-db", "orders not zero", Level.FAIL, "0", "at least 1")
            self.found("assess", "orders-db", "way back: physical", Level.PASS, "chosen", detail=PHYSICAL.why)
            self.found("assess", "orders-db", "way back: failover", Level.WARN, "not possible", detail=FAILOVER.why)

        self.wait(1.5).line("decision", decision=DECISION.to_json())  # what it decides is written before its first line
        return self.step("assess", inside, planning=1.5)

    def verify(self, level: Level = Level.PASS) -> Teller:
        def inside() -> None:
            self.wait(6).found(
                "verify", "orders-db", "pg_amcheck", Level.PASS, "214 relations", "no corruption", evidence=STAGED
            )
            self.wait(2).found(
                "verify", "orders-db", "fingerprint", level, "9f3ac1", "9f3ac1", "1,204,311 rows in 38 tables", STAGED
            )
            self.wait(1).found(
                "verify", "orders-db", "orders not zero", Level.PASS, "1204311", "at least 1", evidence=STAGED
            )

        self.step("verify", inside)
        if level is Level.PASS:
            self.line("proven", system="orders-db", backup="20261121-003000F", identity=STAGED)
            self.line("measured", newest_commit="2026-11-21T00:31:58.610000+00:00", would_lose=0.51)
        return self

    def recover(self) -> Teller:
        """From the cutover to the end."""

        def cutover() -> None:
            self.act("reroute", PROMOTE, 2.4).act("reroute", POINT, 1.7)
            self.found("reroute", "orders.example.com", "shop answers", Level.PASS, "status 200", "status 2xx")

        self.step("reroute", cutover, 2)
        detected, good = BEGIN, self.now
        self.line(
            "measured",
            rto=(good - detected).total_seconds(),
            rpo=0.51,
            good_at=clock.write_time(good),
            rto_target=900.0,
            rpo_target=60.0,
        )
        self.line("recovered")
        return self.step("notify", lambda: self.act("notify", RECOVERED, 0.8), 1)


def usual(folder: Path, **opened: Any) -> Teller:
    """A recovery from a backup without a hitch."""
    told = Teller(folder, failed_at=BEGIN - timedelta(seconds=60), **opened)
    told.approve(DECLARED, FENCE, STAGE, PROMOTE, POINT, RECOVERED)
    told.assess().step("notify", lambda: told.act("notify", DECLARED, 0.7), 1)
    told.step("isolate", lambda: told.act("isolate", FENCE, 0.4), 1)
    told.step("restore", lambda: told.act("restore", STAGE, 184.2), 1)
    return told.verify().recover()


def eventful(folder: Path) -> Teller:
    """Most things went wrong once: killed, unknown, failed, owed; others went on with it; it was undone and closed."""
    told = Teller(folder, failed_at=BEGIN - timedelta(hours=3))
    told.approve(DECLARED, FENCE, STAGE, PROMOTE, POINT, RECOVERED)
    told.assess().step(
        "notify", lambda: told.act("notify", DECLARED, 5.0, "failed", "pager.example.com does not answer"), 1
    )
    told.line("owed", what="pager: send declared on-call", why="pager.example.com does not answer")
    told.line("step", step="isolate", phase="begun", planned=1)
    told.act("isolate", FENCE, 10.0, "unknown", "orders-db did not answer within 10 s").line(
        "observed", key=FENCE.key, outcome="done", detail="orders-db: fence"
    )
    told.line("step", step="isolate", phase="ended", seconds=10.3)
    told.line("step", step="restore", phase="begun", planned=1).line(
        "intent", step="restore", change=STAGE.to_json()
    ).wait(95)
    told.wait(4000).resume("lee@ops2", "ops2")
    told.line(
        "repaired", lost_bytes=212, text="A crash left 212 bytes of a line that was never finished; they were cut off."
    )
    told.line("paid", what="pager: send declared on-call")
    told.line("note", text="kim's laptop lost its power; lee goes on")
    told.approve(STAGE, PROMOTE, POINT, RECOVERED, how="--approve=0123456789ab")
    told.step("restore", lambda: told.act("restore", STAGE, 190.5), 1).verify(Level.WARN)
    told.line("step", step="reroute", phase="begun", planned=2).act("reroute", PROMOTE, 3.1)
    told.act("reroute", POINT, 2.0, "failed", "ns2.example.com refused the update: NOTAUTH")
    told.wait(340).resume("lee@ops2", "ops2").recover()
    told.line("owed", what="record.html", why="No space left on device")
    told.wait(7200).resume("park@ops1", "ops1")
    back = [Change("orders-db", "demote", {"identity": IDENTITY}, "takes back: promote", None, "it is itself an undo")]
    told.approve(*back)
    told.act("undo", back[0], 3.3, undoing=PROMOTE.key)
    return told.line("undone", result="1 change taken back").wait(60).line("closed", result="recovered, undone")


def crowded(folder: Path, changes: int = 60) -> Teller:
    """Many changes in one step, most of them short, side by side and one after the other."""
    told = Teller(folder)
    told.assess().line("step", step="restore", phase="begun", planned=changes)
    for number in range(changes):
        change = Change(
            f"shard-{number:02d}",
            "stage",
            {"stage": "side-database"},
            "a shard of the orders",
            Undo("drop", {"stage": "side-database"}),
        )
        told.act(
            "restore",
            change,
            (number * 7 % 13) + 0.2,
            "failed" if number % 17 == 5 else "done",
            "no room left" if number % 17 == 5 else "",
        )
    return told.line("step", step="restore", phase="ended", seconds=400.0).verify().recover()


HOSTILE = (
    "<script>document.title='pwned'</script></script><img src=x onerror=alert(1)>"
    "\x1b[31mred\x1b]0;title\x07\u202egnp\x00 {{ 7*7 }} ]]> &amp; \"' --"
)
"""What an engine may print, with everything that a page or a terminal could stumble over."""


def hostile(folder: Path, lines: int = 2000) -> Teller:
    """Names and texts that attack the page, one of 10 MB, and very many lines."""
    told = Teller(folder, by=HOSTILE, title=HOSTILE, runbook=HOSTILE)
    told.assess()
    told.found("assess", HOSTILE, HOSTILE, Level.FAIL, HOSTILE, HOSTILE, "x" * 10_000_000, HOSTILE)
    bad = Change(
        HOSTILE,
        "stage",
        {"stage": HOSTILE, "postgres": "postgres://app:hunter2@db/orders"},
        HOSTILE,
        None,
        HOSTILE,
        destructive=True,
    )
    told.act("restore", bad, 3.0, "failed", HOSTILE)
    told.line("owed", what=HOSTILE, why=HOSTILE).line("a kind from the future", **{HOSTILE: HOSTILE})
    told.line("decision", decision=asdict(DECISION) | {"seen": HOSTILE, "system": HOSTILE, "identity": HOSTILE})
    told.line("finding", step="verify", finding={"nothing": "that is known"}).line(
        "outcome", key="no such key", outcome="done"
    )
    for number in range(lines):
        told.line("note", text=f"{number} {HOSTILE}")
    return told


def later(seconds: float) -> datetime:
    """`seconds` after the beginning."""
    return BEGIN + timedelta(seconds=seconds)

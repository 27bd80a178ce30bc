"""What thousands of journals cost: `python benchmarks/history.py [COUNT]` (default: 5,000).

Writes incidents and drills of ten services over four years, each with the lines of a real recovery, byte for byte as
`Journal` writes them (which is checked). Then the commands that read them are timed as they are typed, with the most
memory that each had: `inv trends`, `inv readiness`, `inv assess`, `inv incidents`; each also with no journals at all.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from salvor import clock
from salvor.change import Argument, Change, Decision, Finding, Level, Undo, WayBack
from salvor.journal import FILE, Journal
from salvor.journal.line import START, digest, encode
from salvor.wish import Wish

ROOT = Path(__file__).absolute().parents[1]
INV = str(Path(sys.executable).with_name("inv"))
SERVICES = [f"shop-{number}" for number in range(10)]
BEGIN = datetime(2022, 12, 1, tzinfo=UTC)
ROUNDS = 3
PLATFORM = """
systems:
{systems}
services:
{services}
"""


def lines(incident: str, service: str, begin: datetime, seed: int) -> Iterator[tuple[datetime, str, dict[str, Any]]]:
    """The lines of one recovery: when, which kind, its data."""
    chance = random.Random(seed)  # noqa: S311  the same journals each time
    now, system = begin, f"app-{service}"
    purpose = "drill" if chance.random() < 0.8 else "incident"
    identity, staged = "7412345678901234567@64769:1311", "7412345678901234567@64769:2622"
    gigabytes = chance.uniform(0.8, 1.2)
    backup = f"{begin:%Y%m%d}-003000F"
    stage: dict[str, Argument] = {
        "stage": "side-data",
        "member": "a",
        "backup": backup,
        "target": "latest",
        "timeline": 1,
    }
    way = WayBack(
        "start", True, "the WAL reaches to the moment before the damage", stage="side-data", arguments=stage,
        backup=backup, promote={"identity": identity, "stage": "side-data"}, takes=201.0, loses=0.0,
        promote_undo=Undo("demote", {"identity": identity, "stage": "side-data"}),
    )  # fmt: skip
    others = (WayBack("logical", True, "a dump of 02:00", stage="side-database", takes=540.0, loses=8e4),)
    changes = {
        "notify": Change(
            "people", "send", {"moment": "declared", "channel": "on-call"}, "operators are told", None, "no"
        ),
        "isolate": Change(system, "fence", {"identity": identity}, "it takes writes", Undo("unfence", {})),
        "restore": Change(system, "stage", stage, "physical: replayed to the newest state", Undo("drop", {})),
        "reroute": Change(system, "promote", dict(way.promote), "side-data is proven", way.promote_undo),
    }
    wish = Wish().to_json()
    failed = begin - timedelta(seconds=chance.uniform(5, 120))
    yield now, "opened", {
        "incident": incident, "platform": "bench", "service": service, "title": service.title(), "purpose": purpose,
        "runbook": "restore", "wish": wish, "detected_at": clock.write_time(begin),
        "failed_at": clock.write_time(failed), "targets": {"rto": 900.0, "rpo": 60.0},
    }  # fmt: skip
    yield now, "approved", {
        "hash": "0123456789ab", "how": "--yes", "changes": [change.to_json() for change in changes.values()]
    }  # fmt: skip
    yield now, "decision", {"decision": Decision(system, identity, "no orders", way, others).to_json()}
    for step in ("assess", "notify", "isolate", "restore", "verify", "reroute", "notify"):
        seconds = {"restore": 7 * gigabytes, "verify": 5 * gigabytes}.get(step, 1.0) * chance.uniform(0.8, 1.5)
        yield now, "step", {"step": step, "phase": "begun", "planned": int(step in changes)}
        if change := changes.get(step):
            yield now, "intent", {"step": step, "change": change.to_json()}
        now += timedelta(seconds=seconds)
        if change:
            moved = {"bytes": int(gigabytes * 1e9)} if step == "restore" else {}
            yield now, "outcome", {
                "step": step, "key": change.key, "outcome": "done", "seconds": round(seconds, 3), **moved
            }  # fmt: skip
        for number in range({"assess": 8, "verify": 9, "reroute": 3}.get(step, 0)):
            found = Finding(
                system, f"check {number}", Level.PASS, f"{chance.randrange(10**6)}", "at least 1",
                "every page of 50 tables was read (31 MB); pg_amcheck found nothing", staged,
            )  # fmt: skip
            yield now, "finding", {"step": step, "finding": found.to_json()}
        yield now, "step", {"step": step, "phase": "ended", "seconds": round(seconds, 3)}
        if step == "verify":
            yield now, "proven", {"system": system, "backup": stage["backup"], "identity": staged}
        if step == "reroute":
            rto = (now - begin).total_seconds() * (60 if chance.random() < 0.03 else 1)
            yield now, "measured", {
                "rto": round(rto, 3), "rpo": round(chance.expovariate(0.1), 3),
                "good_at": clock.write_time(begin + timedelta(seconds=rto)), "rto_target": 900.0, "rpo_target": 60.0,
            }  # fmt: skip
            yield now, "recovered", {}
    yield now, "resumed", {"where": "ops1"}
    yield now, "closed", {"result": "recovered"}


def content(incident: str, service: str, begin: datetime, seed: int) -> bytes:
    """A journal's bytes."""
    raw: list[bytes] = []
    for number, (at, kind, data) in enumerate(lines(incident, service, begin, seed), 1):
        previous = digest(raw[-1]) if raw else START
        line = {"n": number, "at": clock.write_time(at), "by": "kim@ops1", "kind": kind, **data, "previous": previous}
        raw.append(encode(line))
    return b"".join(line + b"\n" for line in raw)


def by_the_journal(folder: Path, service: str, begin: datetime, seed: int) -> bytes:
    """The same, as `Journal` writes it."""
    now = [begin]
    with clock.use(lambda: now[0]):
        for at, kind, data in lines(folder.name, service, begin, seed):
            now[0] = at
            if kind == "opened":
                journal = Journal.create(folder, by="kim@ops1", **data)
            else:
                journal.append(kind, **data)
        journal.close()
    return (folder / FILE).read_bytes()


def write(folder: Path, count: int, until: datetime) -> int:
    """Write so many journals up to a time. Returns their bytes in all."""
    size = 0
    for number in range(count):
        begin = BEGIN + (until - BEGIN) * (number / count)
        service = SERVICES[number % len(SERVICES)]
        incident = f"{begin:%Y%m%dT%H%M%SZ}-{service}-{number % 65536:04x}"
        data = content(incident, service, begin, number)
        if number == 0 and data != by_the_journal(folder / ".checked" / incident, service, begin, number):
            sys.exit("what is written here is not what Journal writes")
        (folder / incident).mkdir()
        (folder / incident / FILE).write_bytes(data)
        size += len(data)
    return size


def inventory(folder: Path) -> None:
    """A platform of ten programs, none of which runs here."""
    folder.mkdir()
    systems = "\n".join(f"  app-{name}: {{kind: application, service: salvor-{name}}}" for name in SERVICES)
    services = "\n".join(
        f"  {name}: {{rto: 15m, rpo: 1m, availability: 99.9, applications: [app-{name}]}}" for name in SERVICES
    )
    (folder / "bench.yaml").write_text(PLATFORM.format(systems=systems, services=services))


def timed(argv: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the most megabytes that it had at a time."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 6):
        sys.exit(f"{' '.join(argv)} failed: {said}")
    return time.perf_counter() - begun, used.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory(prefix="salvor-history-") as name:
        base = Path(name)
        for part in ("many", "none"):
            (base / part).mkdir()
        inventory(base / "inventory")
        size = write(base / "many", count, clock.now())
        print(f"{count} journals, {size / 1e6:.0f} MB")
        here = dict(os.environ) | {"SALVOR_INVENTORY": f"{base}/inventory", "PYTHONPYCACHEPREFIX": f"{base}/bytecode"}
        here.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {
            "inv trends": ["trends"],
            "inv readiness": ["readiness"],
            "inv readiness --report": ["readiness", "--report"],
            "inv assess": ["assess", "--service=shop-3"],
            "inv incidents": ["incidents"],
        }
        print(f"{'':24}{'seconds':>10}{'MB':>8}{'without journals':>20}")
        for told, words in commands.items():
            platform = [] if words == ["incidents"] else ["--platform=bench"]
            took: dict[str, list[tuple[float, float]]] = {"many": [], "none": []}
            for number in range(ROUNDS + 1):
                for part, each in took.items():
                    figures = timed([INV, *words, *platform], here | {"SALVOR_INCIDENTS": f"{base}/{part}"})
                    if number:  # the first fills the caches
                        each.append(figures)
            seconds, without = (statistics.median(one for one, _ in took[part]) for part in ("many", "none"))
            most = max(megabytes for _, megabytes in took["many"])
            print(f"{told:24}{seconds:10.2f}{most:8.0f}{without:20.2f}", flush=True)


if __name__ == "__main__":
    main()

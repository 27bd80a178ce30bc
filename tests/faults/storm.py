"""One recovery of the sandbox, with faults thrown at it at every kind of journal line, and a verdict at its end.

    python -m tests.faults.storm DISASTER RUNBOOK --seed=N --count=N [--faults=NAME,...]
    python -m tests.faults.storm nothing rehearsal --seed=N --count=N

Stands on the sandbox that SALVOR_SANDBOX names. The same command of the operator runs again and again, each time in a
process of its own, until it comes through with no fault left to throw. Prints one JSON object: what was injected where,
how the calls ended, and what is wrong (nothing, one hopes). The seed repeats the choice of faults, not the timing.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# Imported here, so that a fork has them: a call costs no start of Python.
import apprise  # noqa: F401
import dns.query
import dns.update  # noqa: F401
import psycopg  # noqa: F401
import salvor.notebook.record
import salvor.postgres.logical
import salvor.sandbox
import salvor.systems.dns
import salvor.systems.outbox
import salvor.systems.postgres
from salvor import clock, console
from salvor.drill import rehearsal
from salvor.errors import SalvorError
from salvor.journal import Journal, lock
from salvor.notebook.paper import Paper
from salvor.sandbox import disasters, folders
from salvor.sandbox.layout import Layout
from salvor.session.opening import open_session
from salvor.show import Plain

from tests.faults import faults, judge
from tests.faults.faults import Clock, Fault, Operator

CALL_SECONDS = 120.0
"""How long one call of the operator's command may take, whatever befalls it."""
_MOSTLY, _SELDOM = 0.9, 0.1
"""The chance of a fault at a place where no call has come by before, and at any other."""
_MOST_CALLS_IN_VAIN = 12
"""Calls that fail although nothing was thrown at them since the one before."""
TOO_LONG = -signal.SIGALRM
"""The exit code of a call that had to be ended."""
_KINDS = ("opened", "decision", "step", "approved", "intent", "outcome", "observed", "proven", "measured", "recovered")
"""The kinds of journal lines at which a fault is thrown, before and after."""
NOTHING = "nothing"
"""The disaster of a rehearsal."""
_FRONT = {"127.0.0.11": "127.0.0.21", "127.0.0.12": "127.0.0.22"}
"""Where the proxies before the members listen."""


def _no_paper(self: Paper, folder: Path) -> str:
    """Papers are tried elsewhere, and take seconds each."""
    return ""


@dataclass
class Storm:
    """What is thrown, and what came of it."""

    found: Layout
    disaster: str
    runbook: str
    random: random.Random
    count: int
    faults: list[Fault]
    kills: bool
    moment: datetime
    seen: set[tuple[str, str]] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    injected: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    proven_at: float | None = None
    """When the copy was first proven, by this process's clock, in seconds since the epoch."""
    active: tuple[Fault, float] | None = None
    stepped: timedelta = timedelta()
    """By how much the operator's clock is wrong, in the child."""
    turn: Iterator[Fault] = field(init=False)

    def __post_init__(self) -> None:
        self.turn = itertools.cycle(self.random.sample(self.faults, len(self.faults)))

    # --- the parent: throws, heals, repeats -------------------------------------------------------------------------

    def rage(self) -> None:
        """Repeat the operator's command until it comes through; then once more, with nothing thrown at it."""
        calm, in_vain = False, 0
        while in_vain < _MOST_CALLS_IN_VAIN:
            thrown = len(self.injected)
            code, said = self.call()
            self.heal()
            in_vain = in_vain + 1 if len(self.injected) == thrown else 0
            self.calls[str(code)] += 1
            if code == TOO_LONG:
                self.wrong.append(
                    f"a call took longer than {CALL_SECONDS:.0f} s, after {self.injected[-1:]}: {said[-9000:]}"
                )
            if code == 70:
                self.wrong.append(f"a bare traceback: {said[-1500:]}")
                return
            if code == 0 and calm:
                return
            if code == 0:
                calm, self.count = True, 0
        self.wrong.append(f"it failed {in_vain} times with nothing in its way; at last it said: {said[-1500:]}")

    def call(self) -> tuple[int, str]:
        """One call of the operator's command in a process of its own. Returns its exit code and what it said."""
        (asks, child_asks), (child_hears, tells) = os.pipe(), os.pipe()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                os.close(asks)
                os.close(tells)
                os.setsid()
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                self.be_the_operator(child_asks, child_hears)
            os.close(child_asks)
            os.close(child_hears)
            code = self.attend(child, asks, tells)
            os.close(asks)
            os.close(tells)
            said.seek(0)
            return code, said.read()

    def attend(self, child: int, asks: int, tells: int) -> int:
        """Answer the child's questions until it has ended."""
        until = clock.monotonic() + CALL_SECONDS
        unread = b""
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if clock.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return TOO_LONG
            if self.active and clock.monotonic() > self.active[1]:
                self.heal()
            if select.select([asks], [], [], 0.02)[0]:
                unread += os.read(asks, 65536)
                while b"\n" in unread:
                    place, _, unread = unread.partition(b"\n")
                    os.write(tells, f"{self.throw_at(place.decode())}\n".encode())

    def throw_at(self, place: str) -> str:
        """Throw a fault that has not struck at this place. Returns what the child is to do: go, die, step N.

        Nearly always where no call has come by before, seldom elsewhere: so the whole chain is covered. Every other one
        kills the operator, also while another fault lasts.
        """
        chance = _SELDOM if place in self.passed else _MOSTLY
        self.passed.add(place)
        if place.startswith("before proven") and self.proven_at is None:
            self.proven_at = time.time()
        if len(self.injected) >= self.count or self.random.random() > chance:
            return "go"
        if self.kills and (Operator.name, place) not in self.seen and (self.active or self.random.random() < 0.5):
            self.note(Operator.name, place)
            return "die"
        for fault in itertools.islice(self.turn, len(self.faults)) if not self.active else ():
            if (fault.name, place) in self.seen or not fault.begin():
                continue
            self.note(fault.name, place)
            if isinstance(fault, Clock):
                return f"step {fault.seconds}"
            self.active = fault, clock.monotonic() + fault.lasts
            return "go"
        return "go"

    def note(self, fault: str, place: str) -> None:
        self.seen.add((fault, place))
        self.injected.append((fault, place))

    def heal(self) -> None:
        if self.active:
            fault, _ = self.active
            self.active = None
            fault.end()

    # --- the child: the operator ------------------------------------------------------------------------------------

    def be_the_operator(self, asks: int, hears: int) -> None:
        """Carry out the command, and never return."""
        code = 70
        faulthandler.dump_traceback_later(CALL_SECONDS - 10)  # where it hangs
        try:
            self.watch_the_journal(asks, hears)
            with clock.use(lambda: datetime.now(UTC) + self.stepped):  # noqa: TID251 - this is what steps
                code = self.command()
        except SalvorError as error:
            print(error)
            code = error.exit_code
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def command(self) -> int:
        if self.disaster == NOTHING:
            Paper.make = _no_paper  # type: ignore[method-assign]
            rehearsal.run("orders", "sandbox", Plain())
        else:
            sitting = open_session("orders", Plain(), failed_at=self.moment, runbook_name=self.runbook)
            console.recover(sitting, Plain(), yes=True)
        return 0

    def watch_the_journal(self, asks: int, hears: int) -> None:
        """Ask the parent before and after each line of the journal."""
        append = Journal.append
        heard = os.fdopen(hears, "r", encoding="utf-8")
        turn = threading.Lock()  # messages are sent in a thread: of two that read answers, one would take both

        def ask(place: str) -> None:
            with turn:
                os.write(asks, f"{place}\n".encode())
                word, _, figure = heard.readline().strip().partition(" ")
            if word == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "step":
                self.stepped += timedelta(seconds=float(figure))

        def watched(journal: Journal, kind: str, **data: Any) -> dict[str, Any]:
            if kind not in _KINDS or (data.get("change") or {}).get("system") == "people":
                return append(journal, kind, **data)
            change = data.get("change") or {}
            words = (kind, data.get("step", ""), change.get("verb", ""), data.get("outcome", ""), data.get("phase", ""))
            name = " ".join(str(word) for word in words if word)
            ask(f"before {name}")
            line = append(journal, kind, **data)
            ask(f"after {name}")
            return line

        Journal.append = watched  # type: ignore[method-assign, assignment]


# ------------------------------------------------------------------------------------------------ the stage of it


@contextmanager
def fronts(found: Layout, folder: Path) -> Iterator[dict[str, Path]]:
    """Proxies before the databases, the DNS server and the receiver, and an inventory that leads through them.

    Yields the mode file of each by the part's name.
    """
    modes = {part: folder / f"{part}.mode" for part in ("PostgreSQL", "DNS", "the receiver")}
    ports = {"dns_port": _free_port(), "receiver_port": _free_port()}
    local = "127.0.0.1"
    pairs = [
        ("DNS", (local, ports["dns_port"]), (local, found.dns_port)),
        ("the receiver", (local, ports["receiver_port"]), (local, found.receiver_port)),
        *(("PostgreSQL", (front, found.database_port), (own, found.database_port)) for own, front in _FRONT.items()),
    ]
    inventory = folder / "inventory" / "sandbox"
    inventory.mkdir(parents=True)
    text = (Path(__file__).parents[2] / "inventory/sandbox/platform.yaml").read_text(encoding="utf-8")
    head, _, rest = text.partition("variables_from:")
    text = f"{head}variables_from: {folder}/variables.yaml\n{rest.partition(chr(10))[2]}"
    for own, front in _FRONT.items():
        text = text.replace(f"address: {own}", f"address: {front}")
    (inventory / "platform.yaml").write_text(text, encoding="utf-8")
    variables = found.variables.read_text(encoding="utf-8").splitlines()
    kept = [line for line in variables if line.split(":")[0] not in ports]
    lines = [*kept, *(f'{name}: "{port}"' for name, port in ports.items())]
    (folder / "variables.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.environ["SALVOR_INVENTORY"] = str(inventory.parent)
    running = [faults.start_proxy(listen, target, modes[part]) for part, listen, target in pairs]
    try:
        for _, listen, _ in pairs:
            _wait_for(listen)
        yield modes
    finally:
        for process in running:
            process.kill()
            process.wait()


def _free_port() -> int:
    taken: set[int] = set()
    return folders.free_port(("127.0.0.1",), taken)


def _wait_for(address: tuple[str, int]) -> None:
    until = time.monotonic() + 10
    while folders.is_free(*address):
        assert time.monotonic() < until, address
        time.sleep(0.02)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in `folder`, when we are root; what is in the folder comes along."""
    if os.geteuid() != 0:
        yield
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(lock.in_memory(folder.absolute()), ignore_errors=True)


def all_faults(found: Layout, modes: dict[str, Path], incidents: Path) -> list[Fault]:
    """Every fault there is. Freezing outlasts the deadline of whoever waits, and is dear: there are few of it."""
    network = [
        faults.Network(found, part, mode, modes[part])
        for part in modes
        for mode in ("refuse", "hang", "slow", "reset", "lose")
    ]
    return [
        faults.KillServers(found),
        faults.KillStaged(found),
        faults.KillPgBackRest(found),
        faults.KillDaemon(found, "names"),
        faults.KillDaemon(found, "receiver"),
        faults.Freeze(found, "live", 5.0),
        faults.Freeze(found, "staged", 5.0),
        faults.Freeze(found, "names", 4.0),
        faults.Freeze(found, "receiver", 4.0),
        *network,
        faults.FullDisk(found, "the journal and the record", incidents),
        faults.ReadOnly(found, "the journal and the record", incidents),
        faults.WrongSecret(found, "operator.password"),
        faults.WrongSecret(found, "tsig.secret"),
        Clock(found, 3600.0),
        Clock(found, -3600.0),
    ]


def run(disaster: str, runbook: str, seed: int, count: int, chosen: list[str]) -> dict[str, Any]:
    """A whole storm. Returns what was injected, how the calls ended, and what is wrong."""
    begun = clock.monotonic()
    found = salvor.sandbox.find()
    incidents = Path(os.environ["SALVOR_INCIDENTS"])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="salvor-storm-")))
        stack.enter_context(small_disk(incidents, "24m"))
        modes = stack.enter_context(fronts(found, folder))
        prober = subprocess.Popen([sys.executable, "-m", "tests.faults.prober", str(found.place), str(folder / "dns")])
        stack.callback(prober.wait)
        stack.callback(prober.kill)
        time.sleep(1.0)  # of writes
        moment = clock.now() if disaster == NOTHING else disasters.strike(disaster)
        which = [fault for fault in all_faults(found, modes, incidents) if not chosen or fault.name in chosen]
        kills = not chosen or Operator.name in chosen
        storm = Storm(found, disaster, runbook, random.Random(seed), count, which, kills, moment)
        storm.rage()
        if not storm.wrong:
            about = (found, incidents, moment, folder / "dns", disaster)
            storm.wrong += judge.rehearsed(*about) if disaster == NOTHING else judge.recovered(*about, storm.proven_at)
    return {
        "disaster": disaster,
        "runbook": runbook,
        "seed": seed,
        "injected": storm.injected,
        "calls": dict(storm.calls),
        "wrong": storm.wrong,
        "seconds": round(clock.monotonic() - begun, 1),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("disaster", choices=[NOTHING, *sorted(disasters.names())])
    parser.add_argument("runbook")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--faults", default="")
    given = parser.parse_args(argv)
    names = [name for name in given.faults.split(",") if name]
    result = run(given.disaster, given.runbook, given.seed, given.count, names)
    print(json.dumps(result))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

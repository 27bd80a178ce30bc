"""The same work on many machines, in batches and with a budget of failures: a command, or files to them and back. Who
did what where is written down before it is done.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from salvor import clock, hosts, inventory
from salvor.change import Progress
from salvor.errors import CannotError, OutcomeUnknownError, UsageError
from salvor.fleet import Answered
from salvor.hosts import record as hosts_record
from salvor.hosts import show as show_hosts
from salvor.hosts.record import Record
from salvor.shell import Shell
from salvor.show import Shown
from salvor.ssh.host import Host

Moved = Callable[[str, Progress], None]
"""What is told of how far a machine is: its name, and bytes done of all."""


@dataclass(frozen=True)
class Said:
    """What a machine said of the work, and its exit code; None: it failed, and no command's exit code says so."""

    text: str
    exit_code: int | None = 0


Work = Callable[[str, Shell, Moved], Said]


@dataclass(frozen=True)
class Ran:
    """What came of it on a machine: `said` is what it printed, `outcome` done, failed, unreachable or unknown.
    `exit_code` is None when it did not come to one.
    """

    host: str
    outcome: str
    said: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Rolling:
    """How work goes from machine to machine: `batch` at a time (0: all at once); the next batch begins as long as
    no more than `failures` failed. `deadline` is that of each, in seconds.
    """

    batch: int
    failures: int
    deadline: float


def rolling(batch: int, failures: int | None, deadline: str) -> Rolling:
    """From what an operator types. Raises UsageError."""
    if batch < 0 or (failures or 0) < 0:
        raise UsageError(
            "--batch and --failures are numbers from 0.",
            safe="nothing was run",
            hint="for example --batch=5 --failures=1",
        )
    if failures is not None and not batch:
        raise UsageError(
            "--failures needs --batch: when all begin at once, nothing is left to stop.",
            safe="nothing was run",
            hint=f"for example --batch=5 --failures={failures}",
        )
    try:
        seconds = clock.read_duration(deadline)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}.", safe="nothing was run", hint="for example --deadline=60s") from error
    return Rolling(batch, failures or 0, seconds)


def run(platform: str, limit: str, argv: Sequence[str], how: Rolling, shown: Shown) -> None:
    """Run a command on the machines and show what they say, grouped by equal answers. One word is a line for sh.

    Raises CannotError when it failed somewhere, OutcomeUnknownError when that cannot be told of some machine.
    """
    if not argv:
        raise UsageError("Which command?", safe="nothing was run", hint="inv hosts.run -- uptime")
    command = ["sh", "-c", argv[0]] if len(argv) == 1 else list(argv)

    def work(name: str, there: Shell, moved: Moved) -> Said:
        result = there.run(command, deadline=how.deadline, check=False)
        return Said(result.stdout + result.stderr, result.exit_code)

    roll("hosts.run", shlex.join(argv), platform, limit, work, how, shown)


def roll(task: str, what: str, platform_name: str, limit: str, work: Work, how: Rolling, shown: Shown) -> None:
    """Do `work` on the machines that `limit` names, show what they say, and keep it in a journal of its own. `what`
    says it in a line. Raises as `run` does.
    """
    platform = inventory.load(platform_name)
    chosen = hosts.select(hosts.places(platform), limit)
    reached = {name: place.host for name, place in chosen.items()}
    done: list[Ran] = []
    with (
        hosts_record.kept(task, platform.name, what, asdict(how), shown) as record,
        show_hosts.counting(shown, len(chosen)) as count,
    ):
        for one in _rolled(reached, lambda name, there: work(name, there, count.moved), how, record):
            done.append(one)
            count.answered(one.outcome != "done")
    begun = {one.host for one in done}
    left = [name for name in chosen if name not in begun]
    show_hosts.groups(done, left, shown)
    _judge(done, left, what)


def _rolled(
    reached: Mapping[str, Host], work: Callable[[str, Shell], Said], how: Rolling, record: Record
) -> Iterator[Ran]:
    names = list(reached)
    size = how.batch or len(names)
    failed = 0
    for first in range(0, len(names), size):
        batch = {name: reached[name] for name in names[first : first + size]}
        record.begun(list(batch))
        done = []
        try:
            for answered in hosts.each(batch, work, size):
                one = _ran(answered, reached[answered.host].address)
                done.append(one)
                failed += one.outcome != "done"
                yield one
        finally:
            record.ended(done)
        if failed > how.failures:
            return


def _ran(answered: Answered[Said], address: str) -> Ran:
    said, error = answered.answer, answered.error
    if said is not None:
        if said.exit_code == 0:
            return Ran(answered.host, "done", said.text, 0)
        code = "" if said.exit_code is None else f"\n(exit code {said.exit_code})"
        return Ran(answered.host, "failed", f"{said.text.rstrip()}{code}".lstrip(), said.exit_code)
    assert error is not None
    outcome = "unknown" if isinstance(error, OutcomeUnknownError) else "unreachable"
    same = re.sub(rf"\S*{re.escape(address)}(:\d+)?", "it", error.what) if address else error.what
    return Ran(answered.host, outcome, same)  # without its name, so that equal errors are shown once


def _judge(done: Sequence[Ran], left: Sequence[str], command: str) -> None:
    counts = {outcome: sum(one.outcome == outcome for one in done) for outcome in ("failed", "unreachable", "unknown")}
    if not any(counts.values()):
        return
    wrong = ", ".join(f"{outcome} on {count}" for outcome, count in counts.items() if count)
    what = f"{command}: {wrong} of {len(done) + len(left)} machines."
    safe = f"it was not begun on {len(left)} of them" if left else ""
    names = ",".join(sorted(one.host for one in done if one.outcome != "done")[:20])
    hint = f"look there: inv hosts --limit={names}"
    if counts["unknown"]:
        raise OutcomeUnknownError(what, safe=safe, hint=hint)
    raise CannotError(what, safe=safe, hint=hint)

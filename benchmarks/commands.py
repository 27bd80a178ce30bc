"""What Salvor's commands cost when there is nothing to wait for: `python benchmarks/commands.py [--rounds N]`.

Starts a sandbox of its own (`inv sandbox.up`), and times each command as it is typed, from its start to its end:
`inv --list` against the same of a file with one empty task, `inv backups`, `inv assess`, and `inv restore` of a service
that is sound, with the CPU seconds of it and of what it started. Then the primary is killed (SIGKILL) and frozen
(SIGSTOP), in a sandbox started anew each time: seconds until `inv assess`, typed at that moment, has said so.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salvor import sandbox
from salvor.sandbox import disasters

ROOT = Path(__file__).absolute().parents[1]
INV = str(Path(sys.executable).with_name("inv"))
ASSESS = [INV, "assess", "--service=orders"]
ONE_TASK = "from invoke import task\n\n\n@task\ndef nothing(c):\n    pass\n"
SAYS = {"kill-primary": "no process, and the port refuses", "freeze-primary": "frozen by a signal"}


@contextmanager
def surroundings() -> Iterator[Path]:
    """A folder for a sandbox, which the commands find, while the block runs; bytecode is kept, as it usually is."""
    with tempfile.TemporaryDirectory(prefix="salvor-commands-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # the servers' user has to pass
        os.environ |= {"SALVOR_SANDBOX": f"{folder}/sandbox", "SALVOR_INCIDENTS": f"{folder}/incidents"}
        os.environ |= {"SALVOR_SANDBOX_ROOT": f"{folder}/data", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            yield folder
        finally:
            sandbox.down()


def run(argv: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, CPU seconds of it and of all that it started and waited for, and what it said."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with exit code {done.returncode}: {done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def compare(empty: Path, rounds: int) -> None:
    """Let the commands take turns, and print what each took."""
    commands = {
        "inv --list, one task": ([INV, "--list"], empty),
        "inv --list": ([INV, "--list"], ROOT),
        "inv backups": ([INV, "backups", "--service=orders"], ROOT),
        "inv assess": (ASSESS, ROOT),
        "inv restore, all is well": ([INV, "restore", "--service=orders", "--yes"], ROOT),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, (argv, folder) in commands.items():
            wall, cpu, _ = run(argv, folder)
            if number:  # the first fills the caches
                took[name].append((wall, cpu))
    print(f"{'':26}{'seconds (least to most)':>26}{'CPU seconds':>14}")
    for name, each in took.items():
        seconds = [one for one, _ in each]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{name:26}{spread:>26}{statistics.median(cpu for _, cpu in each):14.2f}")
    pairs = zip(took["inv --list"], took["inv --list, one task"], strict=True)
    more = statistics.median(ours[0] - theirs[0] for ours, theirs in pairs)
    print(f"inv --list takes {1000 * more:.0f} ms more than for one task", flush=True)


def notice(disaster: str) -> float:
    """Seconds from the disaster until `inv assess` has said what happened."""
    sandbox.up(fresh=True, tell=lambda text: None)
    run(ASSESS, ROOT)
    disasters.strike(disaster)
    seconds, _, said = run(ASSESS, ROOT)
    if SAYS[disaster] not in said or "Way back: failover" not in said:
        sys.exit(f"inv assess does not say that {disaster} happened:\n{said}")
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    with surroundings() as folder:
        sandbox.up(tell=lambda text: None)
        empty = folder / "empty"
        empty.mkdir()
        (empty / "tasks.py").write_text(ONE_TASK)
        compare(empty, asked.rounds)
        for disaster in SAYS:
            took = sorted(notice(disaster) for _ in range(3))
            print(f"{disaster}: inv assess says so after {took[1]:.2f} s ({took[0]:.2f} to {took[2]:.2f})", flush=True)


if __name__ == "__main__":
    main()

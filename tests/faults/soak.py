"""Storms without end: `./start soak [--count=5000] [--seed=1]` throws that many faults, and shows a table of them.

Ends with 1 when any recovery was not as an undisturbed one; each such case is shown with the command that repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, defaultdict

from salvor import clock, show
from salvor.sandbox import disasters

from tests import conftest
from tests.faults.storm import NOTHING
from tests.faults.storms import rage

_EACH = 70
"""Faults thrown at one recovery."""
_SCENES = [
    *((disaster, "restore") for disaster in sorted(disasters.names())),
    ("drop-table", "from_backup"),
    ("wrong-update", "from_backup"),
    ("kill-primary", "failover"),
    (NOTHING, "rehearsal"),
]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./start soak")
    parser.add_argument("--count", type=int, default=5000, help="how many faults to throw (5000)")
    parser.add_argument("--seed", type=int, default=1, help="what chooses the faults (1)")
    given = parser.parse_args(argv)
    choose = random.Random(given.seed)
    thrown: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    by_scene: dict[tuple[str, str], list[float]] = defaultdict(list)
    wrong: list[str] = []
    begun = clock.monotonic()
    print(f"Seed {given.seed}: {given.count} faults, up to {_EACH} at each recovery.", flush=True)
    with conftest.a_cluster() as cluster:
        while (total := sum(thrown.values())) < given.count:
            disaster, runbook = choose.choice(_SCENES)
            seed = choose.randrange(1_000_000)
            try:
                with conftest.a_sandbox(cluster):
                    result = rage(disaster, runbook, seed=seed, count=min(_EACH, given.count - total))
            except KeyboardInterrupt:
                print("Stopped; what was done so far:", flush=True)
                break
            thrown.update(fault for fault, _ in result["injected"])
            ended.update(result["calls"])
            by_scene[disaster, runbook].append(result["seconds"])
            for each in result["wrong"]:
                wrong.append(
                    f"{each}\n    python -m tests.faults.storm {disaster} {runbook} --seed={seed} --count={_EACH}"
                )
                print(f"WRONG: {wrong[-1]}", flush=True)
            took, done = clock.monotonic() - begun, sum(thrown.values())
            left = clock.write_duration(took / max(done, 1) * max(0, given.count - done))
            print(f"{done} of {given.count} faults, {len(wrong)} wrong, {left} left: {disaster}, {runbook}", flush=True)
    print()
    print(*show.table(("fault", "thrown"), [(name, str(count)) for name, count in sorted(thrown.items())]), sep="\n")
    print()
    scenes = [(*scene, str(len(took)), f"{max(took):.0f} s") for scene, took in sorted(by_scene.items())]
    print(*show.table(("disaster", "runbook", "recoveries", "longest, all calls together"), scenes), sep="\n")
    print()
    codes = [(code, str(count)) for code, count in sorted(ended.items())]
    print(*show.table(("a call ended with", "times"), codes), sep="\n")
    print(f"\n{sum(thrown.values())} faults, {sum(map(len, by_scene.values()))} recoveries, {len(wrong)} wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

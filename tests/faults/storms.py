"""Lets a storm rage over a sandbox, in a process without threads: only such a one may fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SECONDS = 900.0


def rage(disaster: str, runbook: str, *, seed: int, count: int) -> dict[str, Any]:
    """One storm over the sandbox of the environment: its result, as `tests.faults.storm` prints it."""
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-m", "tests.faults.storm", disaster, runbook, f"--seed={seed}", f"--count={count}"]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'lib'}{os.pathsep}{root}"},
    )
    assert done.stdout.strip().startswith("{"), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def passed(disaster: str, runbook: str, *, seed: int, count: int, at_least: int) -> None:
    """Assert that nothing is wrong after a storm, that it was one, and that no fault struck twice at one place."""
    result = rage(disaster, runbook, seed=seed, count=count)
    injected = [tuple(each) for each in result["injected"]]
    assert not result["wrong"], f"{result['wrong']}\nafter {result['calls']} and {injected}"
    assert len(injected) == len({*injected}) >= at_least, Counter(fault for fault, _ in injected)
    assert result["calls"].get("-9", 0) >= at_least // 4, result["calls"]
    print(f"{disaster}, {runbook}: {len(injected)} faults in {result['seconds']} s, calls ended {result['calls']}")

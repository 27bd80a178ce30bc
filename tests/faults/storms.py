"""Lets a storm rage over a sandbox, in a process without threads: only such a one may fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 900.0


def rage(disaster: str, runbook: str, *, seed: int, count: int) -> dict[str, Any]:
    """One storm over the sandbox of the environment: its result, as `tests.faults.storm` prints it."""
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-m", "tests.faults.storm", disaster, runbook, f"--seed={seed}", f"--count={count}"]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'lib'}{os.pathsep}{root}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=root, env=environment) as storm:
        try:
            said, errors = storm.communicate(timeout=SECONDS)
        except BaseException:
            storm.send_signal(signal.SIGINT)  # it has daemons and a file system to take away
            with suppress(subprocess.TimeoutExpired):
                storm.wait(30)
            storm.kill()
            raise
    assert said.strip().startswith("{"), said + errors
    result: dict[str, Any] = json.loads(said)
    return result


def passed(disaster: str, runbook: str, *, seed: int, count: int, at_least: int) -> None:
    """Assert that nothing is wrong after a storm, that it was one, and that no fault struck twice at one place."""
    result = rage(disaster, runbook, seed=seed, count=count)
    injected = [tuple(each) for each in result["injected"]]
    assert not result["wrong"], f"{result['wrong']}\nafter {result['calls']} and {injected}"
    assert len(injected) == len({*injected}) >= at_least, Counter(fault for fault, _ in injected)
    assert result["calls"].get("-9", 0) >= at_least // 4, result["calls"]
    print(f"{disaster}, {runbook}: {len(injected)} faults in {result['seconds']} s, calls ended {result['calls']}")

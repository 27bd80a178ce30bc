"""Promise 4 on real engines: the chain is killed at every kind of journal line, before and after it, and resumed.

One disaster, one incident: each call of the same command is killed at the first line at which none was killed before,
until a call comes through. So each of these lines is a place where the operator's process died, and the whole is
resumed dozens of times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from salvor.change import Level
from salvor.evidence import check
from salvor.journal import Journal, incidents
from salvor.sandbox import disasters, survivors
from salvor.sandbox.layout import Layout
from salvor.session import incidents_folder

_CHILD = """
import json, os, signal, sys
from datetime import datetime
from pathlib import Path
from salvor import console, journal, session
from salvor.show import Plain
seen = Path(sys.argv[1])
died = set(seen.read_text().splitlines()) if seen.exists() else set()
append = journal.Journal.append
def name(kind, data):
    change = data.get("change") or {}
    outcome = f"{change.get('verb', '')} {data.get('outcome', '')} {data.get('phase', '')}"
    return f"{kind} {data.get('step', '')} {outcome}".strip()
def die(place):
    if place not in died:
        with seen.open("a") as file:
            file.write(place + chr(10))
            file.flush()
            os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)
def watched(self, kind, **data):
    if kind in KINDS:
        die("before " + name(kind, data))
    line = append(self, kind, **data)
    if kind in KINDS:
        die("after " + name(kind, data))
    return line
KINDS = ("opened", "decision", "approved", "intent", "outcome", "proven", "measured", "recovered")
journal.Journal.append = watched
sitting = session.open_session("orders", Plain(), failed_at=datetime.fromisoformat(sys.argv[2]))
console.recover(sitting, Plain(), yes=True)
"""


def call(seen: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _CHILD, str(seen), moment],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "lib")},
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("disaster", ["wrong-update", "kill-primary"])
def test_killed_at_every_line_of_a_real_recovery(fresh_sandbox: Layout, tmp_path: Path, disaster: str) -> None:
    time.sleep(1.0)
    moment = disasters.strike(disaster)
    seen = tmp_path / "died"
    while (done := call(seen, moment.isoformat())).returncode == -signal.SIGKILL:
        pass
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    places = seen.read_text().splitlines()
    assert len(places) >= 20, places
    folders = list(incidents(incidents_folder()))
    resumed = [Journal.read(folder) for folder in folders]
    assert len([told for told in resumed if told.of("intent")]) == 1, "it was one incident, resumed"
    assert not [each for folder in folders for each in check(folder) if each.level is Level.FAIL]
    counted = survivors.survivors(moment)
    assert counted.before - counted.before_survived <= (0 if disaster == "wrong-update" else 30)
    keys = [json.loads(line)["key"] for line in fresh_sandbox.messages.read_text().splitlines()]
    assert sorted(keys) == sorted(set(keys)), "a message was sent twice"
    assert {key.split("/")[1] for key in keys} == {"declared", "recovered"}
    if disaster == "wrong-update":
        assert list(fresh_sandbox.data("a").parent.glob("data.kept-*")), "what was live is kept"

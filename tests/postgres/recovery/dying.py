"""A verb called in a process of its own, which is killed by SIGKILL before one of its commands: as a crash would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salvor import shell
from salvor.sandbox import layout
from salvor.systems.postgres import Postgres

from tests.postgres.recovery.clusters import Cluster, open_system


def call(cluster: Cluster, verb: str, arguments: Mapping[str, Any], *, dies_before: int) -> bool:
    """Call it, killed before its `dies_before`th command. Whether it came to its end instead."""
    task = [str(cluster.sandbox.place), cluster.system.context.incident, verb, json.dumps(dict(arguments)), dies_before]
    search = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "lib")])
    done = subprocess.run(
        [sys.executable, "-m", __name__, *map(str, task)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def main() -> None:
    place, incident, verb, arguments, dies_before = sys.argv[1:]
    sandbox = layout.find(Path(place))
    assert sandbox
    commands = 0
    start = shell._Local._start

    def counted(self: shell._Local, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> Any:
        nonlocal commands
        commands += 1
        if commands >= int(dies_before):
            os.kill(os.getpid(), signal.SIGKILL)
        return start(self, argv, environment, stdin)

    shell._Local._start = counted  # type: ignore[method-assign]
    system: Postgres = open_system(sandbox, incident)
    for _ in getattr(system, verb)(**json.loads(arguments)) or ():
        pass


if __name__ == "__main__":
    main()

"""A verb called in a process of its own, which is killed by SIGKILL before one of its commands: as a crash would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvor.running import Command
from salvor.sandbox.layout import Layout
from salvor.shell import here

from tests.postgres.recovery.clusters import Cluster, open_system


class Mortals:
    """Calls verbs in processes that die on time. They are forked from one that has imported everything already."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        search = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "lib")])
        self.parent = subprocess.Popen(
            [sys.executable, "-m", __name__, str(cluster.sandbox.place), cluster.system.context.incident],
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, verb: str, arguments: Mapping[str, Any], *, dies_before: int) -> bool:
        """Call it, killed before its `dies_before`th command. Whether it came to its end instead."""
        assert self.parent.stdin and self.parent.stdout
        self.parent.stdin.write(json.dumps([verb, dict(arguments), dies_before]) + "\n")
        self.parent.stdin.flush()
        code = int(self.parent.stdout.readline())
        assert code in (0, -signal.SIGKILL), f"{verb} ended with exit code {code}: see what it wrote"
        return code == 0

    def until_it_ends(self, verb: str, arguments: Mapping[str, Any], step: int = 1) -> int:
        """Call it killed ever later, so that each call finds what the one before left, until one comes to its end."""
        for dies_before in range(1, 400, step):
            if self.call(verb, arguments, dies_before=dies_before):
                return dies_before
        raise AssertionError(f"{verb} does not come to its end")

    def close(self) -> None:
        assert self.parent.stdin
        self.parent.stdin.close()
        self.parent.wait(10)


def main() -> None:
    place, incident = sys.argv[1:]
    for line in sys.stdin:
        verb, arguments, dies_before = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _call(Path(place), incident, verb, arguments, dies_before)
                code = 0
            except BaseException:  # noqa: BLE001  it is shown, and must not return into the parent's loop
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _call(place: Path, incident: str, verb: str, arguments: Mapping[str, Any], dies_before: int) -> None:
    sandbox = Layout.find(place)
    assert sandbox
    commands = 0
    start = here.Local._start

    def counted(self: here.Local, command: Command) -> Any:
        nonlocal commands
        commands += 1
        if commands >= dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return start(self, command)

    here.Local._start = counted  # type: ignore[method-assign]
    for _ in getattr(open_system(sandbox, incident), verb)(**arguments) or ():
        pass


if __name__ == "__main__":
    main()

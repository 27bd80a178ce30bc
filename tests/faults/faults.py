"""What can be done to a recovery from outside while it runs, and how each is healed again.

A fault is injected by `begin` and healed by `end`, as a service manager, a network or a person with a df would.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from salvor.sandbox import database, folders, layout, names, processes
from salvor.sandbox.layout import Layout

HERE = Path(__file__).parent
STAGED = "salvor-"
"""In the name of the folder of a staged server."""


class Fault(ABC):
    """One way to fail. `lasts`: seconds, then it is healed, or as soon as the command has ended."""

    name: str
    lasts = 1.5

    def __init__(self, found: Layout) -> None:
        self.found = found

    @abstractmethod
    def begin(self) -> bool:
        """Inject it; False when there is nothing now that it could strike."""

    def end(self) -> None:  # noqa: B027 - some need no healing
        """Heal it."""


class Operator:
    """SIGKILL of the operator's process: it does it to itself when it is told to."""

    name = "kill the operator"


def servers(found: Layout, *, staged: bool) -> list[processes.Process]:
    """The processes of the members, or of what is staged beside them."""
    data = [path for member in layout.ADDRESSES for path in found.data(member).parent.glob("data*")]
    chosen = [path for path in data if (STAGED in path.name) == staged and "kept" not in path.name]
    return [process for path in chosen for process in processes.working_in(path)]


class KillServers(Fault):
    """SIGKILL of every process of the live members' servers; a service manager starts them again later."""

    name = "kill PostgreSQL, live"

    def begin(self) -> bool:
        self.ran = [member for member in layout.ADDRESSES if database.server(self.found, member).processes()]
        processes.kill(servers(self.found, staged=False))
        return bool(self.ran)

    def end(self) -> None:
        for member in self.ran:
            server = database.server(self.found, member)
            if server.shell.exists(f"{server.data}/PG_VERSION") and not server.processes():
                with suppress(Exception):  # what cannot start is the recovery's work
                    server.start(deadline=10.0)


class KillStaged(Fault):
    """SIGKILL of the staged server, and of pgBackRest while it fills the stage."""

    name = "kill PostgreSQL, staged"

    def begin(self) -> bool:
        found = servers(self.found, staged=True)
        processes.kill(found)
        return bool(found)


class KillPgBackRest(Fault):
    """SIGKILL of the first pgBackRest that is seen at work on a stage from now on.

    Not of a standby's: PostgreSQL ends its recovery when its restore_command dies by a signal, and shuts down.
    """

    name = "kill pgBackRest"
    lasts = 3.0

    def begin(self) -> bool:
        ours = f"^pgbackrest .*--pg1-path={re.escape(str(self.found.root))}/.*data.salvor-"
        script = 'for i in $(seq 300); do pkill -KILL -f "$1" && exit 0; sleep 0.01; done'
        self.watching = subprocess.Popen(["sh", "-c", script, "sh", ours])
        return True

    def end(self) -> None:
        self.watching.kill()
        self.watching.wait()


def daemons(found: Layout, part: str) -> list[processes.Process]:
    return processes.find(names.argv(found) if part == "names" else processes.module(part, found.place))


class KillDaemon(Fault):
    """SIGKILL of the DNS server or of the receiver of messages."""

    def __init__(self, found: Layout, part: str) -> None:
        super().__init__(found)
        self.part = part
        self.name = f"kill {part}"

    def begin(self) -> bool:
        running = daemons(self.found, self.part)
        processes.kill(running)
        return bool(running)

    def end(self) -> None:  # nothing else is started: a primary that is dead stays so
        if self.part == "names":
            names.start(self.found)
        else:
            processes.start(processes.module(self.part, self.found.place), self.found.log(self.part))


class Freeze(Fault):
    """SIGSTOP for longer than a deadline, then SIGCONT."""

    def __init__(self, found: Layout, part: str, lasts: float) -> None:
        super().__init__(found)
        self.part, self.lasts = part, lasts
        self.name = f"freeze {part}"

    def begin(self) -> bool:
        if self.part in ("live", "staged"):
            self.frozen = servers(self.found, staged=self.part == "staged")
        else:
            self.frozen = daemons(self.found, self.part)
        processes.send(self.frozen, signal.SIGSTOP)
        return bool(self.frozen)

    def end(self) -> None:
        processes.send(self.frozen, signal.SIGCONT)


class Network(Fault):
    """What a proxy before a server does to everything that crosses it."""

    def __init__(self, found: Layout, part: str, mode: str, mode_file: Path) -> None:
        super().__init__(found)
        self.mode, self.mode_file = mode, mode_file
        self.name = f"{mode} TCP to {part}"

    def begin(self) -> bool:
        self.mode_file.write_text(self.mode, encoding="utf-8")
        return True

    def end(self) -> None:
        self.mode_file.write_text("pass", encoding="utf-8")


class FullDisk(Fault):
    """No room left in a folder that is a small file system of its own."""

    def __init__(self, found: Layout, what: str, folder: Path) -> None:
        super().__init__(found)
        self.folder = folder
        self.name = f"full disk for {what}"

    def begin(self) -> bool:
        if not self.folder.is_mount():
            return False
        with suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        return True

    def end(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


class ReadOnly(Fault):
    """A file system that the kernel made read-only."""

    def __init__(self, found: Layout, what: str, folder: Path) -> None:
        super().__init__(found)
        self.folder = folder
        self.name = f"read-only disk for {what}"

    def _remount(self, how: str) -> bool:
        argv = ["mount", "-o", f"remount,{how}", str(self.folder)]
        return subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode == 0

    def begin(self) -> bool:
        return self.folder.is_mount() and self._remount("ro")

    def end(self) -> None:
        until = time.monotonic() + 10
        while not self._remount("rw") and time.monotonic() < until:
            time.sleep(0.1)


class WrongSecret(Fault):
    """A password or key that is changed midway, and put right again."""

    def __init__(self, found: Layout, secret: str) -> None:
        super().__init__(found)
        self.path = found.root / "secrets" / secret
        self.name = f"wrong {secret}"

    def begin(self) -> bool:
        self.right = self.path.read_text(encoding="utf-8")
        folders.write(self.path, "d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc=\n")
        return True

    def end(self) -> None:
        folders.write(self.path, self.right)


class Clock(Fault):
    """The operator's clock is stepped; the child does it, as it is its own."""

    def __init__(self, found: Layout, seconds: float) -> None:
        super().__init__(found)
        self.seconds = seconds
        self.name = f"clock stepped {'forward' if seconds > 0 else 'back'}"
        self.lasts = 0.0

    def begin(self) -> bool:
        return True


def start_proxy(listen: tuple[str, int], target: tuple[str, int], mode_file: Path) -> subprocess.Popen[bytes]:
    """A proxy, passing everything at first."""
    mode_file.write_text("pass", encoding="utf-8")
    addresses = [f"{host}:{port}" for host, port in (listen, target)]
    return subprocess.Popen([sys.executable, str(HERE / "proxy.py"), *addresses, str(mode_file)])

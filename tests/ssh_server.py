"""A real sshd on loopback, unprivileged, with a host key, and a user's key and known_hosts, of its own."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
USER = "postgres" if os.geteuid() == 0 else getpass.getuser()
"""Who the server runs as, and so the only one that it lets in."""

_CONFIGURATION = """\
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


@dataclass
class Server:
    """A server that runs in `folder`, listening on `address`."""

    folder: Path
    address: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        """The home of a user whom the server knows, and who knows the server."""
        return self.folder / "home"

    @property
    def fingerprint(self) -> str:
        """`SHA256:...` of its host key, as ssh-keygen says it."""
        said = subprocess.run(
            ["ssh-keygen", "-lf", self.folder / "host_key.pub"], capture_output=True, text=True, check=True
        )
        return said.stdout.split()[1]

    def sessions(self) -> list[int]:
        """The processes that serve connections, and what was started over them."""
        said = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, said.splitlines())}
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {self.process.pid})

    def end_sessions(self) -> None:
        """Break every connection, as a host that loses its power does."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)


def free_port(address: str) -> int:
    with socket.socket() as taken:
        taken.bind((address, 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(address: str = "127.0.0.9") -> Iterator[Server]:
    """A server while the block runs."""
    assert SSHD
    folder = Path(tempfile.mkdtemp(prefix="salvor-sshd-"))
    try:
        folder.chmod(0o755)
        keys = folder / "home" / ".ssh"
        keys.mkdir(parents=True, mode=0o700)
        make_key(folder / "host_key")
        make_key(keys / "id_ed25519")
        (folder / "authorized_keys").write_text((keys / "id_ed25519.pub").read_text())
        port = free_port(address)
        kind, text, *_ = (folder / "host_key.pub").read_text().split()
        (keys / "known_hosts").write_text(f"[{address}]:{port} {kind} {text}\n")
        (folder / "sshd_config").write_text(_CONFIGURATION.format(address=address, port=port, folder=folder))
        who: list[str] = []
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(folder / "host_key", account.pw_uid, account.pw_gid)
            who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--"]
        process = subprocess.Popen([*who, SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
        server = Server(folder, address, port, process)
        try:
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGCONT)
            server.end_sessions()
            process.kill()
            process.wait(5)
    finally:
        shutil.rmtree(folder)


def _wait(server: Server) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and server.process.poll() is None:
        with suppress(OSError), socket.create_connection((server.address, server.port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError("sshd does not listen")

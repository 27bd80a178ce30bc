"""A real sshd on loopback, with a host key, and a user's key and known_hosts, of its own: unprivileged, or as root with
accounts of its own that nobody else sees.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salvor import shell
from salvor.shell import Shell
from salvor.ssh.settings import SshSettings

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
        found = self.sessions()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # at once: none has time to say that the others died
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def connected(server: Server, deadline: float = 10.0, client: Literal["paramiko", "openssh"] = "paramiko") -> Shell:
    """A shell there, as the user whom it knows."""
    return shell.connect(
        server.address, settings=SshSettings(user=USER, port=server.port, client=client), deadline=deadline
    )


def make_key(path: Path, kind: str = "ed25519") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "test", "-f", path], check=True)


def free_port(address: str) -> int:
    with socket.socket() as taken:
        taken.bind((address, 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(
    address: str = "127.0.0.9", *, more: str = "", host_key: str = "ed25519", user_key: str = "ed25519"
) -> Iterator[Server]:
    """A server while the block runs; `more` is added to its configuration."""
    with _folder(address, host_key, user_key) as (folder, port):
        who: list[str] = []
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(folder / "host_key", account.pw_uid, account.pw_gid)
            who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--"]
        _configure(folder, address, port, more)
        with _started(
            [*who, str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], folder, address, port
        ) as server:
            yield server


@dataclass(frozen=True)
class Account:
    """A user of a server of `serving_accounts`. `sudo`: what sudoers says of them."""

    name: str
    password: str = ""
    sudo: str = ""
    login_shell: str = "/bin/sh"


@contextmanager
def serving_accounts(accounts: Sequence[Account], address: str, *, setup: str = "") -> Iterator[Server]:
    """A server as root, in a mount namespace where these accounts exist; `setup` is run there before. Needs root."""
    with _folder(address, "ed25519", "ed25519") as (folder, port):
        etc = folder / "etc"
        etc.mkdir(mode=0o711)
        texts = {name: Path("/etc", name).read_text() for name in ("passwd", "shadow", "group")}
        sudoers = "Defaults !lecture, secure_path=/usr/sbin:/usr/bin:/sbin:/bin\nroot ALL=(ALL:ALL) NOPASSWD: ALL\n"
        for number, account in enumerate(accounts, 4321):
            home = folder / f"home-{account.name}"
            home.mkdir(mode=0o700)
            os.chown(home, number, number)
            hashed = "*"
            if account.password:
                said = subprocess.run(
                    ["openssl", "passwd", "-6", "-stdin"],
                    input=account.password, capture_output=True, text=True, check=True,
                )  # fmt: skip
                hashed = said.stdout.strip()
            texts["passwd"] += f"{account.name}:x:{number}:{number}::{home}:{account.login_shell}\n"
            texts["shadow"] += f"{account.name}:{hashed}:19000:0:99999:7:::\n"
            texts["group"] += f"{account.name}:x:{number}:\n"
            sudoers += f"{account.name} {account.sudo}\n" if account.sudo else ""
        for name, mode in (("passwd", 0o644), ("shadow", 0o600), ("group", 0o644), ("sudoers", 0o440)):
            (etc / name).write_text(texts.get(name, sudoers))
            (etc / name).chmod(mode)
        _configure(folder, address, port, "PasswordAuthentication yes")
        script = [
            "set -e",
            *(f"mount --bind {etc}/{name} /etc/{name}" for name in ("passwd", "shadow", "group", "sudoers")),
            "mount -t tmpfs -o mode=755 tmpfs /run",
            "mkdir -p /run/sshd",
            setup,
            f"exec {SSHD} -D -e -f {folder}/sshd_config",
        ]
        with _started(["unshare", "--mount", "sh", "-c", "\n".join(script)], folder, address, port) as server:
            yield server


@contextmanager
def dropbear(address: str, *, forced: str = "") -> Iterator[Server]:
    """A dropbear, which reads the keys of its user at home only: so in a mount namespace. Needs root. `forced` is what
    it runs in place of each command.
    """
    with _folder(address, "ed25519", "ed25519") as (folder, port):
        home = Path(pwd.getpwnam(USER).pw_dir)
        subprocess.run(
            ["dropbearkey", "-t", "rsa", "-s", "2048", "-f", folder / "key"], capture_output=True, check=True
        )
        said = subprocess.run(["dropbearkey", "-y", "-f", folder / "key"], capture_output=True, text=True, check=True)
        key = next(line for line in said.stdout.splitlines() if line.startswith("ssh-rsa "))
        (folder / "host_key.pub").write_text(key + "\n")
        _know(folder, address, port)
        keys = folder / "its-home" / ".ssh"
        keys.mkdir(parents=True, mode=0o700)
        shutil.copy(folder / "authorized_keys", keys)
        account = pwd.getpwnam(USER)
        for path in (folder / "key", keys.parent, keys, keys / "authorized_keys"):
            os.chown(path, account.pw_uid, account.pw_gid)
        start = f"exec setpriv --reuid={account.pw_uid} --regid={account.pw_gid} --init-groups -- "
        start += f"dropbear -F -E -r {folder}/key -p {address}:{port} -P {folder}/pid"
        start += f" -c {shlex.quote(forced)}" if forced else ""
        script = f"mount --bind {keys.parent} {home} && {start}"
        with _started(["unshare", "--mount", "sh", "-c", script], folder, address, port) as server:
            yield server


@contextmanager
def _folder(address: str, host_key: str, user_key: str) -> Iterator[tuple[Path, int]]:
    folder = Path(tempfile.mkdtemp(prefix="salvor-sshd-"))
    try:
        folder.chmod(0o755)
        keys = folder / "home" / ".ssh"
        keys.mkdir(parents=True, mode=0o700)
        make_key(folder / "host_key", host_key)
        make_key(keys / f"id_{user_key}", user_key)
        (folder / "authorized_keys").write_text((keys / f"id_{user_key}.pub").read_text())
        port = free_port(address)
        _know(folder, address, port)
        yield folder, port
    finally:
        shutil.rmtree(folder)


def _know(folder: Path, address: str, port: int) -> None:
    kind, text, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "home" / ".ssh" / "known_hosts").write_text(f"[{address}]:{port} {kind} {text}\n")


def _configure(folder: Path, address: str, port: int, more: str) -> None:
    # The first word on a setting counts.
    configuration = _CONFIGURATION.format(address=address, port=port, folder=folder)
    (folder / "sshd_config").write_text(f"{more}\n{configuration}")


@contextmanager
def _started(command: Sequence[str], folder: Path, address: str, port: int) -> Iterator[Server]:
    process = subprocess.Popen(command, stderr=(folder / "log").open("wb"))
    server = Server(folder, address, port, process)
    try:
        _wait(server)
        yield server
    finally:
        process.send_signal(signal.SIGCONT)
        server.end_sessions()
        process.kill()
        process.wait(5)


def _wait(server: Server) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and server.process.poll() is None:
        with suppress(OSError), socket.create_connection((server.address, server.port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"sshd does not listen: {(server.folder / 'log').read_text(errors='replace')}")

"""A whole machine for tests: what is installed here, with files of its own over it, in a network namespace of its own.

It is reached over a pair of virtual network cards, from two addresses of ours. `systemd` boots it in systemd-nspawn, in
about two seconds; without, it is as an old one: sshd, and scripts in /etc/init.d, of which the fence's alone is begun.
What it writes stays until it is removed, so that it can be booted again. Needs root.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from salvor.ssh.settings import SshSettings

from tests import ssh_server

_PROJECT = Path(__file__).parents[1]
_NSPAWN = shutil.which("systemd-nspawn")
_number = itertools.count()

_SSHD = """\
ListenAddress 0.0.0.0
ListenAddress ::
HostKey /etc/ssh/salvor_host_key
AuthorizedKeysFile /etc/ssh/salvor_authorized_keys
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
_UNITS = {
    "door.service": """\
[Unit]
After=network-pre.target
[Service]
ExecStartPre=/bin/mkdir -p /run/sshd
ExecStart=/usr/sbin/sshd -D -e
""",
    "shop.service": "[Service]\nExecStart=/bin/sleep 1000000\n",
    "machine.target": """\
[Unit]
Requires=basic.target
Wants=door.service shop.service multi-user.target
After=basic.target door.service shop.service
""",
}

_SENDS = """
import socket, sys, time
from contextlib import suppress
family, kind, protocol, address, port, seconds, packet = sys.argv[1:]
line = socket.socket(int(family), int(kind), int(protocol))
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    with suppress(OSError):
        line.sendto(bytes.fromhex(packet), (address, int(port)))
    time.sleep(0.05)
"""

OLD_SCRIPT = """#!/bin/sh
run() { start-stop-daemon --pidfile /run/shop.pid --exec /bin/sleep "$@"; }
case $1 in
start) run --start --background --make-pidfile -- 1000000 ;;
stop) run --stop --retry 5 --oknodo --remove-pidfile ;;
restart) $0 stop; $0 start ;;
status) run --status ;;
*) echo "Usage: $0 {start|stop|restart|status}"; exit 3 ;;
esac
"""
"""A service as sysvinit runs it: /etc/init.d/shop."""


def _do(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=20).stdout


class NotBooted(Exception):
    """It does not start; what it said."""


class Machine:
    """See above. `address` and `address6` are its own, `operator` and `stranger` are ours."""

    def __init__(self, folder: Path, *, systemd: bool, megabytes: int = 64) -> None:
        self.folder = folder
        self.systemd, self.megabytes = systemd, megabytes
        self.namespace = f"salvor-{os.getpid()}-{next(_number)}"
        self.guest = f"{self.namespace}-guest"
        self.card = f"sv{random.randrange(1 << 40):x}"  # at most 15 letters
        net = f"198.{random.randrange(18, 20)}.{random.randrange(256)}"
        first = 8 * random.randrange(32)  # a network of 8 addresses among those for tests of networks, RFC 2544
        self.operator, self.stranger, self.address, self._guest = (f"{net}.{first + last}" for last in (1, 2, 3, 4))
        net6 = f"fd5a:{random.randrange(1 << 16):x}:{random.randrange(1 << 16):x}::"
        self.operator6, self.address6 = f"{net6}1", f"{net6}3"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """Its file system, as it is seen from here."""
        return self.folder / "root"

    @property
    def log(self) -> str:
        """What it printed while it booted."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def settings(self) -> SshSettings:
        """How it is reached."""
        key = (self.folder / "host_key.pub").read_text()
        said: dict[str, Any] = {"user": "root", "keys": (str(self.folder / "id"),), "host_keys": (key,), "agent": False}
        return SshSettings.model_validate(said)

    def make(self) -> None:
        """Its files."""
        disk = self.folder / "disk"
        for path in (disk, self.root):
            path.mkdir()
        _do("mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m,mode=755", "tmpfs", disk)
        for name in ("upper", "work"):
            (disk / name).mkdir()
        options = f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work"
        _do("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        for name in ("host_key", "id"):
            ssh_server.make_key(self.folder / name)
        etc = self.root / "etc"
        shutil.copy(self.folder / "host_key", etc / "ssh" / "salvor_host_key")
        shutil.copy(self.folder / "id.pub", etc / "ssh" / "salvor_authorized_keys")
        (etc / "ssh" / "sshd_config").write_text(_SSHD)
        shadow = (etc / "shadow").read_text().splitlines()
        lines = ["root:*:19000:0:99999:7:::" if line.startswith("root:") else line for line in shadow]
        (etc / "shadow").write_text("\n".join([*lines, ""]))
        for name in (".bashrc", ".bash_profile", ".bash_login", ".profile"):  # its logins are not those of this machine
            (self.root / "root" / name).unlink(missing_ok=True)
        (etc / "machine-id").write_text(f"{random.randrange(1 << 128):032x}\n")
        units = etc / "systemd" / "system"
        for wants in units.glob("*.wants"):
            shutil.rmtree(wants)
        for name, text in _UNITS.items():
            (units / name).write_text(text)

    def boot(self) -> None:
        """Start it, in a network namespace that knows nothing of the last one."""
        _do("ip", "netns", "add", self.namespace)
        _do("ip", "link", "add", self.card, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        within = ("ip", "-n", self.namespace)
        for address in (f"{self.operator}/29", f"{self.stranger}/29", f"{self.operator6}/64"):
            _do("ip", "address", "add", address, "dev", self.card, *(["nodad"] if ":" in address else []))
        _do(*within, "address", "add", f"{self.address}/29", "dev", "eth0")
        _do(*within, "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        _do("ip", "link", "set", self.card, "up")
        for name in ("lo", "eth0"):
            _do(*within, "link", "set", name, "up")
        with (self.folder / "log").open("wb") as log:
            command = self._with_systemd() if self.systemd else self._without()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 20
        while not self.answers():
            if time.monotonic() > until or self.process.poll() is not None:
                raise NotBooted(self.log)
            time.sleep(0.05)

    def take_a_guest(self) -> None:
        """Let it forward packets for a guest of its own, as a host of virtual machines does."""
        within, guest = ("ip", "-n", self.namespace), ("ip", "-n", self.guest)
        _do("ip", "netns", "add", self.guest)
        _do(*within, "link", "add", "guest", "type", "veth", "peer", "name", "eth0", "netns", self.guest)
        _do(*within, "link", "set", "guest", "up")
        _do(*guest, "link", "set", "eth0", "up")
        _do(*guest, "address", "add", f"{self._guest}/32", "dev", "eth0")
        _do(*guest, "route", "add", f"{self.address}/32", "dev", "eth0")
        _do(*guest, "route", "add", "default", "via", self.address)
        _do("ip", "netns", "exec", self.namespace, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")

    def _with_systemd(self) -> list[str]:
        place = ["--directory", str(self.root), f"--network-namespace-path=/run/netns/{self.namespace}"]
        alone = [
            "--capability=CAP_NET_ADMIN",
            "--register=no",
            "--keep-unit",
            "--console=passive",
            "--kill-signal=SIGKILL",
            f"--bind-ro={_PROJECT}",  # its /tmp is its own, and the project may be below ours
        ]
        return [str(_NSPAWN), "--quiet", "--boot", *place, *alone, "systemd.unit=machine.target"]

    def _without(self) -> list[str]:
        script = f"""
            set -e
            cd {self.root}
            mount -t proc proc proc
            mount -t sysfs sysfs sys
            mount --rbind /dev dev
            mount -t tmpfs -o mode=755 tmpfs run
            mkdir run/sshd
            for script in etc/rcS.d/S*salvor*; do
                [ ! -L "$script" ] || chroot . "/$script" start
            done
            chroot . /usr/sbin/sshd -D -e &
            trap 'exit 0' TERM
            wait"""
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        return ["ip", "netns", "exec", self.namespace, *namespaces]

    def stop(self) -> None:
        """As when its power fails."""
        if self.process:
            # Its first process does not end with the one that started it, and all others end with it.
            for pid in (*self._children(), self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None
        spaces = (["ip", "netns", "del", name] for name in (self.namespace, self.guest))
        for command in (["ip", "link", "del", self.card], *spaces):
            subprocess.run(command, check=False, capture_output=True, timeout=20)

    def _children(self) -> list[int]:
        assert self.process
        pid = self.process.pid
        with suppress(OSError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def remove(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        for name in ("root", "disk"):
            subprocess.run(["umount", "-l", self.folder / name], check=False, capture_output=True, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self, *, source: str = "", address: str = "", within: float = 0.5) -> bool:
        """Whether it speaks to one of ours (the operator) on the port of SSH. A first try may find no neighbour (IPv6),
        when that was looked for in vain a moment ago.
        """
        from_ = source or (self.operator6 if ":" in address else self.operator)
        until = time.monotonic() + within
        while (left := until - time.monotonic()) > 0:
            with suppress(OSError), socket.create_connection((address or self.address, 22), left, (from_, 0)) as line:
                line.settimeout(left)
                return bool(line.recv(1))
            time.sleep(0.05)
        return False

    def sends(self, address: str, *, within: float = 0.5, guest: bool = False) -> bool:
        """Whether one of the datagrams that it sends so long arrives at one of ours: the first ones are lost when it
        looked for us just now, and found nobody (IPv6). `guest`: of its guest, for which it forwards.
        """
        namespace = self.guest if guest else self.namespace
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as ours:
            ours.bind((address, 0))
            words = [int(family), socket.SOCK_DGRAM, 0, address, ours.getsockname()[1], within, b"x".hex()]
            return self._arrives(ours, namespace, words, lambda packet: packet == b"x")

    def calls_back(self, *, within: float = 0.5) -> bool:
        """Whether what it sends from the port of SSH to begin a connection arrives at the operator."""
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as ours:
            ours.bind((self.operator, 0))
            begins = struct.pack("!HHIIBBHHH", 22, 9, 0, 0, 5 << 4, 2, 1024, 0, 0)
            words = [int(socket.AF_INET), socket.SOCK_RAW, socket.IPPROTO_TCP, self.operator, 0, within, begins.hex()]
            return self._arrives(ours, self.namespace, words, lambda packet: packet.endswith(begins))

    def _arrives(
        self, ours: socket.socket, namespace: str, words: Sequence[object], is_it: Callable[[bytes], bool]
    ) -> bool:
        ours.settimeout(0.05)
        command = ["ip", "netns", "exec", namespace, "python3", "-c", _SENDS, *map(str, words)]
        sender = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while sender.poll() is None:
                with suppress(TimeoutError):
                    if is_it(ours.recv(100)):
                        return True
            return False
        finally:
            sender.kill()
            sender.wait(20)


@contextmanager
def running(*, systemd: bool, megabytes: int = 64) -> Iterator[Machine]:
    """A machine while the block runs, with room for so much more. Where there can be none, the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root makes machines of its own, with a network of their own")
    programs = ["ip", "unshare", "nft", "iptables", "sshd", *(["systemd-nspawn"] if systemd else [])]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if absent := [name for name in programs if not shutil.which(name, path=path)]:
        pytest.skip(f"not installed here: {', '.join(absent)}")
    made = Machine(Path(tempfile.mkdtemp(prefix="salvor-machine-")), systemd=systemd, megabytes=megabytes)
    try:
        try:
            made.make()
            made.boot()
        except (OSError, NotBooted, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"no machine starts here: {said.strip()[-300:]}")
        yield made
    finally:
        made.remove()

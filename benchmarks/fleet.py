"""The same facts from many hosts, by Salvor and by what one would use instead: `python benchmarks/fleet.py [HOSTS...]`.

Starts HOSTS (default: 50 and 200) endpoints of real sshd on loopback, 16 addresses a process, and lets the clients take
turns, each in a process of its own: Salvor, parallel-ssh, fabric's ThreadingGroup, ansible (raw, pipelining, 50 forks).
The others are installed into benchmarks/.rivals, an environment of its own. Prints seconds from the start of the client
to its end, its memory, hosts that it lost, and CPU that it and the servers used. The floor is the least CPU that the
servers used for any client, spread over the cores: what letting it in and the facts cost with every core at it, for a
client that costs nothing. No client on this machine can be quicker. What sshd leaves behind when a client takes its
leave at once, the facts themselves among it, is counted too. `others` is the share of the machine's CPU that other work
took meanwhile: where that is not near nothing, the seconds and the CPU grow, and `alone` is what the CPU of the client
and its servers comes to, spread over the cores.
"""

from __future__ import annotations

import argparse
import ctypes
import getpass
import json
import os
import pwd
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).absolute().parent
RIVALS = HERE / ".rivals"
PACKAGES = ("ansible-core", "fabric", "parallel-ssh", "setuptools<81")
FACTS = "cat /proc/sys/kernel/random/boot_id /proc/loadavg; head -n 3 /proc/meminfo; df -Pk /; date +%s"
USER = "postgres" if os.geteuid() == 0 else getpass.getuser()
ADDRESSES = 16  # sshd listens on no more
PORT = 22220
CORES = os.cpu_count() or 1

CLIENTS = {
    "salvor": """
import sys
from salvor import fleet
from salvor.ssh.host import Host
from salvor.ssh.settings import SshSettings
user, port, key, facts, *addresses = sys.argv[1:]
settings = SshSettings(user=user, port=int(port), keys=(key,), agent=False)
hosts = {address: Host(address, settings) for address in addresses}
done = fleet.each(hosts, lambda name, there: there.run(["sh", "-c", facts]).stdout)
print(sum(1 for one in done if one.answer))
""",
    "parallel-ssh": """
import sys
from pssh.clients import ParallelSSHClient
user, port, key, facts, *addresses = sys.argv[1:]
client = ParallelSSHClient(addresses, user=user, port=int(port), pkey=key, pool_size=50, num_retries=1)
done = client.run_command(facts, stop_on_errors=False)
client.join(done)
print(sum(1 for one in done if one.exception is None and list(one.stdout)))
""",
    "fabric": """
import sys
from fabric import ThreadingGroup
from fabric.exceptions import GroupException
user, port, key, facts, *addresses = sys.argv[1:]
group = ThreadingGroup(*addresses, user=user, port=int(port), connect_kwargs={"key_filename": key})
try:
    done = group.run(facts, hide=True, in_stream=False)
except GroupException as error:
    done = error.result
print(len(done.succeeded))
""",
}


@dataclass(frozen=True)
class Run:
    """One client's run."""

    seconds: float
    client_cpu: float
    server_cpu: float
    memory: float  # MB
    answered: int
    others: float  # the share of the machine's CPU


class Endpoints:
    """Real sshds on 127.1.x.y, one port."""

    def __init__(self, folder: Path, number: int) -> None:
        # PR_SET_CHILD_SUBREAPER: what the servers leave behind is ours, and not the machine's first process'.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        self.folder = folder
        self.addresses = [f"127.1.{index // 200}.{1 + index % 200}" for index in range(number)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.left_behind = 0.0

    def begin(self) -> None:
        """Make the keys, and start the servers."""
        folder = self.folder
        folder.chmod(0o755)
        (folder / ".ssh").mkdir(mode=0o700)
        for key in (folder / "host_key", folder / ".ssh" / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(folder / ".ssh" / "id_ed25519.pub", folder / "authorized_keys")
        kind, text, *_ = (folder / "host_key.pub").read_text().split()
        known = "".join(f"[{address}]:{PORT} {kind} {text}\n" for address in self.addresses)
        (folder / ".ssh" / "known_hosts").write_text(known)
        account = pwd.getpwnam(USER)
        who: list[str] = []
        if os.geteuid() == 0:
            os.chown(folder / "host_key", account.pw_uid, account.pw_gid)
            who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--"]
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
        for first in range(0, len(self.addresses), ADDRESSES):
            lines = [f"ListenAddress {address}:{PORT}" for address in self.addresses[first : first + ADDRESSES]]
            lines += [f"HostKey {folder}/host_key", f"AuthorizedKeysFile {folder}/authorized_keys", "PidFile none"]
            lines += ["StrictModes no", "UsePAM no", "PasswordAuthentication no", "MaxStartups 2000", "UseDNS no"]
            configuration = folder / f"sshd_config_{first}"
            configuration.write_text("\n".join([*lines, ""]))
            command = [*who, program, "-D", "-e", "-f", str(configuration)]
            self.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        time.sleep(1)
        assert all(process.poll() is None for process in self.processes), f"is port {PORT} free?"

    def cpu(self) -> float:
        """CPU seconds that the servers and what they started have used."""
        ticks = 0
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK") + self.left_behind

    def settle(self) -> None:
        """Wait until the servers have ended what they did for the last client: only then is its CPU counted."""
        until = time.monotonic() + 10
        children = [Path(f"/proc/{process.pid}/task/{process.pid}/children") for process in self.processes]
        while any(path.read_text() for path in children) and time.monotonic() < until:
            time.sleep(0.05)
        with suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                self.left_behind += ended[2].ru_utime + ended[2].ru_stime

    def end(self) -> None:
        """Stop the servers."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(10)


@contextmanager
def endpoints(number: int) -> Iterator[Endpoints]:
    """That many sshd endpoints while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="salvor-fleet-"))
    made = Endpoints(folder, number)
    try:
        made.begin()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


def install() -> None:
    """The other clients, in an environment of their own."""
    if not (RIVALS / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", RIVALS], check=True)
        subprocess.run([RIVALS / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
        (RIVALS / "complete").touch()


def command(client: str, hosts: Endpoints) -> list[str]:
    """What runs a client on all hosts."""
    key = str(hosts.folder / ".ssh" / "id_ed25519")
    if client == "ansible":
        inventory = hosts.folder / "inventory"
        inventory.write_text("\n".join([*hosts.addresses, ""]))
        said = f"ansible_user={USER} ansible_port={PORT}"
        options = ["--forks", "50", "--private-key", key, "-e", said, "--one-line"]
        return [str(RIVALS / "bin" / "ansible"), "all", "-i", str(inventory), "-m", "raw", "-a", FACTS, *options]
    python = sys.executable if client == "salvor" else str(RIVALS / "bin" / "python")
    return [python, "-c", CLIENTS[client], USER, str(PORT), key, FACTS, *hosts.addresses]


def run(client: str, hosts: Endpoints) -> Run:
    """Let a client do it once."""
    environment = {**os.environ, "HOME": str(hosts.folder), "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "1"}
    environment |= {"PYTHONPATH": str(HERE.parent / "lib"), "ANSIBLE_SSH_ARGS": "-o ControlMaster=no -F /dev/null"}
    environment["ANSIBLE_SSH_USETTY"] = "0"  # a server that is not root gives no terminal, and raw asks for one
    environment["ANSIBLE_SSH_ARGS"] += f" -o UserKnownHostsFile={hosts.folder}/.ssh/known_hosts"
    for name in ("SSH_AUTH_SOCK", "PYTHONDONTWRITEBYTECODE"):  # the others came compiled
        environment.pop(name, None)
    shutil.rmtree(hosts.folder / ".ansible", ignore_errors=True)
    servers, busy, begun = hosts.cpu(), _busy(), time.perf_counter()
    process = subprocess.Popen(
        command(client, hosts), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=hosts.folder
    )
    assert process.stdout
    said = process.stdout.read().decode()
    _, _, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = 0
    hosts.settle()
    answered = said.count("| CHANGED") if client == "ansible" else int(said.split()[-1]) if said.split() else 0
    cpu, servers = usage.ru_utime + usage.ru_stime, hosts.cpu() - servers
    others = (_busy() - busy - cpu - servers) / ((time.perf_counter() - begun) * CORES)
    return Run(seconds, cpu, servers, usage.ru_maxrss / 1024, answered, others)


def _busy() -> float:
    """CPU seconds that the whole machine has used."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def compare(number: int, rounds: int, clients: list[str]) -> None:
    """Measure and print."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for fabric, which opens them all at once
    runs: dict[str, list[Run]] = {client: [] for client in clients}
    with endpoints(number) as hosts:
        run(clients[0], hosts)  # warms the caches
        for _ in range(rounds):
            for client in clients:
                runs[client].append(run(client, hosts))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    floor = min(one.server_cpu for each in runs.values() for one in each if one.answered == number) / CORES
    print(f"\n{number} hosts; floor {floor:.2f} s (the servers' CPU); medians of {rounds}")
    headings = {"seconds": 9, "of floor": 10, "client ms/host": 16, "server ms/host": 16, "MB": 7, "lost": 6}
    print(f"{'client':14}", *(f"{name:>{width}}" for name, width in headings.items()), "  alone  others", sep="")
    for client, done in runs.items():
        middle = statistics.median(one.seconds for one in done)
        cpu = statistics.median(one.client_cpu for one in done) / number * 1000
        server = statistics.median(one.server_cpu for one in done) / number * 1000
        memory, lost = max(one.memory for one in done), max(number - one.answered for one in done)
        alone, others = (cpu + server) * number / 1000 / CORES, statistics.median(one.others for one in done)
        print(f"{client:14}{middle:9.2f}{middle / floor:10.2f}{cpu:16.1f}{server:16.1f}{memory:7.0f}{lost:6}", end="")
        print(f"{alone:7.2f}{others:8.0%}")
    print(json.dumps({client: [round(one.seconds, 2) for one in done] for client, done in runs.items()}))


def main() -> None:
    """Install what is compared with, then measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="*", type=int, default=[50, 200])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="salvor,parallel-ssh,fabric,ansible")
    asked = parser.parse_args()
    install()
    for number in asked.hosts:
        compare(number, asked.rounds, asked.clients.split(","))


if __name__ == "__main__":
    main()

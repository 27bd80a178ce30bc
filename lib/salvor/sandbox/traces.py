"""What of a sandbox is in the world: its folders, its processes, its ports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from salvor.sandbox import processes
from salvor.sandbox.folders import Folders, is_free


def of(sandbox: Folders) -> list[str]:
    """Each trace in words: folders, processes that name it or work in it, ports on which something listens."""
    found = [str(path) for path in (sandbox.place, sandbox.root) if path.exists()]
    found += [f"process {process.pid} works in {sandbox.root}" for process in processes.working_in(sandbox.root)]
    found += [f"process {pid}: {line}" for pid, line in _commands() if _names(line, sandbox)]
    for port in (value for name, value in asdict(sandbox).items() if name.endswith("_port")):
        hosts = ("127.0.0.1", *sandbox.SERVERS)
        found += [f"something listens on {host}:{port}" for host in hosts if not is_free(host, port)]
    return found


def _names(line: str, sandbox: Folders) -> bool:
    return str(sandbox.place) in line or str(sandbox.root) in line


def _commands() -> list[tuple[str, str]]:
    """The pid and the command line of every process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((entry.parent.name, entry.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()))
        except OSError:  # it has ended
            continue
    return found

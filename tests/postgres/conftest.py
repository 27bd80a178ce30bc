from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from salvor import shell
from salvor.postgres.connection import Operator
from salvor.postgres.server import Server


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL of the tests' own, with trust authentication on loopback."""

    address: str
    port: int
    superuser: str  # its connection string, to the database postgres
    bin: Path
    data: Path
    run_as: str | None  # the operating-system user its processes run as; None: ours

    def database(self, name: str, user: str = "postgres") -> str:
        """A connection string."""
        return f"host={self.address} port={self.port} user={user} dbname={name} connect_timeout=10"

    def run(self, program: str, *arguments: str | Path) -> bytes:
        """Run one of PostgreSQL's client programs against this server as the superuser; its standard output."""
        environment = {"PATH": os.defpath, "PGHOST": self.address, "PGPORT": str(self.port), "PGUSER": "postgres"}
        argv = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


def programs() -> Path:
    """The directory of the newest PostgreSQL that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = found[-1] if found else Path(shutil.which("initdb") or pytest.skip("PostgreSQL's server is not installed"))
    return initdb.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of the session; a test makes databases of its own in it."""
    run_as = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    home = Path(tempfile.mkdtemp(prefix="salvor-tests-"))
    home.chmod(0o755)
    if run_as:
        shutil.chown(home, run_as, run_as)
    data, bin_directory, port = home / "data", programs(), free_port()

    def server_program(name: str, *arguments: str) -> None:
        prefix: Sequence[str] = ("runuser", "-u", run_as, "--") if run_as else ()
        argv = [*prefix, str(bin_directory / name), *arguments]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=120, cwd=home)

    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": home,
        "fsync": "off",
        "max_connections": 50,
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        server_program(
            "initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )
        server_program("pg_ctl", "-D", str(data), "-l", str(home / "log"), "-w", "-t", "60", "-o", options, "start")
        server = PostgresServer("127.0.0.1", port, "", bin_directory, data, run_as)
        yield PostgresServer(server.address, port, server.database("postgres"), bin_directory, data, run_as)
    finally:
        if (data / "postmaster.pid").exists():
            server_program("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def server(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The same server as Salvor knows it."""
    password = tmp_path_factory.mktemp("secrets") / "password"
    password.write_text("trusted anyway\n")
    password.chmod(0o600)
    return Server(
        shell=shell.local(postgres_server.run_as),
        programs=str(postgres_server.bin),
        data=str(postgres_server.data),
        address=postgres_server.address,
        port=postgres_server.port,
        operator=Operator("postgres", f"file:{password}"),
    )

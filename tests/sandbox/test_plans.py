"""Promise 2 on real engines: a plan writes nothing. The kernel, the servers' logs and the receiver are asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from salvor.sandbox import database, disasters, names, receiver
from salvor.sandbox.layout import Layout

ROOT = Path(__file__).parents[2]
CALLS = (
    "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,chmod"
    ",fchmod,fchmodat,chown,fchown,lchown,fchownat,truncate,ftruncate,mknod,mknodat,utimensat,setxattr,fallocate"
)
READS = re.compile(r'(?:open|openat)\(.*(?:O_RDONLY|O_PATH|"/dev/(?:null|tty)", )|^(?:\+\+\+|---|<\.\.\.)')
STATEMENT = re.compile(r"salvor@.*(?:statement|execute [^:]*): *(?P<sql>.*)")
HARMLESS = re.compile(r"(?i)(?:select|show|begin|commit|rollback|set|reset|with|values|table|explain)\b|\s*$")


def may_trace() -> bool:
    program = shutil.which("strace")
    return bool(program) and subprocess.run([program or "", "-qq", "true"], check=False).returncode == 0


@pytest.mark.skipif(not may_trace(), reason="strace may not trace here")
def test_a_plan_of_every_runbook_writes_nothing(fresh_sandbox: Layout, tmp_path: Path) -> None:
    moment = disasters.strike("wrong-update").isoformat()
    server = database.server(fresh_sandbox, "a")
    with server.connect(writes=True) as connection:
        connection.execute("alter system set log_statement = 'all'")
        connection.execute("select pg_reload_conf()")
    size = int(server.shell.run(["stat", "-c", "%s", server.log]).stdout)
    before = (serial(fresh_sandbox), names.resolve(fresh_sandbox), len(receiver.messages(fresh_sandbox.messages)))
    for runbook in ("restore", "failover", "from_backup", "rehearsal"):
        trace = tmp_path / f"{runbook}.trace"
        command = ["restore", "--service=orders", f"--runbook={runbook}", f"--failed-at={moment}", "--plan"]
        done = subprocess.run(
            [
                "strace",
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-e",
                f"trace={CALLS}",
                "-o",
                trace,
                sys.executable,
                "-m",
                "invoke",
                *command,
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT / "lib")},
        )
        # the standby has the same damage, so a failover is refused; it may write as little while it finds that out
        assert done.returncode == (3 if runbook == "failover" else 0), done.stdout + done.stderr
        assert writes(trace) == [], runbook
    said = server.shell.run(["tail", "-c", f"+{size}", server.log]).stdout.splitlines()
    asked = [found["sql"] for line in said if (found := STATEMENT.search(line))]
    assert len(asked) > 20, "the server's log tells of the questions"
    assert [statement for statement in asked if not HARMLESS.match(statement)] == []
    with server.session("orders") as looking, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        looking.execute("delete from orders")  # by the server's own word a look cannot write
    assert before == (
        serial(fresh_sandbox),
        names.resolve(fresh_sandbox),
        len(receiver.messages(fresh_sandbox.messages)),
    )


def test_the_observer_sees_what_is_written(tmp_path: Path) -> None:
    if not may_trace():
        pytest.skip("strace may not trace here")
    trace = tmp_path / "trace"
    script = f"echo x > {tmp_path}/new; mkdir {tmp_path}/folder; rm {tmp_path}/new"
    subprocess.run(["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", trace, "sh", "-c", script], check=True)
    assert len(writes(trace)) == 3


def writes(trace: Path) -> list[str]:
    """The system calls in a trace that change a file, whether they succeeded or not."""
    calls = [line.partition(" ")[2].strip() for line in trace.read_text(errors="replace").splitlines()]
    return [call for call in calls if not READS.search(call)]


def serial(found: Layout) -> int:
    """The zone's serial number: each update adds to it."""
    import dns.message
    import dns.query

    answer = dns.query.udp(dns.message.make_query(names.ZONE, "SOA"), "127.0.0.1", port=found.dns_port, timeout=5)
    return int(answer.answer[0][0].serial)

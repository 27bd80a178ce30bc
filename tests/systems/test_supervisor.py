"""Services that a real supervisord runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salvor import inventory, shell
from salvor.change import Finding, Level, Progress, Undo
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.host import services
from salvor.incident import Incident
from salvor.wish import Wish

PROGRAMS = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(60)

_CONFIGURATION = """\
[supervisord]
nodaemon=true
logfile=%(here)s/log
pidfile=%(here)s/pid
childlogdir=%(here)s
[unix_http_server]
file=%(here)s/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://%(here)s/socket
[program:worker]
command=sleep 1000
autostart=false
[program:many]
command=sleep 1000
startsecs=0
numprocs=2
process_name=%(program_name)s_%(process_num)s
[program:dies]
command=false
startretries=0
"""

_SHOP = """\
systems:
  media: {{kind: files, path: "{media}", repositories: [{{name: r, location: "{media}-r", password: "env:NONE"}}]}}
  api:
    kind: application
    service: worker
    uses: [media]
    starts_within: 1.5
    healthy: {{name: api is well, tcp: "127.0.0.1:1"}}
  dies: {{kind: application, service: dies, uses: [media]}}
services:
  media:
    rto: 1h
    rpo: 1h
    systems: [media]
    checks: [{{name: the pictures are there, system: media, ask: "files *.jpg", at_least: 1}}]
  settings: {{rto: 1h, rpo: 1h, applications: [api]}}
"""


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs, and is what supervisorctl talks to."""
    configuration = tmp_path / "supervisord.conf"
    configuration.write_text(_CONFIGURATION)
    control = tmp_path / "supervisorctl"
    # Without its site, Python starts in half the time, and it is started often.
    run = f"PYTHONPATH={sysconfig.get_path('purelib')} exec {sys.executable} -S -m supervisor.supervisorctl"
    control.write_text(f'#!/bin/sh\n{run} -c {configuration} "$@"\n')
    control.chmod(0o755)
    for name in ("_STAYS", "_SETTLES"):
        monkeypatch.setattr(services, name, 0.1)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    process = subprocess.Popen([PROGRAMS / "supervisord", "-c", configuration], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while not (tmp_path / "socket").exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def test_services_by_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    here = shell.local()
    before = services.see(here, "many")
    assert (before.manager, before.state, len(before.run.split())) == ("supervisor", "running", 2)
    services.act(here, "many", "restart", deadline=30)
    after = services.see(here, "many:many_1")
    assert after.state == "running"
    assert after.run not in before.run.split()
    states = [services.see(here, name).state for name in ("worker", "dies", "no-such")]
    assert states == ["stopped", "failed", "absent"]
    supervisor.kill()
    supervisor.wait(5)
    with pytest.raises(CannotError, match="supervisor is there and does not answer"):
        services.act(here, "worker", "start", deadline=20)


def test_a_supervisor_that_nobody_set_up_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "supervisorctl"
    program.parent.mkdir()
    asked = tmp_path / "asked"
    program.write_text(
        f"#!/usr/bin/env python3\nopen({str(asked)!r}, 'w')\nprint('http://localhost:9001 refused connection')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    assert services.see(shell.local(), "no-such").state == "absent"
    assert not asked.exists()
    (tmp_path / "supervisord.conf").write_text("[supervisorctl]\n")
    assert services.see(shell.local(), "no-such").state == "unknown"
    assert asked.exists()


@pytest.mark.usefixtures("supervisor")
def test_a_program_is_not_waited_for_while_data_of_another_service_is_broken_that_it_works_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "shop.yaml").write_text(_SHOP.format(media=tmp_path / "media"))
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setattr(services, "_SETTLES", 0.2)
    platform = inventory.load("shop")

    def start(service: str, name: str, **how: Any) -> list[Finding | Progress]:
        incident = Incident("i", platform, platform.service(service), Wish(), "restore", "tester", tmp_path / "i")
        program = incident.system(name)
        return list(program.apply(program.change("start", why="-", undo=Undo("stop"), **how)))

    def told(service: str, name: str = "api") -> str:
        with pytest.raises(OutcomeUnknownError) as raised:
            start(service, name)
        return str(raised.value)

    assert "not waited for: media: the pictures are there" in told("settings")
    assert "not waited for" not in told("media"), "what it has just brought back was proven"
    assert "what it works on is broken: media: the pictures are there." in told("settings", "dies")
    (finding,) = start("media", "dies", await_health=False)  # an undo goes back to what it dies of
    assert isinstance(finding, Finding) and (finding.check, finding.level) == ("runs", Level.WARN)

"""Services of a machine, by whatever runs them there: systemd, supervisor, a script of sysvinit, xinetd, pm2; or by
nobody, when /etc/rc.local starts them.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from salvor import clock
from salvor.errors import CannotError, CommandError, NotConvergedError
from salvor.host import PATH, managers
from salvor.shell import Shell

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+\\-]{0,127}")
"""What a service may be called."""

_SYSTEMD = {"active": "running", "reloading": "running", "activating": "starting", "failed": "failed"}
_SUPERVISOR = {"RUNNING": "running", "STARTING": "starting", "BACKOFF": "failed", "FATAL": "failed"}
_PROCESS = re.compile(r"\S+ (RUNNING|STARTING|BACKOFF|FATAL|STOPPED|STOPPING|EXITED|UNKNOWN)\b(?: pid (\d+))?")
_PM2 = {"online": "running", "launching": "starting", "errored": "failed"}
_SILENT = "does not answer"
_LSB = {"0": "running", "1": "failed", "2": "failed", "3": "stopped"}
_STAYS = 1.0
"""Seconds for which a service has to run to be running: one that dies at once was started too."""
_SETTLES = 3.0
"""Seconds after which one that neither runs nor starts does not come up by itself any more."""


@dataclass(frozen=True)
class Service:
    """A service, who runs it, and how it is: running, starting, stopped, failed, absent or unknown. `run` names the run
    that goes on (an id or a process), so that a restart can be told; empty when there is none, or it cannot be told.
    `line` is the one of /etc/rc.local that starts it, when nothing else does; or what is known of a manager that is
    there and does not answer.
    """

    name: str
    manager: str
    state: str
    run: str = ""
    line: str = ""

    @property
    def runs(self) -> bool:
        """Whether it does."""
        return self.state == "running"

    @property
    def silent(self) -> bool:
        """Whether its manager is there and does not answer."""
        return self.state == "unknown" and self.manager in ("pm2", "supervisor")


def read(lines: Mapping[str, list[str]]) -> tuple[Service, ...]:
    """What the lines of `look` say."""
    return tuple(_service(*one.split(" ", 2)) for one in lines.get("service", []))


def _service(name: str, manager: str, said: str = "") -> Service:
    if said.startswith(_SILENT):
        return Service(name, manager, "unknown", line=said)
    if manager == "systemd":
        values = dict(pair.split("=", 1) for pair in said.split() if "=" in pair)
        state = _SYSTEMD.get(values.get("ActiveState", ""), "stopped")
        pid = values.get("MainPID", "0")
        run = values.get("InvocationID") or ("" if pid == "0" else pid)
    elif manager == "supervisor":
        found = _PROCESS.findall(said)
        state = _worst({_SUPERVISOR.get(word, "stopped") for word, _ in found})
        run = " ".join(sorted(pid for _, pid in found if pid))
    elif manager == "sysvinit":
        code, _, run = said.partition(" ")
        state = _LSB.get(code, "running" if run else "unknown")
    elif manager == "xinetd":
        word, _, xinetd = said.partition(" ")
        state, run = "stopped" if word == "off" else "running" if xinetd else "failed", ""
    elif manager == "rc.local":
        processes, _, line = said.partition("| ")
        run = processes.strip()  # without one, it may run under another name
        return Service(name, manager, "running" if run else "unknown", run, line.strip())
    elif manager == "pm2":
        state, run = _of_pm2(name, said)
    else:
        state, run = "absent", ""
    return Service(
        name, "none" if state == "absent" else manager, state, run if state in ("running", "starting") else ""
    )


def _of_pm2(name: str, said: str) -> tuple[str, str]:
    """The state and processes of an application; there may be several of one name."""
    if said == "saved":
        return "stopped", ""
    if said.startswith("lost "):
        return "running", said.removeprefix("lost ")
    try:
        found: list[Any] = [one for one in json.loads(said or "[]") if one["name"] == name]
        states = {_PM2.get(one["pm2_env"]["status"], "stopped") for one in found}
        processes = " ".join(sorted(str(one["pid"]) for one in found))
    except (ValueError, LookupError, TypeError):
        return "unknown", ""
    return (_worst(states), processes) if states else ("absent", "")


def _worst(states: Set[str]) -> str:
    return next((state for state in ("failed", "stopped", "starting", "running") if state in states), "unknown")


Environment = Mapping[str, str]
NOTHING: Environment = {}


def see(shell: Shell, name: str, environment: Environment = NOTHING) -> Service:
    """How a service is now; `environment` tells its manager where it is at home. Raises CannotError when the machine
    cannot be asked.
    """
    ask = ["sh", "-c", f'{PATH}{managers.LOOK}look "$1"', "sh", name]
    said = shell.run(ask, deadline=20.0, environment=environment).stdout
    return _service(*said.removeprefix("service ").strip().split(" ", 2))


def see_surely(shell: Shell, name: str, environment: Environment = NOTHING, action: str = "") -> Service:
    """How a service is now. Raises CannotError when nothing there runs one of that name, or does not answer, or could
    not take that action (start, stop, restart).
    """
    seen = see(shell, name, environment)
    if seen.state == "absent":
        raise CannotError(
            f"{shell.where} has no service {name!r}: systemd, supervisor, sysvinit, xinetd and pm2 were asked.",
            safe="nothing was changed",
            hint="mend its name in the inventory; or, where pm2 lost its list (dump.pm2), start it there by its "
            f"ecosystem file, then pm2 save; what there is, on {shell.where}: systemctl, pm2 ls, ls /etc/init.d",
        )
    if seen.manager == "rc.local":
        now = f"it runs now (process {seen.run})" if seen.runs else "no process bears its name now"
        raise CannotError(
            f"{name} on {shell.where} was not touched: a line of /etc/rc.local starts it at boot, and nothing manages "
            f"it; {now}.",
            safe="nothing was changed",
            hint=f"there, by hand, that line: {seen.line}",
        )
    if seen.manager == "xinetd" and action == "restart":
        raise CannotError(
            f"{name} on {shell.where} was not restarted: xinetd starts it anew for each connection.",
            safe="nothing was changed",
            hint="what hangs is xinetd itself, if anything: restart that",
        )
    if seen.silent:
        raise CannotError(
            f"{name} on {shell.where} was not touched: {seen.manager} is there and {seen.line}.",
            safe="nothing was changed",
            hint=f"there: {_at_home(seen.manager, environment)}"
            + _MUTE.get(seen.manager, "start {}, then the same command again").format(seen.manager),
        )
    return seen


def act(shell: Shell, name: str, action: str, *, deadline: float, environment: Environment = NOTHING) -> None:
    """Start, stop or restart it, and see that it then runs, or does not. Its being so already is no error.

    Raises CannotError when nothing there runs a service of that name, or refuses; NotConvergedError when it was told
    to, and is not so within `deadline` seconds.
    """
    until = clock.monotonic() + deadline
    before = see_surely(shell, name, environment, action)
    wanted = "stopped" if action == "stop" else "running"
    if action != "restart" and before.state == wanted:
        return
    command = ["sh", "-c", f"{PATH}{managers.LOOK}{managers.ACT}", "sh", name, before.manager, action]
    try:
        shell.run(command, deadline=deadline, environment=environment)
        told = ""
    except CommandError as error:  # what it is now tells
        told = error.stderr.strip()[-500:] or f"exit code {error.exit_code_of_command}"
    now = _becomes(lambda: see(shell, name, environment), wanted, until)
    is_mute = now.manager == "sysvinit" and now.state == "unknown"  # such a script is believed
    if not _is(now, wanted) and (told or not is_mute):
        raise NotConvergedError(
            f"{name} on {shell.where} is {now.state} after its {action} by {now.manager}{': ' + told if told else '.'}",
            safe="nothing else was changed",
            hint=f"there: {last_words(now.manager, name, environment)}",
        )


def _becomes(look: Callable[[], Service], wanted: str, until: float) -> Service:
    """How it is when it is as wanted, and stays so for a moment; or when it does not go on to be so."""
    settled = clock.monotonic() + _SETTLES
    was = False
    while True:
        now = look()
        if _is(now, wanted) and (was or wanted == "stopped"):
            return now
        was = _is(now, wanted)
        late = clock.monotonic() > (until if now.state == "starting" else settled)
        if late and not was:
            return now
        time.sleep(_STAYS if was else 0.2)


def _is(now: Service, wanted: str) -> bool:
    return now.state == wanted or (wanted == "stopped" and now.state == "failed")  # as one that was killed


_WHY = {
    "systemd": "journalctl -u {} -n 50",
    "supervisor": "supervisorctl tail {} stderr",
    "pm2": "pm2 logs {} --nostream",
    "xinetd": "does xinetd run? grep xinetd /var/log/messages",
}
"""Where each manager keeps what a service said last."""

_MUTE = {
    "pm2": "pm2 ping; where that hangs, kill -9 $(cat ${{PM2_HOME:-~/.pm2}}/pm2.pid): its programs run on without it; "
    "where pm2 ls does not list it then: pm2 start its ecosystem file, pm2 save; then the same command again"
}
"""What to do about a manager that does not answer."""


def last_words(manager: str, name: str, environment: Environment) -> str:
    """The command that shows what a service said last."""
    return _at_home(manager, environment) + _WHY.get(manager, "read its log").format(name)


def _at_home(manager: str, environment: Environment) -> str:
    """What comes before pm2's commands: elsewhere it would begin a daemon that knows nothing."""
    home = environment.get("PM2_HOME", "") if manager == "pm2" else ""
    return f"export PM2_HOME={shlex.quote(home)}; " if home else ""

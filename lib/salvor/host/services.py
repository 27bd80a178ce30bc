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
from salvor.host import PATH
from salvor.shell import Shell

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+\\-]{0,127}")
"""What a service may be called."""

LOOK = r"""
script_of() {
    for script in "/etc/init.d/$1" "/etc/rc.d/init.d/$1" "/etc/rc.d/rc.$1" "/usr/local/etc/rc.d/$1"; do
        [ -x "$script" ] && return
    done
    return 1
}
# Many write it without a newline, and `read` takes that for an error. One that ended can be signalled until its parent
# has looked.
lives() {
    process=$(cat -- "$1" 2>/dev/null) && [ -n "$process" ] && kill -0 "$process" 2>/dev/null &&
        ! grep -q '^State:.Z' "/proc/$process/status" 2>/dev/null
}
# The number of a process that is over goes to another, after a reboot soon: what that was started with tells.
lives_as() { # lives_as FILE cmdline|environ LINE
    lives "$1" && { [ ! -r "/proc/$process/$2" ] || tr '\0' '\n' <"/proc/$process/$2" | grep -q -- "$3"; }
}
process_of() {
    for file in "/run/$1.pid" "/var/run/$1.pid" "/run/$1/$1.pid" "/var/run/$1/$1.pid"; do
        lives "$file" && echo "$process" && return
    done
    pidof "$1" 2>/dev/null
}
rc_local_of() { # the line that starts it
    for file in /etc/rc.local /etc/rc.d/rc.local /etc/init.d/boot.local; do
        [ -r "$file" ] && grep -v '^[[:space:]]*#' "$file" | grep -m 1 -F -w -e "$1" && return
    done
    return 1
}
# Two that find no server would start two: one at a time, and who looks waits for it.
pm2_is_started() { [ ! -d "$1" ] || (exec 9<"$1" && flock 9) 2>/dev/null; }
pm2_saved() { grep -Fq '"name": "'"$2"'"' "$1/dump.pm2" 2>/dev/null; }
pm2_runs() { lives_as "$1/pm2.pid" cmdline 'God Daemon'; }
# Where the daemon died alone, its programs run on and hold their ports, and a new daemon does not know them.
pm2_lost() { # pm2_lost HOME NAME
    daemon=none
    ! pm2_runs "$1" || daemon=$process
    for file in "$1/pids/$2"-*.pid; do
        ! lives_as "$file" environ "^name=$2\$" || grep -q "^PPid:[[:space:]]*$daemon\$" "/proc/$process/status" ||
            echo "$process"
    done
}
# One whose daemon is frozen waits for ever.
pm2_list() { if timeout 9 true 2>/dev/null; then timeout 9 pm2 jlist; else pm2 jlist; fi 2>/dev/null </dev/null; }
# A program of several processes is a group, and its name alone is nothing to supervisor.
# A program of it alone, as in somebody's virtual environment, is no supervisor, and takes its time to say so: it runs,
# or has a configuration where its program looks, or that program is a wrapper, which knows where it is.
supervisor_configured() {
    place=$(dirname "$1")/..
    for file in "$place/etc" "$place" . etc /etc /etc/supervisor; do
        [ ! -e "$file/supervisord.conf" ] || return 0
    done
    return 1
}
supervisor_is_there() {
    control=$(command -v supervisorctl) || return
    supervisor_configured "$control" || ! head -n 1 "$control" | grep -q python ||
        grep -q -s -x supervisord /proc/[0-9]*/comm
}
supervisor_status() {
    said=$(supervisorctl status "$1" 2>/dev/null)
    case $said in "$1: "*) said=$(supervisorctl status "$1:*" 2>/dev/null) ;; esac
    echo "$said"
}
look() {
    silent=none
    if [ -d /run/systemd/system ]; then
        said=$(systemctl show -p LoadState -p ActiveState -p MainPID -p InvocationID -- "$1" 2>/dev/null | tr '\n' ' ')
        case $said in *LoadState=not-found*) ;; *LoadState=*) echo "service $1 systemd $said"; return ;; esac
    fi
    said=
    ! supervisor_is_there || said=$(supervisor_status "$1")
    case $said in
    "$1 "* | "$1:"[!\ ]*) echo "service $1 supervisor" $said; return ;;
    '' | "$1: "*) ;;
    'http://localhost:9001 refused connection') # its guess where nobody said where supervisor is
        ! supervisor_configured "$control" || silent='supervisor does not answer'
        ;;
    *) silent='supervisor does not answer' ;;
    esac
    if script_of "$1"; then
        # As service(8) does: the script must not depend on who calls it.
        said=$(env -i PATH="$PATH" "$script" status 2>&1 </dev/null)
        code=$?
        case $said in *[Uu]sage*) code=usage ;; esac
        echo "service $1 sysvinit $code" $(process_of "$1")
        return
    fi
    # Of what xinetd starts for each connection, chkconfig says one word; of a script, one for each runlevel.
    if command -v chkconfig >/dev/null; then
        said=$(chkconfig --list "$1" 2>/dev/null)
        case $(echo $said) in "$1 on" | "$1 off") echo "service $1 xinetd" ${said#"$1"} $(pidof xinetd); return ;; esac
    fi
    # pm2 starts a server of its own when asked and none runs. What it saved (dump.pm2) is known to it, whether it runs
    # or not.
    home=${PM2_HOME:-$HOME/.pm2}
    pm2_is_started "$home"
    said=
    if pm2_runs "$home"; then
        said=$(pm2_list | grep '^\[')
        case $said in *'"name":"'"$1"'"'*) echo "service $1 pm2 $said"; return ;; esac
        [ "$said" ] || silent='pm2 does not answer'
    elif command -v pm2 >/dev/null; then
        said=dead silent='pm2 does not answer'
    fi
    if [ "$said" ] && pm2_saved "$home" "$1"; then
        lost=$(pm2_lost "$home" "$1")
        if [ "$lost" ]; then echo "service $1 pm2 lost" $lost; else echo "service $1 pm2 saved"; fi
        return
    fi
    [ "$said" != dead ] || silent="pm2 does not answer: no daemon of $home runs, and its dump.pm2 does not name $1; \
there: pm2 start its ecosystem file, pm2 save"
    if [ "$silent" = none ] && said=$(rc_local_of "$1"); then
        silent="rc.local $(process_of "$1" | tr '\n' ' ')| $said"
    fi
    echo "service $1 $silent"
}
"""
"""Defines `look NAME`, which prints one line for `read`."""

_ACT = r"""
case $2 in
systemd) systemctl "$3" -- "$1" ;;
supervisor)
    case $(supervisor_status "$1") in "$1 "*) supervisorctl "$3" "$1" ;; *) supervisorctl "$3" "$1:*" ;; esac
    ;;
pm2)
    home=${PM2_HOME:-$HOME/.pm2}
    # dash becomes the last command of a subshell, and would let the lock go
    (exec 9<"$home" && flock 9; pm2 ping 9<&-; true) >/dev/null 2>&1
    lost=$(pm2_lost "$home" "$1") # two of one program would not both get its port
    [ -z "$lost" ] || kill $lost
    until=$(($(date +%s) + 10))
    for process in $lost; do
        while grep -q '^State:.[^Z]' "/proc/$process/status" 2>/dev/null; do
            [ "$(date +%s)" -lt "$until" ] || kill -9 "$process"
            sleep 0.1
        done
    done
    if [ "$3" = stop ] || pm2 jlist 2>/dev/null | grep -Fq '"name":"'"$1"'"'; then
        pm2 "$3" "$1"
    else # of what it saved, this one alone
        one=$home/salvor-$1.dump
        node -e 'const [name, file] = process.argv.slice(1), saved = JSON.parse(require("fs").readFileSync(file));
            console.log(JSON.stringify(saved.filter(one => one.name === name)))' "$1" "$home/dump.pm2" >"$one" &&
            PM2_DUMP_FILE_PATH=$one PM2_DUMP_BACKUP_FILE_PATH=$one pm2 resurrect
        code=$?
        rm -f -- "$one"
        exit "$code"
    fi
    ;;
xinetd) case $3 in start) chkconfig "$1" on ;; *) chkconfig "$1" off ;; esac ;; # it does so at once
sysvinit) script_of "$1" && exec env -i PATH="$PATH" HOME=/ "$script" "$3" ;;
esac </dev/null
"""
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
    ask = ["sh", "-c", f'{PATH}{LOOK}look "$1"', "sh", name]
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
    command = ["sh", "-c", f"{PATH}{LOOK}{_ACT}", "sh", name, before.manager, action]
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

"""Schedules as systemd's timers: a service and a timer each, of the system for root, else of the user.

A run that was missed while the machine was off is made up for when it is on again (`Persistent=true`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from salvor.errors import CannotError
from salvor.schedule import entry
from salvor.schedule.entry import Caller, Entry
from salvor.shell import Result, Shell

_SAYS = "# What it says: "
_SERVICE = """\
# inv schedule.install wrote this file, and will again; what is changed here by hand is lost.
{says}{entry}
[Unit]
Description=Salvor, platform {platform}: {name}
[Service]
Type=oneshot
{user}UMask=0077
WorkingDirectory={folder}
{environment}ExecStart={command}
"""
_TIMER = """\
# inv schedule.install wrote this file, and will again; what is changed here by hand is lost.
[Unit]
Description=Salvor, platform {platform}: {name}
[Timer]
OnCalendar={at}
Persistent=true
[Install]
WantedBy=timers.target
"""
_EVERY = 'cd -- "$1" 2>/dev/null || exit 0; for file in salvor-*.*.timer; do [ ! -e "$file" ] || echo "$file"; done'
_LIST = 'cd -- "$1" 2>/dev/null || exit 0; for file in salvor-"$2".*.timer; do [ ! -e "$file" ] || echo "$file"; done'
_OF_THE_USER = 'id -un; echo "${XDG_CONFIG_HOME:-$HOME/.config}"; echo "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"'
_TIMER_STATE = "Id,ActiveState,UnitFileState,NeedDaemonReload"
_LAST_RUN = "Id,ActiveState,ExecMainStartTimestamp,ExecMainExitTimestamp,ExecMainStatus,Result"
_SECONDS = 60.0


class Systemd:
    """The timers of one platform on a machine."""

    def __init__(self, shell: Shell, caller: Caller) -> None:
        self.shell, self.caller = shell, caller
        self.name, self.folder, self._user = "systemd", "/etc/systemd/system", ""
        self._systemctl = ["systemctl", "--no-ask-password"]
        self._environment: dict[str, str] = {}
        if shell.run(["id", "-u"]).stdout.strip() != "0":
            self._be_of_the_user()

    def _be_of_the_user(self) -> None:
        """Have the timers run by the user's own systemd. Raises CannotError when none runs: nobody could begin them."""
        said = self.shell.run(["sh", "-c", _OF_THE_USER]).stdout.splitlines()
        self._user, config, runtime = said
        self.name, self.folder = "systemd (of the user)", f"{config}/systemd/user"
        self._systemctl += ["--user"]
        self._environment = {"XDG_RUNTIME_DIR": runtime}  # su and sudo do not set it
        asked = self._run("show", "--property=Version", check=False)
        if asked.exit_code:
            raise CannotError(
                f"No systemd of the user {self._user} runs on {self.shell.where}: {asked.stderr.strip()}.",
                safe="nothing was changed",
                hint=f"as root: loginctl enable-linger {self._user}; then the same command again",
            )

    def warning(self) -> str:
        """What may keep the timers from running; empty when nothing is known of it."""
        argv = ["loginctl", "show-user", "--property=Linger", "--value", self._user]
        if not self._user or self.shell.run(argv, check=False).stdout.strip() == "yes":
            return ""
        return f"they run while {self._user} is logged in, and not after; as root: loginctl enable-linger {self._user}"

    @staticmethod
    def runs(shell: Shell) -> bool:
        """Whether systemd runs there: sd_booted(3)."""
        return shell.succeeds(["test", "-d", "/run/systemd/system"])

    def platforms(self) -> set[str]:
        """The platforms of which anything is installed."""
        listed = self.shell.run(["sh", "-c", _EVERY, "sh", self.folder]).stdout.splitlines()
        return {file.removeprefix("salvor-").partition(".")[0] for file in listed}

    def installed(self) -> dict[str, Entry]:
        """What is installed for this platform, by name."""
        listed = self.shell.run(["sh", "-c", _LIST, "sh", self.folder, self.caller.platform]).stdout.splitlines()
        prefix = f"salvor-{self.caller.platform}."
        names = [file.removeprefix(prefix).removesuffix(".timer") for file in listed]
        if not names:
            return {}
        timers = self._show(_TIMER_STATE, [f"{self._unit(name)}.timer" for name in names])
        services = self._show(_LAST_RUN, [f"{self._unit(name)}.service" for name in names])
        return {
            name: self._entry(name, timers.get(f"{self._unit(name)}.timer", {}), services.get(self._service(name), {}))
            for name in names
        }

    def _entry(self, name: str, timer: Mapping[str, str], service: Mapping[str, str]) -> Entry:
        texts = {kind: self.shell.read(f"{self.folder}/{self._unit(name)}.{kind}") for kind in ("service", "timer")}
        lines = (texts["service"] or "").splitlines()
        said = next((entry.read(one.removeprefix(_SAYS)) for one in lines if one.startswith(_SAYS)), None)
        at, run = said or ("", ())
        active = timer.get("ActiveState") == "active" and timer.get("UnitFileState") == "enabled"
        sound = said is not None and texts == self._texts(name, at, run) and timer.get("NeedDaemonReload") == "no"
        return Entry(at, run, sound and active, *_last_run(service))

    def _show(self, properties: str, units: Sequence[str]) -> dict[str, dict[str, str]]:
        """What systemd says of units, by their names."""
        said = self._run("show", "--timestamp=unix", f"--property={properties}", *units).stdout
        blocks = [dict(one.partition("=")[::2] for one in block.splitlines()) for block in said.split("\n\n")]
        return {block.get("Id", ""): block for block in blocks}

    def put(self, name: str, at: str, run: Sequence[str]) -> None:
        """Install a schedule, or replace it. It is on disk, and its timer begun, when this returns."""
        self.shell.run(["mkdir", "-p", self.folder])
        for kind, text in self._texts(name, at, run).items():
            # Not 600: systemd shows every unit to everybody, and warns of a file that it alone can read.
            self.shell.write(f"{self.folder}/{self._unit(name)}.{kind}", text, mode=0o644)
        self._run("daemon-reload")
        self._run("enable", f"{self._unit(name)}.timer")
        self._run("restart", f"{self._unit(name)}.timer")  # `start` alone keeps the time of before

    def remove(self, name: str) -> None:
        """Remove a schedule and when it ran last, so that a later one of that name has nothing to make up for."""
        timer = f"{self._unit(name)}.timer"
        if self.shell.exists(f"{self.folder}/{timer}"):
            self._run("disable", "--now", timer)
            self._run("clean", "--what=state", timer)
        self._run("reset-failed", self._service(name), check=False)  # else it is listed on, without its file
        for kind in ("timer", "service"):  # the timer last would be found again without its service
            self.shell.run(["rm", "-f", "--", f"{self.folder}/{self._unit(name)}.{kind}"])
        self._run("daemon-reload")

    def _run(self, *words: str, check: bool = True) -> Result:
        argv = [*self._systemctl, *words]
        return self.shell.run(argv, environment=self._environment, deadline=_SECONDS, check=check)

    def _unit(self, name: str) -> str:
        return f"salvor-{self.caller.platform}.{name}"  # neither name has a dot in it

    def _service(self, name: str) -> str:
        return f"{self._unit(name)}.service"

    def _texts(self, name: str, at: str, run: Sequence[str]) -> dict[str, str]:
        """The text of each unit, by its kind."""
        by = {**self.caller.own(name), **self.caller.environment}
        environment = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in sorted(by.items()))
        command = " ".join(_quoted(word).replace("$", "$$") for word in self.caller.argv(*run))
        platform, folder = self.caller.platform, self.caller.folder.replace("%", "%%")
        service = _SERVICE.format(
            says=_SAYS, entry=entry.write(at, run), platform=platform, name=name, folder=folder,
            user="" if self._user else "User=root\n", environment=environment, command=command,
        )  # fmt: skip
        return {"service": service, "timer": _TIMER.format(platform=platform, name=name, at=at)}


def _quoted(word: str) -> str:
    """One word of a unit file, see systemd.service(5), COMMAND LINES: `%` begins a specifier."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[^A-Za-z0-9_./:=@,+-]", word) or not word else escaped


def _last_run(service: Mapping[str, str]) -> tuple[datetime | None, str]:
    """When a service ran last, and how that ended; when it runs now, since when."""
    if service.get("ActiveState") == "activating":
        return _moment(service.get("ExecMainStartTimestamp", "")), "runs now"
    last, result = _moment(service.get("ExecMainExitTimestamp", "")), service.get("Result", "")
    if result == "exit-code":
        result = f"exit code {service.get('ExecMainStatus')}"
    return last, result if last else ""


def _moment(text: str) -> datetime | None:
    """`@1795250000` to a time; None when it never was."""
    return datetime.fromtimestamp(float(text[1:]), UTC) if re.fullmatch(r"@[1-9]\d*", text) else None

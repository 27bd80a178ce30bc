"""Schedules in the user's crontab, where there is no systemd: a block of ours, and every other line as it is.

cron looks every few minutes, and the command itself knows whether it is due (`salvor.schedule.stamp`): so a run that
was missed while the machine was off is made up for, and a time in UTC is one, which cron cannot say.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from salvor import clock
from salvor.errors import CannotError, CommandError
from salvor.schedule import entry, stamp
from salvor.schedule.entry import Caller, Entry
from salvor.shell import Shell

MINUTES = 5
"""cron looks so often."""
_BEGINS = re.compile(rb"^# BEGIN Salvor, platform ([a-z0-9-]+): ", re.MULTILINE)
_SECONDS = 60.0
_PATH = 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:$PATH"'
"""cron's own is /usr/bin:/bin alone, or what the crontab says; systemd's has these too."""
_NO_DAEMON = r"""
[ -r /proc/1/comm ] || exit 0 # mounted with hidepid: others' processes are not shown
cat /proc/[0-9]*/comm 2>/dev/null | grep -qxE 'cron|crond|fcron|bcron-sched|busybox' || echo none
"""
"""Prints `none` where no cron daemon runs."""


def _lines(block: bytes) -> list[str]:
    """Its lines; to encode them again with "surrogateescape" gives the same bytes."""
    return block.decode("utf-8", "surrogateescape").split("\n")[:-1]


class Crontab:
    """The block of one platform in the crontab of whoever we are on a machine."""

    name = f"cron, which looks every {MINUTES} minutes"

    def __init__(self, shell: Shell, caller: Caller) -> None:
        self.shell, self.caller = shell, caller
        platform = caller.platform
        self._begin = f"# BEGIN Salvor, platform {platform}: inv schedule.install wrote this block, and will again"
        self._end = f"# END Salvor, platform {platform}"
        runs = rf".* schedule\.run (?P<runs>\S+) --platform={re.escape(platform)}"
        self._ours = re.compile(rf'# (?P<says>\S+): (?P<text>\{{"at": .*\}})|{runs}')

    @staticmethod
    def runs(shell: Shell) -> bool:
        """Whether there is a cron there."""
        return shell.succeeds(["sh", "-c", "command -v crontab"])

    def warning(self) -> str:
        """What may keep the schedules from running; empty when nothing is known of it."""
        if self.shell.run(["sh", "-c", _NO_DAEMON], check=False).stdout.strip() != "none":
            return ""
        return "no cron daemon runs there, so nothing begins them; for example: service cron start"

    def platforms(self) -> set[str]:
        """The platforms of which anything is installed."""
        return {one.decode() for one in _BEGINS.findall(self._read())}

    def installed(self) -> dict[str, Entry]:
        """What is installed for this platform, by name."""
        _, block, _ = self._parts(self._read())
        matches = [match for line in _lines(block) if (match := self._ours.fullmatch(line))]
        texts = {match["says"]: match["text"] for match in matches if match["says"]}
        commands = {match["runs"]: match[0] for match in matches if match["runs"]}
        found = {}
        for name in texts.keys() | commands.keys():
            said = entry.read(texts.get(name, ""))
            at, run = said or ("", ())
            ran = stamp.read(self.shell.read(self.caller.stamp(name)))
            sound = said is not None and commands.get(name) == self._line(name)
            found[name] = Entry(at, run, sound, ran.last, ran.result)
        return found

    def put(self, name: str, at: str, run: Sequence[str]) -> None:
        """Install a schedule, or replace it."""
        entries = {one: (each.at, each.run) for one, each in self.installed().items()}
        if name not in entries:
            self._note_begin(name)
        self._write({**entries, name: (at, tuple(run))})

    def remove(self, name: str) -> None:
        """Remove a schedule, and the block with the last one."""
        entries = {one: (each.at, each.run) for one, each in self.installed().items() if one != name}
        self._write(entries)
        note = self.caller.stamp(name).removesuffix(".json")
        self.shell.run(["rm", "-f", "--", f"{note}.json", f"{note}.lock"])
        self.shell.run(["rmdir", "--", self.caller.stamps], check=False)  # once it is empty

    def _note_begin(self, name: str) -> None:
        """From now on it may be due: what was due before it was installed was not missed."""
        self.shell.run(["sh", "-c", 'umask 077; mkdir -p -- "$1"', "sh", self.caller.stamps])
        self.shell.write(self.caller.stamp(name), stamp.Stamp(clock.now()).text())

    def _line(self, name: str) -> str:
        """cron's line of a schedule; cron makes a newline of `%`, see crontab(5)."""
        given = [f"{key}={value}" for key, value in sorted(self.caller.environment.items())]
        command = self.caller.argv("schedule.run", name, f"--platform={self.caller.platform}")
        words = f"env {_PATH} {shlex.join([*given, *command])}"  # env: SHELL= of the crontab may know no NAME=VALUE
        return f"*/{MINUTES} * * * * " + f"cd {shlex.quote(self.caller.folder)} && {words}".replace("%", "\\%")

    def _write(self, entries: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        now = self._read()
        before, block, after = self._parts(now)
        theirs = [line for line in _lines(block)[1:-1] if not self._ours.fullmatch(line)]
        after = "".join(f"{line}\n" for line in theirs).encode("utf-8", "surrogateescape") + after
        lines = []
        for name, (at, run) in sorted(entries.items()):
            lines += [f"# {name}: {entry.write(at, run)}", self._line(name)]
        new = "".join(f"{one}\n" for one in (self._begin, *lines, self._end)).encode() if lines else b""
        if not block and before and not before.endswith(b"\n"):
            new = b"\n" + new
        if before + new + after == now:
            return
        if before + new + after:
            self.shell.run(["crontab", "-"], input=before + new + after, deadline=_SECONDS)
        else:
            self.shell.run(["crontab", "-r"], deadline=_SECONDS)

    def _parts(self, table: bytes) -> tuple[bytes, bytes, bytes]:
        """What stands before our block, the block, and what stands behind it, byte for byte."""
        begin, end = (re.escape(one.encode()) for one in (self._begin, self._end))
        found = re.search(rb"^%b\n(?:.*\n)*?%b\n" % (begin, end), table, re.MULTILINE)
        if not found:
            if re.search(rb"^%b$" % begin, table, re.MULTILINE):
                raise CannotError(
                    f"The crontab of {self._whose()} has the begin of our block and not its end.",
                    safe="nothing was changed",
                    hint=f"crontab -e, and remove from {self._begin[:40]!r} on what is ours",
                )
            return table, b"", b""
        return table[: found.start()], found.group(), table[found.end() :]

    def _read(self) -> bytes:
        """All of the crontab; nothing when there is none."""
        try:
            return b"".join(self.shell.pieces(["crontab", "-l"], deadline=_SECONDS))
        except CommandError as error:
            if "no crontab for" in error.stderr:
                return b""
            raise

    def _whose(self) -> str:
        return f"{self.shell.user or 'this user'} on {self.shell.where}"

"""One PostgreSQL server: its data directory, its processes, and how it is started, stopped and killed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from salvor import clock, secrets
from salvor.change import Reachable
from salvor.errors import CannotError, OutcomeUnknownError, SalvorError
from salvor.postgres import refusal
from salvor.postgres.connection import Operator, connect, cut_after, listens, refuses
from salvor.postgres.look import LOOK, LOOK_AT_PROCESSES, MARKER, Look, Process, first, read_look, read_processes
from salvor.shell import Shell
from salvor.wish import FENCE_MACHINE

if TYPE_CHECKING:
    from salvor.postgres.connection import Connection

WHOLE_MACHINE = (
    "have it cut off from the network, if the inventory describes it (kind: host): the same command with "
    f"--override='{FENCE_MACHINE}:NAME=REASON'"
)
"""What can be done about a server on which nothing else works."""

PROBE_SECONDS = 3.0
LOOKED_EVERY = 0.25
"""Seconds between two looks at whether a server that starts still lives: each takes a core that it could use."""
_THAW_SECONDS = 0.5
"""How long a frozen server is given, before it is believed that it stays so."""

# Returns when these processes have ended, or after a second: a look takes longer, and a core that they could use. One
# that nobody has waited for yet still has an entry in /proc, and no folder in which it works.
_AWAIT_END = r"""
data=$1 turns=50
shift
for pid; do
    while [ "/proc/$pid/cwd" -ef "$data" ] && [ $((turns -= 1)) -gt 0 ]; do sleep 0.02; done
done
"""
_WORDS_OF_AN_END = ("FATAL", "PANIC", "ERROR", "HINT", "invalid value", "unrecognized configuration", "syntax error")
# postmaster.pid has the number in line 1, the port in line 4 and the socket's folder in line 5 (pidfile.h).
_REMOVE_LOCKS = r"""
data=$1
shift
if { read -r pid; read -r _; read -r _; read -r port; read -r folder; } 2>/dev/null < "$data/postmaster.pid"; then
    case " ${*:-$pid} " in *" $pid "*) ;; *) exit 0 ;; esac
    lock=$folder/.s.PGSQL.$port.lock
    { read -r owner; } 2>/dev/null < "$lock" && [ "$owner" = "$pid" ] && rm -f -- "$lock"
fi
rm -f -- "$data/postmaster.pid"
"""


@dataclass(frozen=True)
class Server:
    """One server process (which may not run) and its data directory (which may be gone), on this machine or on a host.

    `shell` runs as the server's operating-system user. `start_command` and `stop_command` are argv lists for a service
    manager that owns the server; without them pg_ctl does it. `configuration` is the path of postgresql.conf when it
    lies outside the data directory, as on Debian.
    """

    shell: Shell
    programs: str
    data: str
    address: str
    port: int
    operator: Operator
    start_command: Sequence[str] | None = None
    stop_command: Sequence[str] | None = None
    configuration: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For the server process: secrets that its archive and restore commands need."""
    shares_port: bool = False
    """Others may listen there too (stages of other incidents), so who answers is checked before it is believed."""

    def program(self, name: str) -> str:
        """The path of one of PostgreSQL's programs."""
        return f"{self.programs}/{name}"

    @property
    def postgres(self) -> list[str]:
        """The server's own command, with its configuration; `-C NAME` makes it print a setting and end."""
        elsewhere = ["-c", f"config_file={self.configuration}", "-c", f"data_directory={self.data}"]
        return [self.program("postgres"), "-D", self.data, *(elsewhere if self.configuration else [])]

    @property
    def configuration_file(self) -> str:
        """The path of its postgresql.conf."""
        return self.configuration or f"{self.data}/postgresql.conf"

    @property
    def log(self) -> str:
        """The log of a server that pg_ctl started: beside the data directory, so that it outlives it."""
        return f"{self.data}.log"

    # ------------------------------------------------------------------------------------------ from its machine

    def look(self, *, deadline: float = 10.0) -> Look:
        """Everything that its machine shows, in one call. Raises CannotError when the machine does not answer."""
        argv = ["sh", "-c", LOOK, "sh", self.data, self.programs, MARKER, self.configuration_file, *self.postgres]
        text = self.shell.run(argv, deadline=deadline).stdout
        return read_look(text)

    def look_twice(self, *, deadline: float = 10.0) -> Look:
        """As `look`; what is frozen is looked at again half a second later, for it may have been for a moment."""
        look = self.look(deadline=deadline)
        if look.is_frozen:
            time.sleep(_THAW_SECONDS)
            look = self.look(deadline=deadline)
        return look

    def control(self) -> Mapping[str, str] | None:
        """What pg_controldata says, by its own labels; None when there is nothing to read."""
        return self.look().control

    def identity(self) -> str:
        """`<system identifier>@<device>:<inode of the data directory>`, or `absent`."""
        return self.look().identity

    def processes(self) -> list[int]:
        """The postmasters that work in this data directory, also when it was deleted or renamed under them.

        A child whose postmaster was killed and that still lives counts as one.
        """
        return [process.pid for process in first(self.all_processes())]

    def all_processes(self, *, deadline: float = 10.0) -> tuple[Process, ...]:
        """The postmasters and all that they started."""
        argv = ["sh", "-c", LOOK_AT_PROCESSES, "sh", self.data]
        return read_processes(self.shell.run(argv, deadline=deadline).stdout)

    # -------------------------------------------------------------------------------------------- start and stop

    def start(self, overrides: Mapping[str, str] | None = None, *, deadline: float = 60.0) -> None:
        """Start it with its own settings (or some overridden, by name) and wait until it answers SQL.

        Finds its work done when it runs. Raises CannotError with the end of the log when it ends instead, and
        OutcomeUnknownError when it has not answered after `deadline` seconds.
        """
        begun = looked = clock.monotonic()
        self.launch(overrides)
        elsewhere = ""
        while (silent := self._silent()) is not None:
            if elsewhere and "refused" in silent:
                raise CannotError(
                    f"PostgreSQL in {self.data} on {self.shell.where} runs and listens on {elsewhere}, not on "
                    f"{self.address}:{self.port}.",
                    hint=f"set listen_addresses and port in {self.configuration_file}, stop it, then the same command "
                    "again",
                )
            if clock.monotonic() > looked + LOOKED_EVERY:
                looked = clock.monotonic()
                if not self.processes():
                    raise self.ended()
                elsewhere = self._listens()
            if clock.monotonic() > begun + deadline:
                raise OutcomeUnknownError(
                    f"PostgreSQL in {self.data} on {self.shell.where} was started and does not answer after "
                    f"{clock.write_duration(deadline)}: {silent}.",
                    safe="it may still be recovering; nothing was lost",
                    hint=f"read its log: tail {shlex.quote(self.log)}",
                )
            pause(begun)

    def remove_locks(self) -> None:
        """Remove the lock files of a server that no process belongs to.

        Left there, it refuses to start when that number is another process's by now, or still a zombie's.
        """
        self.shell.run(["sh", "-c", _REMOVE_LOCKS, "sh", self.data])

    def launch(self, overrides: Mapping[str, str] | None = None, look: Look | None = None) -> None:
        """Start it and do not wait. Overridden settings need pg_ctl, so they pass a service manager by. `look`: one
        just taken.
        """
        if (look.processes if look else self.processes()) and not self._has_shut_down():
            return
        if self.start_command and not overrides:
            self.shell.run(self.start_command, deadline=120.0)
            return
        settings = dict(overrides or {})
        if settings or self.configuration:  # a copy's own file may name the directory that it is a copy of
            settings["data_directory"] = self.data
        if self.configuration:
            settings["config_file"] = self.configuration
        options = [*(["-h", self.address, "-p", str(self.port)] if overrides else [])]
        for name, value in settings.items():
            options += ["-c", f"{name}={value}"]
        self.remove_locks()
        argv = [self.program("pg_ctl"), "-D", self.data, "-l", self.log, "-W", "-s"]
        if options:
            argv += ["-o", shlex.join(options)]  # pg_ctl gives this to a shell
        self.shell.run([*argv, "start"], environment=self.environment)

    def _has_shut_down(self, *, deadline: float = 300.0) -> bool:
        """Whether what runs was told to stop, by a call that was killed meanwhile; returns when it has ended."""
        until = clock.monotonic() + deadline
        while "is shutting down" in self.probe()[1] and clock.monotonic() < until:
            time.sleep(0.1)
        return not self.processes()

    def _listens(self) -> str:
        """Where it takes connections; empty while it takes none. Line 8 of postmaster.pid says that (pidfile.h)."""
        lines = (self.shell.read(f"{self.data}/postmaster.pid") or "").splitlines()
        return f"{lines[5]}:{lines[3]}" if len(lines) > 7 and lines[7].strip() in ("ready", "standby") else ""

    def ended(self) -> CannotError:
        """The error for a server that was started and is gone, with the end of its log."""
        said = [line for line in self.last_log() if any(word in line for word in _WORDS_OF_AN_END)]
        why = " / ".join(said[-3:]) or "its log does not say why"
        hint = f"read its log: tail -n 30 {shlex.quote(self.log)}"
        if listens(self.address, self.port):
            hint = (
                f"another server holds {self.address}:{self.port}: on {self.shell.where}, ps -eo pid,args | grep -e "
                "'-[D]' names its data directory. One that ends in .salvor-ID is a copy of another incident or drill, "
                "and nothing live: when nobody works on that any more, kill -INT PID, then the same command again"
            )
        return CannotError(f"PostgreSQL in {self.data} on {self.shell.where} ended: {why}", hint=hint)

    def last_log(self, lines: int = 40) -> list[str]:
        """The last lines of the log that pg_ctl wrote to."""
        argv = ["tail", "-n", str(lines), "--", self.log]
        return secrets.mask(self.shell.run(argv, check=False).stdout).splitlines()

    def stop(self, mode: str = "fast", *, deadline: float = 60.0) -> None:
        """Stop it: `fast` ends sessions, writes a checkpoint and sends standbys the last WAL; `immediate` crashes it.

        Finds its work done when it does not run. Raises OutcomeUnknownError when a process is left after `deadline`
        seconds.
        """
        begun = clock.monotonic()
        if self.stop_command:  # of what does not run, pg_ctlcluster says that as an error
            self.shell.run(self.stop_command, deadline=deadline, check=bool(self.processes()))
        pids = self.processes()
        if pids:
            self.shell.run([self.program("pg_ctl"), "-D", self.data, "-m", mode, "-W", "-s", "stop"], check=False)
            self.shell.run(["sh", "-c", _AWAIT_END, "sh", self.data, *(str(pid) for pid in pids)])
        while pids and (pids := self.processes()):
            if clock.monotonic() > begun + deadline:
                raise OutcomeUnknownError(
                    f"PostgreSQL in {self.data} on {self.shell.where} did not stop within "
                    f"{clock.write_duration(deadline)}; process {pids[0]} is left.",
                    safe="nothing was lost",
                    hint="run the same command again, or see what it waits for in its log",
                )
            pause(begun)

    def reload(self, look: Look | None = None) -> None:
        """Have a running server read its configuration and pg_hba.conf again (SIGHUP); `look`: one just taken."""
        if pids := look.postmasters if look else self.processes():
            self.shell.run(["kill", "-HUP", *(str(pid) for pid in pids)], check=False)

    def kill(self, *, deadline: float = 10.0) -> None:
        """SIGKILL to every process that works in the data directory, frozen ones too, and see them gone.

        Crash recovery makes this safe for the data. Raises CannotError when one is left after `deadline` seconds.
        """
        until = clock.monotonic() + deadline
        killed: set[str] = set()
        while pids := [str(process.pid) for process in self.all_processes()]:
            killed.update(pids)
            if clock.monotonic() > until:
                raise CannotError(
                    f"Processes {', '.join(pids)} of {self.data} on {self.shell.where} survive SIGKILL.",
                    safe="nothing was promoted",
                    hint="they hang in the kernel, mostly on a dead disk: cut the power of that machine; "
                    f"or {WHOLE_MACHINE}",
                )
            self.shell.run(["kill", "-KILL", *pids], check=False)
            time.sleep(0.05)
        if killed:  # the directory may be renamed now, and another server is to have its socket
            self.shell.run(["sh", "-c", _REMOVE_LOCKS, "sh", self.data, *killed])

    def setting(self, name: str) -> str | None:
        """A setting as it would be at the next start, read from the files; None when they cannot be read."""
        return self.settings(name).get(name)

    def settings(self, *names: str) -> dict[str, str]:
        """Settings as they would be at the next start, without those that this version lacks or that are unreadable."""
        script = r"""
            names=$1; shift
            for name in $names; do
                { value=$("$@" -C "$name" 2>/dev/null) && printf '%s %s\n' "$name" "$value"; } &
            done
            wait"""
        said = self.shell.run(["sh", "-c", script, "sh", " ".join(names), *self.postgres], deadline=30.0).stdout
        return {name: value for name, _, value in (line.partition(" ") for line in said.splitlines()) if name in names}

    # -------------------------------------------------------------------------------------------- ask the server

    def by_hand(self, *statements: str) -> str:
        """The command by which a person has them executed, as the operator; psql asks for the password."""
        as_whom = f"psql -h {self.address} -p {self.port} -U {shlex.quote(self.operator.user)} -d postgres"
        return " ".join([as_whom, *(f'-c "{statement}"' for statement in statements)])

    def connect(self, database: str = "postgres", *, deadline: float = 5.0, writes: bool = False) -> Connection:
        """An autocommit connection as the operator, read-only without `writes`; `deadline` is for each statement.

        Raises psycopg.Error. The server's own limits do not work while it is frozen: `session` has one that does.
        """
        import psycopg

        connection = connect(self.address, self.port, database, self.operator, deadline=deadline, writes=writes)
        if self.shares_port:
            row = connection.execute("show data_directory").fetchone()
            if row != (self.data,):
                connection.close()
                raise psycopg.OperationalError(f"the server on {self.address}:{self.port} is that of {row and row[0]}")
        return connection

    @contextmanager
    def session(
        self, database: str = "postgres", *, deadline: float = 5.0, writes: bool = False
    ) -> Iterator[Connection]:
        """A connection that is cut after `deadline` seconds, also when the server is frozen. Raises psycopg.Error."""
        with self.connect(database, deadline=deadline, writes=writes) as connection, cut_after(connection, deadline):
            yield connection

    def probe(self) -> tuple[Reachable, str]:
        """Whether it answers SQL. UP: it does. DOWN: no process, and its port refuses. UNKNOWN: anything else, and why.

        A frozen server (SIGSTOP) is UNKNOWN: the kernel still accepts for it. Takes 4 s at most.
        """
        why = self._silent()
        if why is None:
            return Reachable.UP, "answers"
        try:
            if self.processes():
                return Reachable.UNKNOWN, f"it runs and does not answer: {why}"
        except SalvorError as error:
            return Reachable.UNKNOWN, f"its machine does not answer either: {error.what}"
        if refuses(self.address, self.port):
            return Reachable.DOWN, "no process, and the port refuses"
        return Reachable.UNKNOWN, f"no process in {self.data}, yet something holds {self.address}:{self.port}: {why}"

    def _silent(self) -> str | None:
        """Why it does not answer SQL; None when it does."""
        import psycopg

        try:
            with self.session(deadline=PROBE_SECONDS) as connection:
                connection.execute("select 1")
        except psycopg.Error as error:
            return refusal.words(error)
        return None


def pause(since: float, *, most: float = 0.2) -> None:
    """Wait a little between two looks at what has gone on since then (`clock.monotonic`): at most a fifth longer than
    that, between 0.02 and `most` seconds.
    """
    time.sleep(min(most, max(0.02, (clock.monotonic() - since) / 5)))

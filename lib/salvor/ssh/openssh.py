"""A link by the system's own `ssh`, for what paramiko cannot do: old algorithms, Kerberos, hardware keys, ProxyCommand.

One process holds the connection (ssh_config: ControlMaster), and ends when we do; each command goes over its socket.
All that is asked of it stands in a configuration that is written for this link.
"""

from __future__ import annotations

import base64
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from salvor import clock, secrets
from salvor.errors import CannotError
from salvor.ssh import apart, known, offers
from salvor.ssh.remote import Link, Pipe
from salvor.ssh.route import Hop, Route

_GENERAL = """\
Host *
    StrictHostKeyChecking yes
    UpdateHostKeys no
    RequestTTY no
    ForwardAgent no
    ForwardX11 no
    ClearAllForwardings yes
    PermitLocalCommand no
    ControlMaster no
    ConnectionAttempts 1
    NumberOfPasswordPrompts 1
    ServerAliveInterval 5
    ServerAliveCountMax 3
    EscapeChar none
    BatchMode {batch}
    Include {home}/.ssh/config
"""
_BEGINNING = 10.0
_WAIT = 0.02
_QUIET = 0.3
_SHOWS = re.compile(r"Server host key: (\S+) (SHA256:\S+)")
_staying = ThreadPoolExecutor(1, thread_name_prefix="ssh")
_VERSION = re.compile(r"remote software version (\S+)")
_NOISE = re.compile(r"^(debug\d:|OpenSSH_|Warning: Permanently|\s*$)")


class Master(Link):
    """A process of `ssh` that holds the connection, and its socket in `folder`."""

    def __init__(self, route: Route, folder: Path, process: subprocess.Popen[bytes], remarks: tuple[str, ...]) -> None:
        self.login = route.host.user
        self.remarks = remarks
        self.where = route.alias
        self.folder = folder
        self.process = process
        self._version = _VERSION.findall((folder / "log").read_text(errors="replace"))[-1:]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def broken(self) -> bool:
        """Whether the connection broke, as one who used it just saw: its process may still be about to end."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_QUIET)
        return not self.alive

    @property
    def one_by_one(self) -> bool:
        return any(map(apart.is_needed, self._version))

    def begin(self, line: str) -> Pipe:
        # A socket that is gone must be an error: by itself, ssh would then connect anew, and log in again. It says
        # nothing of its own, so that a word is the host's.
        over_socket = ["-S", str(self.folder / "socket"), "-o", "ProxyCommand=false", "-o", "LogLevel=QUIET"]
        command = ["ssh", "-F", str(self.folder / "config"), *over_socket, "--", self.where, line]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, start_new_session=True, bufsize=0, **pipes)  # type: ignore[call-overload]
        pipe = _ProcessPipe(self, process)
        if not _heard_of(process) and pipe.exit_code() is None:
            raise CannotError(
                f"{self.where} does not run a command: the connection broke.",
                safe="it was not begun",
                hint="the same command again connects anew",
            ) from ConnectionResetError()
        return pipe

    def close(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        shutil.rmtree(self.folder, ignore_errors=True)


class _ProcessPipe(Pipe):
    def __init__(self, link: Master, process: subprocess.Popen[bytes]) -> None:
        self._link = link
        self._process = process

    def read(self, most: int) -> bytes:
        return _read(self._process.stdout, most)

    def read_error(self, most: int) -> bytes:
        return _read(self._process.stderr, most)

    def write(self, piece: bytes) -> None:
        assert self._process.stdin
        left = memoryview(piece)
        while left:
            left = left[self._process.stdin.write(left) :]

    def end_input(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_QUIET)
        code = self._process.returncode
        if code is None:
            return None
        return None if code < 0 or (code == 255 and self._link.broken) else code

    def close(self) -> None:
        if not self._link.one_by_one or self.exit_code() is None:
            self._process.kill()

    def is_over(self) -> bool:
        return (self._process.poll() or 0) >= 0 and self.ended


def _heard_of(process: subprocess.Popen[bytes]) -> bool:
    """Whether the host said anything: a command begins with a word, and before that it gets none of its input."""
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)  # type: ignore[arg-type]
    waiting.register(process.stderr, select.POLLIN)  # type: ignore[arg-type]
    said = waiting.poll(_BEGINNING * 1000)
    return not said or any(event & select.POLLIN for _, event in said)


def _read(stream: IO[bytes] | None, most: int) -> bytes:
    assert stream
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    if not waiting.poll(_QUIET * 1000):
        raise TimeoutError
    piece = os.read(stream.fileno(), most)
    if not piece:
        stream.close()
    return piece


def open_master(route: Route, deadline: float) -> Master:
    """A link along `route` within `deadline` seconds. Raises CannotError."""
    if shutil.which("ssh") is None:
        raise CannotError(
            f"{route.alias} needs the system's ssh, and there is none here.", hint="apt-get install openssh-client"
        )
    until = clock.monotonic() + deadline
    folder = Path(tempfile.mkdtemp(prefix="salvor-ssh-"))
    try:
        return _Opening(route, folder, until).open()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Opening:
    """What is done to open one link."""

    def __init__(self, route: Route, folder: Path, until: float) -> None:
        self.route = route
        self.folder = folder
        self.until = until
        self.opened: dict[Hop, Mapping[str, str]] = {}
        self.environment = dict(os.environ)

    def open(self) -> Master:
        batch = self.ask_passwords_by_environment()
        for number, hop in enumerate(self.route.hops):
            self.write_configuration(batch)
            if hop.legacy:
                self.ask(hop, self.name(number))
        self.write_configuration(batch)
        log = self.folder / "log"
        command = ["ssh", "-F", str(self.folder / "config"), "-o", "LogLevel=DEBUG1", "-M", "-N"]
        with log.open("wb") as said:
            process = _begun(
                [*command, "-S", str(self.folder / "socket"), "--", self.route.alias], said, self.environment
            )
        while not (self.folder / "socket").exists():
            late = clock.monotonic() > self.until
            if late or process.poll() is not None:
                process.kill()
                process.wait(5)
                raise self.explained(log.read_text(errors="replace"), late)
            time.sleep(_WAIT)
        return Master(self.route, self.folder, process, self.remarks())

    def name(self, number: int) -> str:
        """What the configuration calls a machine: the host by its own name, so that ~/.ssh/config knows it too."""
        return self.route.alias if number == len(self.route.hops) - 1 else f"salvor-jump-{number}"

    def write_configuration(self, batch: str) -> None:
        lines = []
        for number, hop in enumerate(self.route.hops):
            lines += [f"Host {self.name(number)}", *(f"    {line}" for line in self.block(number, hop))]
        general = _GENERAL.format(batch=batch, home=_quoted(str(Path.home())))
        path = self.folder / "config"
        path.write_text("\n".join([*lines, general]), encoding="utf-8")
        path.chmod(0o600)

    def block(self, number: int, hop: Hop) -> list[str]:
        known_hosts = [path for path in hop.known_hosts if path != known.GLOBAL]
        lines = [f"HostName {hop.host}", f"User {hop.user}", f"Port {hop.port}"]
        lines += [f"IdentityFile {_quoted(key)}" for key in hop.keys if hop.named or Path(key).exists()]
        lines += [] if hop.agent else ["IdentitiesOnly yes"]
        if hop.pinned:
            path = self.folder / f"known-{number}"
            names = known.entry(hop.host, hop.port)
            keys = [f"{names} {kind} {base64.b64encode(key).decode()}\n" for kind, key in hop.pinned.keys]
            path.write_text("".join(keys), encoding="utf-8")
            lines += [f"UserKnownHostsFile {path}", "GlobalKnownHostsFile none"]
        else:
            lines += [f"UserKnownHostsFile {' '.join(map(_quoted, known_hosts))}"]
        lines += [f"{option} +{algorithm}" for option, algorithm in self.opened.get(hop, {}).items()]
        if number:
            configuration = shlex.quote(str(self.folder / "config"))
            before = self.name(number - 1)
            lines += [f"ProxyCommand ssh -F {configuration} -o LogLevel=DEBUG1 -W [%h]:%p -- {before}"]
        return lines

    def ask_passwords_by_environment(self) -> str:
        """Let ssh ask a script of ours, which has them from its environment; `no` to BatchMode then."""
        cases = []
        for number, hop in enumerate(self.route.hops):
            for what, reference, pattern in (
                ("PASSWORD", hop.password, f"{hop.user}@{hop.host}"),
                ("PASSPHRASE", hop.passphrase, "passphrase"),
            ):
                if reference:
                    name = f"SALVOR_{what}_{number}"
                    self.environment[name] = secrets.resolve(reference)
                    cases.append(f'*{shlex.quote(pattern)}*) printf "%s\\n" "${name}" ;;')
        if not cases:
            return "yes"
        script = self.folder / "askpass"
        script.write_text("\n".join(["#!/bin/sh", "case $1 in", *cases, "*) exit 1 ;;", "esac", ""]))
        script.chmod(0o700)
        self.environment |= {"SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":none"}
        return "no"

    def ask(self, hop: Hop, name: str) -> None:
        """Find what has to be opened for an old host, by calling it once."""
        try:
            said = subprocess.run(
                ["ssh", "-F", str(self.folder / "config"), "-o", "LogLevel=DEBUG2",
                 "-o", "PreferredAuthentications=none", "--", name, "true"],
                stdin=subprocess.DEVNULL, capture_output=True, check=False, env=self.environment,
                timeout=max(0.1, self.until - clock.monotonic()),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise self.explained("", late=True) from None
        proposals = offers.heard(said.stderr.decode("utf-8", "replace"))
        if proposals is None:
            raise self.explained(said.stderr.decode("utf-8", "replace"), late=False)
        try:
            self.opened[hop] = offers.needed(*proposals, hop.known.kinds)
        except CannotError as error:
            raise CannotError(f"{hop.name} cannot be reached over SSH: {error.what}.", hint=error.hint) from error

    def remarks(self) -> tuple[str, ...]:
        return tuple(
            f"{hop.name} is reached by old algorithms, opened for it alone: "
            + ", ".join(f"{offers.WORDS[option]} {algorithm}" for option, algorithm in opened.items())
            for hop, opened in self.opened.items()
            if opened
        )

    def explained(self, log: str, late: bool) -> CannotError:
        """The error that ssh's log tells."""
        hop = self.route.host
        said = "; ".join(line.strip() for line in log.splitlines() if not _NOISE.match(line))[-600:].rstrip(".")
        by_hand = f"ssh -p {hop.port} -- {shlex.quote(f'{hop.user}@{hop.host}')} true"
        if late:
            return CannotError(f"{hop.name} cannot be reached over SSH: timed out.", hint=by_hand)
        shown = _SHOWS.findall(log)
        if "key verification failed" in said.lower() and shown:
            # The machines on the way show their keys in its order; the last one that was shown is refused.
            hop = self.route.hops[min(len(shown), len(self.route.hops)) - 1]
            return known.refusal(" ".join(shown[-1]), hop.known, hop.name, hop.host, hop.port, bool(hop.pinned))
        if "Permission denied" in said:
            return CannotError(
                f"{hop.name} refuses us: {said}.", safe="nothing was run there", hint=f"{by_hand}, with -v to see why"
            )
        if "no matching" in said:
            return CannotError(
                f"{hop.name} knows no algorithm that is still in use: {said}.",
                safe="nothing was sent to it",
                hint="if it cannot be renewed, open what it needs, for it alone: ssh: {legacy: true} in the inventory",
            )
        return CannotError(
            f"{hop.name} cannot be reached over SSH: {said or 'ssh said nothing'}.",
            safe="nothing was run there",
            hint=by_hand,
        )


def _quoted(path: str) -> str:
    if '"' in path or "\n" in path:
        raise CannotError(f"The path {path!r} cannot stand in a configuration of ssh.", hint="rename it")
    return '"' + path.replace("%", "%%") + '"'


def _begun(command: list[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that ends when we do, however that comes about. Linux ends it with the *thread* that began it, so that
    has to be one that stays.
    """
    die_with_us = ["setpriv", "--pdeathsig=KILL", "--"] if shutil.which("setpriv") else []

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*die_with_us, *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            env=environment, start_new_session=True,
        )  # fmt: skip

    return _staying.submit(begin).result()

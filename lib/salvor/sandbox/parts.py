"""What every sandbox is made of: its parts, the lock that one command at a time holds, and its removal."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

from salvor.errors import CannotError, HeldError
from salvor.sandbox import folders, processes, receiver
from salvor.sandbox.folders import Folders

Kind = TypeVar("Kind", bound=Folders)


class Part(NamedTuple):
    """One part of a sandbox, whether it does its work, and what there is to say of it."""

    name: str
    up: bool
    detail: str


@contextmanager
def alone(kind: type[Folders]) -> Iterator[None]:
    """One `up` or `down` at a time. The lock is a socket's name, which ends with its process and leaves no file.

    Raises HeldError when another command has it.
    """
    place = kind.home()
    name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0salvor-sandbox-{os.getuid()}-{name}")
        except OSError as error:
            raise HeldError(
                f"Another command is at work on the sandbox in {place}.", hint="wait for it, then try again"
            ) from error
        yield


def begin(kind: type[Kind]) -> Kind:
    """The sandbox that stands, also half made, or a new one, with all its folders. Of a new one that cannot be made
    nothing is left. Raises as `Folders.plan` and `Folders.make` do.
    """
    known = kind.find(kind.home())
    sandbox = known or kind.plan(kind.home())
    try:
        sandbox.make()
    except CannotError:
        if not known:
            with suppress(OSError):  # a disk that takes nothing gives nothing back either
                sandbox.remove()
        raise
    return sandbox


def refuse_taken(sandbox: Folders, ports: Iterable[int], wanted_by: str) -> None:
    """Raise CannotError when somebody else listens on one of these ports of 127.0.0.1."""
    for port in ports:
        if not folders.is_free("127.0.0.1", port):
            raise folders.port_taken("127.0.0.1", port, wanted_by, sandbox.command("up"))


def listens(ports: Iterable[int]) -> bool:
    """Whether all these ports of 127.0.0.1 are listened on."""
    return not any(folders.is_free("127.0.0.1", port) for port in ports)


def state(argv: Sequence[str], name: str, look: Callable[[], tuple[bool, str]]) -> Part:
    """A daemon as it is now; `look` says whether one that runs does its work."""
    running = processes.find(argv)
    if not running:
        return Part(name, False, "does not run")
    works, detail = look()
    return Part(name, works, f"{detail}, process {running[0].pid}")


def tell(found: Iterable[Part], say: Callable[[str], object]) -> None:
    """Say how each part is, one line each."""
    for name, works, detail in found:
        say(f"{name}: {'' if works else 'down, '}{detail}")


def remove(sandbox: Folders, daemons: Iterable[Sequence[str]]) -> None:
    """Stop the daemons with these argv and everything else that works below the root, then remove it all."""
    sandbox.variables.unlink(missing_ok=True)
    processes.stop([process for argv in daemons for process in processes.find(argv)])
    # Staged servers work below the root too. All of it goes, so nothing has to be saved.
    while left := processes.working_in(sandbox.root):
        processes.kill(left)
    sandbox.remove()


def look_at_receiver(sandbox: Folders) -> tuple[bool, str]:
    """Whether the receiver answers, and what it has received."""
    code, _ = get(sandbox.receiver_port, "/")
    distinct, repeated = receiver.count(sandbox.messages)
    where = f"127.0.0.1:{sandbox.receiver_port}, mail {sandbox.mail_port}"
    return code == 200, f"{where}: {distinct} messages, {repeated} repeated"


def look_at_page(port: int) -> tuple[bool, str]:
    """Whether an application says that it is well, and what it says."""
    code, said = get(port, "/health")
    return code == 200, f"http://127.0.0.1:{port}/health says {code or 'nothing'}{'' if code == 200 else f': {said}'}"


def get(port: int, path: str) -> tuple[int, str]:
    """A page's status code (0: there was none) and its text, or why there is none."""
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=6)
    try:
        server.request("GET", path)
        answer = server.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        server.close()

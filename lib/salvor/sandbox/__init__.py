"""A small real platform on loopback, to be broken and brought back: a database, its clients, DNS and a receiver.

Every part is a process of its own, which outlives the command that started it; `down` removes all of it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from salvor.errors import CannotError, HeldError
from salvor.sandbox import layout, processes
from salvor.sandbox.layout import Layout, place

__all__ = ["Part", "down", "find", "place", "status", "up"]


class Part(NamedTuple):
    """One part of the sandbox, whether it does its work, and what there is to say of it."""

    name: str
    up: bool
    detail: str


def find() -> Layout:
    """The sandbox that stands. Raises CannotError when there is none."""
    sandbox = layout.find(place())
    if not sandbox or not sandbox.variables.exists():
        raise CannotError(f"There is no sandbox in {place()}.", hint="inv sandbox.up")
    return sandbox


def up(*, fresh: bool = False, tell: Callable[[str], object] = print) -> None:
    """Have the sandbox stand: make what is not there, start what does not run, and say so by `tell`.

    `fresh` removes what stands first. A sandbox that an earlier call left half made is finished. Raises
    UsageError when its folder is somebody's, HeldError when another call is at work, CannotError when a part does not
    start.
    """
    from salvor.sandbox import database

    with _alone():
        if fresh:
            _remove()
        database.require()
        known = layout.find(place())
        sandbox = known or layout.plan(place())
        try:
            sandbox.make()
        except CannotError:
            if not known:
                sandbox.remove()
            raise
        _bring_up(sandbox, tell)


def _bring_up(sandbox: Layout, tell: Callable[[str], object]) -> None:
    from salvor.sandbox import database, names

    for part, ports in _ports(sandbox).items():
        for port in ports if not processes.find(_argv(sandbox, part)) else ():
            if not layout.is_free("127.0.0.1", port):
                raise layout.port_taken("127.0.0.1", port, f"the sandbox's {part}")
    # These come up while the database is made, and wait for it by themselves.
    names.start(sandbox)
    for part in ("receiver", "shop"):
        processes.start(_argv(sandbox, part), sandbox.log(part))
    new = not database.is_made(sandbox)
    if new:
        database.make(sandbox, tell)
    else:
        database.start_missing(sandbox, tell)
    processes.start(_argv(sandbox, "writer"), sandbox.log("writer"))
    for part, ports in _ports(sandbox).items():
        _wait(sandbox, part, partial(_listens, ports))
    if new:
        _wait(sandbox, "shop", lambda: _look(sandbox, "shop")[0])
    sandbox.publish()
    for name, works, detail in status():
        tell(f"{name}: {'' if works else 'down, '}{detail}")


def _listens(ports: Iterable[int]) -> bool:
    return not any(layout.is_free("127.0.0.1", port) for port in ports)


def _wait(sandbox: Layout, part: str, ready: Callable[[], bool]) -> None:
    processes.wait_until(ready, _argv(sandbox, part), sandbox.log(part), deadline=15)


def status() -> list[Part]:
    """Every part as it is now; empty when there is no sandbox. Writes nothing."""
    from salvor.sandbox import database

    sandbox = layout.find(place())
    if not sandbox:
        return []
    found = [Part(f"database {member}", *database.status(sandbox, member)) for member in layout.ADDRESSES]
    for part in (*_ports(sandbox), "writer"):
        running = processes.find(_argv(sandbox, part))
        if not running:
            found.append(Part(part, False, "does not run"))
        else:
            works, detail = _look(sandbox, part)
            found.append(Part(part, works, f"{detail}, process {running[0].pid}"))
    return found


def down() -> None:
    """Stop and remove everything of the sandbox, also of a half-made one, and what recoveries staged or kept in it.

    Does nothing when there is none. Raises CannotError when its folders do not say that they are a sandbox's.
    """
    with _alone():
        _remove()


def _remove() -> None:
    sandbox = layout.find(place())
    if not sandbox:
        return
    sandbox.variables.unlink(missing_ok=True)
    daemons = [process for part in ("writer", *_ports(sandbox)) for process in processes.find(_argv(sandbox, part))]
    processes.stop(daemons)
    # Staged servers work below the root too, besides the members. All of it goes, so nothing has to be saved.
    while left := processes.working_in(sandbox.root):
        processes.kill(left)
    sandbox.remove()


@contextmanager
def _alone() -> Iterator[None]:
    """One `up` or `down` at a time. The lock is a socket's name, which ends with its process and leaves no file."""
    name = hashlib.sha256(str(place()).encode()).hexdigest()[:16]
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0salvor-sandbox-{os.getuid()}-{name}")
        except OSError as error:
            raise HeldError(
                f"Another command is at work on the sandbox in {place()}.", hint="wait for it, then try again"
            ) from error
        yield


def _ports(sandbox: Layout) -> dict[str, tuple[int, ...]]:
    """The parts that listen on 127.0.0.1, and their ports."""
    return {
        "names": (sandbox.dns_port,),
        "receiver": (sandbox.receiver_port, sandbox.mail_port),
        "shop": (sandbox.shop_port,),
    }


def _argv(sandbox: Layout, part: str) -> list[str]:
    from salvor.sandbox import names

    return names.argv(sandbox) if part == "names" else processes.module(part, sandbox.place)


def _look(sandbox: Layout, part: str) -> tuple[bool, str]:
    """Whether a part that runs does its work, and what there is to say of it."""
    from salvor.sandbox import names, receiver, writer

    if part == "names":
        try:
            address, time_to_live = names.resolve(sandbox)
        except CannotError as error:
            return False, error.what
        return True, f"127.0.0.1:{sandbox.dns_port}: {names.DATABASE} is {address}, believed for {time_to_live} s"
    if part == "writer":
        orders, newest = writer.summary(sandbox.acknowledged)
        return True, f"{orders} orders acknowledged{f', the newest at {newest}' if newest else ''}"
    if part == "receiver":
        code, _ = _get(sandbox.receiver_port, "/")
        distinct, repeated = receiver.count(sandbox.messages)
        return (
            code == 200,
            f"127.0.0.1:{sandbox.receiver_port}, mail {sandbox.mail_port}: {distinct} messages, {repeated} repeated",
        )
    code, said = _get(sandbox.shop_port, "/health")
    return (
        code == 200,
        f"http://127.0.0.1:{sandbox.shop_port}/health says {code or 'nothing'}{'' if code == 200 else f': {said}'}",
    )


def _get(port: int, path: str) -> tuple[int, str]:
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

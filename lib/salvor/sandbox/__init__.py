"""A small real platform on loopback, to be broken and brought back: a database, its clients, DNS and a receiver.

Every part is a process of its own, which outlives the command that started it; `down` removes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from salvor.errors import CannotError
from salvor.sandbox import layout, parts, processes
from salvor.sandbox.layout import Layout
from salvor.sandbox.parts import Part

__all__ = ["Part", "down", "find", "status", "up"]


def find() -> Layout:
    """The sandbox that stands. Raises CannotError when there is none."""
    return Layout.standing()


def up(*, fresh: bool = False, tell: Callable[[str], object] = print) -> None:
    """Have the sandbox stand: make what is not there, start what does not run, and say so by `tell`.

    `fresh` removes what stands first. A sandbox that an earlier call left half made is finished. Raises
    UsageError when its folder is somebody's, HeldError when another call is at work, CannotError when a part does not
    start.
    """
    from salvor.sandbox import database

    with parts.alone(Layout):
        if fresh and (standing := Layout.find(Layout.home())):
            tell(f"The sandbox that stands in {standing.place} is removed first.")
            _remove()
        database.require()
        _bring_up(parts.begin(Layout), tell)


def _bring_up(sandbox: Layout, tell: Callable[[str], object]) -> None:
    from salvor.sandbox import database, names

    for part, ports in _ports(sandbox).items():
        if not processes.find(_argv(sandbox, part)):
            parts.refuse_taken(sandbox, ports, f"the sandbox's {part}")
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
        _wait(sandbox, part, partial(parts.listens, ports))
    if new:
        _wait(sandbox, "shop", lambda: _look(sandbox, "shop")[0])
    sandbox.publish()
    parts.tell(status(), tell)


def _wait(sandbox: Layout, part: str, ready: Callable[[], bool]) -> None:
    processes.wait_until(ready, _argv(sandbox, part), sandbox.log(part), deadline=15)


def status() -> list[Part]:
    """Every part as it is now; empty when there is no sandbox. Writes nothing."""
    from salvor.sandbox import database

    sandbox = Layout.find(Layout.home())
    if not sandbox:
        return []
    found = [Part(f"database {member}", *database.status(sandbox, member)) for member in layout.ADDRESSES]
    daemons = (*_ports(sandbox), "writer")
    return found + [parts.state(_argv(sandbox, part), part, partial(_look, sandbox, part)) for part in daemons]


def down() -> None:
    """Stop and remove everything of the sandbox, also of a half-made one, and what recoveries staged or kept in it.

    Does nothing when there is none. Raises CannotError when its folders do not say that they are a sandbox's.
    """
    with parts.alone(Layout):
        _remove()


def _remove() -> None:
    if sandbox := Layout.find(Layout.home()):
        parts.remove(sandbox, [_argv(sandbox, part) for part in ("writer", *_ports(sandbox))])


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
    from salvor.sandbox import names, writer

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
        return parts.look_at_receiver(sandbox)
    return parts.look_at_page(sandbox.shop_port)

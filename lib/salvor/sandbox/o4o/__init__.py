"""A stand-in for o4o on loopback: a real database, real files and their backups, applications under the real pm2.

Every part is a process of its own, which outlives the command that started it; `down` removes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from salvor.sandbox import parts, processes
from salvor.sandbox.o4o.layout import APPLICATIONS, Layout
from salvor.sandbox.parts import Part

__all__ = ["Part", "down", "find", "status", "up"]

_STARTING = 20.0


def find() -> Layout:
    """The stand-in that stands. Raises CannotError when there is none."""
    return Layout.standing()


def up(*, fresh: bool = False, tell: Callable[[str], object] = print) -> None:
    """Have the stand-in stand: make what is not there, start what does not run, and say so by `tell`.

    `fresh` removes what stands first. One that an earlier call left half made is finished; what a disaster did to its
    data stays. Raises UsageError when its folder is somebody's, HeldError when another call is at work, CannotError
    when a part does not start.
    """
    from salvor.sandbox import cluster

    with parts.alone(Layout):
        if fresh and (standing := Layout.find(Layout.home())):
            tell(f"The stand-in that stands in {standing.place} is removed first.")
            _remove()
        cluster.require({**cluster.NEEDED, "restic": "restic"})
        _bring_up(parts.begin(Layout), tell)


def _bring_up(sandbox: Layout, tell: Callable[[str], object]) -> None:
    from salvor.sandbox.o4o import backups, pm2

    if not processes.find(_argv(sandbox, "receiver")):
        parts.refuse_taken(sandbox, (sandbox.receiver_port, sandbox.mail_port), "the stand-in's receiver")
    for name, argv in pm2.commands(sandbox).items():
        if not processes.find(argv):
            parts.refuse_taken(sandbox, (sandbox.port(name),), f"the application {name}")
    processes.start(_argv(sandbox, "receiver"), sandbox.log("receiver"))
    new = not backups.are_made(sandbox)
    _make(sandbox, tell)
    pm2.start(sandbox, tell)
    if new:
        _wait_for_applications(sandbox)
    processes.start(_argv(sandbox, "o4o.customers"), sandbox.log("customers"))
    listens = partial(parts.listens, (sandbox.receiver_port, sandbox.mail_port))
    processes.wait_until(listens, _argv(sandbox, "receiver"), sandbox.log("receiver"), deadline=_STARTING)
    sandbox.publish()
    parts.tell(status(), tell)


def _make(sandbox: Layout, tell: Callable[[str], object]) -> None:
    """The database, the files, and their first backups, where they are not made yet."""
    from salvor.sandbox import cluster
    from salvor.sandbox.o4o import backups, content, database, pm2

    new = not backups.are_made(sandbox)
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(database.start_missing if cluster.is_made(sandbox) else database.make, sandbox, tell)
        if not content.is_made(sandbox):
            content.make(sandbox)
            tell("files: 2,000 pictures, the release, logs and .env")
        taken = pool.submit(backups.take, sandbox) if new else None
        pm2.install(tell)
        made.result()
        if taken:
            archive = backups.archive(sandbox)
            taken.result()
            tell(f"backups: a snapshot in each of two repositories, and {archive.name}")
            backups.note_made(sandbox)


def _wait_for_applications(sandbox: Layout) -> None:
    from salvor.sandbox.o4o import pm2

    for name, argv in pm2.commands(sandbox).items():
        well = partial(_is_well, sandbox, name)
        processes.wait_until(well, argv, sandbox.root / "pm2" / "logs" / f"{name}-error.log", deadline=_STARTING)


def _is_well(sandbox: Layout, application: str) -> bool:
    return parts.look_at_page(sandbox.port(application))[0]


def status() -> list[Part]:
    """Every part as it is now; empty when there is no stand-in. Writes nothing."""
    from salvor.sandbox.o4o import database, pm2, state

    sandbox = Layout.find(Layout.home())
    if not sandbox:
        return []
    found = [Part("database", *database.status(sandbox)), *state.of_files(sandbox)]
    for name in APPLICATIONS:
        look = partial(parts.look_at_page, sandbox.port(name))
        found.append(parts.state(pm2.commands(sandbox)[name], name, look))
    found.append(parts.state(_argv(sandbox, "receiver"), "receiver", partial(parts.look_at_receiver, sandbox)))
    found.append(parts.state(_argv(sandbox, "o4o.customers"), "customers", partial(state.of_customers, sandbox)))
    return found


def down() -> None:
    """Stop and remove everything of the stand-in, also of a half-made one, and what recoveries staged or kept in it.

    Does nothing when there is none. Raises CannotError when its folders do not say that they are a stand-in's.
    """
    with parts.alone(Layout):
        _remove()


def _remove() -> None:
    from salvor.sandbox.o4o import pm2

    if sandbox := Layout.find(Layout.home()):
        pm2.kill(sandbox)
        parts.remove(sandbox, [_argv(sandbox, part) for part in ("o4o.customers", "receiver")])


def _argv(sandbox: Layout, part: str) -> list[str]:
    return processes.module(part, sandbox.place)

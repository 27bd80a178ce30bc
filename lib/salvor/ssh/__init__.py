"""Hosts over SSH: keys checked, always; every wait bounded; a connection kept for the next command of this process."""

from __future__ import annotations

import atexit
import os
import socket
import threading

from salvor.shell import Shell
from salvor.ssh.apart import Apart
from salvor.ssh.remote import Link, Remote
from salvor.ssh.route import Route, plan
from salvor.ssh.settings import SshSettings

_links: dict[tuple[int, Route], Link] = {}
_doors: dict[Route, threading.Lock] = {}
_lock = threading.Lock()


def connect(
    host: str,
    *,
    user: str | None,
    port: int | None,
    run_as: str | None,
    deadline: float,
    settings: SshSettings | None,
) -> Shell:
    """See `salvor.shell.connect`."""
    said = settings or SshSettings()
    changes = {"user": user or said.user, "port": port or said.port}
    route = plan(host, said.model_copy(update=changes))
    link(route, deadline)
    return Remote(host, lambda: link(route, deadline), run_as, said.sudo_password)


def is_open(route: Route) -> bool:
    """Whether a link along `route` is kept and open."""
    kept = _links.get((os.getpid(), route))
    return kept is not None and kept.alive


def link(route: Route, deadline: float) -> Link:
    """The link along `route` that is kept, or a new one, which is kept from now on. Raises CannotError."""
    key = (os.getpid(), route)  # a child of ours must not talk on its parent's connection
    with _lock:
        door = _doors.setdefault(route, threading.Lock())
    with door:
        kept = _links.get(key)
        if kept and kept.alive:
            return kept
        if kept:
            kept.close()
        _links[key] = new_link(route, deadline)
        return _links[key]


def new_link(route: Route, deadline: float, opened: socket.socket | None = None) -> Link:
    """A link along `route` for the caller alone, who closes it. `opened` is a connection to the first machine on it
    that stands already. Raises CannotError.
    """
    first = _open(route, deadline, opened)
    return Apart(first, lambda: _open(route, deadline)) if first.one_by_one else first


def _open(route: Route, deadline: float, opened: socket.socket | None = None) -> Link:
    if route.by_openssh:
        from salvor.ssh.openssh import open_master

        return open_master(route, deadline)
    from salvor.ssh.wire import open_wire

    return open_wire(route, deadline, opened)


@atexit.register
def _close_all() -> None:
    for (pid, _), kept in list(_links.items()):
        if pid == os.getpid():
            kept.close()

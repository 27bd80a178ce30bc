"""The machines of a platform: look at them, run commands on them, fence them, work on their services."""

from __future__ import annotations

import sys
from collections.abc import Callable

from invoke.context import Context

from salvor.commands import collection, command

_ALL = "*"
_LIMIT = "names or patterns of machines, systems or services, separated by commas (default: every machine)"

_WHICH = "which: names or patterns of machines, systems or services, separated by commas"


@command(limit=_LIMIT)
def hosts(c: Context, platform: str = "", limit: str = _ALL, json: bool = False) -> None:
    """Look at the machines of the platform, side by side: what is wrong comes first."""
    from salvor import show
    from salvor.hosts import looks

    looks.verdict(looks.show_all(platform, limit, show.choose(as_json=json)))


_BATCH = "how many at a time (default: all)"
_FAILURES = "with --batch: go on with the next ones until more than this many have failed (default: 0)"
_DEADLINE = "how long each 8 MiB may take, for example 30s or 5m (default: 60s)"


@command(
    command="the command as one line for sh; or write it after --",
    limit=_LIMIT,
    batch=_BATCH,
    failures=_FAILURES,
    deadline="how long it may take on each machine, for example 30s or 5m (default: 60s)",
)
def run(
    c: Context,
    platform: str = "",
    limit: str = _ALL,
    command: str = "",
    batch: int = 0,
    failures: int = -1,
    deadline: str = "60s",
    json: bool = False,
) -> None:
    """Run a command on machines: inv hosts.run --limit=web-* -- uptime"""
    from salvor import show
    from salvor.hosts import rolling

    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []  # invoke keeps them to itself
    how = rolling.rolling(batch, failures if failures != -1 else None, deadline)
    rolling.run(platform, limit, words or ([command] if command else []), how, show.choose(as_json=json))


@command(
    "file",
    "to",
    file="the file on this machine",
    to="where it is to be there: an absolute path; a folder's ends with /",
    limit=_LIMIT,
    mode="its mode there (default: 600)",
    batch=_BATCH,
    failures=_FAILURES,
    deadline=_DEADLINE,
)
def upload(
    c: Context,
    file: str,
    to: str,
    platform: str = "",
    limit: str = _ALL,
    mode: str = "600",
    batch: int = 0,
    failures: int = -1,
    deadline: str = "60s",
    json: bool = False,
) -> None:
    """Copy a file to machines, checked by its checksum: inv hosts.upload shop.conf /etc/shop/ --limit=web-*"""
    from salvor import show
    from salvor.hosts import copies, rolling

    how = rolling.rolling(batch, failures if failures != -1 else None, deadline)
    copies.upload(platform, limit, file, to, mode, how, show.choose(as_json=json))


@command(
    "file",
    "to",
    file="the file there: an absolute path",
    to="a folder on this machine; it gets a folder for each",
    limit=_LIMIT,
    deadline=_DEADLINE,
)
def download(
    c: Context, file: str, to: str, platform: str = "", limit: str = _ALL, deadline: str = "60s", json: bool = False
) -> None:
    """Copy a file from machines to here: inv hosts.download /var/log/syslog logs/ --limit=web-*"""
    from salvor import show
    from salvor.hosts import copies, rolling

    copies.download(platform, limit, file, to, rolling.rolling(0, None, deadline), show.choose(as_json=json))


def _on_hosts(verb: str, summary: str) -> Callable[..., None]:
    """A task that changes the network of machines."""

    def body(
        c: Context,
        limit: str = "",
        platform: str = "",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import show
        from salvor.hosts import work as host_work

        work = {"fence": host_work.fence, "unfence": host_work.unfence}[verb]
        shown = show.choose(as_json=json)
        host_work.carry_out(verb, work, platform, limit, shown, plan_only=plan, approve=approve, yes=yes)

    body.__name__, body.__doc__ = verb, summary
    return command(limit=_WHICH)(body)


def _on_service(verb: str, summary: str) -> Callable[..., None]:
    """A task that changes a service on machines."""

    def body(
        c: Context,
        name: str,
        limit: str = "",
        platform: str = "",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import show
        from salvor.hosts import work as host_work

        work = {"start": host_work.start, "stop": host_work.stop, "restart": host_work.restart}[verb](name)
        shown = show.choose(as_json=json)
        host_work.carry_out(verb, work, platform, limit, shown, plan_only=plan, approve=approve, yes=yes)

    body.__name__, body.__doc__ = verb, summary
    return command("name", name="the service there: of systemd, supervisor, pm2, or /etc/init.d", limit=_WHICH)(body)


fence = _on_hosts("fence", "Cut machines off from everybody but you, in and out, also after a reboot.")
unfence = _on_hosts("unfence", "Take the fence of machines away.")
start = _on_service("start", "Start a service on machines: inv hosts.start nginx --limit=web-*")
stop = _on_service("stop", "Stop a service on machines.")
restart = _on_service("restart", "Restart a service on machines.")


TASKS = (
    collection(
        "hosts",
        default=hosts,
        run=run,
        upload=upload,
        download=download,
        fence=fence,
        unfence=unfence,
        start=start,
        stop=stop,
        restart=restart,
    ),
)

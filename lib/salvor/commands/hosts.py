"""The machines of a platform: look at them, run commands on them, fence them, work on their services."""

from __future__ import annotations

import sys
from collections.abc import Callable

from invoke.context import Context

from salvor.commands import collection, command

_LIMIT = "names or patterns of machines, systems or services, separated by commas (default: every machine)"

_WHICH = "which: names or patterns of machines, systems or services, separated by commas"


@command(limit=_LIMIT)
def hosts(c: Context, platform: str = "", limit: str = "", json: bool = False) -> None:
    """Look at the machines of the platform, side by side: what is wrong comes first."""
    from salvor import hosts, show

    hosts.verdict(hosts.show_all(platform, limit, show.choose(as_json=json)))


@command(
    command="the command as one line for sh; or write it after --",
    limit=_LIMIT,
    batch="how many at a time (default: all)",
    failures="with --batch: go on with the next ones until more than this many have failed (default: 0)",
    deadline="how long it may take on each machine, for example 30s or 5m (default: 60s)",
)
def run(
    c: Context,
    platform: str = "",
    limit: str = "",
    command: str = "",
    batch: int = 0,
    failures: int = -1,
    deadline: str = "60s",
    json: bool = False,
) -> None:
    """Run a command on machines: inv hosts.run --limit=web-* -- uptime"""
    from salvor import hosts, show

    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []  # invoke keeps them to itself
    rolling = hosts.rolling(batch, failures if failures != -1 else None, deadline)
    hosts.run(platform, limit, words or ([command] if command else []), rolling, show.choose(as_json=json))


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
    collection("hosts", default=hosts, run=run, fence=fence, unfence=unfence, start=start, stop=stop, restart=restart),
)

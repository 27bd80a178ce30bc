"""What runs by itself: show it, install it, take it away."""

from __future__ import annotations

import sys
from collections.abc import Callable

from invoke.context import Context

from salvor.commands import collection, command


@command()
def show(c: Context, platform: str = "", json: bool = False) -> None:
    """Show what runs by itself: when next, when last, and whether it is installed on this machine."""
    from salvor import show as show_
    from salvor.schedule import work as schedule_work

    schedule_work.show_all(platform, show_.choose(as_json=json))


def _changing(name: str, summary: str) -> Callable[..., None]:
    def body(
        c: Context,
        platform: str = "",
        plan: bool = False,
        approve: str = "",
        yes: bool = False,
        json: bool = False,
    ) -> None:
        from salvor import show as show_
        from salvor.schedule import work as schedule_work

        work = {"install": schedule_work.install, "remove": schedule_work.remove}[name]
        work(platform, show_.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)

    body.__name__, body.__doc__ = name, summary
    return command()(body)


install = _changing("install", "Let the schedules of the inventory run by themselves here: systemd's timers, or cron.")
remove = _changing("remove", "Let no schedule of the platform run by itself here any more.")


@command("name", name="the schedule, as the inventory names it")
def run(c: Context, name: str, platform: str = "") -> None:
    """Run a schedule if it is due: what cron calls every few minutes."""
    from salvor.schedule import work as schedule_work

    # cron mails what is said, and it would every few minutes
    tell = print if sys.stdout.isatty() else lambda text: None
    sys.exit(schedule_work.run_due(platform, name, tell))


TASKS = (collection("schedule", show=show, install=install, remove=remove, run=run),)

"""What is looked at every day, week and month."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import command


@command()
def checklists(c: Context, platform: str = "", json: bool = False) -> None:
    """List the checklists, and when each was walked through last."""
    from salvor import show
    from salvor.checklist import walk

    walk.listing(platform, show.choose(as_json=json))


@command("name", name="a .yaml file of runbooks/, for example daily")
def checklist(c: Context, name: str, platform: str = "", json: bool = False) -> None:
    """Go through a checklist: run what can be run, ask a person the rest. The same command again goes on with it."""
    from salvor import show
    from salvor.checklist import walk

    walk.walk(name, platform, show.choose(as_json=json))


TASKS = (checklists, checklist)

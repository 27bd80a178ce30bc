"""The sandbox: a small real platform to break, and the stand-ins of customers' platforms."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import collection, command

_PLATFORM = (
    "which one: sandbox, or a platform of the inventory that has a stand-in, o4o (default: SALVOR_PLATFORM, else "
    "sandbox)"
)


@command(fresh="remove what stands first", of_a_stand_in=True, platform=_PLATFORM)
def up(c: Context, fresh: bool = False, platform: str = "") -> None:
    """Start the sandbox: a small real platform on loopback. Says what already runs."""
    from salvor.sandbox import platforms

    platforms.package(platform).up(fresh=fresh, tell=print)


@command(of_a_stand_in=True, platform=_PLATFORM)
def status(c: Context, platform: str = "") -> None:
    """What of the sandbox runs."""
    from salvor import show
    from salvor.sandbox import platforms

    parts = [(part.name, "up" if part.up else "DOWN", part.detail) for part in platforms.package(platform).status()]
    if parts:
        print("\n".join(show.table(("part", "", "what it says"), parts)))
    else:
        print(f"Nothing of it stands: inv sandbox.up{f' --platform={platform}' if platform else ''} starts it.")


@command(
    "disaster",
    disaster="drop-table, kill-primary, lose-datadir, corrupt-pages, wrong-update or freeze-primary; o4o has others",
    of_a_stand_in=True,
    platform=_PLATFORM,
)
def break_(c: Context, disaster: str, platform: str = "") -> None:
    """Throw a disaster at the sandbox; prints the moment of the damage."""
    from salvor import clock
    from salvor.sandbox import platforms

    print(f"{disaster} at {clock.write_time(platforms.package(platform, 'disasters').strike(disaster))}")


@command(of_a_stand_in=True, platform=_PLATFORM)
def down(c: Context, platform: str = "") -> None:
    """Stop the sandbox and remove everything of it."""
    from salvor.sandbox import platforms

    platforms.package(platform).down()
    print("The sandbox is down; nothing of it is left.")


TASKS = (collection("sandbox", up=up, status=status, down=down, break_=break_),)

"""The sandbox: a small real platform to break."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import collection, command


@command(fresh="remove what stands first")
def up(c: Context, fresh: bool = False) -> None:
    """Start the sandbox: a small real platform on loopback. Says what already runs."""
    from salvor import sandbox

    sandbox.up(fresh=fresh, tell=print)


@command()
def status(c: Context) -> None:
    """What of the sandbox runs."""
    from salvor import sandbox, show

    print(
        "\n".join(
            show.table(
                ("part", "", "what it says"),
                [(part.name, "up" if part.up else "DOWN", part.detail) for part in sandbox.status()],
            )
        )
    )


@command("disaster", disaster="drop-table, kill-primary, lose-datadir, corrupt-pages, wrong-update or freeze-primary")
def break_(c: Context, disaster: str) -> None:
    """Throw a disaster at the sandbox; prints the moment of the damage."""
    from salvor import clock
    from salvor.sandbox import disasters

    print(f"{disaster} at {clock.write_time(disasters.strike(disaster))}")


@command()
def down(c: Context) -> None:
    """Stop the sandbox and remove everything of it."""
    from salvor import sandbox

    sandbox.down()
    print("The sandbox is down; nothing of it is left.")


TASKS = (collection("sandbox", up=up, status=status, down=down, break_=break_),)

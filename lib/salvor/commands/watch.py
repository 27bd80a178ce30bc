"""Automatic recovery: watch the rules of a platform, show what they see, acknowledge an episode."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import collection, command


@command(
    once="one look at every rule, for cron",
    every="how often to look: 1s to 60s",
    alertmanager="PORT of 127.0.0.1, or HOST:PORT, to receive Alertmanager's webhook at (its path: /alerts)",
    token="a reference to the bearer token that Alertmanager brings, for example file:PATH",  # noqa: S106
    user="the user that Alertmanager brings, with --password",
    password="a reference to that user's password",  # noqa: S106
    take="take the watch over from another machine that shares the mirror",
)
def watch(
    c: Context,
    platform: str = "",
    once: bool = False,
    every: str = "5s",
    alertmanager: str = "",
    token: str = "",
    user: str = "",
    password: str = "",
    take: bool = False,
    json: bool = False,
) -> None:
    """Watch the rules of the inventory: act when a figure stays bad, call people when that does not help."""
    from salvor import show
    from salvor.watch import alertmanager as receiver
    from salvor.watch import commands

    access = receiver.access(alertmanager, token, user, password) if alertmanager else None
    commands.watch(platform, show.choose(as_json=json), once=once, every=every, take=take, access=access)


@command()
def show(c: Context, platform: str = "", json: bool = False) -> None:
    """The rules, what they see now, the open episodes, and what would be done next. Changes and writes nothing."""
    from salvor import show
    from salvor.watch import commands

    commands.show_all(platform, show.choose(as_json=json))


@command(episode="the id of the episode: inv watch.show names it", text="what to note")
def ack(c: Context, episode: str = "", text: str = "") -> None:
    """Acknowledge an episode: nobody else is called, and nothing more is done by itself."""
    from salvor import show
    from salvor.watch import commands

    commands.acknowledge(episode, text, show.choose())


TASKS = (collection("watch", default=watch, also="run", show=show, ack=ack),)

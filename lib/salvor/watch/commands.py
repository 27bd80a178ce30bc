"""What `inv watch` and its sisters do: watch, show, acknowledge."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from salvor import clock, durable, inventory, show
from salvor.arguments import required
from salvor.errors import CannotError, HeldError, UsageError
from salvor.inventory import Platform
from salvor.journal import FILE, Journal, brief, first_line, incidents, lock
from salvor.journal.folders import find, folder_of, incidents_folder, lease_of, operator
from salvor.show import Shown
from salvor.watch import acknowledgement
from salvor.watch.alertmanager import Access, receiving
from salvor.watch.episode import PURPOSE, tell
from salvor.watch.watcher import Seen, Watcher

_INTERVALS = (1.0, 60.0)
_PATIENCE = 3600.0
"""Seconds for which an acknowledgement waits for a watcher that acts: an action may take so long."""
_TOLD_AFTER = 2.0


def _load(platform: str) -> Platform:
    described = inventory.load(platform)
    if not described.watch:
        raise UsageError(
            f"The platform {platform!r} has no rules to watch.", hint=f"write them below watch: in {described.path}"
        )
    return described


def watch(
    platform: str,
    shown: Shown,
    *,
    once: bool = False,
    every: str = "5s",
    take: bool = False,
    access: Access | None = None,
) -> None:
    """Watch the rules of a platform until SIGTERM, SIGINT or SIGHUP; `once`: one look at each. `every`: 1 s to 60 s.

    Raises HeldError when another watcher watches it; `take` takes it over from another machine.
    """
    described, shown = _load(platform), show.unfailing(shown)
    try:
        seconds = clock.read_duration(every)
    except ValueError as error:
        raise UsageError(f"--every: {error}.", hint="for example --every=10s") from error
    if not _INTERVALS[0] <= seconds <= _INTERVALS[1]:
        raise UsageError(f"--every: {every!r} is not between 1s and 60s.", hint="for example --every=10s")
    if once and access:
        raise UsageError("--once looks once, and receives nothing.", hint="leave out --once, or --alertmanager")
    with _alone(platform, shown, take=take) as still_ours, ExitStack() as stack:
        watcher = Watcher(described, shown, still_ours)
        watcher.is_deaf = access is None
        if once:
            _tell_all(watcher.once(), shown)
            return
        if access:
            port = stack.enter_context(receiving(access, watcher))
            shown.tell(f"Alertmanager may post to http://{access.host}:{port}/alerts")
            if not access.is_loopback:
                shown.tell(
                    "  plain HTTP: who reads that network reads the token, and may then start what the rules do; "
                    f"listen on 127.0.0.1:{port} behind a proxy that speaks TLS (docs/watch.md)"
                )
        _stopping_at_signals(watcher, stack)
        _tell_orphans(described, shown)
        if deaf := [name for name, rule in described.watch.items() if rule.metric.alert and not access]:
            shown.tell(
                f"Nothing is heard of the alerts of {', '.join(deaf)}: whether they fire cannot be told.\n"
                "HINT: inv watch --alertmanager=PORT --token=file:PATH, where Alertmanager posts to"
            )
        count = len(described.watch)
        shown.tell(
            f"Watching {count} rule{'s' if count > 1 else ''} of {platform}, every {clock.write_duration(seconds)}."
        )
        watcher.loop(seconds, lambda error: shown.tell(f"A look failed: {type(error).__name__}: {error}"))
        if watcher.lost:
            raise watcher.lost
        shown.tell(
            "The watch has ended: nothing is under way, and nothing is done and nobody called until it runs again."
        )


def _stopping_at_signals(watcher: Watcher, stack: ExitStack) -> None:
    """The first one lets what is begun end; the second ends all at once, as kill -9 may, too. A terminal that hangs up
    says so twice, and nohup that it does not matter.
    """

    def stop(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        watcher.stop()

    hung_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGTERM, signal.SIGINT, *hung_up):
        stack.callback(signal.signal, number, signal.signal(number, stop))


def _tell_orphans(platform: Platform, shown: Shown) -> None:
    """Say which open episodes nobody goes on with, because the inventory has lost their rule."""
    for folder in incidents(incidents_folder()):
        rule = brief.service_of(folder.name)
        if rule in platform.watch or brief.is_over(folder):
            continue
        with suppress(CannotError):
            first = first_line(folder)
            if (first.get("purpose"), first.get("platform")) == (PURPOSE, platform.name):
                shown.tell(
                    f"{folder.name} is open, and there is no rule {rule!r} any more: nobody goes on with it, nor tells "
                    f"who was called that it is better.\nHINT: inv incident.close --incident={folder.name}"
                )


@contextmanager
def _alone(platform: str, shown: Shown, *, take: bool) -> Iterator[Callable[[], None]]:
    """Be the only watcher of a platform, on this machine and among those that share a mirror; gives what is to be asked
    before each move.
    """
    name, hint = f"watch.{platform}", f"inv watch.show --platform={platform} tells what it sees"
    try:
        with ExitStack() as stack:
            stack.enter_context(lock.hold(name, incidents_folder(), by=operator(), incident="watch"))
            lease = lease_of("watch.", platform, "watch", shown.tell)  # no service bears this name
            if lease:
                hint = (
                    "if that one is no more: inv incident.take --incident=ID for the episode that is open there, whose "
                    f"id its messages bear (else one begins anew here); then inv watch --platform={platform} --take"
                )
                if take:
                    lease.claim(take=True)
                lease.check()
                stack.callback(lease.release)
            yield lease.check if lease else lambda: None
    except HeldError as error:
        raise HeldError(
            f"{platform} is watched already: {error.what}", safe="nothing was changed", hint=hint
        ) from error


def _tell_all(seen: list[Seen], shown: Shown) -> None:
    if isinstance(shown, show.Json):
        for each in seen:
            shown.write("rule", **_as_json(each))
        return
    rows = [
        (
            each.rule,
            {True: "BAD", False: "good", None: "unknown"}[each.reading.bad],
            f"{each.reading.figure} {each.reading.detail}".strip(),
            each.reading.limit,
            each.open.id if each.open else "",
            each.move.why,
        )
        for each in seen
    ]
    shown.lines(show.table(("rule", "", "now", "limit", "episode", "next"), rows))


def _as_json(seen: Seen) -> dict[str, object]:
    return {
        "rule": seen.rule,
        "bad": seen.reading.bad,
        "figure": seen.reading.figure,
        "limit": seen.reading.limit,
        "detail": seen.reading.detail,
        "bad_for": seen.sighting.bad_for,
        "unknown_for": seen.sighting.unknown_for,
        "episode": seen.open.id if seen.open else None,
        "acknowledged": seen.open.acknowledged or None if seen.open else None,
        "done": seen.open.done if seen.open else None,
        "next": {"move": seen.move.kind, "stage": seen.move.stage or None, "why": seen.move.why},
    }


def show_all(platform: str, shown: Shown) -> None:
    """The rules, what they see now, the open episodes, and what comes next. Nothing is written."""
    if durable.takes_nothing(incidents_folder()):
        shown.tell("The disk takes nothing: what a watcher does meanwhile it alone knows, and its log says.")
    seen = Watcher(_load(platform), shown).see_all()
    if lock.holder(f"watch.{platform}", incidents_folder()) is None:
        shown.tell(f"{platform} is not watched on this machine now: what is next is done by the next inv watch.")
    _tell_all(seen, shown)


def acknowledge(episode: str, text: str, shown: Shown) -> None:
    """Say that a person has it: nothing more is done by itself, and nobody else is called. Who and when is journalled.

    Raises UsageError when it is no episode of the watch, or is over.
    """
    required("episode", episode)
    is_full = durable.takes_nothing(incidents_folder())
    try:
        folder = folder_of(episode) if is_full else find(episode)
    except UsageError as error:
        raise UsageError(
            f"--episode: there is no episode {episode!r}.",
            safe="nothing was changed",
            hint="inv watch.show names the open ones",
        ) from error
    if is_full:
        _hand_over(folder, text, shown)
    elif _is_free(Journal.read(folder), shown):
        with _journal(folder, shown) as journal:
            if not _is_free(journal, shown):  # it went on while we waited
                return
            journal.append("acknowledged", text=text, where=socket.gethostname())
        _tell_acknowledged(episode, shown)


def _hand_over(folder: Path, text: str, shown: Shown) -> None:
    """The disk takes nothing, and the watcher may know by heart alone of this episode."""
    if not (folder / FILE).exists() or _is_free(Journal.read(folder), shown):
        shown.tell("The disk takes nothing. The watcher is told in memory, and notes it at its next look.")
        acknowledgement.hand_over(folder.name, text)
        _tell_acknowledged(folder.name, shown)


def _tell_acknowledged(episode: str, shown: Shown) -> None:
    shown.tell(f"{episode} is acknowledged by {operator()}: nobody else is called, and nothing more is done by itself.")


def _is_free(journal: Journal, shown: Shown) -> bool:
    """Whether nobody has acknowledged this episode yet: who did is said. Raises UsageError when none can."""
    told, id_ = tell(journal.lines), journal.folder.name
    if told is None or told.is_over:
        why = "is over" if told else "is no episode of inv watch that can be read"
        hint = f"inv incident.show --incident={id_}"
        raise UsageError(f"--episode: {id_} {why}.", safe="nothing was changed", hint=hint)
    if told.acknowledged:
        shown.tell(f"{id_} was acknowledged by {told.acknowledged}; nothing is added to that.")
    return not told.acknowledged


@contextmanager
def _journal(folder: Path, shown: Shown) -> Iterator[Journal]:
    """The journal, once the watcher does not write it: an acknowledgement needs no hold on the service."""
    begun, is_told = clock.monotonic(), False
    while True:
        try:
            opened = Journal.open(folder, by=operator(), mirror=os.environ.get("SALVOR_MIRROR"), tell=shown.tell)
            break
        except HeldError as error:
            waited = clock.monotonic() - begun
            if waited > _PATIENCE:
                raise HeldError(
                    f"{error.what} It is not acknowledged.",
                    safe=error.safe,
                    hint=f"the same command again; what is done there: inv incident.show --incident={folder.name}",
                ) from error
            if waited > _TOLD_AFTER and not is_told:
                is_told = True
                shown.tell("The watcher acts just now. This is noted when that is done, and stops what comes after.")
            time.sleep(0.2)
    with opened:
        yield opened

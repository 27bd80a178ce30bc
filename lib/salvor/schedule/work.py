"""Let the schedules of a platform run by themselves on this machine, or no more; and show when they do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from salvor import clock, clone, inventory, show
from salvor.change import Change, Finding, Level, Undo
from salvor.errors import UsageError
from salvor.incident import Incident
from salvor.inventory import Platform, Service
from salvor.inventory.platform import is_name
from salvor.inventory.sections import ENVIRONMENT
from salvor.journal.folders import incidents_folder
from salvor.maintenance import sitting, work
from salvor.schedule import stamp
from salvor.schedule.entry import Caller, Entry, line
from salvor.schedule.settings import Schedule
from salvor.session import Session
from salvor.show import Shown
from salvor.systems.schedules import Schedules, SchedulesSettings

_NAME = "schedules"
_KEPT = ("SALVOR_INVENTORY", "SALVOR_INCIDENTS", "SALVOR_MIRROR", "SALVOR_SIGNING_KEY")
"""What of the environment a schedule runs with: places, never a secret."""


def caller(platform: Platform) -> Caller:
    """How inv is called on this machine, as it was called now."""
    sources = (str(one.data.get("variables_from", "")) for one in platform.documents)
    named = [found[1] for source in sources for found in ENVIRONMENT.finditer(source)]
    environment = {name: value for name in (*_KEPT, *named) if (value := os.environ.get(name))}
    for name in ("SALVOR_INVENTORY", "SALVOR_INCIDENTS"):
        if name in environment:
            environment[name] = str({"SALVOR_INVENTORY": inventory.home}.get(name, incidents_folder)())
    folder, stamps = str(clone.root()), str(incidents_folder() / ".schedules")
    return Caller(platform=platform.name, python=sys.executable, folder=folder, stamps=stamps, environment=environment)


def install(platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False) -> None:
    """Let run by themselves what the inventory names, as it says, and nothing else of this platform."""
    described = inventory.load(platform)
    if not described.schedules:
        raise UsageError(
            f"The platform {platform!r} names no schedules.",
            safe="nothing was changed",
            hint='add schedules: {nightly: {run: [backup, --service=NAME], at: "02:00"}} to it; or inv schedule.remove',
        )
    wanted = dict(described.schedules)
    for name, one in wanted.items():
        _check_words(name, one.words(platform))
    for name, mend in _only_here(described):
        shown.finding(Finding(_NAME, "environment", Level.WARN, name, detail=f"nothing sets it there; {mend}"))
    _carry_out(install, described, wanted, shown, plan_only=plan_only, approve=approve, yes=yes)
    if not plan_only:
        shown.tell(f"  take them away: inv schedule.remove --platform={platform}")


def remove(platform: str, shown: Shown, *, plan_only: bool = False, approve: str = "", yes: bool = False) -> None:
    """Let nothing of this platform run by itself any more."""
    _carry_out(remove, _described(platform, shown), {}, shown, plan_only=plan_only, approve=approve, yes=yes)


def _described(platform: str, shown: Shown) -> Platform:
    """The platform; nothing but its name where the inventory has no such platform any more, or it cannot be read, and
    schedules of it are installed.
    """
    try:
        return inventory.load(platform)
    except UsageError:
        alone = Platform(platform, inventory.home(), platform, services={}, settings={})
        if not is_name(platform) or not _sitting(alone, shown)[1].installed():
            raise
        return alone


def _sitting(platform: Platform, shown: Shown) -> tuple[Session, Schedules]:
    """A sitting over a platform's schedules, and the system that they are installed in."""
    settings = SchedulesSettings(kind="schedules", caller=caller(platform))
    with_schedules = replace(platform, settings={**platform.settings, _NAME: settings})
    session = sitting(Service(name=_NAME, rto=0, rpo=0), with_schedules, shown)
    return session, cast(Schedules, session.incident.system(_NAME))


def _carry_out(
    asked: Callable[..., None],
    platform: Platform,
    wanted: Mapping[str, Schedule],
    shown: Shown,
    *,
    plan_only: bool,
    approve: str,
    yes: bool,
) -> None:
    session, here = _sitting(platform, shown)
    _warn(here, shown)

    def step(incident: Incident) -> Iterator[Change]:
        system = cast(Schedules, incident.system(_NAME))
        installed = system.installed()
        for each in sorted(wanted.keys() | installed.keys()):
            change = _change(system, each, wanted.get(each), installed.get(each), platform)
            if change:
                yield change

    step.__name__, step.__doc__ = f"schedule.{asked.__name__}", asked.__doc__
    work(session, step, shown, plan_only=plan_only, approve=approve, yes=yes)


def _warn(system: Schedules, shown: Shown) -> None:
    if detail := system.scheduler.warning():
        shown.finding(Finding(_NAME, "scheduler", Level.WARN, system.scheduler.name, detail=detail))
    for other in sorted(system.scheduler.platforms() - {*inventory.names(), system.settings.caller.platform}):
        detail = f"they run here, and {inventory.home()} has no such platform; inv schedule.remove --platform={other}"
        shown.finding(Finding(_NAME, f"those of {other}", Level.WARN, detail=detail))


def _change(
    system: Schedules, name: str, wanted: Schedule | None, now: Entry | None, platform: Platform
) -> Change | None:
    """What makes one schedule as it is wanted; None when it is."""
    back = Undo("install", {"name": name, "at": now.at, "run": list(now.run)}) if now and now.at else None
    if wanted is None:
        lost = "" if back else "what it was cannot be read"
        why = "it was asked for" if name in platform.schedules else "the inventory does not name it"
        return system.change("remove", why=why, undo=back, no_undo=lost, name=name)
    words = wanted.words(platform.name)
    if now and now.says(wanted.at, words):
        return None
    why = "it does not run yet" if now is None else f"it is: {now.at} {line(now.run)}"
    if now and (now.at, now.run) == (wanted.at, words):
        why = "it is not as it would be written now, or not active"
    undo = back or Undo("remove", {"name": name})
    return system.change("install", why=why, undo=undo, name=name, at=wanted.at, run=list(words))


def _check_words(name: str, words: Sequence[str]) -> None:
    """Raises UsageError when inv would not take these words: better now than at two in the morning."""
    from invoke.collection import Collection
    from invoke.exceptions import ParseError
    from invoke.loader import FilesystemLoader
    from invoke.parser import Parser

    module, _ = FilesystemLoader(start=str(clone.root())).load("tasks")
    try:
        Parser(contexts=Collection.from_module(module).to_contexts()).parse_argv(list(words))
    except ParseError as error:
        raise UsageError(
            f"The schedule {name!r} would run inv {line(words)}: {error}.",
            safe="nothing was changed",
            hint=f"inv --help {words[0]}",
        ) from error


def _only_here(platform: Platform) -> Iterator[tuple[str, str]]:
    """What commands of the platform take from the environment, in which a schedule does not run, and what to do: the
    secrets of the inventory, and what leads into Amazon's storage where that is asked.
    """
    texts = {text for document in platform.documents for text in _texts(document.data)}
    for reference in sorted(text for text in texts if text.startswith("env:")):
        yield reference, "use file:PATH"
    places = (*texts, os.environ.get("SALVOR_MIRROR", ""))
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    if names and any(place.startswith("s3://") or place == "route53" for place in places):
        yield ", ".join(names), "write what they say into ~/.aws"


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def show_all(platform: str, shown: Shown) -> None:
    """What runs when, whether it is installed on this machine, and how it ended last."""
    described = _described(platform, shown)
    _, system = _sitting(described, shown)
    installed, now = system.installed(), clock.now()
    rows = []
    for name in sorted(described.schedules.keys() | installed.keys()):
        wanted, entry = described.schedules.get(name), installed.get(name)
        following = wanted.calendar.next(now) if wanted else None
        words = wanted.words(platform) if wanted else entry.run if entry else ()
        at = wanted.at if wanted else entry.at if entry else ""
        state = _state(wanted, entry, platform)
        last = (
            f"{clock.write_duration(clock.age(entry.last).total_seconds())} ago"
            if entry and entry.last
            else "not known"
        )
        if isinstance(shown, show.Json):
            shown.write(
                "schedule", name=name, at=at, run=list(words), state=state,
                next=clock.write_time(following) if following else None,
                last=clock.write_time(entry.last) if entry and entry.last else None,
                result=entry.result if entry else "",
            )  # fmt: skip
        in_ = f"{following:%m-%d %H:%M}" if following else "-"
        rows.append((name, at, in_, state, last, entry.result if entry else "", f"inv {line(words)}"))
    header = ("name", "at", "next (UTC)", "", "last run", "ended", "command")
    if not rows:
        shown.tell(f"The platform {platform!r} names no schedules, and none is installed.")
        return
    shown.lines([f"By {system.scheduler.name}:", *(f"  {one}" for one in show.table(header, rows))])
    _warn(system, shown)


def _state(wanted: Schedule | None, now: Entry | None, platform: str) -> str:
    if wanted is None:
        return "NOT IN THE INVENTORY"
    if now is None:
        return "NOT INSTALLED"
    return "installed" if now.says(wanted.at, wanted.words(platform)) else "NOT AS INSTALLED"


def run_due(platform: str, name: str, tell: Callable[[str], None]) -> int:
    """Run a schedule if it is due (cron calls this every few minutes), or `tell` when it will be. Returns the exit
    code: 0 when it was not due.
    """
    if platform not in inventory.names():
        raise UsageError(
            f"There is no platform {platform!r} in {inventory.home()} any more, and cron still runs its {name!r}.",
            hint=f"inv schedule.remove --platform={platform} takes it away",
        )
    described = inventory.load(platform)
    schedules = described.schedules
    if name not in schedules:
        raise UsageError(
            f"The platform {platform!r} has no schedule {name!r} any more.",
            hint=f"inv schedule.install --platform={platform} takes it away",
        )
    schedule = schedules[name]
    code = stamp.run_if_due(caller(described), name, schedule)
    if code is None:
        following = schedule.calendar.next(clock.now())
        tell(f"Not begun: {name} runs already, or is not due before {following:%m-%d %H:%M} UTC.")
        tell(f"HINT: to do now what it does: inv {line(schedule.words(platform))}")
    return code or 0

"""Changes to machines, outside a recovery: fence them, lift the fence, start, stop or restart a service on them.

Each is a step like any other: planned, shown, approved, journalled, made side by side, and planned again until nothing
is left to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from salvor import hosts, inventory
from salvor.arguments import required
from salvor.change import UNSEEN, Change, Finding, Level, State, Undo
from salvor.errors import CannotError, SalvorError, UsageError
from salvor.host.fence import Seen, refuse_another_way_in, refuse_without_root
from salvor.incident import Incident
from salvor.inventory import Platform, Service
from salvor.maintenance import sitting, work
from salvor.show import Shown
from salvor.steps import Step

if TYPE_CHECKING:
    from salvor.systems.host import Host

_BACK = {"fence": "unfence", "unfence": "fence"}
_Plan = Callable[["Host", State], Change | None]
"""What is to be done to one machine, as it is now; None when nothing is."""


def fence(host: Host, state: State) -> Change | None:
    """Cut it off from everybody but its operator."""
    seen = Seen(**state.details["fence"])
    if state.writable is False:
        refuse_another_way_in(host.name, seen, host.settings.management)
        return None
    refuse_without_root(host.name, seen)
    undo = Undo("unfence", {"identity": state.identity})
    return host.change("fence", why="others can reach it", undo=undo, identity=state.identity)


def unfence(host: Host, state: State) -> Change | None:
    """Take the fence away."""
    if state.writable is True and not state.details["fence"]["written"]:
        return None
    refuse_without_root(host.name, Seen(**state.details["fence"]))
    undo = Undo("fence", {"identity": state.identity})
    return host.change("unfence", why="only its operator reaches it", undo=undo, identity=state.identity)


def start(service: str) -> _Plan:
    """Start a service where it does not run."""

    def plan(host: Host, state: State) -> Change | None:
        now = host.service(service, "start")
        undo = Undo("stop", {"service": service})
        return None if now.runs else host.change("start", why=f"it is {now.state}", undo=undo, service=service)

    return plan


def stop(service: str) -> _Plan:
    """Stop a service where it runs."""

    def plan(host: Host, state: State) -> Change | None:
        now = host.service(service, "stop")
        if now.state in ("stopped", "failed"):
            return None
        undo = Undo("start", {"service": service})
        return host.change("stop", why=f"it is {now.state}", undo=undo, service=service)

    return plan


def restart(service: str) -> _Plan:
    """Restart a service, once: the run that is to end is the one that was seen first."""
    runs: dict[str, str] = {}

    def plan(host: Host, state: State) -> Change | None:
        now = host.service(service, "restart")
        first = runs.setdefault(host.name, now.run)
        if now.runs and now.run != first:
            return None
        why = f"it is {now.state}"
        return host.change("restart", why=why, no_undo="its old run is over", service=service, run=first)

    return plan


def carry_out(
    name: str,
    plan: _Plan,
    platform_name: str,
    limit: str,
    shown: Shown,
    *,
    plan_only: bool = False,
    approve: str = "",
    yes: bool = False,
) -> None:
    """Plan, show, approve and do it on the machines that `limit` names.

    Raises CannotError when nothing could be done on one of them: the others are done then.
    """
    platform = inventory.load(platform_name)
    chosen = _described(platform, hosts.select(hosts.places(platform), required("limit", limit)))
    unreached: dict[str, str] = {}
    keys: dict[str, str] = {}
    step = _step(name, plan, chosen, unreached, keys)
    session = sitting(Service(name="hosts", rto=0, rpo=0, systems=tuple(chosen)), platform, shown)
    changed = work(session, step, shown, plan_only=plan_only, approve=approve, yes=yes)
    if changed and name in _BACK:
        shown.tell(f"  go back: inv hosts.{_BACK[name]} --platform={platform.name} --limit={shlex.quote(limit)}")
    if unreached:
        outcomes = session.incident.outcomes
        done = [one for one in unreached if outcomes.get(keys.get(one, "")) == "done"]
        left = [one for one in unreached if one not in done]
        nothing = "nothing can be planned" if plan_only else "nothing was done"
        told = [f"{nothing} on {len(left)} of {len(chosen)} machines: {', '.join(left)}"] if left else []
        told += [f"done on {', '.join(done)}, and nobody could look there since"] if done else []
        raise CannotError(
            f"{name}: {'; '.join(told)}.",
            safe="the others are done" if changed else "nothing was changed",
            hint=f"inv hosts --limit={','.join(unreached)}",
        )


def _described(platform: Platform, chosen: Mapping[str, object]) -> list[str]:
    other = [name for name in chosen if name not in platform.settings]
    if other:
        where = "" if other[0] == hosts.HERE else f", address: {other[0]}"
        raise UsageError(
            f"{', '.join(other)}: only commands can be run there, as a database alone names it.",
            safe="nothing was changed",
            hint=f"describe it in {platform.path}, below systems: NAME: {{kind: host{where}}}",
        )
    return list(chosen)


def _step(name: str, plan: _Plan, names: Sequence[str], unreached: dict[str, str], keys: dict[str, str]) -> Step:
    """Notes why a machine could not be looked at the last time, and the key of what is to be done to each."""

    def step(incident: Incident) -> Iterator[Change | Finding]:
        """On each machine that answers."""
        from salvor.systems.host import Host

        machines = [one for one in map(incident.system, names) if isinstance(one, Host)]
        incident.observe_all(machines)
        for host in machines:
            state = incident.observe(host)
            if host.remarks:
                yield Finding(host.name, "SSH", Level.PASS, detail="; ".join(host.remarks))
            change = None
            try:
                if state.identity == UNSEEN:
                    raise CannotError(state.summary)
                change = plan(host, state)
                unreached.pop(host.name, None)
            except SalvorError as error:
                unreached[host.name] = error.what
                yield Finding(host.name, name, Level.UNKNOWN, detail=f"{error.what} {error.hint}".strip())
            # Of some runs it cannot be told that they are new ones.
            if change and not (change.verb == "restart" and incident.outcomes.get(change.key) == "done"):
                keys[host.name] = change.key
                yield change

    step.__name__ = name
    return step

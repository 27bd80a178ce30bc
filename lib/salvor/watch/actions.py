"""What an action is here and now: a change of a system, with its way back or why it has none."""

from __future__ import annotations

from salvor.change import UNSEEN, Change, Reachable, State, Undo
from salvor.errors import CannotError
from salvor.incident import Incident
from salvor.roles import Restorable
from salvor.system import System
from salvor.watch.rules import Action

RECOVER = "recover"
"""The verb of a runbook's action: its system is the service that is brought back."""


def change(action: Action, incident: Incident, why: str, occasion: str) -> Change:
    """The change that an action is, from a look at its system. `occasion` names this one time of a command.

    Raises CannotError when the system cannot be looked at, or there is nothing to go back to.
    """
    if action.system is None:
        undo = "its own incident has the way back: inv undo"
        return Change(incident.service.name, RECOVER, {"runbook": action.runbook}, why, None, undo, destructive=True)
    system = incident.system(action.system)
    if action.kind == "restart" and action.host:
        return _restart_there(action, system, why)
    if action.kind == "run":
        return system.change(
            "execute",
            why=why,
            no_undo="what a command did, nobody knows",
            command=list(action.run or ()),
            occasion=occasion,
            deadline=action.deadline,
        )
    if action.kind == "reset_connections":
        return _reset(action, system, why)
    return _of_a_program(action, system, _seen(system), why)


def _seen(system: System) -> State:
    state = system.observe()
    if state.identity == UNSEEN or state.reachable is Reachable.UNKNOWN:
        raise CannotError(f"{system.name} cannot be looked at: {state.summary}")
    return state


def _restart_there(action: Action, system: System, why: str) -> Change:
    from salvor.systems.host import Host

    assert isinstance(system, Host)
    service = action.restart or ""
    return system.change(
        "restart", why=why, no_undo="its old run is over", service=service, run=system.service(service).run
    )


def _reset(action: Action, system: System, why: str) -> Change:
    assert isinstance(system, Restorable)
    before = system.ask(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')", "live"
    )
    return system.change(
        "end_sessions",
        why=why,
        no_undo="a session that was ended is gone; its program connects again",
        before=str(before),
        idle_in_transaction=action.idle_in_transaction,
        role=action.role,
        application=action.application,
    )


def _of_a_program(action: Action, system: System, state: State, why: str) -> Change:
    if action.kind == "clear":
        return system.change("clear", why=why, no_undo="it fills again by itself", before=state.details["now"])
    run = str(state.details.get("run", ""))
    if action.kind == "restart":
        return system.change("restart", why=why, no_undo="its old run is over", run=run)
    from salvor.systems.application import Application

    assert isinstance(system, Application)
    if action.kind == "scale":
        return system.change("scale", why=why, undo=Undo("scale", {"to": system.instances()}), to=action.to)
    deployed = system.deployed()
    if deployed.before is None:
        raise CannotError(f"{system.name}: there is no release before {deployed.current}.")
    undo = Undo("roll_back", {"release": deployed.current, "run": ""})
    return system.change("roll_back", why=why, undo=undo, release=deployed.before, run=run)

"""What every kind of system promises (salvor/system.py), asked of each kind that there is.

A new kind needs one fixture, `KIND_case` (see `Case` in conftest.py), here or in a conftest.py that this folder sees.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import salvor.systems
from pydantic import ValidationError
from salvor.change import Change, Reachable, State, Undo, plan_hash
from salvor.errors import SalvorError, UsageError
from salvor.roles import Application, Cache, Machine, Outbox, Restorable, Route, Timetable
from salvor.system import Settings, kind

from tests.systems.conftest import Case

KINDS = sorted(path.stem for path in Path(salvor.systems.__file__ or "").parent.glob("[a-z]*.py"))
HEAVY = {"apprise", "boto3", "dns", "fabric", "jinja2", "paramiko", "zstandard"}
OBSERVING = 15.0  # seconds


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Case:
    fixture = f"{request.param}_case"
    try:
        found = request.getfixturevalue(fixture)
    except pytest.FixtureLookupError as error:
        if error.argname != fixture:
            raise
        pytest.fail(f"the kind {request.param} has no fixture {fixture} for its contract tests")
    assert isinstance(found, Case)
    return found


def of_kind(role: Any) -> pytest.MarkDecorator:
    """The cases of these kinds alone."""
    return pytest.mark.parametrize("case", [name for name in KINDS if issubclass(kind(name), role)], indirect=True)


def seen(state: State) -> tuple[Any, ...]:
    """What must be the same after a verb's second call."""
    staged = [(each.name, each.identity, each.complete, each.address) for each in state.staged]  # `fresh` goes on
    return state.reachable, state.identity, state.address, state.writable, staged, state.kept


# ------------------------------------------------------------------------------------------ of the class


@pytest.mark.parametrize("name", KINDS)
def test_its_file_bears_its_name(name: str) -> None:
    assert kind(name).__name__.lower() == name
    assert issubclass(kind(name).Settings, Settings)
    assert issubclass(kind(name), (Application, Cache, Restorable, Route, Outbox, Machine, Timetable))


@pytest.mark.parametrize("name", KINDS)
def test_every_verb_has_a_deadline_and_says_what_it_does(name: str) -> None:
    verbs = kind(name).verbs()
    assert verbs
    for verb, info in verbs.items():
        method = getattr(kind(name), verb)
        assert 0 < info.deadline <= 7 * 86400, verb
        assert inspect.getdoc(method), verb
        annotations = [each.annotation for each in list(inspect.signature(method).parameters.values())[1:]]
        assert inspect.Parameter.empty not in annotations, verb


@pytest.mark.parametrize("name", KINDS)
def test_it_brings_no_heavy_library_until_it_is_used(name: str) -> None:
    code = f"import salvor.systems.{name}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not HEAVY & set(done.stdout.split())


# ------------------------------------------------------------------------------------------ of one that is up


def test_observe_says_what_is_live_and_writes_nothing(case: Case) -> None:
    state = case.up.observe()
    assert state.reachable is Reachable.UP and state.identity and state.summary
    assert state.address == case.up.observe().address
    json.dumps(asdict(state), default=str)
    assert not case.up.context.folder.exists()


def test_an_unknown_setting_is_an_error(case: Case) -> None:
    settings = case.up.settings.model_dump()
    assert settings["kind"] in KINDS
    type(case.up.settings).model_validate(settings)
    with pytest.raises(ValidationError, match="not permitted"):
        type(case.up.settings).model_validate(settings | {"colour": "red"})


def test_change_refuses_what_cannot_be_done(case: Case) -> None:
    change = case.changes[0]
    arguments: dict[str, Any] = dict(change.arguments)
    with pytest.raises(UsageError, match="it can"):
        case.up.change("explode", why="-", no_undo="-")
    with pytest.raises(UsageError, match="it can"):
        case.up.change("observe", why="-", no_undo="-")
    with pytest.raises(UsageError, match="arguments of"):
        case.up.change(change.verb, why="-", no_undo="-", **arguments, colour="red")
    if arguments:
        with pytest.raises(UsageError, match="arguments of"):
            case.up.change(change.verb, why="-", no_undo="-")
    with pytest.raises(UsageError, match="neither how to undo it"):
        case.up.change(change.verb, why="-", **arguments)
    with pytest.raises(UsageError, match="it can"):
        case.up.change(change.verb, why="-", undo=Undo("explode"), **arguments)


def test_a_change_is_data_with_a_way_back_or_a_reason_for_having_none(case: Case) -> None:
    for change in case.changes:
        assert change.why
        assert change.undo is not None or change.no_undo
        again = Change.from_json(json.loads(json.dumps(change.to_json())))
        assert (again.key, again.undo, plan_hash([again])) == (change.key, change.undo, plan_hash([change]))
        assert case.up.context.incident not in json.dumps(dict(change.arguments)), "the approved hash must not move"
    assert not case.up.context.folder.exists()


def test_every_verb_may_be_called_twice(case: Case) -> None:
    for change in case.changes:
        list(case.up.apply(change))
        first = case.up.observe()
        list(case.up.apply(change))
        assert seen(case.up.observe()) == seen(first)


def test_a_change_and_its_undo_lead_back(case: Case) -> None:
    for change in case.changes:
        if change.undo is None:
            continue
        before = case.up.observe()
        list(case.up.apply(change))
        arguments: dict[str, Any] = dict(change.undo.arguments)
        back = case.up.change(change.undo.verb, why="-", no_undo="-", **arguments)
        for _ in range(2):
            list(case.up.apply(back))
        assert seen(case.up.observe()) == seen(before)


def test_the_forecast_of_a_change_is_what_then_happens(case: Case) -> None:
    for change in case.changes:
        if change.verb == "stage":  # the identity of what it will make is not known before
            continue
        foreseen = case.up.forecast(case.up.observe(), change)
        list(case.up.apply(change))
        assert seen(case.up.observe()) == seen(foreseen)


@of_kind(Route)
def test_a_route_waits_for_what_it_leads_to_and_then_plans_nothing(case: Case) -> None:
    assert isinstance(case.up, Route)
    assert case.up.depends_on == (case.up.leads_to,)
    (change,) = case.changes
    address = str(change.arguments["address"])
    for _ in range(2):
        list(case.up.apply(change))
        assert case.up.observe().address == address
        assert case.up.change_to(address, case.up.observe()) is None


# ------------------------------------------------------------------------------------------ of one that is down


def test_down_is_an_answer_in_time(case: Case) -> None:
    begun = time.monotonic()
    state = case.down.observe()
    assert time.monotonic() - begun < OBSERVING
    assert state.reachable is not Reachable.UP and state.summary


def test_a_verb_on_what_is_down_fails_with_words(case: Case) -> None:
    with pytest.raises(SalvorError) as caught:
        list(case.down.apply(case.changes[0]))
    assert "HINT:" in str(caught.value)


@of_kind(Route)
def test_a_route_that_cannot_be_asked_is_not_said_to_lead_there(case: Case) -> None:
    assert isinstance(case.down, Route)
    with pytest.raises(SalvorError, match="nobody can tell"):
        case.down.change_to(str(case.changes[0].arguments["address"]), case.down.observe())

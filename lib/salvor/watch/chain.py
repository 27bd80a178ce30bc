"""What a rule does next: decided from what was seen, and from what the journals say was done. Touches nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from salvor import clock
from salvor.errors import CannotError, PlanMovedError, SalvorError
from salvor.watch.episode import ACTING, ESCALATE, Told, acts_within, open_one
from salvor.watch.metrics import Reading
from salvor.watch.rules import Escalation, Rule
from salvor.watch.sighting import Sighting

_TRY_AGAIN = 300.0
"""Seconds until a channel that did not take a call is tried again."""
_HOUR = 3600.0


@dataclass(frozen=True)
class Move:
    """`wait`; `act`: carry out a stage, or what is left of it; `escalate`: begin to call people; `call` channels;
    `note` what is seen; `close` the episode. `why` is in words.
    """

    kind: Literal["wait", "act", "escalate", "call", "note", "close"]
    why: str
    stage: str = ""
    channels: tuple[str, ...] = ()


def _since(moment: datetime) -> float:
    """Seconds since then. A moment to come is one of before the clock was set back, and as good as long ago: a person
    who is called too early is better than nobody for a day.
    """
    return math.inf if clock.is_to_come(moment) else clock.age(moment).total_seconds()


def looks_back(rule: Rule) -> float:
    """How many seconds of episodes matter to a rule."""
    return max(_HOUR, rule.cool_down)


def next_move(
    rule: Rule, escalation: Escalation | None, episodes: Sequence[Told], sighting: Sighting, reading: Reading
) -> Move:
    """The next move, from the rule's episodes, the newest first."""
    told = open_one(episodes)
    if told and told.is_damaged:
        words = f"the journal of {told.id} is damaged (inv incident.check): nothing is done by itself"
        is_due = reading.bad and sighting.bad_for is not None and sighting.bad_for >= rule.for_
        return _left_to_people(rule, words) if is_due else Move("wait", words)
    if told is None:
        return _begin(rule, episodes, sighting, reading)
    if comes_back(rule, episodes) and (move := _not_over(rule, told, reading)):
        return move
    if reading.bad is False:
        return Move("close", f"better: {reading.figure}")
    if told.cause == "unknown" and reading.bad:
        return Move("close", f"it can be told again: {reading.figure}")
    if told.acknowledged:
        return Move(
            "wait", f"acknowledged by {told.acknowledged}: nothing is done by itself, and nobody else is called"
        )
    if ESCALATE in told.stages:
        return _call(escalation, told)
    if reading.bad is None:
        return _unknown(rule, sighting, told)
    return _go_on(rule, episodes, told)


def comes_back(rule: Rule, episodes: Sequence[Told]) -> bool:
    """Whether people were called for the open episode, and it began within the cool-down after another one: a fault
    that comes and goes is one fault, which they hear of once, and which is over when it stays good for as long.
    """
    told = open_one(episodes)
    if told is None or ESCALATE not in told.stages:
        return False
    ended = (each.last_at for each in episodes if each is not told and (each.acts or each.calls))
    return any(at and abs((told.since - at).total_seconds()) < rule.cool_down for at in ended)


def _not_over(rule: Rule, told: Told, reading: Reading) -> Move | None:
    """What follows while it is not over; None: as for every other episode."""
    if (reading.bad is False) != bool(told.good_since):
        return Move("note", f"better: {reading.figure}" if not told.good_since else f"good no longer: {reading.figure}")
    if told.good_since and _since(told.good_since) < rule.cool_down:
        until = told.good_since + timedelta(seconds=rule.cool_down)
        return Move("wait", f"it comes and goes: over when it stays good until {until:%H:%M:%S} UTC")
    return None


def left_to_people(rule: Rule, recovery: str) -> Move:
    """What follows instead of an action, while a recovery that it could get in the way of stands unfinished."""
    return _left_to_people(rule, f"the recovery {recovery} was begun and is not at its end: nothing is done by itself")


def _left_to_people(rule: Rule, words: str) -> Move:
    return Move("escalate", words, ESCALATE) if rule.escalate else Move("wait", words)


def in_spite_of(error: SalvorError, rule: Rule, move: Move, sighting: Sighting) -> Move | None:
    """The move that is made, without a hold on the service, in spite of what hinders `move`; None: it waits.

    To call people, and to close, changes nothing but the journal: it needs no hold, and waits `unknown_for` at most for
    whoever works on the service. So does an action, and is people's then.
    """
    if isinstance(error, PlanMovedError):  # a person has closed it meanwhile
        return None
    is_late = (sighting.bad_for or sighting.unknown_for or 0.0) >= rule.for_ + rule.unknown_for
    if move.kind == "act":
        instead = _left_to_people(rule, f"{error.what.rstrip('.')}: nothing is done by itself")
        return instead if is_late and instead.kind != "wait" else None
    return move if is_late or isinstance(error, CannotError) else None


def _begin(rule: Rule, episodes: Sequence[Told], sighting: Sighting, reading: Reading) -> Move:
    """No episode is open: is it time to begin one?"""
    if reading.bad is None:
        return _unknown(rule, sighting, None)
    if not reading.bad or sighting.bad_for is None:
        return Move("wait", "good")
    if sighting.bad_for < rule.for_:
        words = f"bad for {clock.write_duration(sighting.bad_for)} of {clock.write_duration(rule.for_)}"
        return Move("wait", words)
    move = _go_on(rule, episodes, None)
    instead = _cooled(rule, episodes) if move.kind == "act" else None
    return instead or move


def _cooled(rule: Rule, episodes: Sequence[Told]) -> Move | None:
    """What follows instead of an action, while an episode that acted is over only now; None when none is."""
    ended = {told.last_at: told for told in episodes if told.acts and told.last_at}
    last = max((at for at in ended if _since(at) < rule.cool_down), default=None)
    if last is None:
        return None
    until = last + timedelta(seconds=rule.cool_down)
    words = (
        f"it is bad again after {ended[last].id}, and cools down until {until:%H:%M:%S} UTC: nothing is done by itself"
    )
    return _left_to_people(rule, words)


def _unknown(rule: Rule, sighting: Sighting, told: Told | None) -> Move:
    """It cannot be told: nothing is done, and after a while people are called."""
    unknown_for = sighting.unknown_for or 0.0
    words = f"it cannot be told, for {clock.write_duration(unknown_for)} now"
    if unknown_for < rule.unknown_for or not rule.escalate:
        return Move("wait", f"{words}: nothing is done")
    return Move("escalate", words, ESCALATE)


def _go_on(rule: Rule, episodes: Sequence[Told], told: Told | None) -> Move:
    """It is bad: the next stage, once the one before had its time."""
    stages = told.stages if told else {}
    ended: datetime | None = None
    for name in ACTING:
        stage = stages.get(name)
        if stage and stage.ended is None:
            return Move("act", f"{name} goes on", name)
        if stage:
            ended = stage.ended
        elif rule.actions(name):
            if wait := _not_yet(rule, ended, name):
                return wait
            done = acts_within(episodes, _HOUR)
            if done + len(rule.actions(name)) > rule.most_per_hour:
                words = f"it has acted {done} times within an hour, of {rule.most_per_hour} that it may"
                return _left_to_people(rule, words)
            return Move("act", name, name)
    if not rule.escalate:
        return Move("wait", "all that the rule may do is done, and it names nobody to call")
    if wait := _not_yet(rule, ended, ESCALATE):
        return wait
    return Move(
        "escalate", "it is not better after all that could be done" if ended else "nothing else can be done", ESCALATE
    )


def _not_yet(rule: Rule, ended: datetime | None, name: str) -> Move | None:
    if ended is None or _since(ended) >= rule.better_within:
        return None
    return Move("wait", f"{name} at {ended + timedelta(seconds=rule.better_within):%H:%M:%S} UTC, unless it is better")


def _call(escalation: Escalation | None, told: Told) -> Move:
    """People in their order, each after the delay, until one of them acknowledges."""
    begun = told.stages[ESCALATE].begun
    due, later, refused = [], [], []
    for call in escalation.calls if escalation else ():
        at, outcome = told.calls.get(call.channel, (None, ""))
        if outcome == "done":
            continue
        if outcome == "failed":
            refused.append(call.channel)
        if at and outcome and _since(at) < _TRY_AGAIN:
            later.append(f"{call.channel} once more at {at + timedelta(seconds=_TRY_AGAIN):%H:%M:%S} UTC")
        elif _since(begun) >= call.after:
            due.append(call.channel)
        else:
            later.append(f"{call.channel} at {begun + timedelta(seconds=call.after):%H:%M:%S} UTC")
    if due:
        return Move("call", f"call {', '.join(due)}", ESCALATE, tuple(due))
    called = f"called, not taken by {', '.join(refused)}" if refused else "called, nobody has acknowledged"
    return Move("wait", f"{called}; next: {', '.join(later) or 'nobody is left'}")

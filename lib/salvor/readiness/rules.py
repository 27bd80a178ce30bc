"""The rules of readiness, all of them; docs/readiness.md says the same in words.

`not ready`: the targets cannot be met today. `at risk`: nobody knows whether they can, or something is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from salvor import clock
from salvor.change import Reachable, State
from salvor.inventory import Service
from salvor.readiness.expected import CUTOVER, Expected
from salvor.readiness.looks import Drift, Newest

READY, AT_RISK, NOT_READY = "ready", "at risk", "not ready"
VERDICTS = (READY, AT_RISK, NOT_READY)
"""From the best to the worst."""

OLD_PROOF = 35 * 86400.0
"""Seconds after which a proof is old, where the inventory (`expect: {proven: 7d}`) does not say: drills are monthly."""


@dataclass(frozen=True)
class Proof:
    """The last restore of a system that passed `verify`: when, and by which incident or drill. `at` is None: never.
    `seconds_ago` is from when it was looked; `failed` is the newest drill that failed since.
    """

    system: str
    at: datetime | None = None
    seconds_ago: float = 0.0
    incident: str = ""
    purpose: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Reason:
    """Why a service is no better than `verdict`, in plain words, and the next command."""

    verdict: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of a service today. `needs` are the verdicts of the services that it depends on; `owed` is what
    its incidents still owe, and `open` those that have not ended, each with the incident's id.
    """

    service: Service
    platform: str
    states: Mapping[str, State]
    backups: tuple[Newest, ...]
    proofs: tuple[Proof, ...]
    expected: Expected | None
    drift: tuple[Drift, ...]
    needs: Mapping[str, str]
    open: tuple[tuple[str, str], ...]
    """The id and the purpose of each incident or drill that did not come to its end."""
    owed: tuple[tuple[str, str], ...]
    proof_ages: Mapping[str, float]
    """Seconds for which a proof of a system holds, where the inventory says so."""

    @property
    def loses(self) -> float | None:
        """Seconds of the newest data that a restore of now would lose; None when that cannot be told."""
        known = [each.loses for each in self.backups if each.id]
        return max(known) if known and len(known) == len(self.backups) else None

    def command(self, words: str) -> str:
        """A command for this service."""
        return f"inv {words} --service={self.service.name} --platform={self.platform}"


def judge(facts: Facts) -> tuple[Reason, ...]:
    """Every reason why the service is not ready, the worst first; none when it is."""
    found = [reason for rule in RULES for reason in rule(facts)]
    return tuple(sorted(found, key=lambda reason: -VERDICTS.index(reason.verdict)))


def verdict(reasons: tuple[Reason, ...]) -> str:
    """The verdict that these reasons make."""
    return max((reason.verdict for reason in reasons), key=VERDICTS.index, default=READY)


def it_works_now(facts: Facts) -> Iterator[Reason]:
    """A system that is down, takes no writes or has a second primary beside it, or an incident that has not recovered:
    not ready. One that gives no answer: at risk.
    """
    for incident, purpose in facts.open:
        if purpose == "incident":
            text = f"the incident {incident} has not recovered"
            yield Reason(NOT_READY, text, f"inv restore --incident={incident}")
        else:
            text = f"the drill {incident} did not come to its end: what it staged may still be there"
            yield Reason(AT_RISK, text, f"inv undo --incident={incident}")
    for name, state in facts.states.items():
        if state.reachable is Reachable.DOWN:
            yield Reason(NOT_READY, f"{name} is down: {state.summary}", facts.command("assess"))
        elif state.reachable is Reachable.UNKNOWN:
            yield Reason(AT_RISK, f"{name} gives no answer: {state.summary}", facts.command("assess"))
        elif state.writable is False or (state.writable is None and name in facts.service.systems):
            yield Reason(NOT_READY, f"{name} takes no writes: {state.summary}", facts.command("assess"))
        for rival in state.rivals:
            yield Reason(NOT_READY, f"{rival} runs beside {name}, not fenced", facts.command("assess"))


def it_can_be_restored(facts: Facts) -> Iterator[Reason]:
    """No usable backup, no way to restore one, or a restore of now that would lose more than the RPO: not ready. Nobody
    can tell, or one of several ways is closed: at risk.
    """
    for each in facts.backups:
        if not each.id:
            verdict = NOT_READY if each.can_tell else AT_RISK
            yield Reason(verdict, each.problem, facts.command("backup" if each.can_tell else "backups"))
            continue
        if each.unread:
            yield Reason(AT_RISK, f"{each.system}: {each.unread}", facts.command("backups --check"))
        if each.problem:
            is_unseen = facts.states[each.system].reachable is Reachable.UNKNOWN
            verdict = NOT_READY if each.is_closed and not is_unseen else AT_RISK
            yield Reason(verdict, each.problem, facts.command("drill" if each.is_closed else _newer(each)))
        if each.loses > facts.service.rpo:
            told = f"a restore of {each.system} would lose the last {clock.write_duration(each.loses)}"
            limit = clock.write_duration(facts.service.rpo)
            yield Reason(NOT_READY, f"{told}, and {limit} are allowed (RPO)", facts.command(_newer(each)))


def _newer(newest: Newest) -> str:
    """What makes a newer backup of the kind that a restore of now would take: `inv backup` alone makes no dump."""
    return f"backup --kind={newest.furthest}" if newest.furthest in ("dump", "archive") else "backup"


def in_time(facts: Facts) -> Iterator[Reason]:
    """An expected RTO beyond the target: not ready. Never measured, not whole, or the worst beyond it: at risk.

    A service without data cannot be rehearsed alone: unmeasured, it is as ready as what it depends on.
    """
    expected, limit = facts.expected, facts.service.rto
    allowed = f"{clock.write_duration(limit)} are allowed (RTO)"
    if expected is None and not facts.service.systems:
        return
    if expected is None:
        yield Reason(AT_RISK, "no recovery was ever measured: nobody knows what it takes", facts.command("drill"))
        return
    if expected.median > limit:
        text = f"a recovery is expected to take {clock.write_duration(expected.median)}, and {allowed}"
        yield Reason(NOT_READY, text, facts.command("drill"))
    elif expected.worst > limit:
        text = f"with each step at its worst a recovery takes {clock.write_duration(expected.worst)}, and {allowed}"
        yield Reason(AT_RISK, text, facts.command("drill"))
    if expected.missing:
        text = f"never measured: {', '.join(expected.missing)}; the expected RTO is without it"
        if expected.missing == (CUTOVER,):
            yield Reason(AT_RISK, f"{text}, until an incident or a drill of a stand-in measures it: a rehearsal cannot")
        else:
            yield Reason(AT_RISK, text, facts.command("drill"))


def it_was_proven(facts: Facts) -> Iterator[Reason]:
    """A restore that was never proven, or too long ago, or a drill that failed since: at risk."""
    for proof in facts.proofs:
        if proof.failed:
            text = f"the drill {proof.failed} of {proof.system} failed, and no restore was proven since"
            yield Reason(AT_RISK, text, f"inv incident.show --incident={proof.failed}")
        if proof.at is None:
            yield Reason(AT_RISK, f"no restore of {proof.system} was ever proven", facts.command("drill"))
            continue
        limit = facts.proof_ages.get(proof.system, OLD_PROOF)
        if proof.seconds_ago > limit:
            text = f"the last proven restore of {proof.system} was {clock.write_duration(proof.seconds_ago)} ago"
            allowed = f"{clock.write_duration(limit)} are allowed"
            yield Reason(AT_RISK, f"{text}, and {allowed}", facts.command("drill"))


def the_inventory_is_true(facts: Facts) -> Iterator[Reason]:
    """What the inventory says and reality does not (a host, its key, a record, a contact, a secret): at risk."""
    for each in facts.drift:
        yield Reason(AT_RISK, f"{each.what}: {each.problem}", each.hint)


def nothing_is_owed(facts: Facts) -> Iterator[Reason]:
    """Work that an incident still owes: at risk."""
    for incident, what in facts.owed:
        yield Reason(AT_RISK, f"still owed by {incident}: {what}", f"inv incident.show --incident={incident}")


def so_are_its_needs(facts: Facts) -> Iterator[Reason]:
    """A service is no readier than what it depends on."""
    for name, verdict in facts.needs.items():
        if verdict != READY:
            hint = f"inv readiness --service={name} --platform={facts.platform}"
            yield Reason(verdict, f"it depends on {name}, which is {verdict}", hint)


RULES: tuple[Callable[[Facts], Iterator[Reason]], ...] = (
    it_works_now,
    it_can_be_restored,
    in_time,
    it_was_proven,
    the_inventory_is_true,
    nothing_is_owed,
    so_are_its_needs,
)

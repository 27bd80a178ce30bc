"""The rules of readiness at their limits: a target is met by what takes exactly as long, and unknown is not down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from salvor import clock
from salvor.change import Reachable, State
from salvor.inventory import Service
from salvor.readiness.expected import Expected, StepTime
from salvor.readiness.looks import Newest
from salvor.readiness.rules import Facts, Proof, judge, verdict

BACKUP = Newest("db", id="b1", loses=60.0)


def facts(**more: Any) -> Facts:
    """A service that is ready, with an RTO of 300 s and an RPO of 60 s; `more` is what is otherwise."""
    sound: dict[str, Any] = {
        "states": {"db": State(Reachable.UP, "db", True, "it runs")},
        "backups": (BACKUP,),
        "proofs": (Proof("db", clock.now(), 86400.0),),
        "expected": expected(median=300.0, worst=300.0),
        "drift": (),
        "needs": {},
        "open": (),
        "owed": (),
        "proof_ages": {"db": 86400.0},
    }
    return Facts(Service(name="shop", rto=300.0, rpo=60.0, systems=("db",)), "world", **(sound | more))


def expected(**seconds: float) -> Expected:
    return Expected((StepTime("restore", 1.0, 1.0, 1, "measured once"),), **seconds, missing=())


def judged(**more: Any) -> tuple[str, str, str]:
    """The verdict, and the first reason with its hint."""
    reasons = judge(facts(**more))
    return verdict(reasons), reasons[0].text if reasons else "", reasons[0].hint if reasons else ""


def state(reachable: Reachable, *, writable: bool | None = True, rivals: tuple[str, ...] = ()) -> dict[str, State]:
    return {"db": State(reachable, "db", writable, "it says so", rivals=rivals)}


def test_what_takes_exactly_as_long_as_is_allowed_is_in_time() -> None:
    assert judged() == ("ready", "", "")
    assert judged(expected=expected(median=300.1, worst=300.1))[0] == "not ready"
    assert judged(expected=expected(median=300.0, worst=300.1))[0] == "at risk"
    assert judged(backups=(Newest("db", id="b1", loses=60.1),))[0] == "not ready"


def test_the_inventory_says_how_long_a_proof_holds() -> None:
    late = (Proof("db", clock.now(), 86401.0),)
    assert judged(proofs=late)[0] == "at risk"
    assert judged(proofs=late, proof_ages={})[0] == "ready"


def test_a_repository_that_cannot_be_asked_is_no_lack_of_backups() -> None:
    mute = Newest("db", problem="its backups cannot be listed: no answer", can_tell=False)
    assert judged(backups=(mute,)) == ("at risk", mute.problem, "inv backups --service=shop --platform=world")
    assert judged(backups=(Newest("db", problem="none"),))[::2] == (
        "not ready", "inv backup --service=shop --platform=world",
    )  # fmt: skip
    assert facts(backups=(BACKUP, mute)).loses is None, "nobody can tell what would be lost"
    half = replace(BACKUP, unread="off-site could not be read: no route")
    told = (
        "at risk",
        "db: off-site could not be read: no route",
        "inv backups --check --service=shop --platform=world",
    )
    assert judged(backups=(half,)) == told, "what the other one holds is good, and not all that there is"


def test_a_backup_that_could_not_be_restored_now_is_not_ready_unless_nobody_can_tell() -> None:
    shut = Newest("db", id="b1", problem="no restore could begin", is_closed=True)
    assert judged(backups=(shut,)) == ("not ready", shut.problem, "inv drill --service=shop --platform=world")
    dump = replace(shut, is_closed=False, furthest="dump")
    by_dump = "inv backup --kind=dump --service=shop --platform=world"
    assert judged(backups=(dump,)) == ("at risk", shut.problem, by_dump), "what has no cure is made up for by dumps"
    assert [reason.hint for reason in judge(facts(backups=(replace(dump, problem="", loses=60.1),)))] == [by_dump]
    silent = judge(facts(backups=(shut,), states=state(Reachable.UNKNOWN)))
    assert {reason.verdict for reason in silent} == {"at risk"}, "nobody answers there"
    late = replace(shut, is_closed=False, loses=60.1)
    assert [reason.verdict for reason in judge(facts(backups=(late,)))] == ["not ready", "at risk"]


def test_what_works_is_up_takes_writes_and_is_alone() -> None:
    assert judged(states=state(Reachable.UNKNOWN))[0] == "at risk"
    assert judged(states=state(Reachable.DOWN))[0] == "not ready"
    program = {"app": State(Reachable.UP, "app", None, "it runs")}
    assert judged(states=program)[0] == "ready", "a program says nothing of it"
    for writable in (None, False):  # None: its commits hang
        said = judged(states=state(Reachable.UP, writable=writable))[:2]
        assert said == ("not ready", "db takes no writes: it says so")
    assert judged(states=state(Reachable.UP, rivals=("db-b",)))[:2] == (
        "not ready", "db-b runs beside db, not fenced",
    )  # fmt: skip

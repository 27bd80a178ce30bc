"""What a review learns from the figures: nothing worse, better, or more often than it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from salvor.budgets import StepTime
from salvor.change import Level
from salvor.journal.happened import Act, Interruption, Mark, Sitting, StepRun, Story
from salvor.review import lessons

from tests.told import DECLARED, POINT, RECOVERED, STAGE, later

FAILED = Mark("failed", later(10), "kim", "no room left")
BACK = Mark("recovered", later(20), "kim", "")


def learned(budgets: tuple[StepTime, ...] = (), **told: Any) -> dict[str, Level]:
    """The level of each lesson of such a story."""
    return {each.what: each.level for each in lessons.learn(Story("x", **told), budgets)}


def tried(number: int, outcome: str, error: str = "", observed: str = "") -> Act:
    return Act(number, "restore", STAGE.key, STAGE, "kim", later(0), outcome=outcome, error=error, observed=observed)


def run(*acts: Act, **more: Any) -> StepRun:
    return StepRun("restore", 1, "kim", later(0), acts=list(acts), **more)


def test_a_failure_is_told_once_and_is_a_warning_when_the_service_came_back_after_it() -> None:
    assert learned(marks=[FAILED]) == {"It failed": Level.FAIL}
    assert learned(marks=[FAILED, BACK]) == {"It failed": Level.WARN}
    assert learned(marks=[BACK, replace(FAILED, at=later(30))]) == {"It failed": Level.FAIL}
    of_a_change = learned(marks=[FAILED], steps=[run(tried(1, "failed", FAILED.text))])
    assert "It failed" not in of_a_change and len(of_a_change) > 0
    left: dict[str, Any] = {"sittings": [Sitting("kim", later(0))], "steps": [run()]}
    assert learned(**left) == {"It did not come to its end": Level.FAIL}
    assert learned(marks=[FAILED], **left) == {"It failed": Level.FAIL}


def test_a_change_is_as_bad_as_it_turned_out() -> None:
    (name,) = [what.rpartition(":")[0] for what in learned(steps=[run(tried(1, "failed"))]) if "failed" in what]
    assert learned(steps=[run(tried(1, "failed"))])[f"{name}: failed"] is Level.FAIL
    assert learned(steps=[run(tried(1, "unknown"))])[f"{name}: unknown"] is Level.UNKNOWN
    assert learned(steps=[run(tried(1, "unknown", observed="done"))])[f"{name}: seen done"] is Level.WARN
    assert learned(steps=[run(tried(1, "failed"), tried(2, "done"))])[f"{name}: failed"] is Level.WARN
    assert learned(steps=[run(tried(1, "done"), tried(2, "failed"))])[f"{name}: failed"] is Level.FAIL


def test_a_target_that_was_just_met_is_met_and_only_an_incident_has_to_be_noticed() -> None:
    times: dict[str, Any] = {"targets": {"rto": 900.0}, "failed_at": later(-1000), "detected_at": later(0)}
    blind = "Nobody noticed for longer than the RTO"
    assert learned(purpose="incident", measured={"rto": 900.0}, **times) == {
        "The RTO was met": Level.PASS,
        blind: Level.WARN,
    }
    assert learned(purpose="incident", measured={"rto": 900.1}, **times)["The RTO was missed"] is Level.FAIL
    assert blind not in learned(purpose="drill", **times)


def test_what_was_undone_met_no_target() -> None:
    """The review of a recovery that was taken back said that its RTO was met."""
    met: dict[str, Any] = {"targets": {"rto": 900.0, "rpo": 60.0}, "measured": {"rto": 20.0, "rpo": 0.0}}
    undone = [BACK, Mark("undone", later(30), "kim", "")]
    assert learned(purpose="incident", marks=undone, **met) == {"It was undone": Level.WARN}
    assert learned(purpose="drill", marks=undone, **met) == {
        "The RTO was met": Level.PASS,
        "The RPO was met": Level.PASS,
    }


def test_what_went_well_is_said_of_all_or_not_at_all() -> None:
    quick, slow = (
        StepTime(name, seconds, 10.0, "the budget", None) for name, seconds in (("restore", 1.0), ("verify", 11.0))
    )
    within = "Every step was within its budget"
    assert within in learned((quick,)) and within not in learned((quick, slow))
    told = [
        Act(n, "notify", one.key, one, "kim", later(n), outcome="done") for n, one in enumerate((DECLARED, RECOVERED))
    ]
    sent = "Every message went out at the first try"
    assert sent in learned(steps=[run(*told)])
    assert sent not in learned(steps=[run(told[0], replace(told[1], outcome="failed"))])
    made = [Act(n, "reroute", one.key, one, "kim", later(n), outcome="done") for n, one in enumerate((STAGE, POINT))]
    back, calm = "Every change had a way back", "Nothing interrupted the work"
    assert {back, calm} <= learned(steps=[run(*made)]).keys()
    final = replace(made[1], change=replace(POINT, undo=None, no_undo="gone"))
    assert back not in learned(steps=[run(made[0], final)])
    assert calm not in learned(steps=[run(*made)], interruptions=[Interruption(later(1), later(2), "restore")])

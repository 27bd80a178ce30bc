"""Plans, as data: what each step saw, decided and would change, and the hash that an operator approves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from salvor.change import Change, Decision, Finding, canonical, plan_hash
from salvor.errors import UsageError
from salvor.secrets import mask, mask_data


@dataclass(frozen=True)
class PlannedStep:
    """What one step saw, decided and would change."""

    name: str
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for other programs."""
        return {
            "step": self.name,
            "findings": [finding.to_json() for finding in self.findings],
            "decisions": [decision.to_json() for decision in self.decisions],
            "changes": [change.to_json() for change in self.changes],
        }


@dataclass(frozen=True)
class Plan:
    """A chain of planned steps. `hash` is what an operator approves."""

    steps: tuple[PlannedStep, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for step in self.steps for change in step.changes)

    @property
    def hash(self) -> str:
        return plan_hash(self.changes)


def describe(change: Change) -> str:
    """One line for people: `orders-db: stage side-data backup=20261121-003300F`."""
    arguments = " ".join(
        str(value) if name == "stage" else f"{name}={value}"
        for name, value in change.arguments.items()
        if value is not None
    )
    return mask(f"{change.system}: {change.verb} {arguments}".rstrip())


def undoable(change: Change) -> Change:
    """`change`; without its undo where the journal would mask that, because what is masked cannot be read back."""
    undo = change.to_json()["undo"]
    if undo and _is_masked(undo):
        return replace(
            change, undo=None, no_undo="its way back holds what looks like a secret, and is not written down"
        )
    return change


def refuse_masked(decision: Decision) -> None:
    """A decision is read back from the journal, which masks secrets: then it would lead elsewhere."""
    way = decision.to_json()["way"]
    acted_on = {name: way[name] for name in ("identity", "arguments", "promote", "promote_undo")}
    if _is_masked({"pinned": decision.identity, **acted_on}):
        raise UsageError(
            f"{decision.system}: {way['name']} needs what looks like a secret: {mask(canonical(acted_on))}",
            safe="nothing was changed",
            hint="give it another name (a copy of the file, say), or choose another backup",
        )


def _is_masked(data: object) -> bool:
    return canonical(mask_data(data)) != canonical(data)

"""What the journal of an incident says: taken in line by line as it is written, or whole when it is gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from salvor.change import Change, Decision, Finding, Level

_FRAME = ("n", "at", "by", "kind", "previous")
"""What every line has."""


@dataclass(kw_only=True)
class Learned:
    """What was pinned, found, approved, measured and proven so far, and what was begun and not seen to end."""

    decisions: dict[str, Decision] = field(default_factory=dict)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    decided_at: dict[str, int] = field(default_factory=dict)
    """How many findings there were when the way back of a system was pinned last."""
    measured: dict[str, Any] = field(default_factory=dict)
    recovered_once: bool = False
    over: str = ""
    """How it ended (closed, undone, discarded); empty while it is open."""
    approvals: dict[str, set[str]] = field(default_factory=dict)
    """The keys of the changes that were approved, by the hash of their plan."""
    asked: str = ""
    """The hash of the plan that a second person was asked to approve last."""
    interrupted: dict[str, tuple[str, Change]] = field(default_factory=dict)
    """What was begun and not seen to end, by its key: the step, and the change."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """How the changes ended that were made, by their key: done, failed, unknown; of several times the last."""
    added: dict[str, str] = field(default_factory=dict)
    """The overrides that came after it was opened, with their reasons."""
    _told: bool = field(default=False, repr=False)
    _promoting: set[str] = field(default_factory=set, repr=False)
    """The systems whose cutover was begun."""
    placed: set[str] = field(default_factory=set, repr=False)
    """The systems whose cutover was made, and not taken back."""
    fenced: set[str] = field(default_factory=set, repr=False)
    """The systems that it fenced, in which something may have been opened again since."""
    halted: set[str] = field(default_factory=set, repr=False)
    """The applications that this incident stopped, or began to."""
    proven: set[str] = field(default_factory=set, repr=False)
    """The identities of the copies that passed `verify` to its end."""
    _proving: dict[str, bool] = field(default_factory=dict, repr=False)
    survived: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """The line of the copy of each system that was proven last."""

    def learn(self, line: Mapping[str, Any]) -> None:
        """Take in one journal line, as it is written or when the incident is resumed."""
        match line["kind"]:
            case "decision":
                decision = Decision.from_json(line["decision"])
                self.decisions[decision.system] = decision
                self.decided_at[decision.system] = len(self.findings)
            case "finding":
                finding = Finding.from_json(line["finding"])
                self.findings.append((line["step"], finding))
                if line["step"] == "verify":
                    self._weigh(finding)
            case "step" if line["step"] == "verify":
                self._weigh_all(ended=line["phase"] == "ended")
            case "proven":
                self.survived[line["system"]] = line
            case "approved":
                self.approvals[line["hash"]] = {change["key"] for change in line["changes"]}
            case "asked":
                self.asked = line["hash"]
            case "measured":
                figures = {name: value for name, value in line.items() if name not in _FRAME}
                self.measured = {**self.measured, **figures}
            case "recovered":
                self.recovered_once = True
            case "intent" if line.get("undoing"):
                self.recovered_once = False  # it is on its way back
                self.placed.discard(line["change"]["system"])
            case "intent":
                change = Change.from_json(line["change"])
                self.interrupted[line["change"]["key"]] = line["step"], change
                if change.verb == "stop":
                    self.halted.add(change.system)
                elif change.verb == "promote":
                    self._promoting.add(change.system)
            case "outcome" | "observed" if not line.get("undoing"):
                _, ended = self.interrupted.pop(line["key"], ("", None))
                self.outcomes[line["key"]] = line["outcome"]
                if ended is not None and line["outcome"] == "done":
                    self.placed |= {ended.system} if ended.verb == "promote" else set()
                    self.fenced |= {ended.system} if ended.verb == "fence" else set()
                self._told |= ended is not None and ended.verb == "send" and line["outcome"] in ("done", "unknown")
            case "overridden":
                self.added = {**self.added, **line["overrides"]}
                # Another way back may be open now, but for what is on its way already.
                self.decisions = {name: one for name, one in self.decisions.items() if name in self._promoting}
            case "closed" | "undone" | "discarded":
                self.over = line["kind"]

    @property
    def may_have_told(self) -> bool:
        """Whether a message of it went out, as far as that is known."""
        return self._told or any(change.verb == "send" for _, change in self.interrupted.values())

    def _weigh(self, finding: Finding) -> None:
        """One finding of `verify`: a single bad one takes the proof from the copy that it was seen on, at once."""
        good = finding.level in (Level.PASS, Level.WARN)
        self._proving[finding.evidence] = good and self._proving.get(finding.evidence, True)
        if not good:
            self.proven.discard(finding.evidence)

    def _weigh_all(self, *, ended: bool) -> None:
        """`verify` begins or ends. Only at its end is a copy proven: a crash in its midst left some checks unasked."""
        if ended:
            self.proven |= {identity for identity, good in self._proving.items() if good and identity}
        self._proving = {}

    def learn_anew(self, lines: list[dict[str, Any]]) -> None:
        """Take in a whole journal, and forget what this process decided without writing it down."""
        for name, value in vars(Learned()).items():
            setattr(self, name, value)
        for line in lines:
            self.learn(line)

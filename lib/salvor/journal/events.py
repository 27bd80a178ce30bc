"""Each line of a journal as one sentence: who did what when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from salvor import clock
from salvor.change import Change, Level
from salvor.plain import amount

FRAME = ("n", "at", "by", "kind", "previous")
"""What every line of a journal has besides its own data."""

_LEVELS = {"done": "pass", "failed": "fail", "unknown": "unknown", "not done": "fail"}


@dataclass(frozen=True)
class Event:
    """One line for people. `level` is pass, warn, fail, unknown, or empty; an overview leaves out what `is_detail`."""

    number: int
    at: datetime
    by: str
    kind: str
    text: str
    level: str = ""
    is_detail: bool = False


def of(line: Mapping[str, Any], at: datetime, by: str, change: Change | None = None) -> Event:
    """The event that `line` tells of. `change` is the one that an outcome or an observation belongs to."""
    kind = str(line["kind"])
    write = _SENTENCES.get(kind, _data)
    text = write(line, describe(change) if change else str(line.get("key", "")))
    return Event(int(line["n"]), at, by, kind, text, _level(line), kind in ("step", "finding"))


def describe(change: Change) -> str:
    """A change without its arguments, which the table of changes shows."""
    return f"{change.system}: {change.verb}"


def _level(line: Mapping[str, Any]) -> str:
    match line["kind"]:
        case "finding":
            return str(Level(line["finding"]["level"]))
        case "outcome" | "observed":
            return _LEVELS.get(line["outcome"], "unknown")
        case "recovered" | "proven" | "paid" | "confirmed":
            return "pass"
        case "owed" | "repaired" | "refused":
            return "warn"
        case "failed":
            return "fail"
    return ""


def _opened(line: Mapping[str, Any], change: str) -> str:
    return f"opened: {line['purpose']} of {line['service']} on {line['platform']}, runbook {line['runbook']}"


def _taken(line: Mapping[str, Any], change: str) -> str:
    holder = line["holder"]
    from_whom = f" from {holder.get('by')} on {holder.get('host', '?')}" if holder else ""
    reason = f": {line['reason']}" if line.get("reason") else ""
    return f"taken over on {line['where']}{from_whom}{reason}"


def _step(line: Mapping[str, Any], change: str) -> str:
    if line["phase"] == "begun":
        return f"{line['step']} begun, {amount(line.get('planned', 0), 'change')} planned"
    return f"{line['step']} ended after {clock.write_duration(line['seconds'])}"


def _finding(line: Mapping[str, Any], change: str) -> str:
    finding = line["finding"]
    figure = finding.get("figure") or finding["level"]
    return f"{line['step']}: {finding['subject']}: {finding['check']}: {figure}"


def _decision(line: Mapping[str, Any], change: str) -> str:
    decision = line["decision"]
    return f"decided for {decision['system']}: {decision['way']['name']} ({decision['seen']})"


def _approved(line: Mapping[str, Any], change: str) -> str:
    return f"approved plan {line['hash']} with {amount(len(line['changes']), 'change')} ({line['how']})"


def _asked(line: Mapping[str, Any], change: str) -> str:
    return f"asked a second person to approve plan {line['hash']}, for {', '.join(line['steps'])}"


def _confirmed(line: Mapping[str, Any], change: str) -> str:
    signed = f", signed with {line['key']}" if line.get("key") else ", not signed"
    return f"{line['who']} approved plan {line['hash']} as the second person ({line['where']}){signed}"


def _overridden(line: Mapping[str, Any], change: str) -> str:
    return "overridden: " + "; ".join(f"{name}: {reason}" for name, reason in line["overrides"].items())


def _item(line: Mapping[str, Any], change: str) -> str:
    note = f": {line['note']}" if line.get("note") and not line.get("run") else ""
    return f"{line['item']}: {line['outcome']}{note}"


def _intent(line: Mapping[str, Any], change: str) -> str:
    described = describe(Change.from_json(line["change"]))
    return f"began {described}" + (", to take a change back" if line.get("undoing") else "")


def _outcome(line: Mapping[str, Any], change: str) -> str:
    error = f": {line['error']}" if line.get("error") else ""
    return f"{change}: {line['outcome']} after {clock.write_duration(line['seconds'])}{error}"


def _observed(line: Mapping[str, Any], change: str) -> str:
    return f"looked again at {change}: {line['outcome']}"


def _measured(line: Mapping[str, Any], change: str) -> str:
    figures = [
        f"{name.upper()} {clock.write_duration(line[name])}" for name in ("rto", "rpo") if line.get(name) is not None
    ]
    if line.get("would_lose") is not None:
        figures.append(f"would lose {clock.write_duration(line['would_lose'])}")
    newest = f"newest commit that survived: {line['newest_commit']}" if line.get("newest_commit") else ""
    return "measured " + ", ".join([*figures, newest] if newest else figures)


def _ending(line: Mapping[str, Any], change: str) -> str:
    return f"{line['kind']}: {line['result']}" if line.get("result") else str(line["kind"])


def _data(line: Mapping[str, Any], change: str) -> str:
    """A kind of line that has no sentence of its own."""
    pairs = [f"{name} {value}" for name, value in line.items() if name not in FRAME and value not in (None, "")]
    return f"{line['kind']}: {', '.join(pairs)}" if pairs else str(line["kind"])


_SENTENCES: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "opened": _opened,
    "resumed": lambda line, change: f"resumed on {line['where']}",
    "taken": _taken,
    "step": _step,
    "finding": _finding,
    "decision": _decision,
    "approved": _approved,
    "asked": _asked,
    "confirmed": _confirmed,
    "refused": lambda line, change: f"an approval does not count: {line['why']}",
    "item": _item,
    "intent": _intent,
    "outcome": _outcome,
    "observed": _observed,
    "owed": lambda line, change: f"owed: {line['what']}: {line['why']}",
    "paid": lambda line, change: f"no longer owed: {line['what']}",
    "measured": _measured,
    "recovered": lambda line, change: "the service is back",
    "failed": lambda line, change: f"failed: {line['text']}",
    "overridden": _overridden,
    "proven": lambda line, change: f"proven for {line['system']}: {line['backup'] or line['identity']}",
    "note": lambda line, change: f"note: {line['text']}",
    "acknowledged": lambda line, change: f"acknowledged: {line['text'] or 'no word'}",
    "repaired": lambda line, change: f"journal repaired: {line['text']}",
    "undone": _ending,
    "discarded": _ending,
    "closed": _ending,
}

"""The verdict on a recovery that was disturbed: is all as an undisturbed one leaves it?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import salvor.sandbox
from salvor.change import Level
from salvor.journal import Journal, evidence, incidents
from salvor.sandbox import processes, receiver, survivors
from salvor.sandbox.layout import Layout

ALLOWED_TO_LOSE = {"kill-primary": 30, "freeze-primary": 30, "lose-datadir": 30, "corrupt-pages": 30}
"""Acknowledged orders that a replica may not have had yet, within the RPO; a restore to a moment loses none before."""
_REPEAT = ("may be a repeat", "두 번 전달될 수")
_OLD, _FRONTS = "127.0.0.11", {"127.0.0.21": "a", "127.0.0.22": "b"}


def rehearsed(found: Layout, folder: Path, moment: datetime, dns: Path, disaster: str) -> list[str]:
    """What is wrong after a rehearsal: it may have touched nothing that is live, told nobody, and left nothing."""
    told = [Journal.read(each) for each in incidents(folder)]
    wrong = [*_journals(told), *_left_over(found)]
    if any(line["change"]["verb"] not in ("stage", "drop") for each in told for line in each.of("intent")):
        wrong.append("it changed more than its stage")
    if not any(each.of("proven") for each in told):
        wrong.append("nothing was proven")
    if receiver.messages(found.messages):
        wrong.append("people were told")
    if not processes.until(lambda: all(part.up for part in salvor.sandbox.status()), 30):
        wrong.append(f"not all is as it was: {salvor.sandbox.status()}")
    elif (lost := survivors.survivors(moment).lost) > 0:
        wrong.append(f"{lost} acknowledged orders are lost")
    if [line.split()[1] for line in dns.read_text(encoding="utf-8").splitlines()] != [_OLD]:
        wrong.append("the name was changed")
    return wrong


def recovered(
    found: Layout, folder: Path, moment: datetime, dns: Path, disaster: str, proven_at: float | None
) -> list[str]:
    """What is wrong after a recovery; empty when nothing is. `proven_at`: seconds since the epoch, by a clock that
    nobody stepped: the journal's times are the operator's.
    """
    told = [Journal.read(each) for each in incidents(folder)]
    acted = [journal for journal in told if journal.of("intent")]
    if len(acted) != 1:
        return [f"{len(acted)} incidents acted: {[journal.folder.name for journal in acted]}"]
    return [
        *_journals(told),
        *_service(acted[0], moment, disaster),
        *_messages(found),
        *_names(proven_at, dns),
        *_kept(found, acted[0]),
        *_left_over(found),
    ]


def _journals(told: list[Journal]) -> Iterator[str]:
    for journal in told:
        for finding in evidence.check(journal.folder):
            if finding.level is Level.FAIL:
                yield f"the journal does not verify: {finding}"
        begun = [line["change"]["key"] for line in journal.of("intent")]
        ended = {line["key"] for line in journal.of("outcome", "observed")}
        yield from (f"nobody wrote how {key} ended" for key in begun if key not in ended)


def _service(journal: Journal, moment: datetime, disaster: str) -> Iterator[str]:
    """It is back, and what customers were promised is there."""
    if not journal.of("recovered"):
        yield "the incident has not recovered"
    parts: list[salvor.sandbox.Part] = []

    def serves() -> bool:
        parts[:] = [part for part in salvor.sandbox.status() if not part.up and not part.name.startswith("database")]
        return not parts

    if not processes.until(serves, 20):
        yield f"not all is back: {parts}"
        return
    counted = survivors.survivors(moment)
    lost = counted.before - counted.before_survived
    if counted.before < 10 or lost > ALLOWED_TO_LOSE.get(disaster, 0):
        yield f"{lost} of {counted.before} acknowledged orders are lost"


def _messages(found: Layout) -> Iterator[str]:
    """People got each message; one that came again says that it may be a repeat (its receiver can tell by the key)."""
    came: dict[tuple[str, str], list[str]] = defaultdict(list)
    for message in receiver.messages(found.messages):
        came[message.channel, message.key].append(message.text)
    for (channel, key), texts in came.items():
        unannounced = [text for text in texts[1:] if not any(words in text for words in _REPEAT)]
        if unannounced:
            yield f"{channel} got {key} again, and was not told that it may be a repeat"
    moments = {key.split("/")[1] for _, key in came}
    if not {"declared", "recovered"} <= moments or not moments <= {"declared", "recovered", "failed"}:
        yield f"people were told {sorted(moments)}"


def _names(proven_at: float | None, dns: Path) -> Iterator[str]:
    """The name led to what was there before, and then only to what had been promoted after it was proven."""
    for line in dns.read_text(encoding="utf-8").splitlines():
        at, address = line.split()
        if address == _OLD:
            continue
        if address not in _FRONTS:
            yield f"the name led to {address}"
        elif proven_at is None or proven_at > float(at):
            yield f"the name led to {address} before anything was proven"


def _kept(found: Layout, journal: Journal) -> Iterator[str]:
    """What was live before is still there."""
    decisions = [line["decision"] for line in journal.of("decision")]
    if not decisions:
        yield "it acted, and no way back was chosen"
        return
    decision = decisions[0]
    if decision["way"]["name"] == "failover" or decision["identity"] == "absent":
        return
    kept = [path for member in ("a", "b") for path in found.data(member).parent.glob("data.kept-*") if path.is_dir()]
    if not kept:
        yield "what was live before is not there any more"


def _left_over(found: Layout) -> Iterator[str]:
    """No stage is left that nobody needs, and nothing works in one."""
    for member in ("a", "b"):
        for path in found.data(member).parent.glob("data.salvor-*"):
            if path.is_dir():
                yield f"a stage is left over: {path.name}"
